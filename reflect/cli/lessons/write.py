"""Changes of lessons by a person: add, edit, approve, reject, retire, revoke, pin, unpin, undo,
merge, check, forbid, forbidden, allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import Json, with_workspace
from reflect.cli.lessons.common import Id, Ids, Reason, Scope, print_changed
from reflect.cli.lessons.editor import edit_text, form, keep_on_error, parse_form
from reflect.cli.lessons.read import followed_json, share_text
from reflect.cli.output import join, print_json, print_status, print_table, to_dict
from reflect.cli.report import change_line
from reflect.errors import UsageError
from reflect.types import RuleKind

if TYPE_CHECKING:
    from reflect.records import Lesson
    from reflect.workspace.lessons import Changes, Lessons
    from reflect.workspace.workspace import Workspace

When = Annotated[str | None, Option("--when", help="The condition under which it applies.")]
Do = Annotated[str | None, Option("--do", help="The advice.")]
Tag = Annotated[list[str] | None, Option("--tag", help="May be given more than once.")]
WORDS = Option(False, "--words", help="Treat PATTERN as literal text, not a regular expression.")
KINDS = {"words": "the words", "regex": "what matches"}


@with_workspace("profile")
def add(
    ws: Workspace,
    when: When = None,
    do: Do = None,
    scope: Scope = None,
    tag: Tag = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Write a lesson by hand: active at once, and pinned. Without --when and --do in $EDITOR."""
    if when is not None and do is not None:
        row = ws.lessons.add(when, do, scope=scope or "", tags=tag or (), reason=reason)
        return print_changed([row], "added", json)
    blank = form(when or "", do or "", scope or "", tag or ())
    text = edit_text(blank)
    with keep_on_error(ws.lessons, "new-lesson", text if text != blank else ""):
        row = ws.lessons.add(**parse_form(text), reason=reason)
    print_changed([row], "added", json)


@with_workspace("profile")
def edit(
    ws: Workspace,
    lesson_id: Id,
    when: When = None,
    do: Do = None,
    scope: Scope = None,
    tag: Tag = None,
    reason: Reason = "",
    json: Json = False,
) -> None:
    """Change a lesson, by options or in $EDITOR. New text is pinned.

    If somebody else changes it while the editor is open, their change stays, and your text is saved
    to a file.
    """
    head = ws.lessons.get(lesson_id)
    changes: Changes = {}
    if when is not None:
        changes["when"] = when
    if do is not None:
        changes["do"] = do
    if scope is not None:
        changes["scope"] = scope
    if tag is not None:
        changes["tags"] = tag
    before = "" if changes else form(head.when, head.do, head.scope, head.tags)
    text = "" if changes else edit_text(before)
    with keep_on_error(ws.lessons, f"lesson-{lesson_id}", text):
        if text != before:
            fields = parse_form(text)
            changes.update({"when": fields["when"], "do": fields["do"]})
            changes.update({"scope": fields["scope"], "tags": fields["tags"]})
            if missing := [name for name in ("when", "do") if not changes.get(name)]:
                hint = f"To be rid of it: reflect lessons retire {lesson_id}"
                raise UsageError(f"'{missing[0]}' is empty, so nothing was changed.", hint)
        version = head.version
        row = (
            ws.lessons.edit(lesson_id, expect_version=version, reason=reason, **changes)
            if changes
            else head
        )
    print_changed([row], "stays as it was" if row.version == version else "changed", json)


# -- status


@with_workspace("profile")
def approve(ws: Workspace, lesson_ids: Ids, reason: Reason = "", json: Json = False) -> None:
    """Release quarantined lessons, activate candidates, or restore retired ones.

    Lessons that an approved one was proposed to replace are retired.
    """
    rows = change_each(ws.lessons, lesson_ids, lambda i: ws.lessons.approve(i, reason=reason))
    print_changed(rows, "approved", json)
    for row in rows:
        links = ws.lessons.links(row.id or 0)
        if replaced := [
            x.other_id for x in links if (x.lesson_id, x.kind) == (row.id, "supersedes")
        ]:
            print_status(f"Lesson {row.id} replaces {join(replaced)}.")


