"""Reads for pages: one page of rows at a time, however large the tables are.

Every query is bounded by an index and a limit: a page of lessons looks at the trials and exposures
of its own lessons only, a run at its own rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Integer, and_, cast, exists
from sqlmodel import Session, col, func, select

from reflect.records import (
    Adapter,
    Exposure,
    Lesson,
    LessonVersion,
    Night,
    Reflection,
    Rollout,
    Run,
    TaskRow,
    Trial,
)
from reflect.store import followed
from reflect.store import lessons as db
from reflect.store.lesson_evidence import OF_DAY, version_of
from reflect.types import LessonStatus, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from reflect.store.followed import FollowedShares

RECENT_RUNS = 20  # runs that are searched for rollouts without a grade


@dataclass(frozen=True)
class LessonRow:
    """A lesson with what a list shows of it."""

    lesson: Lesson
    shown: int
    """Rollouts whose prompt had it."""
    withheld: int
    """Rollouts from which it was withheld at random."""
    trial: Trial | None
    """The newest trial of its present text."""
    author: str
    """Who wrote its first version."""
    reason: str
    """Of its newest version."""
    followed: FollowedShares | None
    """How many rollouts followed it; None if nothing has read them."""


class LessonPage(NamedTuple):
    """A page of lessons, and how many lessons the filter matches."""

    rows: list[LessonRow]
    total: int


def status_counts(s: Session, profile: str) -> dict[str, int]:
    """Status -> number of lessons of the profile; every status is a key."""
    counted = (
        select(Lesson.status, func.count()).where(Lesson.profile == profile).group_by(Lesson.status)
    )
    return dict.fromkeys(map(str, LessonStatus), 0) | dict(s.exec(counted).all())


def _newest_trial() -> ColumnElement[bool]:
    """A row of Trial is the newest one of the day of its lesson."""
    other = Trial.__table__.alias("other")  # type: ignore[attr-defined]
    later = and_(other.c.lesson_id == Trial.lesson_id, other.c.id > Trial.id)
    newer = exists().where(later, other.c.kind.in_(OF_DAY)).correlate(Trial)
    return and_(col(Trial.kind).in_(OF_DAY), ~newer)


def _matching(profile: str, show: str, scope: str | None) -> tuple[list[ColumnElement[bool]], bool]:
    """(conditions, whether they need the newest trial) of a filter of the list of lessons."""
    where: list[ColumnElement[bool]] = [col(Lesson.profile) == profile]
    if scope is not None:
        where.append(col(Lesson.scope) == scope)
    if show in tuple(LessonStatus):
        return [*where, col(Lesson.status) == show], False
    if show == "waiting":
        return [*where, col(Lesson.status) == LessonStatus.QUARANTINED], False
    if show == "undecided":
        verdict = col(Trial.verdict) == TrialVerdict.UNDECIDED
        return [*where, col(Lesson.status) == LessonStatus.CANDIDATE, verdict], True
    if show == "harmful":
        return [*where, col(Trial.high) < 0.0], True
    return where, False


def lesson_page(
    s: Session,
    profile: str,
    *,
    show: str = "",
    scope: str | None = None,
    text: str = "",
    limit: int = 50,
    offset: int = 0,
) -> LessonPage:
    """The newest lessons of a filter first; with `text`, the best matches of a search first.

    `show`: a status, "waiting" (for approval), "undecided" (candidates whose trial has no verdict
    yet), "harmful" (measured effect below 0), or "" for all.
    """
    if text:
        scopes = None if scope is None else [scope]
        matches = db.search(s, text, profile=profile, scopes=scopes, limit=limit + offset)
        lessons = [lesson for lesson, _ in matches]
        return LessonPage(lesson_rows(s, lessons[offset:]), len(lessons))
    where, measured = _matching(profile, show, scope)
    mine, total = select(Lesson).where(*where), select(func.count()).select_from(Lesson)
    if measured:
        joined = and_(col(Trial.lesson_id) == col(Lesson.id), _newest_trial())
        mine, total = mine.join(Trial, joined), total.join(Trial, joined)
    page = mine.order_by(col(Lesson.id).desc()).offset(offset).limit(limit)
    return LessonPage(lesson_rows(s, s.exec(page).all()), s.exec(total.where(*where)).one())


def lesson_rows(s: Session, lessons: Sequence[Lesson]) -> list[LessonRow]:
    """The lessons with their newest trials, calls, authors and reasons, in the same order."""
    ids = [lesson.id for lesson in lessons]
    trials = select(Trial).join(Lesson, col(Lesson.id) == Trial.lesson_id)
    trials = trials.join(LessonVersion, version_of(Trial)).where(
        col(Trial.lesson_id).in_(ids), col(Trial.kind).in_(OF_DAY)
    )
    trials = trials.where(LessonVersion.when == Lesson.when, LessonVersion.do == Lesson.do)
    newest = {trial.lesson_id: trial for trial in s.exec(trials.order_by(col(Trial.id)))}
    shown = func.sum(cast(col(Exposure.shown), Integer))
    calls = select(Exposure.lesson_id, func.count(), shown).where(col(Exposure.lesson_id).in_(ids))
    counts = {i: (n, k or 0) for i, n, k in s.exec(calls.group_by(col(Exposure.lesson_id)))}
    versions: dict[int, list[LessonVersion]] = {}
    history = select(LessonVersion).where(col(LessonVersion.lesson_id).in_(ids))
    for version in s.exec(history.order_by(col(LessonVersion.version))):
        versions.setdefault(version.lesson_id, []).append(version)
    shares = followed.shares(s, [i for i in ids if i is not None])
    rows = []
    for lesson in lessons:
        key = lesson.id or 0
        (total, seen), own = counts.get(key, (0, 0)), versions[key]
        texts = own[0].author, own[-1].reason
        rows.append(LessonRow(lesson, seen, total - seen, newest.get(key), *texts, shares.get(key)))
    return rows


def scopes(s: Session, profile: str, limit: int = 200) -> list[str]:
    """The scopes that the profile's lessons have, by name."""
    mine = select(Lesson.scope).where(Lesson.profile == profile).distinct()
    return list(s.exec(mine.order_by(col(Lesson.scope)).limit(limit)))


