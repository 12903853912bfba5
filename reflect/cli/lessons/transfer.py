"""export, import, backup, path: lessons on their way."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reflect.cli.common import Db, Json, Profile, workspace
from reflect.cli.lessons.common import Scope
from reflect.cli.output import print_json, print_status

WORDS = {"+": "new", "~": "gone on", "=": "here already", "?": "quarantined", "!": "left out"}


def export(
    format: Annotated[
        str, typer.Option("--format", help="jsonl, markdown, agents or skill.")
    ] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="PATH", help="A file, or for skill a folder. [default: stdout]"
        ),
    ] = None,
    scope: Scope = None,
    yes: Annotated[bool, typer.Option("--yes", help="Overwrite an existing file.")] = False,
    db: Db = None,
    profile: Profile = None,
) -> None:
    """Write the lessons out; with --out the paths that changed are printed.

    jsonl: all of them with every version, to be imported elsewhere. markdown: to be read. agents:
    the block in an AGENTS.md or CLAUDE.md; all else in the file stays as it is. skill: a folder
    with a SKILL.md for each scope. Retired and quarantined lessons are in jsonl only.
    """
    book = workspace(db, profile).lessons
    if out is None:
        print(book.export(format, scope=scope), end="")
        return
    changed = book.export_to(out, format, scope=scope, overwrite=yes)
    for path in changed:
        print(path)
    if not changed:
        print_status(f"{out} is up to date.")


def import_(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="From `reflect lessons export`; - is stdin.")
    ],
    trust: Annotated[
        bool, typer.Option("--trust", help="Your own export: restore everything as it was.")
    ] = False,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Take lessons in from a JSON Lines export: all, or none when a line is malformed. Nothing is
    overwritten.

    Somebody else's file (the default) brings texts: each comes in as a candidate that has yet to
    prove itself, retired ones stay out. Your own file, from a backup or another machine, comes in
    with --trust: status, pins, history and trials as they were, and a lesson that went on there
    goes on here. In both, text that is here already stays as it is here, and suspicious text is
    quarantined.
    """
    rows = workspace(db, profile).lessons.import_(file, trust=trust)
    if json:
        return print_json([asdict(row) for row in rows])
    for row in rows:
        if row.sign != "=":
            name = f"lesson {row.lesson_id}" if row.lesson_id else "a lesson"
            print(
                f"{row.sign} {name}{f' ({row.why})' if row.why else ''}: when: {row.when} do: {row.do}"
            )
    count = Counter(row.sign for row in rows)
    print(", ".join(f"{sign} {count[sign]} {words}" for sign, words in WORDS.items()))
    if count["?"]:
        print_status("To release one of the quarantined: reflect lessons approve ID")


def backup(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="A new file, or a folder. [default: beside the database, with the time]",
        ),
    ] = None,
    db: Db = None,
) -> None:
    """Copy the whole database, runs and all, while others may use it. Never overwrites; prints the
    copy's path."""
    ws = workspace(db)
    print(ws.lessons.backup(file))
    if ws.settings.home_path.is_dir():
        print_status(f"Adapters are files of their own and are not in it: {ws.settings.home_path}")


def path(db: Db = None) -> None:
    """The path of the database, and nothing else."""
    print(workspace(db).path)
