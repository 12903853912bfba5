"""Groups of one wave may ask for different edits of one lesson: which of them stand?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reflect.lessons.edit_format import Edit
from reflect.lessons.similarity import normal
from reflect.records import Lesson


@dataclass(frozen=True)
class ProposedEdits:
    """The edits that one group of a wave asks for; `content`: it went well, so what it does not
    touch may stay."""

    edits: Sequence[Edit]
    tried: Sequence[Lesson] = ()  # the lessons in its prompt, and those in its weights
    contrast: bool = False
    content: bool = False
    trust: str = "clean"  # what outside bytes say has no vote among the others

    def targets(self, edit: Edit) -> list[tuple[str, str, str]]:
        """What the edit would change: an ADD for the condition of a lesson that was tried is about
        that lesson."""
        same = [
            x.id for x in self.tried if edit.kind == "add" and normal(x.when) == normal(edit.when)
        ]
        targets = (("lesson", str(same[0])),) if same else edit.targets
        return [(self.trust, *target) for target in targets]


def select_winning_edits(ballots: Sequence[ProposedEdits]) -> list[list[bool]]:
    """Which edits of a wave stand? One list per ballot.

    The groups of a wave did not see each other's lessons, so none is newer than another. For each
    target the text that most groups ask for wins, groups with contrast before groups without, the
    later one in a tie. A lesson that is to change needs more groups that ask for it than groups
    that went well with the lesson and are content: a few stray attempts must not undo what works. A
    MERGE must win for each of its lessons.
    """
    votes: dict[tuple[str, str, str], dict[tuple[str, str, str], tuple[int, int, int]]] = {}
    for i, ballot in enumerate(ballots):
        for edit in ballot.edits:
            for target in ballot.targets(edit):
                wishes = votes.setdefault(target, {})
                best, total, _ = wishes.get(edit.wish, (0, 0, 0))
                wishes[edit.wish] = (best + ballot.contrast, total + 1, i)
    kept = Counter(
        target
        for ballot in ballots
        if ballot.content
        for target in [(ballot.trust, "lesson", str(lesson.id)) for lesson in ballot.tried]
        if target not in {one for edit in ballot.edits for one in ballot.targets(edit)}
    )

    def wins(wish: tuple[str, str, str], target: tuple[str, str, str]) -> bool:
        wishes = votes[target]
        asked = sum(total for _, total, _ in wishes.values())
        return wishes[wish] == max(wishes.values()) and asked > kept[target]

    return [
        [all(wins(edit.wish, target) for target in ballot.targets(edit)) for edit in ballot.edits]
        for ballot in ballots
    ]
