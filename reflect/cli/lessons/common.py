"""Options and output that the verbs of `reflect lessons` share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.output import print_json, print_table

if TYPE_CHECKING:
    from reflect.records import Lesson

Id = Annotated[int, Argument(metavar="ID", help="Id of a lesson.")]
Ids = Annotated[list[int], Argument(metavar="ID...", help="Ids of lessons.")]
Scope = Annotated[str | None, Option("--scope", help='A taskset\'s name; "" = everywhere.')]
Reason = Annotated[str, Option("--reason", "--why", help="Reason, recorded in the history.")]


def print_lessons(rows: Iterable[Lesson]) -> None:
    """The lessons as a table; a star marks a pinned one."""
    cells = [
        [row.id, row.status + (" *" if row.pinned else ""), row.scope, row.when, row.do]
        for row in rows
    ]
    print_table(cells, "id, status, scope, when, do")


def print_changed(rows: Sequence[Lesson], change: str, json: bool) -> None:
    """After a change: the lessons on stdout, as JSON or as lines. One lesson is no JSON list."""
    if json:
        return print_json(rows if len(rows) != 1 else rows[0])
    for row in rows:
        about = f"(version {row.version}, {row.status}): when: {row.when} do: {row.do}"
        print(f"lesson {row.id} {change} {about}")
