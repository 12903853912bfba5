"""What the commands print: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reflect.errors import ReflectError, UsageError

Progress = Callable[[int, int, str], None]
QUIET_SECONDS = 10.0  # between two lines of progress where there is no terminal


def print_status(text: str) -> None:
    """A line for the reader, on stderr. A reader who has gone away is no reason to fail."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def shape(row: Any) -> dict[str, Any]:
    """A row of the database as JSON."""
    return dict(row.model_dump(mode="json"))


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """Aligned columns on stdout. A terminal cuts the last one to its width; a pipe gets every line
    whole."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in (list(header), *cells):
        text = "  ".join(
            value.ljust(width) for value, width in zip(line, widths, strict=True)
        ).rstrip()
        print(text if room is None or len(text) <= room else text[: room - 1] + "…")


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return " ".join(str(value).split())


def clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@contextmanager
def progress() -> Iterator[Progress]:
    """One progress bar on stderr; where stderr is no terminal, a plain line now and then."""
    if not sys.stderr.isatty():
        yield plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(
            line, completed=done, total=total, description=what
        )


def plain_progress() -> Progress:
    last = time.monotonic()

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            print_status(f"{what}: {done} of {total}")

    return tell


def edit_text(text: str) -> str:
    """The text as $VISUAL or $EDITOR leaves it. UsageError where nobody could type, ReflectError
    when it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        if not sys.stdin.isatty():
            raise UsageError(
                "There is no terminal to edit in.", "Give --when and --do, or set $EDITOR."
            )
        editor = next((name for name in ("nano", "vi") if shutil.which(name)), None)
        if not editor:
            raise UsageError("There is no editor.", "Set $EDITOR, or give --when and --do.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lesson.txt"
        file.write_text(text, encoding="utf-8")
        try:
            code = subprocess.call([*shlex.split(editor), str(file)])
        except (OSError, ValueError) as e:
            raise ReflectError(
                f"The editor {editor} does not start: {e}.", "Set $EDITOR. Nothing was changed."
            ) from e
        if code:
            raise ReflectError(
                f"The editor {editor} failed with exit code {code}.", "Nothing was changed."
            )
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ReflectError(
                f"The editor {editor} left no text that can be read: {e}.", "Nothing was changed."
            ) from e


def fields(text: str, names: Sequence[str]) -> Mapping[str, str]:
    """`name: value` lines; a line that begins with none of the names belongs to the one before
    it."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        head, colon, rest = line.partition(":")
        if line.startswith("#"):
            continue
        if colon and head.strip() in names:
            name = head.strip()
            found[name] = rest.strip()
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
        elif line.strip():
            raise UsageError(
                f"This line belongs to nothing: {line.strip()}",
                f"Begin with one of {', '.join(names)}.",
            )
    return found
