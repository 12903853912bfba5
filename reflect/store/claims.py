"""Claims: how several processes share a run (`reflect run --join`).

A row is work that is not done yet: the rollouts of one task, or the reflections of one wave, which
begin when its tasks are done. A worker claims rows for some seconds, renews its claims while it
works, and deletes the rows when their work is saved. The claim of a worker that died expires.

All functions run in a transaction of `Store.claim`. They skip rows that another process has locked
(FOR UPDATE SKIP LOCKED; SQLite has one writer at a time instead), so no worker waits for another.
Claims only save work: rollouts and reflections are unique by their keys, whatever is claimed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import exists, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, func, select

from reflect.records import Claim, Run, now
from reflect.types import RunStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel.sql.expression import SelectOfScalar


class Work(NamedTuple):
    """What a worker has claimed: the tasks of a wave, or its reflections (no tasks)."""

    wave: int
    task_keys: list[str]


def add(
    s: Session, run_id: int | None, waves: Sequence[Sequence[str]], saved: set[str], learn: bool
) -> None:
    """Add the work of a run that has no claims: the tasks of each wave (their keys) that are not
    among the `saved` ones, then its reflections if it learns."""
    for wave, keys in enumerate(waves):
        parts = [key for key in keys if key not in saved] + ([""] if learn else [])
        s.add_all(Claim(run_id=run_id or 0, wave=wave, task_key=key) for key in parts)
        s.flush()  # the order of the ids is the order of the work


def shared(s: Session, taskset: str, profile: str) -> list[Run]:
    """The unfinished runs of a taskset that workers share, newest first."""
    has_work = exists().where(col(Claim.run_id) == col(Run.id))
    mine = select(Run).where(Run.taskset == taskset, Run.profile == profile, has_work)
    return list(s.exec(mine.where(Run.status == RunStatus.RUNNING).order_by(col(Run.id).desc())))


def left(s: Session, run_id: int | None) -> tuple[int, int]:
    """How many tasks of a run, and waves to reflect on, are not done."""
    counts = select(func.count(), func.count(func.nullif(Claim.task_key, "")))
    rows, tasks = s.exec(counts.where(Claim.run_id == run_id)).one()
    return tasks, rows - tasks


def workers(s: Session, run_id: int | None) -> list[str]:
    """The names of the workers with claims that have not expired."""
    names = select(Claim.worker).where(Claim.run_id == run_id, col(Claim.expires) > clock(s))
    return list(s.exec(names.distinct().order_by(Claim.worker)))


def take(s: Session, run_id: int | None, worker: str, seconds: float, most: int) -> Work | None:
    """Claim up to `most` tasks of the first wave that has free ones, or its reflections; None if
    nothing is free now."""
    at, other = clock(s), aliased(Claim)
    tasks_left = exists().where(
        col(other.run_id) == col(Claim.run_id),
        col(other.wave) == col(Claim.wave),
        col(other.task_key) != "",
    )
    free = (
        select(Claim)
        .where(Claim.run_id == run_id, or_(col(Claim.expires).is_(None), col(Claim.expires) <= at))
        .where(or_(col(Claim.task_key) != "", ~tasks_left))
        .order_by(col(Claim.wave), col(Claim.id))
        .limit(most)
    )
    rows = _unlocked(s, free)
    rows = [row for row in rows if row.wave == rows[0].wave]
    for row in rows:
        row.worker, row.expires = worker, at + timedelta(seconds=seconds)
    keys = [row.task_key for row in rows if row.task_key]
    return Work(rows[0].wave, keys) if rows else None


def renew(s: Session, run_id: int | None, worker: str, seconds: float) -> None:
    """Claim what this worker has claimed for the next seconds too."""
    for row in _unlocked(s, _of(run_id, worker)):
        row.expires = clock(s) + timedelta(seconds=seconds)


def release(s: Session, run_id: int | None, worker: str) -> None:
    """Let other workers do what this one has claimed, from now on."""
    for row in _unlocked(s, _of(run_id, worker)):
        row.worker, row.expires = "", None


def finish(s: Session, run_id: int | None, work: Work) -> None:
    """Delete the rows of work that is saved."""
    rows = select(Claim).where(Claim.run_id == run_id, Claim.wave == work.wave)
    _delete(s, rows.where(col(Claim.task_key).in_(work.task_keys or [""])))


def remove(s: Session, run_id: int | None) -> None:
    """Delete the claims of a run that is closed."""
    _delete(s, select(Claim).where(Claim.run_id == run_id))


def clock(s: Session) -> datetime:
    """The time of the database's server: the clocks of the workers may differ."""
    if s.connection().dialect.name == "sqlite":
        return now()
    time: datetime = s.connection().execute(select(func.clock_timestamp())).scalar_one()
    return time


def _of(run_id: int | None, worker: str) -> SelectOfScalar[Claim]:
    return select(Claim).where(Claim.run_id == run_id, Claim.worker == worker)


def _delete(s: Session, query: SelectOfScalar[Claim]) -> None:
    for row in s.exec(query.order_by(col(Claim.id)).with_for_update()):  # one order: no deadlock
        s.delete(row)
    s.flush()


def _unlocked(s: Session, query: SelectOfScalar[Claim]) -> list[Claim]:
    return list(s.exec(query.with_for_update(skip_locked=True)))
