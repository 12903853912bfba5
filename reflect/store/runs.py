"""Runs, their tasks, rollouts, exposures and reflections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import case, delete, exists, update
from sqlmodel import Session, col, func, select

from reflect.errors import UnknownName
from reflect.records import (
    Exchange,
    Exposure,
    LessonVersion,
    Reflection,
    Rollout,
    Run,
    TaskRow,
    Trial,
    now,
)
from reflect.store import trials

CHUNK = 500  # values in one IN (...)


class Snapshot(Protocol):
    """What `save_tasks` needs of a task (reflect.tasksets.task.Task has it)."""

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def split(self) -> Any: ...
    def shape(self) -> dict[str, Any]: ...


class Figures(NamedTuple):
    """Of the rollouts that a run has so far."""

    rollouts: int
    errors: int
    reward: (
        float | None
    )  # the mean over the rollouts that were scored and missed no lesson; over all where none is so


def save_tasks(s: Session, taskset: str, tasks: Iterable[Snapshot]) -> None:
    """Snapshots of the tasks; those that stand already, by content, are left as they are."""
    new = {task.key: task for task in tasks}
    keys = list(new)
    for i in range(0, len(keys), CHUNK):
        for key in s.exec(select(TaskRow.key).where(col(TaskRow.key).in_(keys[i : i + CHUNK]))):
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


# -- runs
# --------------------------------------------------------------------------------------------------------------


def start_run(
    s: Session,
    *,
    key: str,
    taskset: str,
    profile: str,
    n: int,
    k: int,
    seed: int,
    model: str,
    model_fingerprint: str,
    adapter_id: int | None = None,
    measure: str = "",
    config: dict[str, Any] | None = None,
) -> Run:
    """The run of this key: the one that stands, or a new one."""
    run = s.exec(select(Run).where(Run.key == key)).first()
    if run is None:
        run = Run(key=key, taskset=taskset, profile=profile, n=n, k=k, seed=seed, model=model, config=config or {},
                  model_fingerprint=model_fingerprint, adapter_id=adapter_id, measure=measure)  # fmt: skip
        s.add(run)
        s.flush()
    return run


def finish_run(s: Session, run_id: int | None) -> Run:
    """Mark the run done. A run that is done already keeps its time."""
    run = get_run(s, run_id)
    if run.status != "done":
        run.status, run.ended = "done", now()
        s.add(run)
        s.flush()
    return run


def get_run(s: Session, run_id: int | None) -> Run:
    """The run, or UnknownName."""
    run = s.get(Run, run_id) if run_id is not None else None
    if run is None:
        raise UnknownName(f"There is no run {run_id}.", "See `reflect runs list`.")
    return run


def list_runs(s: Session, limit: int | None = 20, profile: str | None = None) -> list[Run]:
    """Newest first, of one profile or of all."""
    found = select(Run).order_by(col(Run.id).desc()).limit(limit)
    return list(s.exec(found.where(Run.profile == profile) if profile else found))


def unfinished(s: Session, taskset: str | None = None, profile: str | None = None) -> list[Run]:
    """Runs that were interrupted or are still going, newest first."""
    found = select(Run).where(Run.status != "done").order_by(col(Run.id).desc())
    if taskset is not None:
        found = found.where(Run.taskset == taskset)
    if profile is not None:
        found = found.where(Run.profile == profile)
    return list(s.exec(found))


def next_seed(s: Session, taskset: str, profile: str = "default") -> int:
    """A seed that no run of this taskset and profile has had: 0, then one more than the largest."""
    largest = s.exec(
        select(func.max(Run.seed)).where(Run.taskset == taskset, Run.profile == profile)
    ).one()
    return 0 if largest is None else largest + 1


def note(s: Session, run_id: int | None, **words: Any) -> None:
    """Set `checkpoints` or `spent` of a run; None clears it."""
    run = get_run(s, run_id)
    for name, value in words.items():
        if name not in ("checkpoints", "spent"):
            raise TypeError(f"a run has no {name} to set")
        setattr(run, name, value)
    s.add(run)
    s.flush()


def reopen(s: Session, run_id: int | None, halted: str) -> None:
    """Take out the rollouts that were not made when the run stopped (their `finish`), so that they
    are made now."""
    s.exec(delete(Rollout).where(col(Rollout.run_id) == run_id, col(Rollout.finish) == halted))


def made(s: Session, run_id: int | None, halted: str) -> int:
    """How many of its rollouts a stopped run has made."""
    counted = select(func.count()).where(Rollout.run_id == run_id, Rollout.finish != halted)
    return s.exec(counted).one()


def figures(s: Session, run_id: int | None) -> Figures:
    """How far a run is, and how well it goes."""
    missed = exists().where(
        col(Exposure.rollout_id) == col(Rollout.id), col(Exposure.shown).is_(False)
    )
    complete = func.avg(case((missed, None), else_=col(Rollout.reward)))
    counted = select(
        func.count(),
        func.count(col(Rollout.error)),
        func.coalesce(complete, func.avg(Rollout.reward)),
    )
    return Figures(*s.exec(counted.where(Rollout.run_id == run_id)).one())


class Prunable(NamedTuple):
    """Of the done runs beyond the newest ones: those that may go, and those that open trials need.
    By id."""

    gone: list[int]
    kept: list[int]


def prune(s: Session, keep: int = 20, profile: str | None = None) -> Prunable:
    """Delete done runs beyond the newest `keep`, with all their rows, unless a lesson or an open
    trial rests on one."""
    found = prunable(s, keep, profile)
    delete_runs(s, found.gone)
    return found


def prunable(s: Session, keep: int = 20, profile: str | None = None) -> Prunable:
    """Which runs `prune` deletes, and which it keeps for a trial's sake."""
    taught = select(Reflection.run_id).join(
        LessonVersion, col(LessonVersion.reflection_id) == col(Reflection.id)
    )
    found = select(Run).where(Run.status == "done", col(Run.id).not_in(taught))
    if profile is not None:
        found = found.where(Run.profile == profile)
    old = list(s.exec(found.order_by(col(Run.id).desc()).offset(keep)))
    needed = trials.resting_on(s, [run.id or 0 for run in old])
    needed |= {
        run.id or 0 for run in old if run.bundle.get("harm")
    }  # it says where the evidence on a bundle begins
    ids = sorted(run.id or 0 for run in old)
    return Prunable([i for i in ids if i not in needed], [i for i in ids if i in needed])