def changes_since(
    s: Session, profile: str, since: datetime, limit: int = 100
) -> tuple[list[LessonVersion], int]:
    """The newest versions that were written after `since`, newest first, and how many there are."""
    where = [col(Lesson.profile) == profile, col(LessonVersion.created) > since]
    joined = col(Lesson.id) == col(LessonVersion.lesson_id)
    mine = select(LessonVersion).join(Lesson, joined).where(*where)
    total = select(func.count()).select_from(LessonVersion).join(Lesson, joined).where(*where)
    page = mine.order_by(col(LessonVersion.id).desc()).limit(limit)
    return list(s.exec(page)), s.exec(total).one()


def ungraded_runs(s: Session, profile: str) -> dict[int, int]:
    """run -> its rollouts without a reward and without an error, among the newest runs."""
    recent = select(Run.id).where(Run.profile == profile).order_by(col(Run.id).desc())
    ids = list(s.exec(recent.limit(RECENT_RUNS)))
    waiting = (
        select(Rollout.run_id, func.count())
        .where(col(Rollout.run_id).in_(ids))
        .where(col(Rollout.reward).is_(None), col(Rollout.error).is_(None))
        .group_by(col(Rollout.run_id))
    )
    return dict(s.exec(waiting).all())


def runs_since(s: Session, profile: str, since: datetime) -> list[Run]:
    """The runs that started after `since`, newest first."""
    mine = select(Run).where(Run.profile == profile, col(Run.started) > since)
    return list(s.exec(mine.order_by(col(Run.id).desc())))


def run_page(s: Session, profile: str, limit: int = 50, offset: int = 0) -> tuple[list[Run], int]:
    """A page of runs, newest first, and how many there are."""
    total = select(func.count()).select_from(Run).where(Run.profile == profile)
    mine = select(Run).where(Run.profile == profile).order_by(col(Run.id).desc())
    return list(s.exec(mine.offset(offset).limit(limit))), s.exec(total).one()


class RunFigures(NamedTuple):
    """Figures over all rollouts that a run has so far, also those that missed a lesson."""

    rollouts: int = 0
    errors: int = 0
    reward: float | None = None
    """Mean; None where no rollout has one."""


def run_figures(s: Session, run_ids: Sequence[int]) -> dict[int, RunFigures]:
    """run -> its figures, from one index."""
    reward = col(Rollout.reward)
    counted = (
        select(Rollout.run_id, func.count(), func.count(col(Rollout.error_kind)), func.avg(reward))
        .where(col(Rollout.run_id).in_(run_ids))
        .group_by(col(Rollout.run_id))
    )
    rows = {run_id: RunFigures(*figures) for run_id, *figures in s.exec(counted)}
    return {run_id: rows.get(run_id, RunFigures()) for run_id in run_ids}


class GroupRow(NamedTuple):
    """The rollouts of one task in a run, in figures."""

    task_key: str
    task_id: str
    n: int
    errors: int
    mean: float | None
    """Mean reward; None where no rollout has one."""
    low: float | None
    high: float | None


class GroupPage(NamedTuple):
    """A page of groups, how many the filter matches, and how many the run has."""

    rows: list[GroupRow]
    total: int
    every: int


