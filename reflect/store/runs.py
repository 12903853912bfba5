"""Runs, their tasks, rollouts, exposures and reflections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy import case, delete, exists, update
from sqlmodel import Session, col, func, select

from reflect.errors import UnknownName, UsageError
from reflect.records import (
    Exchange,
    Exposure,
    Followed,
    LessonVersion,
    Reflection,
    Rollout,
    Run,
    TaskRow,
    Trial,
    now,
)
from reflect.store import claims, trials
from reflect.store.rows import get_row, save
from reflect.types import Json, RunStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHUNK = 500  # values in one IN (...)


class Snapshot(Protocol):
    """The part of a task that `save_tasks` needs (reflect.tasksets.task.Task has it)."""

    @property
    def id(self) -> str:
        """The task's name in its taskset."""

    @property
    def key(self) -> str:
        """Hash of the content."""

    @property
    def split(self) -> str:
        """`practice` or `holdout`."""

    def shape(self) -> Json:
        """The content as JSON."""


class Figures(NamedTuple):
    """Figures over the rollouts that a run has so far."""

    rollouts: int
    errors: int
    reward: float | None
    """Mean over the scored rollouts from which no lesson was withheld; over all if there are
    none."""


def save_tasks(s: Session, taskset: str, tasks: Iterable[Snapshot]) -> None:
    """Snapshots of the tasks; existing ones, by content, are left as they are."""
    new = {task.key: task for task in tasks}
    for keys in _chunks(list(new)):
        for key in s.exec(select(TaskRow.key).where(col(TaskRow.key).in_(keys))):
            del new[key]
    s.add_all(
        TaskRow(key=key, taskset=taskset, task_id=task.id, split=task.split, content=task.shape())
        for key, task in new.items()
    )
    s.flush()


def task(s: Session, key: str) -> TaskRow:
    """The snapshot of a task, or UnknownName."""
    row = s.get(TaskRow, key)
    if row is None:
        raise UnknownName(
            f"No task with the key {key} was ever practised.", "See `reflect tasks show TASKSET`."
        )
    return row


def mean_tokens(s: Session, tasksets: Sequence[str]) -> float:
    """Mean tokens, prompt and answer, of the attempts at these tasksets that did not fail; 0 for
    none."""
    tokens = (
        select(func.avg(col(Rollout.prompt_tokens) + col(Rollout.completion_tokens)))
        .join(TaskRow, col(TaskRow.key) == col(Rollout.task_key))
        .where(col(TaskRow.taskset).in_(tasksets), col(Rollout.error).is_(None))
    )
    return float(s.exec(tokens).one() or 0.0)


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[i : i + CHUNK] for i in range(0, len(keys), CHUNK))


# -- runs


def start_run(s: Session, *, key: str, **fields: Any) -> Run:
    """The run of this key: the existing one, also if it was abandoned, or a new one with these
    fields of records.Run."""
    run = s.exec(select(Run).where(Run.key == key)).first()
    if run is None:
        return save(s, Run.model_validate({"key": key, **fields}))
    if run.status == RunStatus.ABANDONED:
        run.status, run.ended = RunStatus.RUNNING, None
    run.task_keys = run.task_keys or fields.get("task_keys")
    return save(s, run)


def finish_run(s: Session, run_id: int | None) -> Run:
    """Mark the run done. A run that is done already keeps its time."""
    run = get_run(s, run_id)
    if run.status != RunStatus.DONE:
        run.status, run.ended = RunStatus.DONE, now()
    return save(s, run)


def abandon(s: Session, run_id: int | None) -> Run:
    """Close an unfinished run. Its rollouts stay, and count as evidence. UsageError for a run that
    is done."""
    run = get_run(s, run_id)
    if run.status == RunStatus.DONE:
        raise UsageError(f"Run {run.id} is finished.", "See `reflect runs list`.")
    run.status, run.ended = RunStatus.ABANDONED, run.ended or now()
    claims.remove(s, run.id)
    return save(s, run)


def is_begun(s: Session, key: str) -> bool:
    """Whether there is a run of this key."""
    return s.exec(select(Run.id).where(Run.key == key)).first() is not None


def get_run(s: Session, run_id: int | None) -> Run:
    """The run, or UnknownName."""
    return get_row(s, Run, run_id, "run", "See `reflect runs list`.")


def list_runs(s: Session, limit: int | None = 20, profile: str | None = None) -> list[Run]:
    """Newest first, of one profile or of all."""
    newest = select(Run).order_by(col(Run.id).desc()).limit(limit)
    return list(s.exec(newest.where(Run.profile == profile) if profile else newest))


