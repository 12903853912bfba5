"""add, edit, approve, reject, retire, pin, unpin, undo, forbid, forbidden, allow: a person's
hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import Db, Json, Profile, complain, workspace
from reflect.cli.lessons.common import Id, Ids, Reason, Scope, told
from reflect.cli.output import edit_text, fields, print_json, print_status, shape, table
from reflect.errors import ReflectError, UsageError

if TYPE_CHECKING:
    from reflect.records import Lesson
    from reflect.workspace.lessons import Lessons

When = Annotated[str | None, typer.Option("--when", help="The condition under which it applies.")]
Do = Annotated[str | None, typer.Option("--do", help="The advice.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="May be given more than once.")]
FIELDS = ("when", "do", "scope", "tags")


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
    if when is not None and do is not None:
        return told(
            book.add(when, do, scope=scope or "", tags=tag or (), reason=reason), "added", json
        )
    blank = form(when or "", do or "", scope or "", tag or ())
    text = edit_text(blank)
    with kept(book, "new-lesson", text if text != blank else ""):
        told(book.add(**filled(text), reason=reason), "added", json)


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
    """Change a lesson, by options or in $EDITOR. New text is pinned.

    When somebody else changes it while the editor is open, theirs stands, and yours is kept in a
    file.
    """
    book = workspace(db, profile).lessons
    head = book.get(lesson_id)
    given: dict[str, Any] = {"when": when, "do": do, "scope": scope, "tags": tag}
    changes = {name: value for name, value in given.items() if value is not None}
    text = was = ""
    if not changes:
        was = form(head.when, head.do, head.scope, head.tags)
        text = edit_text(was)
    with kept(book, f"lesson-{lesson_id}", text):
        if text != was:
            changes = filled(text)
            missing = [name for name in ("when", "do") if not changes[name]]
            if missing:
                hint = f"To be rid of it: reflect lessons retire {lesson_id}"
                raise UsageError(f"'{missing[0]}' is empty, so nothing was changed.", hint)
        row = (
            book.edit(lesson_id, expect_version=head.version, reason=reason, **changes)
            if changes
            else head
        )
    told(row, "stays as it was" if row.version == head.version else "changed", json)


def form(when: str, do: str, scope: str, tags: Iterable[str]) -> str:
    """What a person edits."""
    note = "# Lines that begin with # are left out. An empty scope is everywhere."
    return f"when: {when}\ndo: {do}\nscope: {scope}\ntags: {', '.join(tags)}\n{note}\n"


def filled(text: str) -> dict[str, Any]:
    """The form, read back."""
    found = fields(text, FIELDS)
    tags = [tag.strip() for tag in found.get("tags", "").split(",") if tag.strip()]
    return {name: found.get(name, "") for name in ("when", "do", "scope")} | {"tags": tags}


@contextmanager
def kept(book: Lessons, name: str, text: str) -> Iterator[None]:
    """What a person typed is never lost: when it cannot be taken, the error names the file that
    holds it."""
    try:
        yield
    except ReflectError as e:
        if not text.strip():
            raise
        file = (
            book.context.settings.home_path
            / "edits"
            / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.txt"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        raise type(e)(e.message, f"{e.hint}\nYour text is kept in {file}".strip()) from e


# -- the status
# --------------------------------------------------------------------------------------------------------


def approve(
    lesson_ids: Ids, reason: Reason = "", db: Db = None, profile: Profile = None, json: Json = False
) -> None:
    """Release quarantined lessons, settle candidates, or bring back retired ones.

    A lesson that was proposed in the place of others retires them.
    """
    book = workspace(db, profile).lessons
    rows = each(book, lesson_ids, lambda i: book.approve(i, reason=reason))
    told(rows, "approved", json)
    for row in rows:
        if gone := [
            str(x.other_id)
            for x in book.links(row.id or 0)
            if (x.lesson_id, x.kind) == (row.id, "supersedes")
        ]:
            print_status(f"Lesson {row.id} stands in the place of {', '.join(gone)}.")


def reject(
    lesson_ids: Ids,
    reason: Annotated[
        str, typer.Option("--why", "--reason", help="Reason, recorded in the history.")
    ] = "",
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Retire lessons for good, and say why: no review brings them back. undo and approve do."""
    book = workspace(db, profile).lessons
    told(each(book, lesson_ids, lambda i: book.reject(i, reason=reason)), "rejected", json)


def retire(
    lesson_id: Id, reason: Reason = "", db: Db = None, profile: Profile = None, json: Json = False
) -> None:
    """Take a lesson out of every prompt. It is kept; undo brings it back."""
    book = workspace(db, profile).lessons
    told(each(book, [lesson_id], lambda i: book.retire(i, reason=reason)), "retired", json)


