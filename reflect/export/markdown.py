"""Lessons as text: Markdown to read, the block in AGENTS.md or CLAUDE.md, SKILL.md folders.

Lessons that are quarantined or retired are in none of them. Text is cleaned as for a prompt; a
lesson is one line, so it can neither begin a heading nor end the block.

SKILL.md follows the Agent Skills specification (agentskills.io/specification).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

from reflect.errors import UsageError
from reflect.export import files
from reflect.prompts import sanitize_line
from reflect.records import HELD_STATUSES, Lesson

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

BEGIN, END = "<!-- reflect lessons: begin -->", "<!-- reflect lessons: end -->"
NOTE = (
    "<!-- Written by `reflect lessons export --format agents`: a change between these lines is "
    "lost. -->"
)
MARK = "reflect lessons export"  # in the metadata of a skill: we wrote it
NAME, DESCRIPTION = 64, 1024  # most characters, by the specification
GENERAL = "general lessons"

Scopes = list[tuple[str, list[Lesson]]]


def by_scope(lessons: Iterable[Lesson]) -> Scopes:
    """(scope, its lessons by id), the general ones first; without those that may not be shown."""
    shown = sorted(
        (row for row in lessons if row.status in HELD_STATUSES),
        key=lambda row: (row.scope, row.id or 0),
    )
    return [(scope, list(rows)) for scope, rows in groupby(shown, key=lambda row: row.scope)]


def page(lessons: Iterable[Lesson]) -> str:
    """All of them, to be read: under each scope a line per lesson with its id, status and tags."""
    text = ["# Lessons"]
    for scope, rows in by_scope(lessons):
        text += ["", f"## {_title(scope)}", ""]
        for row in rows:
            facts = [f"lesson {row.id}", row.status, *(["pinned"] if row.pinned else [])]
            facts += [f"tagged {_safe(tag)}" for tag in row.tags]
            text.append(f"{_item(row)} ({', '.join(facts)})")
    return "\n".join(text) + "\n" if len(text) > 1 else "# Lessons\n\nThere are none yet.\n"


def _item(row: Lesson) -> str:
    return f"- When {_safe(row.when)}: {_safe(row.do)}"


def _safe(text: str) -> str:
    return sanitize_line(text).replace("<!--", "&lt;!--").replace("-->", "--&gt;")


def _title(scope: str) -> str:
    return f"Lessons for {_safe(scope)}" if sanitize_line(scope) else GENERAL.capitalize()


# -- the block in a file of somebody else
# ------------------------------------------------------------------------------


def block(lessons: Iterable[Lesson]) -> str:
    """The managed block from marker to marker, without a newline at its end."""
    text = [BEGIN, NOTE]
    for scope, rows in by_scope(lessons):
        text += ["", f"## {_title(scope)}", "", *map(_item, rows)]
    return "\n".join([*text, "", END] if len(text) > 2 else [*text, END])


def with_block(data: bytes, new: str, name: str) -> bytes:
    """The file's bytes with `new` in place of the block, or after the last line when there is none.

    Every other byte stays, its line ends, a missing newline at the end and a byte order mark
    included; so does a block that differs from `new` only in its line ends. UsageError when the
    markers are broken or the file is not UTF-8: nothing is guessed.
    """
    try:
        binary = "\0" in data.decode()  # UTF-16 without a byte order mark, for example
    except UnicodeDecodeError:
        binary = True
    if binary:
        what = f"{name} is not UTF-8 text, so nothing was written."
        raise UsageError(what, "Save it as UTF-8 first.")
    begins, ends = (_lines_with(data, marker.encode()) for marker in (BEGIN, END))
    if not begins and not ends:
        newline = files.line_end(data)
        own = files.text_of(data)
        gap = newline * (1 if own.endswith(b"\n") else 2) if own else b""
        return data + gap + new.encode().replace(b"\n", newline) + newline
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        marks = sorted([*((at, "begin") for at in begins), *((at, "end") for at in ends)])
        lines = ", ".join(f"{mark} in line {_line_number(data, at)}" for at, mark in marks)
        raise UsageError(
            f"The markers of the lessons in {name} are broken ({lines}), so nothing was written.",
            f"There must be one line {BEGIN} and one line {END} after it, or neither.",
        )
    start, end = begins[0], ends[0] + len(END.encode())
    if files.text_of(data[start:end]) == new.encode():
        return data
    fresh = new.encode().replace(b"\n", files.line_end(data[start:end]))
    return data[:start] + fresh + data[end:]


def _lines_with(data: bytes, marker: bytes) -> list[int]:
    """Places of the marker, alone on its line."""
    pattern = rb"(?:^|(?<=[\r\n])|(?<=\xef\xbb\xbf))[ \t]*(%b)[ \t]*(?=[\r\n]|$)"
    return [match.start(1) for match in re.finditer(pattern % re.escape(marker), data)]


def _line_number(data: bytes, at: int) -> int:
    return files.text_of(data[:at]).count(b"\n") + 1


def write_block(path: Path, lessons: Iterable[Lesson]) -> list[Path]:
    """Update the block in the file, which is made when missing; [path], or [] when it was so
    already."""
    data = path.read_bytes() if path.is_file() else b""
    new = with_block(data, block(lessons), str(path))
    return [path] if files.write(path, new, overwrite=True, exact=True) else []


# -- SKILL.md


def skills(lessons: Iterable[Lesson]) -> dict[str, str]:
    """Folder name -> text of its SKILL.md, one skill per scope."""
    scopes = by_scope(lessons)
    names: dict[str, str] = {}
    # A scope that is a valid name keeps it; of others with the same name, each but the first gets a
    # hash.
    for scope, _ in sorted(scopes, key=lambda pair: (skill_name(pair[0]) != pair[0], pair[0])):
        name = skill_name(scope)
        names[scope] = _hashed(scope) if name in names.values() else name
    return {names[scope]: _skill(names[scope], scope, rows) for scope, rows in scopes}


def skill_name(scope: str) -> str:
    """1-64 characters of a-z, 0-9 and single hyphens within."""
    if not scope:
        return GENERAL.replace(" ", "-")
    plain = unicodedata.normalize("NFKD", scope.lower()).encode("ascii", "ignore").decode()
    return (
        re.sub("[^a-z0-9]+", "-", plain).strip("-")[:NAME].strip("-") or f"lessons-{_hash(scope)}"
    )


def _hashed(scope: str) -> str:
    """The name of a scope whose own name another one has."""
    return f"{skill_name(scope)[: NAME - 9].rstrip('-')}-{_hash(scope)}"


def _hash(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:8]


def _skill(name: str, scope: str, rows: list[Lesson]) -> str:
    import yaml

    head = {
        "name": name,
        "description": _description(scope, rows),
        "metadata": {"written-by": MARK},
    }
    front = yaml.safe_dump(head, allow_unicode=True, sort_keys=False, width=10_000)
    return "\n".join([f"---\n{front}---", "", f"# {_title(scope)}", "", *map(_item, rows)]) + "\n"


def _description(scope: str, rows: list[Lesson]) -> str:
    """What it is and when to use it; as many conditions as there is room for."""
    of = f"Lessons for {sanitize_line(scope)}" if sanitize_line(scope) else "General lessons"
    text = f"{of}, learned by practice. Use when "[: DESCRIPTION // 2]
    for i, row in enumerate(rows):
        more = f"{'; ' if i else ''}{sanitize_line(row.when)}"
        if len(text) + len(more) > DESCRIPTION - 1:
            return text + more[: DESCRIPTION - 1 - len(text)] + "…" if not i else text + "."
        text += more
    return text + "."


def _is_ours(path: Path) -> bool:
    """Whether the front matter of the skill says that we wrote it."""
    return f"written-by: {MARK}".encode() in path.read_bytes().partition(b"\n---")[0]


def write_skills(folder: Path, lessons: Iterable[Lesson], *, overwrite: bool = False) -> list[Path]:
    """FOLDER/NAME/SKILL.md for each scope; the files that changed. A skill of ours whose scope has
    no lesson left is removed. A skill that was not written by us is refused."""
    lessons = list(lessons)
    texts = {folder / name / "SKILL.md": text for name, text in skills(lessons).items()}
    for path in texts:
        if path.is_file() and not overwrite and not _is_ours(path):
            what = f"{path} was not written by reflect."
            raise UsageError(what, "Name another folder, or say --yes to overwrite it.")
    changed = [
        path for path, text in texts.items() if files.write(path, text.encode(), overwrite=True)
    ]
    empty = {row.scope for row in lessons} - {scope for scope, _ in by_scope(lessons)}
    for name in sorted({make(scope) for scope in empty for make in (skill_name, _hashed)}):
        path = folder / name / "SKILL.md"
        if path not in texts and path.is_file() and _is_ours(path):
            path.unlink()
            with suppress(OSError):  # files of somebody else are in it
                path.parent.rmdir()
            changed.append(path)
    return changed
