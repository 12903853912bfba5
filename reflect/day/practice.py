"""The day: roll out groups of attempts, score them, review each group, edit the lessons; wave by
wave.

A wave is a few tasks that run in one batch. Its lessons are chosen from the database as the
previous wave left it, its rollouts are saved in one transaction, with the verdicts that fall by
them, its reflections and their edits in another. A run that was killed continues with the first
wave that is not complete, and ends with the same rows as one that was not. So does one whose model
answers nothing more (the budget is spent, the server is gone): what was answered is saved, and only
what was not is asked for again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlmodel import Session

from reflect.config import Settings
from reflect.day.report import Report, report
from reflect.day.review import Group, edit_lessons, review
from reflect.day.run_budget import RunBudget, server_of, stopped
from reflect.errors import ModelHalted, UsageError
from reflect.lessons.selection import lessons_for
from reflect.models.base import Model, SamplingOptions, active_adapter
from reflect.records import Exposure, Run
from reflect.rollouts.runner import HALTED, RolloutsStopped, run_parts
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import Store, nights, runs, trials
from reflect.tasksets import isolation
from reflect.tasksets.base import Taskset, has_environment
from reflect.tasksets.task import Task
from reflect.trials.bundle import Bundle, draw
from reflect.trials.checkpoints import save_checkpoint
from reflect.trials.lesson_trial import (
    LazyAssignment,
    LessonTrials,
    TrialScope,
    parts_of,
    shown_to,
    withhold,
)
from reflect.trials.reward_version import reward_version
from reflect.types import Progress

WAVE = 8  # tasks that run, and are reviewed, together


def practice(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int | None = None,
    learn: bool = True,
    use_lessons: bool = True,
    reflector: Model | None = None,
    progress: Progress | None = None,
) -> Report:
    """Practise n tasks k times each and learn from them, with the adapter that the model has on.

    `seed=None` continues the newest unfinished run of the same words, or begins a new one. A run
    that is done already is only reported. Fewer than n tasks are practised where the taskset has
    fewer; none is a UsageError. `reflector` reviews the attempts, by default the model itself.
    ModelHalted where one of them answers nothing more.
    """
    began = time.monotonic()
    isolation.limit(settings.verify_seconds, settings.verify_memory)
    flags: dict[str, Any] = {"learn": learn, "use_lessons": use_lessons, "reflector": reflector}
    run, tasks = open_run(model, store, taskset, settings, n=n, k=k, seed=seed, **flags)
    purse = RunBudget(run, model, reflector)
    waves = [tasks[i : i + WAVE] for i in range(0, len(tasks), WAVE)]
    tell = progress or (lambda done, total, what: None)
    court, bundle = (
        LessonTrials(TrialScope(run.model_fingerprint, run.adapter_id, run.measure)),
        Bundle(run),
    )
    done = 0
    for wave in waves if run.status != "done" else []:
        tell(done, len(tasks), "rollouts")
        try:
            groups = roll_out(
                model,
                store,
                taskset,
                settings,
                run,
                wave,
                use_lessons,
                bundle,
                court if learn else None,
            )
            if learn:
                tell(done + len(wave) // 2, len(tasks), "reflections")
                reviews = review(reflector or model, store, settings, run, groups)
                edit_lessons(model, store, settings, run, reviews, groups)
        except ModelHalted as e:
            purse.note(store)
            raise stopped(store, run, e) from e
        purse.note(store)
        done += len(wave)
    with store.write() as s:
        if run.status != "done":
            save_checkpoint(s, runs.get_run(s, run.id), court.states() | bundle.states())
        runs.finish_run(s, run.id)
    tell(len(tasks), len(tasks), "done")
    return report(store, run, waves, time.monotonic() - began)


# -- the stages of a wave
# ----------------------------------------------------------------------------------------------


def roll_out(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    run: Run,
    wave: Sequence[Task],
    use_lessons: bool,
    bundle: Bundle,
    court: LessonTrials | None = None,
) -> list[Group]:
    """Choose lessons, withhold some or all of them here and there, sample and score all groups of
    the wave in one batch; save them in one transaction with what they say of the bundle, and the
    verdicts of the court, if there is one."""
    with store.read() as s:
        saved = runs.groups(s, run.id, [task.key for task in wave])
        missing = [task for task in wave if len(saved[task.key]) < run.k]
        chosen = {
            task.key: lessons_for(model, s, taskset, task, settings) if use_lessons else []
            for task in missing
        }
    drawn: dict[str, list[list[Exposure]]] = {}
    draws = {}
    for key, lessons in chosen.items():
        draws[key] = [draw(lessons, settings, run.seed, key, index) for index in range(run.k)]
        drawn[key] = [
            LazyAssignment(one, settings, run.seed, key, index)
            if isinstance(lessons, PerTurnLessons)
            else one.applied(withhold(lessons, settings, run.seed, key, index))
            for index, one in enumerate(draws[key])
        ]
    have = {(row.task_key, row.index) for rows in saved.values() for row in rows}
    parts = [
        part._replace(indices=wanted)
        for task in missing
        for part in parts_of(task, chosen[task.key], drawn[task.key])
        if (wanted := [i for i in part.indices if (task.key, i) not in have])
    ]
    stop = None
    try:
        fresh = run_parts(
            model, taskset, parts, seed=run.seed, options=SamplingOptions.of(settings)
        )
    except RolloutsStopped as e:
        fresh, stop = e.rollouts, e.why
    order = {task.key: number for number, task in enumerate(missing)}
    rows = sorted(
        (row for part in fresh for row in part), key=lambda row: (order[row.task_key], row.index)
    )
    for row in rows:
        row.run_id, row.adapter_id = run.id or 0, run.adapter_id
        if row.finish == HALTED:  # it says nothing of any lesson
            drawn[row.task_key][row.index] = []
        else:
            row.bundle_shown, row.bundle_probability = draws[row.task_key][row.index]
    with store.write() as s:
        runs.save_rollouts(s, rows, [drawn[row.task_key][row.index] for row in rows])
        if court and rows and not stop:
            seen = {lesson.id or 0 for lessons in chosen.values() for lesson in lessons}
            seen |= trials.lessons_of(s, run.id, [task.key for task in wave]) if have else set()
            court.judge(s, sorted(seen), run.id, move=not settings.require_approval)
        if rows and not stop:
            bundle.judge(s, move=court is not None and not settings.require_approval)
    if stop:
        raise stop
    return groups_of(model, store, taskset, settings, run, wave)


def groups_of(
    model: Model, store: Store, taskset: Taskset, settings: Settings, run: Run, wave: Sequence[Task]
) -> list[Group]:
    """The groups of these tasks as the run has saved them."""
    slept = ("distilled",) if run.adapter_id else ()
    with store.read() as s:
        shown = shown_to(s, run.id, [task.key for task in wave])
        held = {
            task.key: lessons_for(model, s, taskset, task, settings, slept) if slept else []
            for task in wave
        }
        made = runs.groups(s, run.id, [task.key for task in wave])
        return [
            Group(task, shown[task.key][0], held[task.key], made[task.key], shown[task.key][1])
            for task in wave
        ]


# -- the run
# -----------------------------------------------------------------------------------------------------------


def open_run(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int | None,
    learn: bool = True,
    use_lessons: bool = True,
    reflector: Model | None = None,
) -> tuple[Run, list[Task]]:
    """The run of these words, continued or begun, and its tasks. What an interrupted one has not
    asked for is open."""
    if n < 1 or k < 1:
        raise UsageError(
            f"A run needs at least one task and one rollout of each, not n={n} and k={k}."
        )
    names = ["temperature", "max_tokens", "reflect_tokens", "lesson_budget", "lesson_limit"]
    names += [
        "require_approval",
        "trials",
        "withhold_candidate",
        "withhold_active",
        "withhold_bundle",
    ]
    names += ["max_turns", "episode_tokens", "episode_seconds"] if has_environment(taskset) else []
    config = settings.stored(names)
    config |= {"learn": learn, "use_lessons": use_lessons}
    config |= (
        {"reflector": reflector.name, "reflector_fingerprint": reflector.fingerprint}
        if reflector
        else {}
    )
    config |= {"judge": settings.judge} if settings.judge else {}
    meaning = reward_version(taskset)

    with store.write() as s:
        adapter = active_adapter(model)
        adapter_id = nights.get_adapter(s, adapter).id if adapter else None
        words = [
            taskset.name,
            settings.profile,
            n,
            k,
            model.fingerprint,
            adapter_id,
            meaning,
            config,
        ]

        def tasks_and_key(seed: int) -> tuple[list[Task], str]:
            tasks = list({task.key: task for task in taskset.tasks("practice", n, seed)}.values())
            text = json.dumps([*words, seed, [task.key for task in tasks]], sort_keys=True)
            return tasks, hashlib.sha256(text.encode()).hexdigest()[:32]

        if seed is None:
            seed = _open_seed(s, taskset.name, settings.profile, tasks_and_key)
        tasks, key = tasks_and_key(seed)
        if not tasks:
            raise UsageError(
                f"The taskset {taskset.name} has no practice tasks.",
                "Give some the split 'practice'.",
            )
        runs.save_tasks(s, taskset.name, tasks)
        run = runs.start_run(
            s,
            key=key,
            taskset=taskset.name,
            profile=settings.profile,
            n=n,
            k=k,
            seed=seed,
            model=model.name,
            model_fingerprint=model.fingerprint,
            adapter_id=adapter_id,
            measure=meaning,
            config=config | server_of(model, reflector),
        )
        runs.reopen(s, run.id, HALTED)
    return run, tasks


def _open_seed(
    s: Session, taskset: str, profile: str, tasks_and_key: Callable[[int], tuple[Any, str]]
) -> int:
    """The seed of the newest unfinished run that was asked for in the same words, else the next
    free one."""
    for run in runs.unfinished(s, taskset, profile):
        if tasks_and_key(run.seed)[1] == run.key:
            return run.seed
    return runs.next_seed(s, taskset, profile)
