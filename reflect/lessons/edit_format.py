"""The edits by which a model asks for changes of lessons: parsed, never guessed.

JSON (see `reflect.lessons.edit_json`), or lines:

    ADD when: ... do: ...            REVISE <id> when: ... do: ...
    RETIRE <id> why: ...             MERGE <id> <id> ... when: ... do: ...
    NONE                             NOTE: ... (a summary of attempts, see `note_of`)

Thoughts before the answer, markdown, parts on lines of their own and small variations are accepted.
An edit that cannot be read is reported.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.lessons.edit_json import find_review, named_fields
from reflect.lessons.similarity import normal
from reflect.tasksets.thoughts import split_thought
from reflect.types import EditKind

if TYPE_CHECKING:
    from collections.abc import Sequence

FLAGS = re.IGNORECASE
LESSON_ID = r"(?:lesson\s*)?(?:number\s*|no\.?\s*)?[#\[(]?\s*(\d{1,18})\s*[\])]?\s*:?"
BULLET = re.compile(r"^(?:[-*•>]\s+|\d+[.)]\s+)+")
ADD = re.compile(r"^add\b\s*:?\s*(?:a\s+)?(?:new\s+)?(?:lesson\b\s*:?\s*)?when\b\s*:?(.*)$", FLAGS)
REVISE = re.compile(rf"^revise\b\s*:?\s*{LESSON_ID}\s*when\b\s*:?(.*)$", FLAGS)
RETIRE = re.compile(rf"^retire\b\s*:?\s*{LESSON_ID}\s*(?:why\s*:(.*))?$", FLAGS)
MERGE = re.compile(r"^merge\b(.*?)\bwhen\b\s*:?(.*)$", FLAGS)
AROUND_IDS = re.compile(r"lessons?\b|numbers?\b|no\.|and\b|with\b|[\s,&+#:\[\]()]", FLAGS)
NONE = re.compile(
    r"^(?:none|no (?:edits?|changes?)(?: needed)?)\s*(?:$|[-\u2013\u2014:;,.!(])", FLAGS
)
NOTE = re.compile(r"^note\b\s*:?\s*(.*)$", FLAGS)
VERB = re.compile(r"^(?:add|revise|retire|merge)\b", FLAGS)
STARTS = re.compile(r"^(?:(?:add|revise|retire|merge|note)\b|none\b)", FLAGS)
PART = re.compile(r"^(when|do|why)\s*:", FLAGS)
STEP = re.compile(r"(?:\d+[.)]|[-*\u2022])\s")
FIRST_STEP = re.compile(r"\bdo\s*:\s*1[.)]", FLAGS)
STEP_BULLET = re.compile(r"^[-*\u2022]\s+")
EMPHASIS = re.compile(
    r"(?<!\w)([*_]{1,2})((?:add|revise|retire|merge|none|note|when|do|why)\b[^*_]*)\1", FLAGS
)
HEADING = re.compile(r"^#{1,6}\s+")
LABEL = re.compile(
    r"^(?:edits?|lessons?)\s*\d*\s*[:.)]\s*(?=(?:add|revise|retire|merge|none)\b)", FLAGS
)
FENCE = re.compile(r"^\s*(?:```|~~~)\w*\s*$")
ATTEMPT = re.compile(r"\battempts?\s*(?:number\s*|no\.?\s*|#\s*)?\d", FLAGS)
SLOTS = frozenset(
    "when do condition advice text string instruction your_condition your_advice".split()
)
"""Texts that only repeat the form, as `normal` writes them with `_` between words."""
OPEN_SLOT = re.compile(r"[<\[][^<>\[\]]{1,40}[>\]]")
DOTS = re.compile(r"\.{3}|\u2026")
DO = re.compile(r"\bdo\s*:", FLAGS)
FIELD = re.compile(r"\b(?:when|do)\s*:", FLAGS)
CUT_OFF = "cut off"  # begins the problem of an answer that was cut off
MOST_EDITS = 6  # of one answer
MOST_READ = 100  # of the JSON of one answer
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
    """The edits in the answer, and a sentence for each part that could not be used.

    Duplicates are merged. Of two ADDs for one condition the first counts. Two edits of one lesson
    contradict each other, and both are dropped. At most MOST_EDITS count. `complete=False`: the
    answer was cut off, so its last line, or an incomplete edit of its JSON, is dropped.
    """
    text = split_thought(text)[1]
    review = find_review(text)
    read = _read_lines(text, complete) if review is None else _read_json(*review)
    edits = _without_contradictions(read)
    if len(edits) > MOST_EDITS:
        read.problems.append(
            f"{len(edits)} edits are too many for one group: the first {MOST_EDITS} count"
        )
    if read.none and read.edits:
        read.problems.append("NONE is given together with edits")
    return edits[:MOST_EDITS], read.problems


@dataclass
class _Read:
    """What an answer says: its edits, whether it says NONE, and what could not be used."""

    edits: list[Edit] = field(default_factory=list)
    none: bool = False
    problems: list[str] = field(default_factory=list)


def _without_contradictions(read: _Read) -> list[Edit]:
    unique: dict[tuple[object, object], Edit] = {}
    for edit in read.edits:
        unique.setdefault((edit.targets, edit.wish), edit)
    asked = Counter(target for edit in unique.values() for target in edit.targets)
    edits: list[Edit] = []
    for edit in unique.values():
        if edit.kind == EditKind.ADD and all(one.targets != edit.targets for one in edits):
            edits.append(edit)
        elif any(asked[target] > 1 for target in edit.targets):
            kind = edit.targets[0][0]
            first = ", and the first one counts" if kind == "when" else ""
            read.problems.append(
                f"contradicts another edit of the same {kind}{first}: {_short(str(edit))}"
            )
        else:
            edits.append(edit)
    return edits


# -- an answer in lines


def _read_lines(text: str, complete: bool) -> _Read:
    read, prose = _Read(), []
    lines = _joined(text)
    if not lines:
        read.problems.append("the answer is empty")
    elif not complete and not NOTE.match(lines[-1]):
        read.problems.append(f"{CUT_OFF}: {_short(lines.pop())}")
    for line in lines:
        if NONE.match(line):
            read.none = True
        elif not NOTE.match(line):
            edit = _edit(line)
            if isinstance(edit, Edit):
                read.edits.append(edit)
            elif edit or VERB.match(line):
                read.problems.append(f"unreadable line: {_short(line)} ({edit or FORM})")
            else:
                prose.append(line)
    if prose and not (read.edits or read.none or read.problems):
        more = f" and {len(prose) - 1} more lines" if len(prose) > 1 else ""
        read.problems.append(f"no edit in the answer: {_short(prose[0])}{more} ({FORM})")
    return read


def _joined(text: str) -> list[str]:
    """The lines without markdown. The parts of an edit may have lines of their own:

    ADD when: counting letters
    do:
    1. Spell the word.
    2. Keep a counter.
    """
    lines: list[str] = []
    steps = False  # is the last line a list of steps?
    for raw in text.splitlines():
        line, plain = _bare(raw), _plain(raw)
        last = lines[-1] if lines else ""
        within, part = VERB.match(last), PART.match(line)
        if not line:
            steps = False
        elif within and part and not re.search(rf"\b{part[1]}\s*:", last, FLAGS):
            lines[-1] = f"{last} {line}"
        elif (
            within
            and not STARTS.match(line)
            and (last.endswith(":") or (steps and STEP.match(plain)))
        ):
            steps = steps or bool(STEP.match(plain))
            lines[-1] = f"{last} {STEP_BULLET.sub('', plain)}"
        else:
            steps = FIRST_STEP.search(line) is not None
            lines.append(line)
    return lines


# -- an answer in JSON


def _read_json(rows: Sequence[object], whole: bool) -> _Read:
    read = _Read(none=not rows)
    if not whole:
        read.problems.append(f"{CUT_OFF}: the JSON does not end")
    for i, row in enumerate(rows[:MOST_READ]):
        if isinstance(row, str):
            lines = _read_lines(row, True)
            read.edits += lines.edits
            read.none |= lines.none
            read.problems += lines.problems
            continue
        edit = _json_edit(named_fields(row)) if isinstance(row, dict) else FORM
        if isinstance(edit, Edit):
            read.edits.append(edit)
        elif edit and (whole or i + 1 < len(rows)):
            shown = json.dumps(row, ensure_ascii=False)
            read.problems.append(f"unreadable edit: {_short(shown)} ({edit})")
    return read


def _json_edit(fields: dict[str, object]) -> Edit | str:
    """The edit, or why it is none; "" for the edit "none"."""
    kind = str(fields.get("edit", "")).lower()
    if kind == "none":
        return ""
    if kind not in list(EditKind):
        return f"its edit is none of {', '.join(EditKind)}"
    texts = {name: _text(fields.get(name)) for name in ("when", "do", "why")}
    ids = _ids(" ".join(map(str, _listed(fields.get("lessons")) + _listed(fields.get("lesson")))))
    if kind in (EditKind.REVISE, EditKind.RETIRE) and len(ids) != 1:
        return "it needs the number of one lesson"
    if kind == EditKind.MERGE and len(ids) < 2:
        return "it needs the numbers of two lessons or more"
    if kind == EditKind.RETIRE:
        return Edit(EditKind.RETIRE, why=texts["why"], lesson_id=ids[0])
    if problem := _problem(texts["when"], texts["do"]):
        return problem
    if kind == EditKind.MERGE:
        return Edit(EditKind.MERGE, texts["when"], texts["do"], lesson_ids=ids)
    lesson_id = ids[0] if kind == EditKind.REVISE else None
    return Edit(EditKind(kind), texts["when"], texts["do"], lesson_id=lesson_id)


def _listed(value: object) -> list[object]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _text(value: object) -> str:
    """A text of a JSON edit in one line; steps may be a list of texts."""
    rows = [row for row in _listed(value) if isinstance(row, str | int | float)]
    return prompts.sanitize_line(" ".join(map(str, rows))).strip(" ,;")


def _problem(when: str, do: str) -> str:
    """Why these texts are no lesson; "" if they are one."""
    for name, text in (("condition", when), ("advice", do)):
        if not normal(text):
            return f"the {name} is empty"
        words = normal(text).split()
        open_slot = OPEN_SLOT.fullmatch(text) or (DOTS.search(text) and len(words) < 4)
        if open_slot or "_".join(words) in SLOTS:
            return f"the {name} is the form itself, not filled in"
    if ATTEMPT.search(when):
        return "the condition names an attempt, which no later task has"
    return ""


def note_of(text: str) -> str:
    """The NOTE line of an answer, "" when there is none."""
    notes = [m.group(1).strip() for line in text.splitlines() if (m := NOTE.match(_bare(line)))]
    return " ".join(notes)


def _plain(line: str) -> str:
    """The line without emphasis and code marks."""
    return EMPHASIS.sub(r"\2", line.strip().replace("**", "").replace("`", "")).strip()


def _bare(line: str) -> str:
    """The line without markdown around it; "" for the fence of a code block."""
    if FENCE.match(line):
        return ""
    line = HEADING.sub("", BULLET.sub("", HEADING.sub("", _plain(line))))
    return LABEL.sub("", BULLET.sub("", _plain(line))).strip()


def _edit(line: str) -> Edit | str | None:
    """The edit of a line; why its texts are no lesson; None if it cannot be read."""
    if m := ADD.match(line):
        return _write(EditKind.ADD, m.group(1))
    if m := REVISE.match(line):
        return _write(EditKind.REVISE, m.group(2), lesson_id=int(m.group(1)))
    if m := RETIRE.match(line):
        why = prompts.sanitize_line(m.group(2) or "")
        return Edit(EditKind.RETIRE, why=why, lesson_id=int(m.group(1)))
    if m := MERGE.match(line):
        ids = _ids(m.group(1))
        return _write(EditKind.MERGE, m.group(2), lesson_ids=ids) if len(ids) > 1 else None
    return None


def _write(
    kind: EditKind, rest: str, lesson_id: int | None = None, lesson_ids: tuple[int, ...] = ()
) -> Edit | str | None:
    both = _when_do(rest)
    if both is None:
        return None
    return _problem(*both) or Edit(kind, *both, lesson_id=lesson_id, lesson_ids=lesson_ids)


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
