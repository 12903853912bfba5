"""edit_format."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from reflect import prompts
from reflect.lessons.similarity import normal

BULLET = re.compile(r"^(?:[-*•>]\s+|\d+[.)]\s+)+")


LESSON_ID = r"(?:lesson\s*)?(?:number\s*|no\.?\s*)?[#\[(]?\s*(\d{1,18})\s*[\])]?\s*:?"


ADD = re.compile(
    r"^add\b\s*:?\s*(?:a\s+)?(?:new\s+)?(?:lesson\b\s*:?\s*)?when\s*:(.*)$", re.IGNORECASE
)


REVISE = re.compile(rf"^revise\b\s*:?\s*{LESSON_ID}\s*when\s*:(.*)$", re.IGNORECASE)


RETIRE = re.compile(rf"^retire\b\s*:?\s*{LESSON_ID}\s*(?:why\s*:(.*))?$", re.IGNORECASE)


MERGE = re.compile(r"^merge\b(.*?)\bwhen\s*:(.*)$", re.IGNORECASE)


BESIDE_IDS = re.compile(r"lessons?\b|numbers?\b|no\.|and\b|with\b|[\s,&+#:\[\]()]", re.IGNORECASE)


NONE = re.compile(r"^none[.!]?$", re.IGNORECASE)


NOTE = re.compile(r"^note\b\s*:?\s*(.*)$", re.IGNORECASE)


DO = re.compile(r"\bdo\s*:", re.IGNORECASE)


FIELD = re.compile(r"\b(?:when|do)\s*:", re.IGNORECASE)


FORM = (
    "expected: ADD when: ... do: ... | REVISE number when: ... do: ... | RETIRE number why: ... | "
    "MERGE numbers when: ... do: ... | NONE"
)


@dataclass(frozen=True)
class Edit:
    """One wish of the reflector. `lesson_id` names the lesson to revise or retire, `lesson_ids`
    those to merge."""

    kind: Literal["add", "revise", "retire", "merge"]
    when: str = ""
    do: str = ""
    why: str = ""
    lesson_id: int | None = None
    lesson_ids: tuple[int, ...] = ()

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """What it changes: lessons, or the lesson of a condition. Two edits of one target
        contradict each other."""
        if self.kind == "add":
            return (("when", normal(self.when)),)
        return tuple(("lesson", str(i)) for i in self.lesson_ids or (self.lesson_id,))

    @property
    def wish(self) -> tuple[str, str, str]:
        """What it says, wording aside: equal wishes are duplicates. To merge is not to write the
        same text: it takes other lessons away."""
        kind = {"retire": "retire", "merge": f"merge {sorted(self.lesson_ids)}"}.get(
            self.kind, "write"
        )
        return kind, normal(self.when), normal(self.do)


def parse_edits(text: str, *, complete: bool = True) -> tuple[list[Edit], list[str]]:
    """The edits in the answer, and a sentence for each line that could not be used.

    Duplicates are merged. Of edits that contradict each other (two texts for one lesson or one
    condition) none is taken. `complete=False` says that the answer was cut off: its last line is
    then not trusted.
    """
    lines = [line for line in (_bare(line) for line in text.splitlines()) if line]
    problems: list[str] = []
    if not complete and lines and not NOTE.match(lines[-1]):
        problems.append(f"cut off: {_short(lines.pop())}")
    found: list[Edit] = []
    none = False
    for line in lines:
        if NOTE.match(line):
            continue
        if NONE.match(line):
            none = True
            continue
        edit = _edit(line)
        if edit is None:
            problems.append(f"unreadable line: {_short(line)} ({FORM})")
        elif (edit.targets, edit.wish) not in {(e.targets, e.wish) for e in found}:
            found.append(edit)
    edits = []
    asked = Counter(target for edit in found for target in edit.targets)
    for edit in found:
        if any(asked[target] > 1 for target in edit.targets):
            problems.append(
                f"contradicts another edit of the same {edit.targets[0][0]}: {_short(_say(edit))}"
            )
        else:
            edits.append(edit)
    if none and found:
        problems.append("NONE stands beside edits")
    if not lines and not problems:
        problems.append("the answer is empty")
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
        return Edit("add", *both) if both else None
    if m := REVISE.match(line):
        both = _when_do(m.group(2))
        return Edit("revise", *both, lesson_id=int(m.group(1))) if both else None
    if m := RETIRE.match(line):
        return Edit(
            "retire", why=prompts.sanitize_line(m.group(2) or ""), lesson_id=int(m.group(1))
        )
    if m := MERGE.match(line):
        both, ids = _when_do(m.group(2)), _ids(m.group(1))
        return Edit("merge", *both, lesson_ids=ids) if both and len(ids) > 1 else None
    return None


def _ids(text: str) -> tuple[int, ...]:
    """The lesson ids in "lessons 3, 7 and 9", each once, in order; none when anything else stands
    there."""
    words = BESIDE_IDS.sub(" ", text).split()
    return (
        tuple(sorted({int(w) for w in words}))
        if all(w.isdecimal() and len(w) < 19 for w in words)
        else ()
    )


def _when_do(rest: str) -> tuple[str, str] | None:
    """Split `CONDITION do: ADVICE`; None when a part is missing or a second field makes it
    ambiguous."""
    parts = DO.split(rest)
    if len(parts) != 2 or FIELD.search(parts[0]) or FIELD.search(parts[1]):
        return None
    when, do = (prompts.sanitize_line(part).strip(" ,;") for part in parts)
    return (when, do) if normal(when) and normal(do) else None


def _say(edit: Edit) -> str:
    if edit.kind == "add":
        return f"ADD when: {edit.when} do: {edit.do}"
    if edit.kind == "revise":
        return f"REVISE {edit.lesson_id} when: {edit.when} do: {edit.do}"
    if edit.kind == "merge":
        return f"MERGE {' '.join(map(str, edit.lesson_ids))} when: {edit.when} do: {edit.do}"
    return f"RETIRE {edit.lesson_id} why: {edit.why}"


def _short(line: str) -> str:
    return line if len(line) <= 120 else line[:117] + "..."
