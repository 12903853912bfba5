"""Printing: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING

from reflect.types import Progress

if TYPE_CHECKING:
    from sqlmodel import SQLModel

QUIET_SECONDS = 10.0  # between two lines of progress if stderr is not a terminal


def open_streams() -> None:
    """Make stdin, stdout and stderr usable: a closed one reads and writes nothing, and a letter
    that a stream cannot encode is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller, as by `reflect lessons >&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  open until the end
        elif mode == "w":
            stream.reconfigure(errors="backslashreplace")


def print_status(text: str) -> None:
    """A line on stderr. A closed stderr is not an error."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def print_json(data: object) -> None:
    """One JSON value on stdout. It may contain database rows and dataclasses. Letters that the
    terminal cannot show are JSON escapes."""
    ascii = not str(sys.stdout.encoding).lower().startswith("utf")
    print(json.dumps(data, indent=2, ensure_ascii=ascii, default=_plain))


def print_utf8(text: str) -> None:
    """The text of a file on stdout: UTF-8, whatever the terminal's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def to_dict(row: SQLModel) -> dict[str, object]:
    """A database row as JSON."""
    return dict(row.model_dump(mode="json"))


def print_table(rows: Iterable[Sequence[object]], header: str) -> None:
    """Aligned columns on stdout. `header`: names, separated by a comma and a space. On a terminal
    long lines are cut to its width."""
    lines = [header.split(", "), *([cell(value) for value in row] for row in rows)]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for text in aligned(lines):
        print(text if room is None or len(text) <= room else text[: room - 1] + "…")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Each row as one line, with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([x.ljust(width) for x, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def cell(value: object) -> str:
    """A value in a table."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else " ".join(str(value).split())


def join(values: Iterable[object]) -> str:
    """Values, separated by commas."""
    return ", ".join(map(str, values))


def duration(seconds: float) -> str:
    """Seconds as text, in minutes from 100 s on."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


@contextmanager
def progress() -> Iterator[Progress]:
    """One progress bar on stderr; if stderr is not a terminal, a plain line every 10 seconds."""
    if not sys.stderr.isatty():
        yield plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    with Bar(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=what
        )


def plain_progress() -> Progress:
    """Progress as plain lines on stderr."""
    last = time.monotonic()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            print_status(f"{what}: {done} of {total}")

    return report
