"""Merge duplicate lessons, first exact, then near duplicates.

Exact duplicates (equal in `similarity.identity`) need no model. Near duplicates are found by
`similarity.alike` among what full-text search finds for each lesson, and the bare base model is
asked about each family; its answer is read like a reflection's, and may change the lessons of that
family only. `apply_merge` decides what may be merged, and `protection.EditTransaction` undoes
everything if too much would be lost. The model's answer is kept in the links that it led to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import ModelError
from reflect.lessons.apply_edits import Evidence, Outcome, apply_edits
from reflect.lessons.edit_format import Edit, parse_edits
from reflect.lessons.outcome import tasks_of
from reflect.lessons.protection import EditTransaction, protection_reason
from reflect.lessons.similarity import families, identity, telling
from reflect.models.base import Model, using
from reflect.models.partial import sample_each
from reflect.records import HELD_STATUSES, Lesson
from reflect.rollouts.runner import request_for
from reflect.store import Store
from reflect.store import lessons as db
from reflect.types import EditKind, EditOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.lessons.selection import Count
    from reflect.tasksets.task import Message

NEAR = 20  # lessons that full-text search gives for one lesson, to be compared with it
MOST = 8  # lessons of one family in one prompt


@dataclass(frozen=True)
class Family:
    """Near duplicates, the model's answer about them, and what of it could not be used."""

    lessons: list[int]
    answer: str
    problems: list[str]


@dataclass(frozen=True)
class Merged:
    """The result of `merge`."""

    changes: list[dict[str, object]]
    """Each edit with its outcome, as in a run's report."""
    asked: list[Family]
    alarm: str
    """Why the changes were undone; "" if they stay."""
    dry_run: bool
    in_use: dict[str, dict[str, int]]
    """scope -> number of its lessons in use and their tokens, afterwards."""


def merge(
    model: Callable[[], Model],
    store: Store,
    settings: Settings,
    *,
    scope: str | None = None,
    dry_run: bool = False,
) -> Merged:
    """Merge the duplicates among the lessons in use of a profile, of one scope ("" is the general
    ones) or of all.

    `model` is called only if there are near duplicates. `dry_run` asks the model too, and changes
    nothing. Lessons that change meanwhile are left alone.
    """
    profile = settings.profile
    with store.write() as s:
        transaction = EditTransaction(s, profile)
        outcomes = [
            outcome
            for lessons in _groups(s, profile, scope)
            for edit in _exact(lessons)  # no text changes: no tokens to count
            for outcome in _apply(s, settings, [edit], lessons, lambda text: 0)
        ]
        transaction.close(keep=not dry_run)  # each condition is still covered: no alarm
    gone = {lesson_id for outcome in outcomes for lesson_id in outcome.gone}
    with store.read() as s:
        groups = _groups(s, profile, scope)
        rest = [[lesson for lesson in group if lesson.id not in gone] for group in groups]
        near = [family for lessons in rest for family in _near(s, lessons)]
        asking = [_messages(s, family) for family in near]
    asked: list[Family] = []
    wanted: list[Outcome] = []
    alarm = ""
    if near:
        answers = _ask(model(), settings, asking)
        with store.write() as s:
            transaction = EditTransaction(s, profile)
            for family, (answer, edits, problems) in zip(near, answers, strict=True):
                asked.append(Family([lesson.id or 0 for lesson in family], answer, problems))
                wanted += _apply(s, settings, edits, family, model().count_tokens)
            alarm = transaction.close(keep=not dry_run)
    if alarm:
        refused = EditOutcome.REFUSED
        wanted = [Outcome(x.edit, refused, "undone by the shrink alarm") for x in wanted]
    changes = [outcome.row() for outcome in (*outcomes, *wanted)]
    changes += [{"kind": "alarm", "outcome": "alarm", "reason": alarm}] if alarm else []
    with store.read() as s:
        return Merged(changes, asked, alarm, dry_run, _sums(_groups(s, profile, scope)))


def _groups(s: Session, profile: str, scope: str | None) -> list[list[Lesson]]:
    """The lessons in use, grouped by the tasks that they hold for: a scope, or single tasks."""
    groups: dict[tuple[str, ...], list[Lesson]] = {}
    for lesson in db.listing(s, profile, HELD_STATUSES, scope):
        groups.setdefault((lesson.scope, *tasks_of(lesson)), []).append(lesson)
    return list(groups.values())