@with_workspace("profile")
def reject(ws: Workspace, lesson_ids: Ids, reason: Reason = "", json: Json = False) -> None:
    """Retire lessons for good, with a reason: no reflection restores them. undo and approve do."""
    rows = change_each(ws.lessons, lesson_ids, lambda i: ws.lessons.reject(i, reason=reason))
    print_changed(rows, "rejected", json)


@with_workspace("profile")
def retire(ws: Workspace, lesson_id: Id, reason: Reason = "", json: Json = False) -> None:
    """Remove a lesson from every prompt. It is kept; undo restores it."""
    rows = change_each(ws.lessons, [lesson_id], lambda i: ws.lessons.retire(i, reason=reason))
    print_changed(rows, "retired", json)


@with_workspace("profile")
def revoke(ws: Workspace, lesson_id: Id, reason: Reason = "", json: Json = False) -> None:
    """Forget a lesson everywhere: out of every prompt, and out of the weights at once.

    The profile goes back to the newest adapter without it, or to the bare base; lessons that only
    the left adapters held return to the prompt. The next night is trained without it, and its gate
    checks that it is gone. undo restores the text.
    """
    done = ws.lessons.revoke(lesson_id, reason=reason)
    active, left = (row.name if row else None for row in (done.now, done.left))
    returned = [row.id for row in done.returned]
    if json:
        row = to_dict(done.lesson) | {"marked": [x.name for x in done.marked], "left": left}
        print_json(row | {"active": active, "returned": returned})
    else:
        print_changed([done.lesson], "revoked", json)
    if left:
        print_status(f"Left {left}. Active: {active or 'the bare base'}.")
        if returned:
            print_status(f"In the prompt again: {join(returned)}. Next: reflect sleep")
    elif not done.marked:
        print_status("No adapter holds it.")


@with_workspace("profile")
def pin(ws: Workspace, lesson_ids: Ids, json: Json = False) -> None:
    """Protect lessons: no reflection changes or retires them."""
    print_changed(change_each(ws.lessons, lesson_ids, ws.lessons.pin), "pinned", json)


@with_workspace("profile")
def unpin(ws: Workspace, lesson_ids: Ids, json: Json = False) -> None:
    """Let reflections change lessons again."""
    print_changed(change_each(ws.lessons, lesson_ids, ws.lessons.unpin), "unpinned", json)


@with_workspace("profile")
def undo(ws: Workspace, lesson_id: Id, json: Json = False) -> None:
    """Revert the last change of a lesson; a second undo redoes it."""
    print_changed([ws.lessons.undo(lesson_id)], "undone", json)


def change_each(
    lessons: Lessons, lesson_ids: Sequence[int], change: Callable[[int], Lesson]
) -> list[Lesson]:
    """Change all of the lessons, or none if an id is unknown."""
    before = {lesson_id: lessons.get(lesson_id).status for lesson_id in lesson_ids}
    rows = [change(lesson_id) for lesson_id in before]
    retired = [row.id for row in rows if row.status == "retired"]
    if left := [i for i in retired if i and before[i] == "distilled"]:
        hint = f"At once: reflect lessons revoke {left[0]}"
        print_status(f"The weights still know {join(left)} until the next night. {hint}")
    return rows


@with_workspace("model profile")
def merge(
    ws: Workspace,
    scope: Scope = None,
    dry_run: bool = Option(
        False, "--dry-run", help="Ask the model and print the changes without making them."
    ),
    json: Json = False,
) -> None:
    """Merge lessons that say the same. The model is asked about near duplicates only.

    The text of pinned and proven lessons is kept. Each change can be undone: reflect lessons undo
    ID.
    """
    result = ws.lessons.merge(scope=scope, dry_run=dry_run)
    if json:
        old = {"standing": result.in_use}  # the name of in_use until 0.2
        return print_json(asdict(result) | old)
    lines = filter(None, map(change_line, result.changes))
    print("\n".join(lines) or "Nothing to merge.")
    for family in result.asked:
        for problem in family.problems:
            print_status(f"lessons {join(family.lessons)}: {problem}")
    for change in result.changes:
        if change["outcome"] == "refused":
            edit = f"{change['kind']} {change.get('ids') or change['id']}"
            print_status(f"refused: {edit}: {change['reason']}")
    settings = ws.settings
    room = f"a prompt holds {settings.lesson_limit} lessons and {settings.lesson_budget} tokens"
    for name, row in sorted(result.in_use.items()):
        size = f"{row['lessons']} lessons, {row['tokens']} tokens in use"
        print_status(f"{name or 'everywhere'}: {size}; {room}")
    if dry_run:
        print_status("Nothing was changed.")


