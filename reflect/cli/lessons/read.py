"""list, show, search, history, diff, stats: lessons to read."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import Db, Json, Profile, workspace
from reflect.cli.lessons.common import HEADER, Id, Scope, cells
from reflect.cli.output import print_json, print_status, shape, table

if TYPE_CHECKING:
    from reflect.store.lesson_evidence import Cost

COLOURS = {"-": "\x1b[31m{}\x1b[0m", "+": "\x1b[32m{}\x1b[0m", "=": "{}"}
PLAIN = {"-": "[-{}-]", "+": "{{+{}+}}", "=": "{}"}


def list_(
    status: Annotated[
        str | None, typer.Option(help="candidate, active, distilled, retired or quarantined.")
    ] = None,
    scope: Scope = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=1, help="At most so many. [default: all]")
    ] = None,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """The lessons; a star marks a pinned one, which no review may touch."""
    rows = workspace(db, profile).lessons.list(status=status, scope=scope, limit=limit)
    if json:
        return print_json([shape(row) for row in rows])
    table([cells(row) for row in rows], HEADER)


LINKS = {  # kind -> (from, to)
    "merged": ("merged into", "holds"),
    "supersedes": ("superseded by", "supersedes"),
    "proposed": ("could be replaced by", "is proposed in the place of"),
}


def show(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """One lesson, where it comes from, and which lessons stand in its place or gave it theirs."""
    ws = workspace(db, profile)
    row = ws.lessons.get(lesson_id)
    versions, links = ws.lessons.history(lesson_id), ws.lessons.links(lesson_id)
    if json:
        told = {
            "versions": [shape(version) for version in versions],
            "links": [shape(link) for link in links],
        }
        return print_json(shape(row) | told)
    for name, value in shape(row).items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    first, last = versions[0], versions[-1]
    print(
        f"written by: {first.author}"
        + (f", review {first.reflection_id}" if first.reflection_id else "")
    )
    if last is not first:
        print(f"last changed by: {last.author}{f' ({last.reason})' if last.reason else ''}")
    for link in links:
        mine, other = (
            link.lesson_id == lesson_id,
            link.other_id if link.lesson_id == lesson_id else link.lesson_id,
        )
        print(f"{LINKS[link.kind][mine]} lesson {other}{f': {link.why}' if link.why else ''}")


def search(
    words: Annotated[list[str], typer.Argument(help="Any text.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many.")] = 20,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Find lessons by their words, best match first."""
    found = workspace(db, profile).lessons.search(" ".join(words), limit=limit)
    if json:
        return print_json([shape(row) | {"score": score} for row, score in found])
    table([cells(row) for row, _ in found], HEADER)


def history(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Every version of a lesson: who wrote it, when, and why."""
    versions = workspace(db, profile).lessons.history(lesson_id)
    if json:
        return print_json([shape(version) for version in versions])
    rows = [
        [v.version, f"{v.created:%F %R}", v.author, v.status, v.when, v.do, v.reason]
        for v in versions
    ]
    table(rows, ["version", "written (UTC)", "by", "status", "when", "do", "reason"])


def diff(
    lesson_id: Id,
    old: Annotated[
        int | None, typer.Argument(metavar="V1", help="A version. [default: the one before]")
    ] = None,
    new: Annotated[
        int | None, typer.Argument(metavar="V2", help="A version. [default: the newest]")
    ] = None,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """What changed between two versions, word by word: [-gone-] {+new+}, in colour on a
    terminal."""
    found = workspace(db, profile).lessons.diff(lesson_id, old, new)
    if json:
        return print_json(
            {"id": found.lesson_id, "old": found.old, "new": found.new, "fields": found.fields}
        )
    style = COLOURS if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else PLAIN
    print(f"lesson {found.lesson_id}, version {found.old} -> {found.new}")
    for field, pieces in found.fields.items():
        print(f"{field}: {''.join(style[sign].format(text) for sign, text in pieces)}")
    if not found.fields:
        print_status("Nothing in it differs.")


def stats(
    lesson_ids: Annotated[
        list[int] | None, typer.Argument(metavar="[ID...]", help="Only these lessons.")
    ] = None,
    scope: Scope = None,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """What each lesson costs and brings: tokens per call, calls, the measured effect, tokens per
    point of gain.

    The effect is the mean reward with the lesson minus without it, from the newest trial of its
    present text, with its interval. A point is 0.01 of reward. "paid" are the tokens of all calls
    that showed it.
    """
    book = workspace(db, profile).lessons
    wanted = {book.get(lesson_id).id for lesson_id in lesson_ids or ()}
    rows = [
        row
        for row in book.stats()
        if (not wanted or row.lesson.id in wanted) and (scope is None or row.lesson.scope == scope)
    ]
    total = {
        "lessons": len(rows),
        "tokens": sum(row.lesson.tokens for row in rows),
        "shown": sum(row.shown for row in rows),
        "withheld": sum(row.withheld for row in rows),
        "paid": sum(row.paid for row in rows),
        "measured": sum(row.trial is not None for row in rows),
    }
    if json:
        return print_json({"lessons": [figures(row) for row in rows], "total": total})
    cells = [list(figures(row).values()) for row in rows]
    table(
        [
            [
                *row[:6],
                row[6] if row[6] is None else f"{row[6]:+.2f} [{row[7]:+.2f}, {row[8]:+.2f}]",
                *row[9:],
            ]
            for row in cells
        ],
        [
            "id",
            "status",
            "tokens",
            "shown",
            "withheld",
            "paid",
            "effect",
            "n",
            "verdict",
            "tokens/point",
            "when",
        ],
    )
    print(", ".join(f"{name} {value}" for name, value in total.items()))


def figures(row: Cost) -> dict[str, Any]:
    """One lesson as JSON; what was never measured is null."""
    lesson, trial = row.lesson, row.trial
    measured = {
        name: getattr(trial, name, None) for name in ("effect", "low", "high", "n", "verdict")
    }
    return {
        "id": lesson.id,
        "status": lesson.status,
        "tokens": lesson.tokens,
        "shown": row.shown,
        "withheld": row.withheld,
        "paid": row.paid,
        **measured,
        "tokens_per_point": row.tokens_per_point,
        "when": lesson.when,
    }