def _exact(lessons: Sequence[Lesson]) -> list[Edit]:
    """One MERGE for each text that several lessons have, unless all of them are pinned."""
    alike: dict[tuple[tuple[str, ...], ...], list[Lesson]] = {}
    for lesson in lessons:
        alike.setdefault((identity(lesson.when), identity(lesson.do)), []).append(lesson)
    why = "they have the same text"
    return [
        Edit(EditKind.MERGE, x[0].when, x[0].do, why, lesson_ids=tuple(y.id or 0 for y in x))
        for x in alike.values()
        if len(x) > 1 and not all(y.pinned for y in x)
    ]


def _near(s: Session, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """Families of near duplicates; those in which two lessons' texts must stay are left out."""
    at = {lesson.id: i for i, lesson in enumerate(lessons)}
    pairs = set()
    for i, x in enumerate(lessons if len(lessons) > 1 else ()):
        text, scopes = f"{x.when} {x.do}", [x.scope]
        near = db.search(
            s, text, profile=x.profile, statuses=HELD_STATUSES, scopes=scopes, limit=NEAR
        )
        pairs |= {(min(i, j), max(i, j)) for other, _ in near if (j := at.get(other.id, i)) != i}
    contrasts = telling(lesson.when for lesson in lessons)
    indices = families(lessons, sorted(pairs), contrasts)
    rows = [[lessons[i] for i in family[:MOST]] for family in indices]
    return [row for row in rows if sum(bool(protection_reason(s, x)) for x in row) < 2]


def _messages(s: Session, family: Sequence[Lesson]) -> list[Message]:
    rows = []
    for lesson in family:
        row = {name: prompts.lesson_text(getattr(lesson, name)) for name in ("when", "do")}
        rows.append(row | {"id": lesson.id, "stays": bool(protection_reason(s, lesson))})
    fence = prompts.nonce(*(f"{row['when']} {row['do']}" for row in rows))
    return [{"role": "user", "content": prompts.render("merge", lessons=rows, fence=fence)}]


def _ask(
    model: Model, settings: Settings, asking: Sequence[Sequence[Message]]
) -> list[tuple[str, list[Edit], list[str]]]:
    """(answer, edits, problems) for each prompt, in one batch, by the bare base."""
    with using(model, None):
        requests = [request_for(messages, settings.reflect_tokens) for messages in asking]
        answers = sample_each(model, requests)
    results: list[tuple[str, list[Edit], list[str]]] = []
    for answer in answers:
        if isinstance(answer, ModelError):
            results.append(("", [], [answer.message]))
            continue
        text, why = answer[0].text, f"the model's answer: {prompts.sanitize_line(answer[0].text)}"
        edits, problems = parse_edits(text, complete=answer[0].finish == "stop")
        edits = [replace(x, why=why) if x.kind == EditKind.MERGE else x for x in edits]
        results.append((text, edits, problems))
    return results


def _apply(
    s: Session, settings: Settings, edits: Sequence[Edit], lessons: Sequence[Lesson], count: Count
) -> list[Outcome]:
    """The outcomes of the edits, which may change these lessons only."""
    evidence = Evidence(
        task=None,
        scope=lessons[0].scope,
        profile=settings.profile,
        shown=[lesson.model_copy() for lesson in lessons],
        contrast=False,
        require_approval=settings.require_approval,
    )
    outcomes, budget = [], settings.lesson_budget
    for edit in edits:
        if edit.kind in (EditKind.MERGE, EditKind.RETIRE):
            outcomes += apply_edits(s, [edit], evidence, count_tokens=count, budget=budget)
        else:
            reason = "merging duplicates only merges and retires"
            outcomes.append(Outcome(edit, EditOutcome.REFUSED, reason))
    return outcomes


def _sums(groups: Sequence[Sequence[Lesson]]) -> dict[str, dict[str, int]]:
    """scope -> its lessons and their tokens."""
    sums: dict[str, dict[str, int]] = {}
    for lesson in (lesson for group in groups for lesson in group):
        row = sums.setdefault(lesson.scope, {"lessons": 0, "tokens": 0})
        row["lessons"] += 1
        row["tokens"] += lesson.tokens
    return sums