def unfinished(s: Session, taskset: str | None = None, profile: str | None = None) -> list[Run]:
    """Runs that were interrupted or are still going, newest first."""
    newest = select(Run).where(Run.status == RunStatus.RUNNING).order_by(col(Run.id).desc())
    if taskset is not None:
        newest = newest.where(Run.taskset == taskset)
    if profile is not None:
        newest = newest.where(Run.profile == profile)
    return list(s.exec(newest))


def next_seed(s: Session, taskset: str, profile: str = "default") -> int:
    """A seed that no run of this taskset and profile has had: 0, then one more than the largest."""
    mine = select(func.max(Run.seed)).where(Run.taskset == taskset, Run.profile == profile)
    largest = s.exec(mine).one()
    return 0 if largest is None else largest + 1


def note(s: Session, run_id: int | None, **fields: Json | None) -> None:
    """Set `checkpoints` or `spent` of a run; None clears it."""
    run = get_run(s, run_id)
    for name, value in fields.items():
        if name not in ("checkpoints", "spent"):
            raise TypeError(f"a run has no {name} to set")
        setattr(run, name, value)
    save(s, run)


def reopen(s: Session, run_id: int | None, halted: str) -> None:
    """Delete the rollouts that were not made when the run stopped (their `finish`), so that they
    are made now."""
    s.exec(delete(Rollout).where(col(Rollout.run_id) == run_id, col(Rollout.finish) == halted))


def made(s: Session, run_id: int | None, halted: str) -> int:
    """How many of its rollouts a stopped run has made."""
    counted = select(func.count()).where(Rollout.run_id == run_id, Rollout.finish != halted)
    return s.exec(counted).one()


def figures(s: Session, run_id: int | None) -> Figures:
    """How far a run is, and its mean reward."""
    missed = exists().where(
        col(Exposure.rollout_id) == col(Rollout.id), col(Exposure.shown).is_(False)
    )
    complete = func.avg(case((missed, None), else_=col(Rollout.reward)))
    reward = func.coalesce(complete, func.avg(Rollout.reward))
    counted = select(func.count(), func.count(col(Rollout.error)), reward)
    return Figures(*s.exec(counted.where(Rollout.run_id == run_id)).one())


class Prunable(NamedTuple):
    """Ids of the closed runs beyond the newest ones: those that may go, and those that open trials
    need."""

    gone: list[int]
    kept: list[int]


def prune(s: Session, keep: int = 20, profile: str | None = None) -> Prunable:
    """Delete closed runs beyond the newest `keep`, with all their rows, unless a lesson or an open
    trial depends on one."""
    runs = prunable(s, keep, profile)
    delete_runs(s, runs.gone)
    return runs


def prunable(s: Session, keep: int = 20, profile: str | None = None) -> Prunable:
    """The runs that `prune` deletes, and those that it keeps for a trial's sake."""
    sources = select(Reflection.run_id).join(
        LessonVersion, col(LessonVersion.reflection_id) == col(Reflection.id)
    )
    closed = select(Run).where(Run.status != RunStatus.RUNNING, col(Run.id).not_in(sources))
    if profile is not None:
        closed = closed.where(Run.profile == profile)
    old = list(s.exec(closed.order_by(col(Run.id).desc()).offset(keep)))
    needed = trials.resting_on(s, [run.id or 0 for run in old])
    # where the evidence on a bundle begins
    needed |= {run.id or 0 for run in old if run.bundle.get("harm")}
    ids = sorted(run.id or 0 for run in old)
    return Prunable([i for i in ids if i not in needed], [i for i in ids if i in needed])


def delete_runs(s: Session, run_ids: Iterable[int]) -> None:
    """Delete runs with all their rows. Trials stay, and lose only the id of the run."""
    for run_id in run_ids:
        of_run = select(Rollout.id).where(Rollout.run_id == run_id)
        for of_rollout in (Exposure, Followed):
            s.exec(delete(of_rollout).where(col(of_rollout.rollout_id).in_(of_run)))
        s.exec(update(Trial).where(col(Trial.run_id) == run_id).values(run_id=None))
        for table in (Rollout, Reflection, Exchange):
            s.exec(delete(table).where(col(table.run_id) == run_id))
        claims.remove(s, run_id)
        s.exec(delete(Run).where(col(Run.id) == run_id))


# -- rollouts


def rollouts(s: Session, run_id: int | None, task_key: str | None = None) -> list[Rollout]:
    """The rollouts of one task by index, or of the whole run in the order of saving."""
    mine = select(Rollout).where(Rollout.run_id == run_id)
    if task_key is None:
        return list(s.exec(mine.order_by(col(Rollout.id))))
    return list(s.exec(mine.where(Rollout.task_key == task_key).order_by(col(Rollout.index))))


