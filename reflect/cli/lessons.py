"""reflect lessons: what was learned, to read and to edit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import Db, Json, Profile, noun, workspace
from reflect.cli.output import edit_text, emit, fields, say, shape, table
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.records import Lesson

app = noun("Lessons: what was learned, in words.")
Id = Annotated[int, typer.Argument(metavar="ID", help="A lesson's id.")]
When = Annotated[str | None, typer.Option("--when", help="The condition under which it applies.")]
Do = Annotated[str | None, typer.Option("--do", help="The advice.")]
Scope = Annotated[str | None, typer.Option("--scope", help='A taskset\'s name; "" is everywhere.')]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="May be given more than once.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the history.")]
HEADER = ["id", "status", "scope", "when", "do"]
FIELDS = ("when", "do", "scope", "tags")


def cells(row: Lesson) -> list[Any]:
    return [row.id, row.status + (" *" if row.pinned else ""), row.scope, row.when, row.do]


def told(row: Lesson, what: str, json: bool) -> None:
    """After a change: the lesson on stdout, as JSON or as its line."""
    if json:
        return emit(shape(row))
    print(f"lesson {row.id} {what} (version {row.version}, {row.status}): when: {row.when} do: {row.do}")


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="candidate, active, distilled, retired or quarantined.")] = None,
    scope: Scope = None,
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="At most so many. [default: all]")] = None,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """The lessons; a star marks a pinned one, which no review may touch."""
    rows = workspace(db, profile).lessons.list(status=status, scope=scope, limit=limit)
    if json:
        return emit([shape(row) for row in rows])
    table([cells(row) for row in rows], HEADER)


@app.command()
def show(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """One lesson, and where it comes from."""

    ws = workspace(db, profile)
    row = ws.lessons.get(lesson_id)
    versions = ws.lessons.history(lesson_id)
    if json:
        return emit(shape(row) | {"versions": [shape(version) for version in versions]})
    for name, value in shape(row).items():
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    first, last = versions[0], versions[-1]
    print(f"written by: {first.author}" + (f", review {first.reflection_id}" if first.reflection_id else ""))
    if last is not first:
        print(f"last changed by: {last.author}{f' ({last.reason})' if last.reason else ''}")


@app.command()
def add(
    when: When = None,
    do: Do = None,
    scope: Scope = None,
    tag: Tag = None,
    reason: Reason = "",
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Write a lesson by hand: active at once, and pinned. Without --when and --do in $EDITOR."""
    book = workspace(db, profile).lessons
    if when is None or do is None:
        text = edit_text(form(when or "", do or "", scope or "", tag or ()))
        filled = fields(text, FIELDS)
        when, do, scope = filled.get("when", ""), filled.get("do", ""), filled.get("scope", "")
        tag = tags_of(filled.get("tags", ""))
    told(book.add(when, do, scope=scope or "", tags=tag or (), reason=reason), "added", json)


@app.command()
def edit(
    lesson_id: Id,
    when: When = None,
    do: Do = None,
    scope: Scope = None,
    tag: Tag = None,
    reason: Reason = "",
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Change a lesson, by options or in $EDITOR. New text is pinned."""
    book = workspace(db, profile).lessons
    head = book.get(lesson_id)
    given: dict[str, Any] = {"when": when, "do": do, "scope": scope, "tags": tag}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        filled = dict(fields(edit_text(form(head.when, head.do, head.scope, head.tags)), FIELDS))
        missing = [name for name in ("when", "do") if not filled.get(name)]
        if missing:
            raise UsageError(
                f"'{missing[0]}' is empty, so nothing was changed.", "To be rid of it: reflect lessons retire"
            )
        changes = {**filled, "tags": tags_of(filled.get("tags", ""))}
    row = book.edit(lesson_id, expect_version=head.version, reason=reason, **changes)
    told(row, "stays as it was" if row.version == head.version else "changed", json)


def form(when: str, do: str, scope: str, tags: Iterable[str]) -> str:
    """What a person edits."""
    note = "# Lines that begin with # are left out. An empty scope is everywhere."
    return f"when: {when}\ndo: {do}\nscope: {scope}\ntags: {', '.join(tags)}\n{note}\n"


def tags_of(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


@app.command()
def retire(lesson_id: Id, reason: Reason = "", db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Take a lesson out of every prompt. It is kept; undo brings it back."""
    book = workspace(db, profile).lessons
    was = book.get(lesson_id).status
    told(book.retire(lesson_id, reason=reason), "retired", json)
    if was == "distilled":
        say("The active adapter still holds it; the next night makes one without it: reflect sleep")


@app.command()
def approve(lesson_id: Id, reason: Reason = "", db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Release a quarantined lesson, settle a candidate, or bring back a retired one."""
    told(workspace(db, profile).lessons.approve(lesson_id, reason=reason), "approved", json)


@app.command()
def pin(
    lesson_id: Id,
    off: Annotated[bool, typer.Option("--off", help="Let reviews change it again.")] = False,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Keep a lesson's words: no review may change or retire it."""
    row = workspace(db, profile).lessons.edit(lesson_id, pinned=not off)
    told(row, "unpinned" if off else "pinned", json)


@app.command()
def undo(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Take back the last change of a lesson; undo of undo does it again."""
    told(workspace(db, profile).lessons.undo(lesson_id), "undone", json)


@app.command()
def history(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Every version of a lesson: who wrote it, when, and why."""
    versions = workspace(db, profile).lessons.history(lesson_id)
    if json:
        return emit([shape(version) for version in versions])
    rows = [[v.version, f"{v.created:%F %R}", v.author, v.status, v.when, v.do, v.reason] for v in versions]
    table(rows, ["version", "written (UTC)", "by", "status", "when", "do", "reason"])


@app.command()
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
        return emit([shape(row) | {"score": score} for row, score in found])
    table([cells(row) for row, _ in found], HEADER)


@app.command()
def path(db: Db = None) -> None:
    """The path of the database, and nothing else."""
    print(workspace(db).path)
