"""Votes on edits: the groups of one wave may ask for different edits of one lesson."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.lessons.similarity import normal
from reflect.types import EditKind, Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.lessons.edit_format import Edit
    from reflect.records import Lesson


@dataclass(frozen=True)
class ProposedEdits:
    """The edits that one group of a wave proposes."""

    edits: Sequence[Edit]
    tried: Sequence[Lesson] = ()
    """The lessons in its prompt, and those in its weights."""
    contrast: bool = False
    content: bool = False
    """The group went well, so what it does not edit may stay."""
    trust: str = Trust.CLEAN
    """Groups of another trust vote separately."""

    def targets(self, edit: Edit) -> list[tuple[str, str, str]]:
        """What the edit changes; an ADD for the condition of a tried lesson means that one."""
        adds = edit.kind == EditKind.ADD
        same = [x.id for x in self.tried if adds and normal(x.when) == normal(edit.when)]
        targets = (("lesson", str(same[0])),) if same else edit.targets
        return [(self.trust, *target) for target in targets]


def select_winning_edits(
    proposals: Sequence[ProposedEdits], *, compete: bool = False
) -> list[list[bool]]:
    """Which edits of a wave are carried out, one list per group. `compete`: each new text is, as
    trials choose among them.

    The groups of a wave did not see each other's lessons, so none is newer than another. For each
    target the text that most groups ask for wins, groups with contrast before groups without, the
    later one in a tie. A lesson changes only if more groups ask for it than groups went well with
    the lesson and are content: a few stray attempts must not undo what works. A MERGE must win for
    each of its lessons.
    """
    votes: dict[tuple[str, str, str], dict[tuple[str, str, str], tuple[int, int, int]]] = {}
    kept: Counter[tuple[str, str, str]] = Counter()
    for i, group in enumerate(proposals):
        asked = [(edit, target) for edit in group.edits for target in group.targets(edit)]
        for edit, target in asked:
            wishes = votes.setdefault(target, {})
            best, total, _ = wishes.get(edit.wish, (0, 0, 0))
            wishes[edit.wish] = (best + group.contrast, total + 1, i)
        if group.content:
            tried = [(group.trust, "lesson", str(lesson.id)) for lesson in group.tried]
            kept.update(set(tried) - {target for _, target in asked})

    def wins(wish: tuple[str, str, str], target: tuple[str, str, str]) -> bool:
        wishes = votes[target]
        asked = sum(total for _, total, _ in wishes.values())
        return wishes[wish] == max(wishes.values()) and asked > kept[target]

    return [
        [
            (compete and edit.kind in (EditKind.ADD, EditKind.REVISE))
            or all(wins(edit.wish, target) for target in group.targets(edit))
            for edit in group.edits
        ]
        for group in proposals
    ]