def delete_runs(s: Session, run_ids: Iterable[int]) -> None:
    """Delete runs with all their rows. What was measured in them stays true: trials lose only the
    name of the run."""
    for run_id in run_ids:
        of_run = select(Rollout.id).where(Rollout.run_id == run_id)
        s.exec(delete(Exposure).where(col(Exposure.rollout_id).in_(of_run)))
        s.exec(delete(Rollout).where(col(Rollout.run_id) == run_id))
        s.exec(delete(Reflection).where(col(Reflection.run_id) == run_id))
        s.exec(update(Trial).where(col(Trial.run_id) == run_id).values(run_id=None))
        s.exec(delete(Exchange).where(col(Exchange.run_id) == run_id))
        s.exec(delete(Run).where(col(Run.id) == run_id))


# -- rollouts
# ----------------------------------------------------------------------------------------------------------


def rollouts(s: Session, run_id: int | None, task_key: str | None = None) -> list[Rollout]:
    """Of one task by index, or of the whole run in the order in which they were saved."""
    found = select(Rollout).where(Rollout.run_id == run_id)
    if task_key is None:
        return list(s.exec(found.order_by(col(Rollout.id))))
    return list(s.exec(found.where(Rollout.task_key == task_key).order_by(col(Rollout.index))))


def groups(s: Session, run_id: int | None, task_keys: Sequence[str]) -> dict[str, list[Rollout]]:
    """The rollouts of some tasks of a run, each by index; [] for a task that has none."""
    found: dict[str, list[Rollout]] = {key: [] for key in task_keys}
    for i in range(0, len(task_keys), CHUNK):
        some = select(Rollout).where(
            Rollout.run_id == run_id, col(Rollout.task_key).in_(task_keys[i : i + CHUNK])
        )
        for row in s.exec(some.order_by(col(Rollout.task_key), col(Rollout.index))):
            found[row.task_key].append(row)
    return found


