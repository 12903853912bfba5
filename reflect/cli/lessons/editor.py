"""Edit a lesson as text in $EDITOR."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from reflect.errors import ReflectError, UsageError

if TYPE_CHECKING:
    from reflect.workspace.lessons import Lessons

FIELDS = ("when", "do", "scope", "tags")
UNCHANGED = "Nothing was changed."


class LessonFields(TypedDict):
    """The fields of a lesson that a person edits as text."""

    when: str
    do: str
    scope: str
    tags: list[str]


def edit_text(text: str) -> str:
    """The text after editing in $VISUAL or $EDITOR. Raises UsageError without a terminal or an
    editor, ReflectError if the editor fails."""
    hint = "Set $EDITOR, or give --when and --do."
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        if not sys.stdin.isatty():
            raise UsageError("There is no terminal to edit in.", hint)
        editor = next((name for name in ("nano", "vi") if shutil.which(name)), None)
        if not editor:
            raise UsageError("There is no editor.", hint)
    folder = Path(tempfile.mkdtemp(prefix="reflect-"))
    file = folder / "lesson.txt"
    file.write_text(text, encoding="utf-8")
    try:
        edited = _run(editor, file)
    except ReflectError as e:
        with suppress(OSError, UnicodeDecodeError):
            if file.read_text(encoding="utf-8") != text:
                raise ReflectError(e.message, f"{e.hint}\nYour text is kept in {file}") from e
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return edited


def _run(editor: str, file: Path) -> str:
    try:
        code = subprocess.call([*shlex.split(editor), str(file)])
    except (OSError, ValueError) as e:
        message = f"The editor {editor} does not start: {e}."
        raise ReflectError(message, f"Set $EDITOR. {UNCHANGED}") from e
    if code:
        raise ReflectError(f"The editor {editor} failed with exit code {code}.", UNCHANGED)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        message = f"The editor {editor} left no text that can be read: {e}."
        raise ReflectError(message, UNCHANGED) from e


def form(when: str, do: str, scope: str, tags: Iterable[str]) -> str:
    """The text that a person edits."""
    note = "# Lines that begin with # are left out. An empty scope is everywhere."
    return f"when: {when}\ndo: {do}\nscope: {scope}\ntags: {', '.join(tags)}\n{note}\n"


def parse_form(text: str) -> LessonFields:
    """The fields of an edited form. A line without a field name continues the line before it."""
    values = dict.fromkeys(FIELDS, "")
    name = ""
    for line in text.splitlines():
        head, colon, rest = line.partition(":")
        if line.startswith("#"):
            continue
        if colon and head.strip() in FIELDS:
            name = head.strip()
            values[name] = rest.strip()
        elif name:
            values[name] = f"{values[name]} {line.strip()}".strip()
        elif line.strip():
            message = f"This line belongs to nothing: {line.strip()}"
            raise UsageError(message, f"Begin with one of {', '.join(FIELDS)}.")
    tags = [tag.strip() for tag in values["tags"].split(",") if tag.strip()]
    return {"when": values["when"], "do": values["do"], "scope": values["scope"], "tags": tags}


@contextmanager
def keep_on_error(lessons: Lessons, name: str, text: str) -> Iterator[None]:
    """Save the text that a person typed if the edit fails; the error names the file."""
    try:
        yield
    except ReflectError as e:
        if not text.strip():
            raise
        folder = lessons.context.settings.home_path / "edits"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
        file.write_text(text, encoding="utf-8")
        raise type(e)(e.message, f"{e.hint}\nYour text is kept in {file}".strip()) from e
