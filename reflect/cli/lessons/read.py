"""list, show, search, history, diff, stats, followed: read lessons."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import Json, Seed, with_workspace
from reflect.cli.lessons.common import Id, Scope, print_lessons
from reflect.cli.output import join, print_json, print_status, print_table, to_dict
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.store.followed import FollowedShares, Share
    from reflect.store.lesson_evidence import Cost
    from reflect.workspace.workspace import Workspace

COLOURS = {"-": "\x1b[31m{}\x1b[0m", "+": "\x1b[32m{}\x1b[0m", "=": "{}"}
PLAIN = {"-": "[-{}-]", "+": "{{+{}+}}", "=": "{}"}
LINKS = {  # kind -> (text at the replaced lesson, text at the replacing one)
    "merged": ("merged into", "holds"),
    "supersedes": ("superseded by", "supersedes"),
    "proposed": ("could be replaced by", "is proposed in the place of"),
}
COSTS = (
    "id, status, tokens, shown, withheld, paid, followed, effect, n, verdict, tokens/point, when"
)
FOLLOWED = "id, read by, followed when shown, followed when withheld, effect, do"


@with_workspace("profile")
def list_(
    ws: Workspace,
    status: str | None = Option(None, help="candidate, active, distilled, retired or quarantined."),
    scope: Scope = None,
    limit: int | None = Option(
        None, "-n", "--limit", min=1, help="Maximum number of lessons. [default: all]"
    ),
    json: Json = False,
) -> None:
    """List the lessons; a star marks a pinned one, which no reflection changes."""
    rows = ws.lessons.list(status=status, scope=scope, limit=limit)
    return print_json(rows) if json else print_lessons(rows)


@with_workspace("profile")
def show(ws: Workspace, lesson_id: Id, json: Json = False) -> None:
    """Show one lesson, its origin, and the lessons that replace it or that it replaces."""
    row, versions = ws.lessons.get(lesson_id), ws.lessons.history(lesson_id)
    links = ws.lessons.links(lesson_id)
    if json:
        return print_json(to_dict(row) | {"versions": versions, "links": links})
    for name, value in to_dict(row).items():
        print(f"{name}: {join(value) if isinstance(value, list) else value}")
    first, last = versions[0], versions[-1]
    origin = f", reflection {first.reflection_id}" if first.reflection_id else ""
    print(f"written by: {first.author}{origin}")
    if last is not first:
        print(f"last changed by: {last.author}{f' ({last.reason})' if last.reason else ''}")
    for link in links:
        replaces = link.lesson_id == lesson_id
        other = link.other_id if replaces else link.lesson_id
        print(f"{LINKS[link.kind][replaces]} lesson {other}{f': {link.why}' if link.why else ''}")


@with_workspace("profile")
def search(
    ws: Workspace,
    words: Annotated[list[str], Argument(help="Any text.")],
    limit: int = Option(20, "-n", "--limit", min=1, help="Maximum number of lessons."),
    json: Json = False,
) -> None:
    """Find lessons by their words, best match first."""
    matches = ws.lessons.search(" ".join(words), limit=limit)
    if json:
        return print_json([to_dict(row) | {"score": score} for row, score in matches])
    print_lessons(row for row, _ in matches)


@with_workspace("profile")
def history(ws: Workspace, lesson_id: Id, json: Json = False) -> None:
    """Show every version of a lesson: author, time and reason."""
    versions = ws.lessons.history(lesson_id)
    if json:
        return print_json(versions)
    cells = [
        [v.version, f"{v.created:%F %R}", v.author, v.status, v.when, v.do, v.reason]
        for v in versions
    ]
    print_table(cells, "version, written (UTC), by, status, when, do, reason")


@with_workspace("profile")
def diff(
    ws: Workspace,
    lesson_id: Id,
    old: int | None = Argument(None, metavar="V1", help="A version. [default: the one before]"),
    new: int | None = Argument(None, metavar="V2", help="A version. [default: the newest]"),
    json: Json = False,
) -> None:
    """Show the changes between two versions, word by word: [-gone-] {+new+}, in colour on a
    terminal."""
    result = ws.lessons.diff(lesson_id, old, new)
    if json:
        data = {"id": result.lesson_id, "old": result.old, "new": result.new}
        return print_json(data | {"fields": result.fields})
    style = COLOURS if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else PLAIN
    print(f"lesson {result.lesson_id}, version {result.old} -> {result.new}")
    for field, pieces in result.fields.items():
        print(f"{field}: {''.join(style[sign].format(text) for sign, text in pieces)}")
    if not result.fields:
        print_status("Nothing in it differs.")


@with_workspace("profile")
def stats(
    ws: Workspace,
    lesson_ids: Annotated[
        list[int] | None, Argument(metavar="[ID...]", help="Only these lessons.")
    ] = None,
    scope: Scope = None,
    json: Json = False,
) -> None:
    """Show the cost and gain of each lesson: tokens per call, calls, the share of answers that
    followed it, the measured effect, tokens per point of gain.

    The effect is the mean reward with the lesson minus without it, from the newest trial of its
    present text, with its interval. A point is 0.01 of reward. "paid": the tokens in all calls that
    showed it.
    """
    ids = {ws.lessons.get(lesson_id).id for lesson_id in lesson_ids or ()}
    rows = [
        row
        for row in ws.lessons.stats()
        if (not ids or row.lesson.id in ids) and (scope is None or row.lesson.scope == scope)
    ]
    total = {
        "lessons": len(rows),
        "tokens": sum(row.lesson.tokens for row in rows),
        "shown": sum(row.shown for row in rows),
        "withheld": sum(row.withheld for row in rows),
        "paid": sum(row.paid for row in rows),
        "measured": sum(row.trial is not None for row in rows),
    }
    shares = ws.lessons.followed_shares([row.lesson.id or 0 for row in rows])
    if json:
        costs = [
            cost_json(row) | {"followed": followed_json(shares.get(row.lesson.id or 0))}
            for row in rows
        ]
        return print_json({"lessons": costs, "total": total})
    cells = []
    for row in rows:
        mine, values = shares.get(row.lesson.id or 0), list(cost_json(row).values())
        share = share_text(mine.shown) if mine else None
        cells.append([*values[:6], share, effect_text(row), *values[9:]])
    print_table(cells, COSTS)
    print(join(f"{name} {value}" for name, value in total.items()))


@with_workspace("model profile judge")
def followed(
    ws: Workspace,
    lesson_ids: Annotated[
        list[int] | None, Argument(metavar="[ID...]", help="Only these lessons.")
    ] = None,
    ask: bool = Option(False, "--ask", help="Let the judge read a sample of the rollouts."),
    sample: int = Option(40, min=1, max=1000, help="With --ask: rollouts of each lesson."),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show how many answers followed each lesson, when it was shown and when it was withheld, and
    whether it helped.

    A lesson's check (`reflect lessons check`) reads every rollout. With --ask the judge reads a
    random sample; name the lessons, because each sample costs calls of the model. The intervals are
    at 95 %.
    """
    if ask and not lesson_ids:
        raise UsageError("Which lessons is the judge to read for?", "Name them: followed 3 7 --ask")
    ids = [ws.lessons.get(lesson_id).id or 0 for lesson_id in lesson_ids or ()]
    for lesson_id in ids if ask else ():
        judged = ws.lessons.judge_followed(lesson_id, sample, seed)
        print_status(f"lesson {lesson_id}: the judge read {judged.graded} rollouts")
        for problem in judged.problems[:5]:
            print_status(problem)
    rows = [row for row in ws.lessons.stats() if not ids or row.lesson.id in ids]
    shares = ws.lessons.followed_shares([row.lesson.id or 0 for row in rows])
    if json:
        pairs = [(cost_json(row), shares.get(row.lesson.id or 0)) for row in rows]
        return print_json([cost | {"followed": followed_json(share)} for cost, share in pairs])
    cells = []
    for row in rows:
        if mine := shares.get(row.lesson.id or 0):
            texts = (share_text(mine.shown), share_text(mine.withheld))
            cells.append([row.lesson.id, mine.source, *texts, effect_text(row), row.lesson.do])
    print_table(cells, FOLLOWED)
    if len(cells) < len(rows):
        hint = "reflect lessons check ID PATTERN, or reflect lessons followed ID --ask"
        print_status(f"Nothing has read the rollouts of {len(rows) - len(cells)} lessons: {hint}")


