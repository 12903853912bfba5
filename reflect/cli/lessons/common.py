"""What the verbs of `reflect lessons` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.output import print_json, shape

if TYPE_CHECKING:
    from reflect.records import Lesson

Id = Annotated[int, typer.Argument(metavar="ID", help="Id of a lesson.")]
Ids = Annotated[list[int], typer.Argument(metavar="ID...", help="Ids of lessons.")]
Scope = Annotated[str | None, typer.Option("--scope", help='A taskset\'s name; "" is everywhere.')]
Reason = Annotated[str, typer.Option("--reason", "--why", help="Reason, recorded in the history.")]
HEADER = ["id", "status", "scope", "when", "do"]


def cells(row: Lesson) -> list[Any]:
    return [row.id, row.status + (" *" if row.pinned else ""), row.scope, row.when, row.do]


def told(rows: Lesson | Sequence[Lesson], what: str, json: bool) -> None:
    """After a change: the lesson on stdout, as JSON or as its line. Of several lessons a list, of
    one the lesson."""
    several = rows if isinstance(rows, Sequence) else [rows]
    if json:
        return print_json(
            shape(several[0]) if len(several) == 1 else [shape(row) for row in several]
        )
    for row in several:
        print(
            f"lesson {row.id} {what} (version {row.version}, {row.status}): when: {row.when} do: {row.do}"
        )