def groups(s: Session, run_id: int | None, task_keys: Sequence[str]) -> dict[str, list[Rollout]]:
    """The rollouts of some tasks of a run, each by index; [] for a task that has none."""
    groups: dict[str, list[Rollout]] = {key: [] for key in task_keys}
    for keys in _chunks(task_keys):
        some = select(Rollout).where(Rollout.run_id == run_id, col(Rollout.task_key).in_(keys))
        for row in s.exec(some.order_by(col(Rollout.task_key), col(Rollout.index))):
            groups[row.task_key].append(row)
    return groups


def save_rollouts(
    s: Session, rollouts: Sequence[Rollout], exposures: Sequence[Sequence[Exposure]]
) -> int:
    """Save those whose (run, task, index) is new, each with its exposures. Returns how many were
    new.

    `exposures` has one list per rollout; their `rollout_id` is set here.
    """
    tasks: dict[int, set[str]] = {}
    for row in rollouts:
        tasks.setdefault(row.run_id, set()).add(row.task_key)
    existing = {
        (run_id, row.task_key, row.index)
        for run_id, keys in tasks.items()
        for group in groups(s, run_id, sorted(keys)).values()
        for row in group
    }
    new: dict[tuple[int, str, int], tuple[Rollout, Sequence[Exposure]]] = {}
    for row, shown in zip(rollouts, exposures, strict=True):
        key = (row.run_id, row.task_key, row.index)
        if key not in existing:
            new.setdefault(key, (row, shown))
    s.add_all(row for row, _ in new.values())
    s.flush()
    for row, shown in new.values():
        for exposure in shown:
            exposure.rollout_id = row.id or 0
            s.add(exposure)
    s.flush()
    return len(new)


def scored_attempts(
    s: Session, task_keys: Sequence[str], model_fingerprint: str, measure: str
) -> list[tuple[Rollout, list[Exposure]]]:
    """The scored rollouts of these tasks by that bare base under that reward, in order, each with
    the lessons that were shown to it or withheld from it."""
    rows: list[Rollout] = []
    for keys in _chunks(task_keys):
        mine = (
            select(Rollout)
            .join(Run, col(Run.id) == col(Rollout.run_id))
            .where(col(Rollout.task_key).in_(keys), col(Rollout.reward).is_not(None))
            .where(Run.model_fingerprint == model_fingerprint, Run.measure == measure)
            .where(col(Rollout.adapter_id).is_(None))
        )
        rows += s.exec(mine.order_by(col(Rollout.id)))
    exposed: dict[int, list[Exposure]] = {row.id or 0: [] for row in rows}
    ids = list(exposed)
    for i in range(0, len(ids), CHUNK):
        some = select(Exposure).where(col(Exposure.rollout_id).in_(ids[i : i + CHUNK]))
        for exposure in s.exec(some):
            exposed[exposure.rollout_id].append(exposure)
    return [(row, exposed[row.id or 0]) for row in rows]


def exposures(s: Session, lesson_id: int | None) -> list[Exposure]:
    """Every rollout that a lesson was shown to or withheld from."""
    mine = select(Exposure).where(Exposure.lesson_id == lesson_id)
    return list(s.exec(mine.order_by(col(Exposure.id))))


# -- reflections


def get_reflection(s: Session, run_id: int | None, task_key: str) -> Reflection | None:
    """The reflection over one group, None when there is none yet."""
    return reflections_of(s, run_id, [task_key]).get(task_key)


def reflections_of(
    s: Session, run_id: int | None, task_keys: Sequence[str]
) -> dict[str, Reflection]:
    """task -> the reflection over its group, of those of these tasks that have one."""
    reflections: dict[str, Reflection] = {}
    for keys in _chunks(task_keys):
        some = select(Reflection).where(col(Reflection.task_key).in_(keys))
        rows = s.exec(some.where(Reflection.run_id == run_id))
        reflections |= {row.task_key: row for row in rows}
    return reflections


def reflection(s: Session, reflection_id: int | None) -> Reflection:
    """A reflection by its id, or UnknownName."""
    return get_row(s, Reflection, reflection_id, "reflection", "See `reflect runs show RUN`.")


def reflections(s: Session, run_id: int | None) -> list[Reflection]:
    """The reflections of one run, in the order in which they were made."""
    mine = select(Reflection).where(Reflection.run_id == run_id)
    return list(s.exec(mine.order_by(col(Reflection.id))))


def save_reflection(s: Session, reflection: Reflection) -> Reflection:
    """Save it; where the group has one already, that one is returned and nothing is written."""
    existing = get_reflection(s, reflection.run_id, reflection.task_key)
    return existing or save(s, reflection)
