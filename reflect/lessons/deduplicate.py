"""Tidy up: lessons that say the same become one, first those that say exactly the same, then near
duplicates.

Exact duplicates, wording aside (`reflection.normal`), need no model. Near duplicates are found by
their words (`likeness.alike`, on what full-text search finds for each lesson), and the bare base
model is asked, family by family, what is to become of them; its answer is read like a review's, and
may touch the lessons of that family only. What a merge may not do (pinned, proven, different
conditions ...) is decided in `joining`, and `keeping` takes a tidy-up back whole that would lose
too much. The model's answer is kept in the links that it led to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session

from reflect import prompts
from reflect.config import Settings
from reflect.errors import ModelError
from reflect.lessons.apply_edits import Evidence, Outcome, apply_edits
from reflect.lessons.edit_format import Edit, parse_edits
from reflect.lessons.outcome import tasks_of
from reflect.lessons.protection import EditTransaction, protection_reason
from reflect.lessons.selection import Count
from reflect.lessons.similarity import families, normal, telling
from reflect.models.base import Model
from reflect.models.partial import sample_each
from reflect.records import Lesson
from reflect.rollouts.runner import request_for, using
from reflect.store import Store
from reflect.store import lessons as db
from reflect.store.lesson_evidence import STANDING
from reflect.tasksets.task import Message

NEAR = 20  # lessons that full-text search gives for one lesson, to be compared with it
MOST = 8  # lessons of one family that the model is asked about at once: one prompt


@dataclass(frozen=True)
class Family:
    """Near duplicates, what the model answered about them, and what of it could not be used."""

    lessons: list[int]
    answer: str
    problems: list[str]


@dataclass(frozen=True)
class Merged:
    """What a tidy-up did. `changes`: each edit with its outcome, as in a run's report. `alarm`: why
    what the model wanted was taken back, "" when it stands. `standing`: scope -> its lessons and
    their tokens, afterwards."""

    changes: list[dict[str, Any]]
    asked: list[Family]
    alarm: str
    dry_run: bool
    standing: dict[str, dict[str, int]]


def merge(
    model: Callable[[], Model],
    store: Store,
    settings: Settings,
    *,
    scope: str | None = None,
    dry_run: bool = False,
) -> Merged:
    """Merge the duplicates among the standing lessons of a profile, of one scope ("" is the general
    ones) or of all.

    `model` is called only when there are near duplicates to ask about. `dry_run` asks too, and
    changes nothing. Lessons that somebody changes while the model is asked are left alone.
    """
    profile = settings.profile
    with store.write() as s:
        tidy = EditTransaction(s, profile)
        outcomes = [
            outcome
            for lessons in _groups(s, profile, scope)
            for edit in _twins(lessons)
            for outcome in _apply(
                s, settings, [edit], lessons, lambda text: 0
            )  # no word changes: nothing to count
        ]
        tidy.close(keep=not dry_run)  # what goes has a twin: no condition is lost
    gone = {lesson_id for outcome in outcomes for lesson_id in outcome.gone}
    with store.read() as s:
        rest = [
            [lesson for lesson in group if lesson.id not in gone]
            for group in _groups(s, profile, scope)
        ]
        near = [family for lessons in rest for family in _near(s, lessons)]
        asking = [_messages(s, family) for family in near]
    asked: list[Family] = []
    wanted: list[Outcome] = []
    alarm = ""
    if near:
        answers = _ask(model(), settings, asking)
        with store.write() as s:
            tidy = EditTransaction(s, profile)
            for family, (answer, edits, problems) in zip(near, answers, strict=True):
                asked.append(Family([lesson.id or 0 for lesson in family], answer, problems))
                wanted += _apply(s, settings, edits, family, model().count_tokens)
            alarm = tidy.close(keep=not dry_run)
    if alarm:
        wanted = [
            Outcome(outcome.edit, "refused", "taken back by the shrink alarm") for outcome in wanted
        ]
    changes = [outcome.row() for outcome in (*outcomes, *wanted)]
    changes += [{"kind": "alarm", "outcome": "alarm", "reason": alarm}] if alarm else []
    with store.read() as s:
        return Merged(changes, asked, alarm, dry_run, _sums(_groups(s, profile, scope)))


# -- finding
# -----------------------------------------------------------------------------------------------------------


def _groups(s: Session, profile: str, scope: str | None) -> list[list[Lesson]]:
    """The standing lessons, those together that hold for the same tasks: of one scope, or of one
    task."""
    found: dict[tuple[str, ...], list[Lesson]] = {}
    for lesson in db.listing(s, profile, STANDING, scope):
        found.setdefault((lesson.scope, *tasks_of(lesson)), []).append(lesson)
    return list(found.values())


def _twins(lessons: Sequence[Lesson]) -> list[Edit]:
    """One MERGE for each text that several of the lessons say. What a person has pinned twice stays
    twice."""
    alike: dict[tuple[str, str], list[Lesson]] = {}
    for lesson in lessons:
        alike.setdefault((normal(lesson.when), normal(lesson.do)), []).append(lesson)
    return [
        Edit(
            "merge",
            same[0].when,
            same[0].do,
            "they say the same",
            lesson_ids=tuple(x.id or 0 for x in same),
        )
        for same in alike.values()
        if len(same) > 1 and not all(lesson.pinned for lesson in same)
    ]


def _near(s: Session, lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """Families of near duplicates in which there is something to decide: at most one lesson has
    words that stay."""
    at = {lesson.id: i for i, lesson in enumerate(lessons)}
    pairs = set()
    for i, lesson in enumerate(lessons if len(lessons) > 1 else ()):
        text, scopes = f"{lesson.when} {lesson.do}", [lesson.scope]
        found = db.search(
            s, text, profile=lesson.profile, statuses=STANDING, scopes=scopes, limit=NEAR
        )
        pairs |= {(min(i, j), max(i, j)) for other, _ in found if (j := at.get(other.id, i)) != i}
    told = telling(lesson.when for lesson in lessons)
    rows = [
        [lessons[i] for i in family][:MOST] for family in families(lessons, sorted(pairs), told)
    ]
    return [
        family
        for family in rows
        if sum(bool(protection_reason(s, lesson)) for lesson in family) < 2
    ]


# -- asking
# ------------------------------------------------------------------------------------------------------------


def _messages(s: Session, family: Sequence[Lesson]) -> list[Message]:
    rows = [
        {
            "id": x.id,
            "when": prompts.sanitize_line(x.when),
            "do": prompts.sanitize_line(x.do),
            "stays": bool(protection_reason(s, x)),
        }
        for x in family
    ]
    fence = prompts.nonce(*(f"{row['when']} {row['do']}" for row in rows))
    return [{"role": "user", "content": prompts.render("merge", lessons=rows, fence=fence)}]


def _ask(
    model: Model, settings: Settings, asking: Sequence[Sequence[Message]]
) -> list[tuple[str, list[Edit], list[str]]]:
    """(answer, edits, problems) for each prompt, in one batch, by the bare base: as in a review."""
    with using(model, None):
        answers = sample_each(
            model, [request_for(messages, settings.reflect_tokens) for messages in asking]
        )
    found: list[tuple[str, list[Edit], list[str]]] = []
    for answer in answers:
        if isinstance(answer, ModelError):
            found.append(("", [], [answer.message]))
        else:
            text = answer[0].text
            edits, problems = parse_edits(text, complete=answer[0].finish == "stop")
            found.append((text, [_signed(edit, text) for edit in edits], problems))
    return found


def _signed(edit: Edit, answer: str) -> Edit:
    """The whole answer is the reason of a merge, and so stands in its links."""
    return (
        replace(edit, why=f"the model's answer: {prompts.sanitize_line(answer)}")
        if edit.kind == "merge"
        else edit
    )


def _apply(
    s: Session,
    settings: Settings,
    edits: Sequence[Edit],
    lessons: Sequence[Lesson],
    count_tokens: Count,
) -> list[Outcome]:
    """What becomes of the edits: they may touch these lessons only, and no attempts stand behind
    them."""
    evidence = Evidence(
        task=None,
        scope=lessons[0].scope,
        profile=settings.profile,
        shown=[lesson.model_copy() for lesson in lessons],
        contrast=False,
        review=settings.require_approval,
    )
    outcomes = []
    for edit in edits:
        if edit.kind in ("merge", "retire"):
            budget = settings.lesson_budget
            outcomes += apply_edits(s, [edit], evidence, count_tokens=count_tokens, budget=budget)
        else:
            outcomes.append(Outcome(edit, "refused", "a tidy-up only merges and retires"))
    return outcomes


def _sums(groups: Sequence[Sequence[Lesson]]) -> dict[str, dict[str, int]]:
    """scope -> its lessons and their tokens."""
    found: dict[str, dict[str, int]] = {}
    for lesson in (lesson for group in groups for lesson in group):
        row = found.setdefault(lesson.scope, {"lessons": 0, "tokens": 0})
        row["lessons"] += 1
        row["tokens"] += lesson.tokens
    return found
