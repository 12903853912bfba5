"""A run from its start to its end: opened or continued, resumed by id, its budget, its stop."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from reflect.errors import ModelError, ModelHalted, UsageError
from reflect.models.base import MeteredModel, Model, active_adapter
from reflect.store import Store, claims, nights, runs
from reflect.tasksets.base import has_environment
from reflect.trials.reward_version import reward_version
from reflect.types import Finish, RunStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.records import Run
    from reflect.rollouts.context import RunContext, TasksetContext
    from reflect.tasksets.task import Task

CONTINUE = "Then run the same command again, or `reflect runs resume`: it goes on where it stopped."
SAMPLING = ("temperature", "max_tokens", "reflect_tokens", "lesson_budget", "lesson_limit")
TRIALS = ("require_approval", "trials", "withhold_candidate", "withhold_active", "withhold_bundle")
WAVE = 8  # tasks that run, and are reflected on, together
FLAGS = ("learn", "use_lessons")
NOT_IN_KEY = ("base_url",)  # in `Run.config`
MOST = 6  # changed tasks that an error names
RESTART = (
    "begin another run with everything as it is now: reflect runs resume {} --restart. The first "
    "one is then closed as abandoned; its rollouts stay."
)
EPISODES = ("max_turns", "episode_tokens", "episode_seconds")


class OpenedRun(NamedTuple):
    """A run that was continued or begun."""

    run: Run
    tasks: list[Task]
    superseded: list[int]
    """Unfinished runs with the same arguments, whose tasks have changed since."""
    shared: bool
    """Its work is claimed (see `reflect.day.claims`)."""


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What a run is asked for, besides the settings."""

    n: int
    """Tasks."""
    k: int
    """Rollouts of each task."""
    seed: int | None = None
    """None: continue the newest unfinished run with the same arguments, or begin a new one."""
    learn: bool = True
    use_lessons: bool = True
    continues: Run | None = None
    """The run must be this one."""
    replaces: Run | None = None
    """The run must be another one, and this one is closed as abandoned."""
    join: bool = False
    """Workers share the run. If they share an unfinished one, it must be that one."""


