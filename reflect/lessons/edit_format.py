"""The lines by which a model asks for changes of lessons: parsed, never guessed.

    ADD when: ... do: ...            REVISE <id> when: ... do: ...
    RETIRE <id> why: ...             MERGE <id> <id> ... when: ... do: ...
    NONE                             NOTE: ... (a summary of attempts, see `note_of`)

Markdown around a line and small variations are accepted. A line that cannot be read is reported.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from reflect import prompts
from reflect.lessons.similarity import normal
from reflect.types import EditKind

FLAGS = re.IGNORECASE
LESSON_ID = r"(?:lesson\s*)?(?:number\s*|no\.?\s*)?[#\[(]?\s*(\d{1,18})\s*[\])]?\s*:?"
BULLET = re.compile(r"^(?:[-*•>]\s+|\d+[.)]\s+)+")
ADD = re.compile(r"^add\b\s*:?\s*(?:a\s+)?(?:new\s+)?(?:lesson\b\s*:?\s*)?when\s*:(.*)$", FLAGS)
REVISE = re.compile(rf"^revise\b\s*:?\s*{LESSON_ID}\s*when\s*:(.*)$", FLAGS)
RETIRE = re.compile(rf"^retire\b\s*:?\s*{LESSON_ID}\s*(?:why\s*:(.*))?$", FLAGS)
MERGE = re.compile(r"^merge\b(.*?)\bwhen\s*:(.*)$", FLAGS)
AROUND_IDS = re.compile(r"lessons?\b|numbers?\b|no\.|and\b|with\b|[\s,&+#:\[\]()]", FLAGS)
NONE = re.compile(r"^none[.!]?$", FLAGS)
NOTE = re.compile(r"^note\b\s*:?\s*(.*)$", FLAGS)
DO = re.compile(r"\bdo\s*:", FLAGS)
FIELD = re.compile(r"\b(?:when|do)\s*:", FLAGS)
FORM = (
    "expected: ADD when: ... do: ... | REVISE number when: ... do: ... | RETIRE number why: ... | "
    "MERGE numbers when: ... do: ... | NONE"
)


@dataclass(frozen=True)
class Edit:
    """One change that a reflection asks for. `lesson_id` names the lesson to revise or retire,
    `lesson_ids` those to merge."""

    kind: EditKind
    when: str = ""
    do: str = ""
    why: str = ""
    lesson_id: int | None = None
    lesson_ids: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """What it changes: lessons, or the lesson of a condition. Two edits of one target
        contradict each other."""
        if self.kind == EditKind.ADD:
            return (("when", normal(self.when)),)
        return tuple(("lesson", str(i)) for i in self.lesson_ids or (self.lesson_id,))

    @property
    def wish(self) -> tuple[str, str, str]:
        """What it says, wording aside: equal wishes are duplicates. A merge differs from a write of
        the same text, because it removes other lessons."""
        kind = {EditKind.RETIRE: "retire", EditKind.MERGE: f"merge {sorted(self.lesson_ids)}"}
        return kind.get(self.kind, "write"), normal(self.when), normal(self.do)

    def __str__(self) -> str:
        """As a line."""
        numbers = self.lesson_ids or ([] if self.lesson_id is None else [self.lesson_id])
        head = " ".join([self.kind.upper(), *map(str, numbers)])
        if self.kind == EditKind.RETIRE:
            return f"{head} why: {self.why}"
        return f"{head} when: {self.when} do: {self.do}"


def parse_edits(text: str, *, complete: bool = True) -> tuple[list[Edit], list[str]]:
    """The edits in the answer, and a sentence for each line that could not be used.

    Duplicates are merged. Edits that contradict each other (two texts for one lesson or one
    condition) are all dropped. `complete=False`: the answer was cut off, so its last line is
    dropped.
    """
    lines = [line for line in map(_bare, text.splitlines()) if line]
    problems: list[str] = []
    if not lines:
        problems.append("the answer is empty")
    elif not complete and not NOTE.match(lines[-1]):
        problems.append(f"cut off: {_short(lines.pop())}")
    unique: dict[tuple[object, object], Edit] = {}
    none = False
    for line in lines:
        if NONE.match(line):
            none = True
        elif not NOTE.match(line):
            if edit := _edit(line):
                unique.setdefault((edit.targets, edit.wish), edit)
            else:
                problems.append(f"unreadable line: {_short(line)} ({FORM})")
    edits = []
    asked = Counter(target for edit in unique.values() for target in edit.targets)
    for edit in unique.values():
        if any(asked[target] > 1 for target in edit.targets):
            kind = edit.targets[0][0]
            problems.append(f"contradicts another edit of the same {kind}: {_short(str(edit))}")
        else:
            edits.append(edit)
    if none and unique:
        problems.append("NONE is given together with edits")
    return edits, problems


def note_of(text: str) -> str:
    """The NOTE line of an answer, "" when there is none."""
    notes = [m.group(1).strip() for line in text.splitlines() if (m := NOTE.match(_bare(line)))]
    return " ".join(notes)


def _bare(line: str) -> str:
    """The line without markdown around it."""
    line = BULLET.sub("", line.strip().replace("**", "").replace("`", "").strip())
    return line.strip()


def _edit(line: str) -> Edit | None:
    if m := ADD.match(line):
        both = _when_do(m.group(1))
        return Edit(EditKind.ADD, *both) if both else None
    if m := REVISE.match(line):
        both = _when_do(m.group(2))
        return Edit(EditKind.REVISE, *both, lesson_id=int(m.group(1))) if both else None
    if m := RETIRE.match(line):
        why = prompts.sanitize_line(m.group(2) or "")
        return Edit(EditKind.RETIRE, why=why, lesson_id=int(m.group(1)))
    if m := MERGE.match(line):
        both, ids = _when_do(m.group(2)), _ids(m.group(1))
        return Edit(EditKind.MERGE, *both, lesson_ids=ids) if both and len(ids) > 1 else None
    return None


def _ids(text: str) -> tuple[int, ...]:
    """The ids in "lessons 3, 7 and 9", each once, in order; none if there is anything else."""
    numbers = AROUND_IDS.sub(" ", text).split()
    valid = all(number.isdecimal() and len(number) < 19 for number in numbers)
    return tuple(sorted(set(map(int, numbers)))) if valid else ()


def _when_do(rest: str) -> tuple[str, str] | None:
    """Split `CONDITION do: ADVICE`; None if a part is missing or there is a second field."""
    parts = DO.split(rest)
    if len(parts) != 2 or FIELD.search(parts[0]) or FIELD.search(parts[1]):
        return None
    when, do = (prompts.sanitize_line(part).strip(" ,;") for part in parts)
    return (when, do) if normal(when) and normal(do) else None


def _short(line: str) -> str:
    return line if len(line) <= 120 else line[:117] + "..."
