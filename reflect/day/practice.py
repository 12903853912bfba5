"""The day: roll out groups of attempts, score them, review each group, edit the lessons; wave by wave.

A wave is a few tasks that run in one batch. Its lessons are chosen from the database as the previous wave left it, its
rollouts are saved in one transaction, its reflections and their edits in another. A run that was killed continues with
the first wave that is not complete, and ends with the same rows as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from reflect import prompts
from reflect.config import Settings
from reflect.day.election import Ballot, elect
from reflect.day.lessons import Evidence, Outcome, apply_edits, lessons_for
from reflect.day.reflection import Edit, contrast, parse_edits, reflection_messages, request_for, teaches, went_well
from reflect.day.rollout import Progress, run_groups, sample_each, using
from reflect.day.summary import Report, report
from reflect.errors import ModelError, UsageError
from reflect.models.base import Completion, Model
from reflect.records import Exposure, Lesson, Reflection, Rollout, Run
from reflect.store import Store, nights, runs
from reflect.tasksets.base import Task, Taskset

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
    progress: Progress | None = None,
) -> Report:
    """Practise n tasks k times each and learn from them, with the adapter that the model has on.

    `seed=None` continues the newest unfinished run of the same words, or begins a new one. A run that is done already
    is only reported. Fewer than n tasks are practised where the taskset has fewer; none is a UsageError.
    """
    began = time.monotonic()
    run, tasks = open_run(model, store, taskset, settings, n=n, k=k, seed=seed, learn=learn, use_lessons=use_lessons)
    waves = [tasks[i : i + WAVE] for i in range(0, len(tasks), WAVE)]
    tell = progress or (lambda done, total, what: None)
    done = 0
    for wave in waves if run.status != "done" else []:
        tell(done, len(tasks), "rollouts")
        groups = roll_out(model, store, taskset, settings, run, wave, use_lessons)
        if learn:
            tell(done + len(wave) // 2, len(tasks), "reflections")
            reviews = review(model, store, settings, run, groups)
            edit_lessons(model, store, settings, run, reviews, groups)
        done += len(wave)
    with store.write() as s:
        runs.finish_run(s, run.id)
    tell(len(tasks), len(tasks), "done")
    return report(store, run, waves, time.monotonic() - began)


# -- the stages of a wave ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The rollouts of one task, the lessons that stood in their prompt, and those that the adapter holds for it."""

    task: Task
    shown: list[Lesson]
    held: list[Lesson]
    rollouts: list[Rollout]


@dataclass(frozen=True)
class Review:
    """A reflection that is not saved yet, and what could be read of it."""

    group: Group
    row: Reflection
    edits: list[Edit]
    problems: list[str]


def roll_out(
    model: Model, store: Store, taskset: Taskset, settings: Settings, run: Run, wave: Sequence[Task], use_lessons: bool
) -> list[Group]:
    """Choose lessons, sample and score all groups of the wave in one batch, save them in one transaction."""
    with store.read() as s:
        saved = {task.key: runs.rollouts(s, run.id, task.key) for task in wave}
        shown = {task.key: lessons_for(model, s, taskset, task, settings) if use_lessons else [] for task in wave}
        slept = ("distilled",) if run.adapter_id else ()
        held = {task.key: lessons_for(model, s, taskset, task, settings, slept) if slept else [] for task in wave}
    missing = [task for task in wave if len(saved[task.key]) < run.k]
    fresh = run_groups(
        model,
        taskset,
        [(task, shown[task.key]) for task in missing],
        k=run.k,
        seed=run.seed,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
    )
    rows = [row for group in fresh for row in group]
    for row in rows:
        row.run_id, row.adapter_id = run.id or 0, run.adapter_id
    with store.write() as s:
        runs.save_rollouts(s, rows, [[exposure(lesson) for lesson in shown[row.task_key]] for row in rows])
    with store.read() as s:
        return [Group(task, shown[task.key], held[task.key], runs.rollouts(s, run.id, task.key)) for task in wave]