def group_page(
    s: Session, run_id: int, *, show: str = "", limit: int = 50, offset: int = 0
) -> GroupPage:
    """The groups of a run, the lowest mean reward first. `show`: "failures" (a rollout that failed
    or earned less than half), "differences" (rewards that differ), or "" for all."""
    low, high, mean = (f(col(Rollout.reward)) for f in (func.min, func.max, func.avg))
    errors = func.count(col(Rollout.error))
    grouped = (  # sqlmodel types four columns at most
        select(Rollout.task_key, func.count(), errors, mean, low, high)  # type: ignore[call-overload]
        .where(Rollout.run_id == run_id)
        .group_by(col(Rollout.task_key))
    )
    every = s.exec(select(func.count()).select_from(grouped.subquery())).one()
    if show == "failures":
        grouped = grouped.having((errors > 0) | (low < 0.5))
    elif show == "differences":
        grouped = grouped.having(low < high)
    total = s.exec(select(func.count()).select_from(grouped.subquery())).one()
    ordered = grouped.order_by(mean, col(Rollout.task_key)).offset(offset).limit(limit)
    rows = s.exec(ordered).all()
    tasks = select(TaskRow.key, TaskRow.task_id).where(col(TaskRow.key).in_([r[0] for r in rows]))
    names = dict(s.exec(tasks).all())
    return GroupPage([GroupRow(r[0], names.get(r[0], r[0]), *r[1:]) for r in rows], total, every)


def task_means(s: Session, run_id: int) -> dict[str, tuple[float, int]]:
    """task -> (mean reward, rollouts that have one) of a run."""
    mine = select(Rollout.task_key, func.avg(col(Rollout.reward)), func.count(col(Rollout.reward)))
    mine = mine.where(Rollout.run_id == run_id, col(Rollout.reward).is_not(None))
    return {key: (mean, n) for key, mean, n in s.exec(mine.group_by(col(Rollout.task_key)))}


def task_names(s: Session, keys: Sequence[str]) -> dict[str, str]:
    """key -> id of tasks."""
    return dict(
        s.exec(select(TaskRow.key, TaskRow.task_id).where(col(TaskRow.key).in_(keys))).all()
    )


def group_exposures(
    s: Session, rollout_ids: Sequence[int]
) -> dict[int, list[tuple[Exposure, Lesson]]]:
    """rollout -> its exposures, each with the lesson."""
    mine = (
        select(Exposure, Lesson)
        .join(Lesson, col(Lesson.id) == col(Exposure.lesson_id))
        .where(col(Exposure.rollout_id).in_(rollout_ids))
        .order_by(col(Exposure.lesson_id))
    )
    rows: dict[int, list[tuple[Exposure, Lesson]]] = {i: [] for i in rollout_ids}
    for exposure, lesson in s.exec(mine):
        rows[exposure.rollout_id].append((exposure, lesson))
    return rows


class DrawnRewards(NamedTuple):
    """Rewards of the rollouts that saw a lesson, or that it was withheld from."""

    n: int
    mean: float | None


def outcomes(s: Session, lesson_id: int) -> dict[bool, DrawnRewards]:
    """Shown? -> the rewards, of the rollouts in which chance decided about the lesson."""
    mine = (
        select(Exposure.shown, func.count(), func.avg(col(Rollout.reward)))
        .join(Rollout, col(Rollout.id) == col(Exposure.rollout_id))
        .where(Exposure.lesson_id == lesson_id, col(Rollout.reward).is_not(None))
        .where(Exposure.probability > 0.0, Exposure.probability < 1.0)
        .group_by(col(Exposure.shown))
    )
    counted = {bool(shown): DrawnRewards(n, mean) for shown, n, mean in s.exec(mine)}
    return {shown: counted.get(shown, DrawnRewards(0, None)) for shown in (True, False)}


def teaching(s: Session, lesson_id: int) -> list[tuple[LessonVersion, Reflection, Run, str]]:
    """The reflections that wrote a version of the lesson, each with its run and its task's id."""
    mine = (
        select(LessonVersion, Reflection, Run, TaskRow.task_id)
        .join(Reflection, col(Reflection.id) == col(LessonVersion.reflection_id))
        .join(Run, col(Run.id) == col(Reflection.run_id))
        .join(TaskRow, col(TaskRow.key) == col(Reflection.task_key), isouter=True)
        .where(LessonVersion.lesson_id == lesson_id)
        .order_by(col(LessonVersion.id))
    )
    return [(v, r, run, task or r.task_key) for v, r, run, task in s.exec(mine)]


def lesson_trials(s: Session, lesson_id: int) -> list[Trial]:
    """The trials of the day of a lesson, newest first."""
    mine = select(Trial).where(Trial.lesson_id == lesson_id, col(Trial.kind).in_(OF_DAY))
    return list(s.exec(mine.order_by(col(Trial.id).desc())))


def night_page(
    s: Session, profile: str, limit: int = 50, offset: int = 0
) -> tuple[list[Night], int]:
    """A page of nights, newest first, and how many there are."""
    total = select(func.count()).select_from(Night).where(Night.profile == profile)
    mine = select(Night).where(Night.profile == profile).order_by(col(Night.id).desc())
    return list(s.exec(mine.offset(offset).limit(limit))), s.exec(total).one()


def adapters_of_nights(s: Session, night_ids: Sequence[int]) -> dict[int, list[Adapter]]:
    """night -> its adapters, oldest first."""
    mine = select(Adapter).where(col(Adapter.night_id).in_(night_ids)).order_by(col(Adapter.id))
    rows: dict[int, list[Adapter]] = {i: [] for i in night_ids}
    for adapter in s.exec(mine):
        rows[adapter.night_id or 0].append(adapter)
    return rows