@with_workspace("profile")
def check(
    ws: Workspace,
    lesson_id: Id,
    pattern: str | None = Argument(None, help="Words, or a regular expression."),
    words: bool = WORDS,
    remove: bool = Option(False, "--remove", help="Remove the check with its results."),
    json: Json = False,
) -> None:
    r"""Set the pattern that an answer has if it follows the lesson, and read its rollouts with it.

    As in `reflect lessons forbid`, a pattern with any of \ [ ] ( ) { } | * + ^ $ is a regular
    expression. Later runs read their rollouts at their end. If the advice changes, the check no
    longer applies. See: reflect lessons followed
    """
    if remove == (pattern is not None):
        raise UsageError("Give a pattern, or --remove.", "See: reflect lessons check --help")
    if pattern is None:
        if not ws.lessons.remove_check(lesson_id):
            raise UsageError(f"Lesson {lesson_id} has no check.", "See: reflect lessons followed")
        return print_json({"removed": True}) if json else print("removed")
    kind = RuleKind.WORDS if words else RuleKind.of(pattern)
    shares = ws.lessons.set_check(lesson_id, pattern, kind=kind)
    if json:
        return print_json({"kind": kind, "pattern": pattern, "followed": followed_json(shares)})
    print(f"lesson {lesson_id} is followed by answers with {KINDS[kind]}: {pattern}")
    if shares is None:
        return print_status("No rollout has seen this advice yet.")
    for name, share in (("shown", shares.shown), ("withheld", shares.withheld)):
        print(f"{name}: {share_text(share) or 'no rollout'}")


# -- rules: what must never be learned


@with_workspace("profile")
def forbid(
    ws: Workspace,
    pattern: Annotated[str, Argument(metavar="PATTERN", help="Words, or a regular expression.")],
    why: str = Option("", "--why", "--reason", help="Reason of the rule."),
    words: bool = WORDS,
    json: Json = False,
) -> None:
    r"""Forbid a pattern: reflections write no lesson that matches, imports from others add none.

    Plain words match as whole words; case and punctuation are ignored. A pattern with any of
    \ [ ] ( ) { } | * + ^ $ is a regular expression; case is ignored. Existing lessons stay; those
    that match are listed.
    """
    kind = RuleKind.WORDS if words else RuleKind.of(pattern)
    rule = ws.lessons.forbid(pattern, kind=kind, why=why)
    matching = [row.id for row in ws.lessons.breaking(rule)]
    if json:
        print_json(to_dict(rule) | {"matching": matching, "standing": matching})
    else:
        print(f"rule {rule.id} forbids {KINDS[kind]}: {rule.pattern}")
    if matching:
        print_status(f"Lessons that say so already: {join(matching)}. To be rid of them:")
        ids = " ".join(map(str, matching))
        print_status(f"reflect lessons reject {ids} --why 'rule {rule.id}'")


@with_workspace("profile")
def forbidden(
    ws: Workspace,
    every: bool = Option(False, "--all", help="Include lifted rules."),
    json: Json = False,
) -> None:
    """List the rules of what must never be learned."""
    rows = ws.lessons.forbidden(lifted=every)
    if json:
        return print_json(rows)
    cells = []
    for row in rows:
        lifted = f"{row.lifted:%F %R}" if row.lifted else None
        cells.append([row.id, row.kind, f"{row.created:%F %R}", lifted, row.pattern, row.why])
    print_table(cells, "id, kind, since (UTC), lifted, pattern, why")


@with_workspace("profile")
def allow(
    ws: Workspace,
    rule_id: Annotated[int, Argument(metavar="ID", help="A rule's id.")],
    json: Json = False,
) -> None:
    """Lift a rule: it may be learned again."""
    rule = ws.lessons.allow(rule_id)
    if json:
        return print_json(rule)
    print(f"rule {rule.id} is lifted: {rule.pattern}")