def review(model: Model, store: Store, settings: Settings, run: Run, groups: Sequence[Group]) -> list[Review]:
    """Reflect, in one batch, on each group that teaches something and has no reflection yet."""
    with store.read() as s:
        todo = [g for g in groups if teaches(g.rollouts) and not runs.get_reflection(s, run.id, g.task.key)]
    size = settings.reflect_tokens
    asked = [reflection_messages(model, g.task, g.shown, g.rollouts, max_tokens=size) for g in todo]
    with using(model, None):  # the bare base reflects: what it writes does not drift with the adapters
        answers = sample_each(model, [request_for(messages, size) for messages, _ in asked])
    reviews = []
    for group, (_, packed), answer in zip(todo, asked, answers, strict=True):
        raw, edits, problems = _read(answer)
        row = Reflection(
            run_id=run.id or 0,
            task_key=group.task.key,
            pack_hash=packed.hash,
            pack_tokens=packed.tokens,
            cut=packed.cut,
            prompt_version=prompts.version("reflect"),
            raw=raw,
            model=model.name,
        )
        reviews.append(Review(group, row, edits, problems))
    return reviews


def _read(answer: list[Completion] | ModelError) -> tuple[str, list[Edit], list[str]]:
    """(raw answer, edits, problems) of one reflection; one that the model could not give is a problem too."""
    if isinstance(answer, ModelError):
        return "", [], [answer.message]
    edits, problems = parse_edits(answer[0].text, complete=answer[0].finish == "stop")
    return answer[0].text, edits, problems


def edit_lessons(
    model: Model, store: Store, settings: Settings, run: Run, reviews: Sequence[Review], groups: Sequence[Group]
) -> None:
    """Save the wave's reflections and carry out those of their edits that stand, in one transaction."""
    edits = {r.row.task_key: r.edits for r in reviews}
    ballots = [
        Ballot(edits.get(g.task.key, []), [*g.shown, *g.held], contrast(g.rollouts), went_well(g.rollouts))
        for g in groups
    ]
    elected = {g.task.key: stands for g, stands in zip(groups, elect(ballots), strict=True)}
    with store.write() as s:
        for r in reviews:
            if runs.get_reflection(s, run.id, r.group.task.key):
                continue  # another process of the same run was faster
            runs.save_reflection(s, r.row)
            evidence = Evidence(
                task=r.group.task,
                scope=run.taskset,
                profile=run.profile,
                shown=r.group.shown,
                held=r.group.held,
                contrast=contrast(r.group.rollouts),
                reflection_id=r.row.id,
            )
            outcomes = [
                apply_edits(s, [edit], evidence, count_tokens=model.count_tokens, budget=settings.lesson_budget)[0]
                if stand
                else Outcome(edit, "outvoted", "more groups of the same wave speak against it")
                for edit, stand in zip(r.edits, elected[r.row.task_key], strict=True)
            ]
            problems = [{"kind": "problem", "outcome": "problem", "reason": problem} for problem in r.problems]
            r.row.edits = [outcome.row() for outcome in outcomes] + problems


def exposure(lesson: Lesson) -> Exposure:
    return Exposure(rollout_id=0, lesson_id=lesson.id or 0, version=lesson.version, shown=True, probability=1.0)


# -- the run -----------------------------------------------------------------------------------------------------------


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
) -> tuple[Run, list[Task]]:
    """The run of these words, continued or begun, and its tasks."""
    if n < 1 or k < 1:
        raise UsageError(f"A run needs at least one task and one rollout of each, not n={n} and k={k}.")
    names = ("temperature", "max_tokens", "reflect_tokens", "lesson_budget", "lesson_limit")
    config = {name: value for name, value in asdict(settings).items() if name in names}
    config |= {"learn": learn, "use_lessons": use_lessons}

    with store.write() as s:
        adapter = getattr(model, "active", None)
        adapter_id = nights.get_adapter(s, adapter).id if adapter else None
        words = [taskset.name, settings.profile, n, k, model.fingerprint, adapter_id, config]

        def tasks_and_key(seed: int) -> tuple[list[Task], str]:
            tasks = list({task.key: task for task in taskset.tasks("practice", n, seed)}.values())
            text = json.dumps([*words, seed, [task.key for task in tasks]], sort_keys=True)
            return tasks, hashlib.sha256(text.encode()).hexdigest()[:32]

        if seed is None:
            seed = _open_seed(s, taskset.name, settings.profile, tasks_and_key)
        tasks, key = tasks_and_key(seed)
        if not tasks:
            raise UsageError(f"The taskset {taskset.name} has no practice tasks.", "Give some the split 'practice'.")
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
            config=config,
        )
    return run, tasks


def _open_seed(s: Session, taskset: str, profile: str, tasks_and_key: Callable[[int], tuple[Any, str]]) -> int:
    """The seed of the newest unfinished run that was asked for in the same words, else the next free one."""
    for run in runs.unfinished(s, taskset, profile):
        if tasks_and_key(run.seed)[1] == run.key:
            return run.seed
    return runs.next_seed(s, taskset, profile)