def revoke(
    lesson_id: Id, reason: Reason = "", db: Db = None, profile: Profile = None, json: Json = False
) -> None:
    """Forget a lesson everywhere: out of every prompt, and out of the weights at once.

    The profile goes back to the newest adapter without it, or to the bare base; what only the left
    adapters held is text again. The next night is built without it and proves that it is gone. undo
    brings the text back.
    """
    ws = workspace(db, profile)
    done = ws.lessons.revoke(lesson_id, reason=reason)
    complain(ws)
    now = done.now.name if done.now else None
    if json:
        names = {
            "marked": [row.name for row in done.marked],
            "left": done.left.name if done.left else None,
        }
        print_json(
            shape(done.lesson)
            | names
            | {"active": now, "returned": [row.id for row in done.returned]}
        )
    else:
        told(done.lesson, "revoked", json)
    if done.left:
        print_status(f"Left {done.left.name}. Active: {now or 'the bare base'}.")
        if done.returned:
            print_status(
                f"In the prompt again: {', '.join(str(row.id) for row in done.returned)}. Next: reflect sleep"
            )
    elif not done.marked:
        print_status("No adapter holds it.")


def pin(lesson_ids: Ids, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Keep the words of lessons: no review may change or retire them."""
    book = workspace(db, profile).lessons
    told(each(book, lesson_ids, book.pin), "pinned", json)


def unpin(lesson_ids: Ids, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Let reviews change lessons again."""
    book = workspace(db, profile).lessons
    told(each(book, lesson_ids, book.unpin), "unpinned", json)


def undo(lesson_id: Id, db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Take back the last change of a lesson; undo of undo does it again."""
    told(workspace(db, profile).lessons.undo(lesson_id), "undone", json)


def each(book: Lessons, lesson_ids: Sequence[int], change: Callable[[int], Lesson]) -> list[Lesson]:
    """Change them all, unless one of the ids is unknown."""
    was = {lesson_id: book.get(lesson_id).status for lesson_id in lesson_ids}
    rows = [change(lesson_id) for lesson_id in was]
    if left := [
        str(row.id) for row in rows if was[row.id or 0] == "distilled" and row.status == "retired"
    ]:
        print_status(
            f"The weights still know {', '.join(left)} until the next night. At once: reflect lessons revoke {left[0]}"
        )
    return rows


# -- never learn this
# --------------------------------------------------------------------------------------------------


def forbid(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Words, or a regular expression.")
    ],
    why: Annotated[str, typer.Option("--why", "--reason", help="Why.")] = "",
    words: Annotated[
        bool,
        typer.Option("--words", help="Treat PATTERN as literal text, not a regular expression."),
    ] = False,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    r"""Never learn this: reviews may write no lesson that matches, and imports from others bring
    none.

    Plain words match as whole words, case and punctuation aside. What has any of \ [ ] ( ) { } | *
    + ^ $ in it is a regular expression, case aside. Lessons that are there already stay; they are
    named.
    """
    book = workspace(db, profile).lessons
    kind = "regex" if not words and set(pattern) & set(r"\[](){}|*+^$") else "words"
    rule = book.forbid(pattern, kind=kind, why=why)
    standing = [str(row.id) for row in book.breaking(rule)]
    if json:
        print_json(shape(rule) | {"standing": [int(i) for i in standing]})
    else:
        print(
            f"rule {rule.id} forbids {'the words' if kind == 'words' else 'what matches'}: {rule.pattern}"
        )
    if standing:
        print_status(f"Lessons that say so already: {', '.join(standing)}. To be rid of them:")
        print_status(f"reflect lessons reject {' '.join(standing)} --why 'rule {rule.id}'")


def forbidden(
    every: Annotated[bool, typer.Option("--all", help="Include lifted rules.")] = False,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """List the rules of what must never be learned."""
    rows = workspace(db, profile).lessons.forbidden(lifted=every)
    if json:
        return print_json([shape(row) for row in rows])
    table(
        [[row.id, row.kind, f"{row.created:%F %R}", f"{row.lifted:%F %R}" if row.lifted else None, row.pattern, row.why]
        for row in rows],
        ["id", "kind", "since (UTC)", "lifted", "pattern", "why"],
    )  # fmt: skip


def allow(
    rule_id: Annotated[int, typer.Argument(metavar="ID", help="A rule's id.")],
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Lift a rule: it may be learned again."""
    rule = workspace(db, profile).lessons.allow(rule_id)
    if json:
        return print_json(shape(rule))
    print(f"rule {rule.id} is lifted: {rule.pattern}")