def save_rollouts(
    s: Session, rollouts: Sequence[Rollout], exposures: Sequence[Sequence[Exposure]]
) -> int:
    """Save those whose (run, task, index) is not there yet, each with its exposures. Returns how
    many were new.

    `exposures` has one list per rollout; their `rollout_id` is set here.
    """
    pairs = list(zip(rollouts, exposures, strict=True))
    tasks: dict[int, set[str]] = {}
    for row in rollouts:
        tasks.setdefault(row.run_id, set()).add(row.task_key)
    standing = {(run_id, row.task_key, row.index) for run_id, keys in tasks.items()
                for group in groups(s, run_id, sorted(keys)).values() for row in group}  # fmt: skip
    new: dict[tuple[int, str, int], tuple[Rollout, Sequence[Exposure]]] = {}
    for row, shown in pairs:
        key = (row.run_id, row.task_key, row.index)
        if key not in standing:
            new.setdefault(key, (row, shown))
    s.add_all(row for row, _ in new.values())
    s.flush()
    for row, shown in new.values():
        for exposure in shown:
            exposure.rollout_id = row.id or 0
            s.add(exposure)
    s.flush()
    return len(new)


def exposures(s: Session, lesson_id: int | None) -> list[Exposure]:
    """Every rollout that a lesson was shown to or withheld from."""
    return list(
        s.exec(select(Exposure).where(Exposure.lesson_id == lesson_id).order_by(col(Exposure.id)))
    )


# -- reflections
# -------------------------------------------------------------------------------------------------------


def get_reflection(s: Session, run_id: int | None, task_key: str) -> Reflection | None:
    """The reflection over one group, None when there is none yet."""
    return s.exec(
        select(Reflection).where(Reflection.run_id == run_id, Reflection.task_key == task_key)
    ).first()


def reflections_of(
    s: Session, run_id: int | None, task_keys: Sequence[str]
) -> dict[str, Reflection]:
    """task -> the reflection over its group, of those of these tasks that have one."""
    found: dict[str, Reflection] = {}
    for i in range(0, len(task_keys), CHUNK):
        some = select(Reflection).where(col(Reflection.task_key).in_(task_keys[i : i + CHUNK]))
        found |= {row.task_key: row for row in s.exec(some.where(Reflection.run_id == run_id))}
    return found


def reflection(s: Session, reflection_id: int | None) -> Reflection:
    """A reflection by its id, or UnknownName."""
    row = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if row is None:
        raise UnknownName(
            f"There is no reflection {reflection_id}.", "See `reflect runs show RUN`."
        )
    return row


def reflections(s: Session, run_id: int | None) -> list[Reflection]:
    """Of one run, in the order in which they were made."""
    return list(
        s.exec(select(Reflection).where(Reflection.run_id == run_id).order_by(col(Reflection.id)))
    )


def save_reflection(s: Session, reflection: Reflection) -> Reflection:
    """Save it; where the group has one already, that one is returned and nothing is written."""
    standing = get_reflection(s, reflection.run_id, reflection.task_key)
    if standing is not None:
        return standing
    s.add(reflection)
    s.flush()
    return reflection


def clean_tasks_asking(
    s: Session, profile: str, taskset: str, lesson_id: int | None, after: int | None
) -> dict[str, str]:
    """key -> id of the tasks whose reviews asked for that very lesson, oldest first; only those of
    groups in which no rollout read outside bytes. `after`: the review that wrote the lesson."""
    dirty = exists().where(
        col(Rollout.run_id) == col(Reflection.run_id),
        col(Rollout.task_key) == col(Reflection.task_key),
        col(Rollout.trust) != "clean",
    )
    found = (
        select(Reflection, TaskRow.task_id)
        .join(Run, col(Run.id) == col(Reflection.run_id))
        .join(TaskRow, col(TaskRow.key) == col(Reflection.task_key))
        .where(
            Run.profile == profile,
            Run.taskset == taskset,
            col(Reflection.id) > (after or 0),
            ~dirty,
        )
        .order_by(col(Reflection.id))
    )
    return {
        row.task_key: task_id
        for row, task_id in s.exec(found)
        if any(
            edit.get("lesson") == lesson_id and edit.get("outcome") == "known" for edit in row.edits
        )
    }