def effect_text(row: Cost) -> str | None:
    """The measured effect with its interval."""
    trial = row.trial
    return f"{trial.effect:+.2f} [{trial.low:+.2f}, {trial.high:+.2f}]" if trial else None


def share_text(share: Share) -> str | None:
    """`0.92 [0.85, 0.96] of 120`; None without a rollout."""
    if share.share is None:
        return None
    low, high = share.interval
    return f"{share.share:.2f} [{low:.2f}, {high:.2f}] of {share.n}"


def followed_json(shares: FollowedShares | None) -> dict[str, object] | None:
    """The shares as JSON; null if nothing has read a rollout."""
    if shares is None:
        return None

    def row(share: Share) -> dict[str, object]:
        low, high = share.interval
        return {"share": share.share, "low": low, "high": high, "n": share.n}

    return {"by": shares.source, "shown": row(shares.shown), "withheld": row(shares.withheld)}


def cost_json(row: Cost) -> dict[str, object]:
    """The cost and gain of one lesson as JSON; values that were never measured are null."""
    lesson = row.lesson
    figures = ("effect", "low", "high", "n", "verdict")
    return {
        "id": lesson.id,
        "status": lesson.status,
        "tokens": lesson.tokens,
        "shown": row.shown,
        "withheld": row.withheld,
        "paid": row.paid,
        **{name: getattr(row.trial, name, None) for name in figures},
        "tokens_per_point": row.tokens_per_point,
        "when": lesson.when,
    }
