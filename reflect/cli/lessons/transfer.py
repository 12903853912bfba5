"""export, import, backup, path: move lessons between databases and files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import Json, with_workspace
from reflect.cli.lessons.common import Scope
from reflect.cli.output import join, print_json, print_status, print_utf8

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

SIGNS = {"+": "new", "~": "continued", "=": "here already", "?": "quarantined", "!": "left out"}


@with_workspace("profile")
def export(
    ws: Workspace,
    format: str = Option("jsonl", help="jsonl, markdown, agents or skill."),
    out: Annotated[
        Path | None,
        Option("--out", "-o", metavar="PATH", help="File; skill: folder. [default: stdout]"),
    ] = None,
    scope: Scope = None,
    yes: bool = Option(False, "--yes", help="Overwrite an existing file."),
) -> None:
    """Write the lessons out; with --out the paths that changed are printed.

    jsonl: all lessons with every version, for import. markdown: for reading. agents: the block in
    an AGENTS.md or CLAUDE.md; the rest of the file stays as it is. skill: a folder with a SKILL.md
    for each scope. Retired and quarantined lessons are in jsonl only.
    """
    if out is None:
        return print_utf8(ws.lessons.export(format, scope=scope))
    changed = ws.lessons.export_to(out, format, scope=scope, overwrite=yes)
    for path in changed:
        print(path)
    if not changed:
        print_status(f"{out} is up to date.")


@with_workspace("profile")
def import_(
    ws: Workspace,
    file: Annotated[
        str, Argument(metavar="FILE", help="From `reflect lessons export`; - is stdin.")
    ],
    trust: bool = Option(False, "--trust", help="Your own export: restore everything as it was."),
    json: Json = False,
) -> None:
    """Read lessons from a JSON Lines export: all, or none if a line is malformed. Nothing is
    overwritten.

    Without --trust (somebody else's file) each text becomes a candidate, and retired lessons are
    left out. With --trust (your own file, from a backup or another machine) status, pins, history
    and trials are restored, and newer versions of a lesson are appended. In both cases existing
    text stays as it is, and suspicious text is quarantined.
    """
    rows = ws.lessons.import_(file, trust=trust)
    if json:
        return print_json(rows)
    for row in rows:
        if row.sign != "=":
            name = f"lesson {row.lesson_id}" if row.lesson_id else "a lesson"
            why = f" ({row.why})" if row.why else ""
            print(f"{row.sign} {name}{why}: when: {row.when} do: {row.do}")
    count = Counter(row.sign for row in rows)
    print(join(f"{sign} {count[sign]} {meaning}" for sign, meaning in SIGNS.items()))
    if count["?"]:
        print_status("To release one of the quarantined: reflect lessons approve ID")


@with_workspace()
def backup(
    ws: Workspace,
    file: Annotated[
        Path | None,
        Argument(
            metavar="[PATH]",
            help="A new file, or a folder. [default: next to the database, with the time]",
        ),
    ] = None,
) -> None:
    """Copy the whole database with its runs while others use it. Never overwrites; prints the
    copy's path."""
    print(ws.lessons.backup(file))
    if ws.settings.home_path.is_dir():
        print_status(f"Adapters are separate files and not included: {ws.settings.home_path}")


@with_workspace()
def path(ws: Workspace) -> None:
    """Print the path of the database."""
    print(ws.path)