def open_run(
    context: TasksetContext, arguments: RunArguments, reflector: Model | None
) -> OpenedRun:
    """The run with these arguments, continued or new. Rollouts that an interrupted run did not make
    are open again. Raises UsageError without a task, and where `continues`, `replaces` or `join`
    fails."""
    model, taskset, settings = context.model, context.taskset, context.settings
    n, k, seed = arguments.n, arguments.k, arguments.seed
    continues, replaces, join = arguments.continues, arguments.replaces, arguments.join
    if n < 1 or k < 1:
        raise UsageError(
            f"A run needs at least one task and one rollout of each, not n={n} and k={k}."
        )
    names = (*SAMPLING, *TRIALS, *(EPISODES if has_environment(taskset) else ()))
    names += ("proposals",) if settings.proposals > 1 else ()  # older keys stay as they are
    config = settings.stored(names)
    config |= {"learn": arguments.learn, "use_lessons": arguments.use_lessons}
    if reflector:
        config |= {"reflector": reflector.name, "reflector_fingerprint": reflector.fingerprint}
    if settings.judge:
        config["judge"] = settings.judge
    if context.reviewer and arguments.learn:
        config["reviewer"] = context.reviewer
    meaning = reward_version(taskset)

    with context.store.read() as s:
        adapter = active_adapter(model)
        adapter_id = nights.get_adapter(s, adapter).id if adapter else None
        shared = claims.shared(s, taskset.name, settings.profile) if join else []
    asked = [taskset.name, settings.profile, n, k, model.fingerprint, adapter_id]

    @cache
    def tasks_of(seed: int) -> list[Task]:
        return list({task.key: task for task in taskset.tasks("practice", n, seed)}.values())

    def key_of(seed: int, task_keys: Sequence[str]) -> str:
        content = [*asked, meaning, config, seed, list(task_keys)]
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    if join and (seed is not None or shared):  # workers that start together do not wait in a queue
        wanted = shared[0].seed if seed is None else seed
        key = key_of(wanted, _keys(tasks_of(wanted)))
        if same := [run for run in shared if run.key == key]:
            return OpenedRun(same[0], tasks_of(wanted), [], True)

    with context.store.write() as s:
        unfinished = runs.unfinished(s, taskset.name, settings.profile)
        shared = claims.shared(s, taskset.name, settings.profile)
        if seed is None and join and shared:
            seed = shared[0].seed
        if seed is None:
            mine = (r.seed for r in unfinished if key_of(r.seed, _keys(tasks_of(r.seed))) == r.key)
            seed = next(mine, None)
        seed = runs.next_seed(s, taskset.name, settings.profile) if seed is None else seed
        tasks = tasks_of(seed)
        values: dict[str, object] = {
            "n": n,
            "k": k,
            "seed": seed,
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "adapter_id": adapter_id,
            "measure": meaning,
        }
        key = key_of(seed, _keys(tasks))
        if not tasks:
            raise UsageError(
                f"The taskset {taskset.name} has no practice tasks.",
                "Give some the split 'practice'.",
            )
        if continues and continues.key != key:
            what = _difference(s, continues, tasks, config, values)
            raise UsageError(
                f"Run {continues.id} cannot continue: {what}.",
                f"Restore that, or {RESTART.format(continues.id)}",
            )
        if join and shared and not runs.is_begun(s, key):
            (other, *_) = [r for r in shared if r.seed == seed] or shared
            raise UsageError(
                f"Workers share run {other.id} of {taskset.name}, which was begun with other "
                f"settings: {_difference(s, other, tasks, config, values)}.",
                f"Join it with its settings, or close it first: reflect runs abandon {other.id}",
            )
        if replaces and replaces.key == key:
            what = f"Nothing has changed since run {replaces.id} began."
            raise UsageError(what, f"Continue it: reflect runs resume {replaces.id}")
        if replaces:
            runs.abandon(s, replaces.id)
        runs.save_tasks(s, taskset.name, tasks)
        remote = _metered((model, reflector))
        run = runs.start_run(
            s,
            key=key,
            taskset=taskset.name,
            profile=settings.profile,
            **values,
            task_keys=_keys(tasks),
            # The server is not part of the key: it may move.
            config=config | ({"base_url": remote[0].url} if remote else {}),
        )
        runs.reopen(s, run.id, Finish.HALTED)
        is_shared = any(claims.left(s, run.id))
        if join and run.status == RunStatus.RUNNING and not is_shared:
            groups = runs.groups(s, run.id, _keys(tasks))
            saved = {key for key, rows in groups.items() if len(rows) == k}
            claims.add(s, run.id, [_keys(wave) for wave in waves_of(tasks)], saved, arguments.learn)
            is_shared = True
        superseded = [
            r.id or 0
            for r in unfinished
            if r.id != run.id and r.task_keys and key_of(r.seed, r.task_keys) == r.key
            and _keys(tasks_of(r.seed)) != r.task_keys and r.status == RunStatus.RUNNING
        ]  # fmt: skip
    return OpenedRun(run, tasks, superseded, is_shared)


def waves_of(tasks: Sequence[Task]) -> list[Sequence[Task]]:
    """The tasks in slices of WAVE, in order."""
    return [tasks[i : i + WAVE] for i in range(0, len(tasks), WAVE)]


def _keys(tasks: Sequence[Task]) -> list[str]:
    return [task.key for task in tasks]


def _difference(
    s: Session,
    run: Run,
    tasks: Sequence[Task],
    config: Mapping[str, object],
    values: Mapping[str, object],
) -> str:
    """What differs from the run as it began: its columns (`values`), its tasks, or its settings."""
    for name, value in values.items():
        if (before := getattr(run, name)) != value:
            if name in ("model_fingerprint", "measure"):
                return f"its {'model' if name == 'model_fingerprint' else 'verifier'} has changed"
            return f"{name} was {before!r} when it began"
    begun = run.task_keys or list(dict.fromkeys(x.task_key for x in runs.rollouts(s, run.id)))
    before = {key: runs.task(s, key).task_id for key in begun}
    now = {task.key: task.id for task in tasks}
    old = {name for key, name in before.items() if key not in now}
    new = {name for key, name in now.items() if key not in before} if run.task_keys else set()
    kinds = {"has changed": old & new, "is missing": old - new, "is new": new - old}
    parts = [f"task {name} {verb}" for verb, names in kinds.items() for name in sorted(names)]
    if parts:
        more = [f"and {len(parts) - MOST} more"] if len(parts) > MOST else []
        return ", ".join(parts[:MOST] + more)
    if run.task_keys and run.task_keys != _keys(tasks):
        return "the order of its tasks has changed"
    names = sorted(
        name for name in config.keys() | run.config.keys()
        if name not in NOT_IN_KEY and config.get(name) != run.config.get(name)
    )  # fmt: skip
    if names:
        return f"the setting {names[0]} was {run.config.get(names[0])!r} when it began"
    return "its tasks have changed"


# -- resuming


@dataclass(frozen=True)
class ResumedRun:
    """An unfinished run, with the settings and flags that it was started with."""

    run: Run
    settings: Settings
    flags: dict[str, bool]
    """`learn` and `use_lessons` of `practice`."""


def resume(
    store: Store, settings: Settings, run_id: int | None = None, *, restart: bool = False
) -> ResumedRun:
    """The run with that id, by default the newest unfinished one of the profile. Raises UsageError
    if there is none, or if another adapter is active now (unless another run is to replace it:
    `restart`)."""
    with store.read() as s:
        rows = [runs.get_run(s, run_id)] if run_id else runs.unfinished(s, profile=settings.profile)
        if not rows:
            raise UsageError("No run is unfinished.", "Begin one: reflect run TASKSET")
        run = rows[0]
        active = nights.active_adapter(s, run.profile)
    # The rollouts of a run over traffic are complete, whatever adapter is active.
    other = not run.from_traffic and (active.id if active else None) != run.adapter_id
    if other and not restart:
        was = f"adapter {run.adapter_id}" if run.adapter_id else "no adapter"
        raise UsageError(
            f"Run {run.id} was begun with {was} on.",
            f"Switch back to it, or {RESTART.format(run.id)}",
        )
    if restart and (run.from_traffic or run.status == RunStatus.DONE):
        what = "of traffic" if run.from_traffic else "finished"
        raise UsageError(f"Run {run.id} is {what}: it cannot be begun anew.", "See: reflect run")
    changes: dict[str, object] = {
        "model": run.model,
        "profile": run.profile,
        "reflector": run.config.get("reflector", ""),
        "judge": run.config.get("judge", ""),
    }
    if settings.base_url:  # its server has moved
        changes["base_url"] = settings.base_url
    flags: dict[str, bool] = {name: run.config[name] for name in FLAGS if name in run.config}
    return ResumedRun(run, settings.restored(run.config, **changes), flags)


def ensure_unchanged(run: Run, model: Model, reflector: Model | None, meaning: str) -> None:
    """Raises ModelError or UsageError if a model, the verifier or the system prompt is not the one
    that the run was started with."""
    before = {run.model: (model, run.model_fingerprint)}
    if reflector is not None:
        before[reflector.name] = (reflector, str(run.config.get("reflector_fingerprint")))
    hint = f"Restore it, or {RESTART.format(run.id)}"
    for name, (now, fingerprint) in before.items():
        if now.fingerprint != fingerprint:
            raise ModelError(f"The model {name} has changed since run {run.id}.", hint)
    if meaning != run.measure:
        raise UsageError(
            f"The verifier of {run.taskset}, or the system prompt, has changed since run {run.id}.",
            hint,
        )


# -- models behind an API


class RunBudget:
    """The budget of a run, shared by the model and the reflector if they are behind an API. It
    continues from what the run spent before it was interrupted (`Run.spent`)."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        remote = _metered((context.model, context.reflector))
        self.budget = remote[0].new_budget(context.run.spent) if remote else None
        if self.budget:
            for model in remote:
                model.budget = self.budget

    def save(self) -> None:
        """Save what is spent so far; other workers of the run may have spent too."""
        if self.budget:
            with self.context.store.write() as s:
                run = runs.get_run(s, self.context.run.id)
                runs.note(s, run.id, spent=self.budget.add_to(run.spent or {}))


def stopped(context: RunContext, why: ModelHalted) -> BaseException:
    """The error of a run that stopped, with its progress and how to continue. ^C stays ^C."""
    if isinstance(why.__cause__, KeyboardInterrupt):
        return why.__cause__
    run = context.run
    with context.store.read() as s:
        made = runs.made(s, run.id, Finish.HALTED)
    text = f"Run {run.id} stopped after {made} of {run.planned} rollouts. {why.message}"
    return ModelHalted(text, f"{why.hint} {CONTINUE}".strip())


def _metered(models: Sequence[object]) -> list[MeteredModel]:
    return [model for model in models if isinstance(model, MeteredModel)]
