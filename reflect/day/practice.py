"""Practice by day: for each task, k rollouts with the selected lessons in the system prompt, scored
by the verifier; a reflection over each group; lesson edits, saved in the database. Every rollout is
a trial of the lessons that it saw or missed.

Tasks run in waves, each in one batch. A wave selects its lessons from the database as the previous
wave left it. Its rollouts and the verdicts that follow from them are saved in one transaction, its
reflections and their edits in another. So a killed run continues with its first incomplete wave,
and ends with the same rows as an uninterrupted one. So does a run whose model stops answering (a
spent budget, an unreachable server): its answers are saved, and only missing ones are requested.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from reflect.day.claims import RunWorker
from reflect.day.learning import edit_lessons, reflect_on
from reflect.day.reflection import Group
from reflect.day.report import Report, report
from reflect.day.run import WAVE, RunArguments, RunBudget, open_run, stopped, waves_of
from reflect.errors import ModelHalted, UsageError
from reflect.evaluation.followed import read_checks
from reflect.lessons.selection import lessons_for
from reflect.models.base import MeteredModel, Model, SamplingOptions
from reflect.rollouts.context import RunContext, TasksetContext
from reflect.rollouts.runner import RolloutsStopped, run_parts
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import Store, claims, runs
from reflect.store import trials as trials_db
from reflect.tasksets import isolation
from reflect.tasksets.task import Task
from reflect.trials.assignment import (
    Assignment,
    LazyAssignment,
    draw,
    parts_of,
    shown_to,
    withhold,
)
from reflect.trials.bundle import Bundle
from reflect.trials.checkpoints import States, save_checkpoint
from reflect.trials.lesson_trial import LessonTrials, TrialScope
from reflect.types import Finish, LessonStatus, Progress, RunStatus

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.records import Exposure, Lesson, Rollout, Run
    from reflect.tasksets.base import Taskset


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
    join: bool = False,
) -> Report:
    """Practise n tasks k times each with the model's active adapter, and learn from them.

    `n` ... `use_lessons`, `join`: see `RunArguments`. A finished run is only reported. A taskset
    with fewer than n tasks gives what it has; none is a UsageError. `reflector` reflects on the
    rollouts, by default the model itself. Raises ModelHalted if a model stops answering.
    """
    start = TasksetContext(model, store, taskset, settings, progress=progress)
    arguments = RunArguments(n=n, k=k, seed=seed, learn=learn, use_lessons=use_lessons, join=join)
    return run_practice(start, arguments, reflector)


def run_practice(
    start: TasksetContext, arguments: RunArguments, reflector: Model | None = None
) -> Report:
    """`practice` with its arguments as one object: begin a run, continue it or replace it."""
    began = time.monotonic()
    settings, store = start.settings, start.store
    learn, use_lessons = arguments.learn, arguments.use_lessons
    isolation.limit(settings.verify_seconds, settings.verify_memory)
    run, tasks, superseded, shared = open_run(start, arguments, reflector)
    context = start.in_run(run, reflector)
    budget, trials = RunBudget(context), RunTrials(run)
    waves = waves_of(tasks)
    todo = claimed_work(context, waves) if shared else all_work(context, waves, learn)
    with closing(todo):
        for work in todo:
            context.report(work.done, len(tasks), work.what)
            try:
                if work.rollouts:
                    make_rollouts(context, work.tasks, trials, learn, use_lessons, shared)
                if work.reflections:
                    groups = load_groups(context, work.tasks)
                    edit_lessons(context, reflect_on(context, groups), groups)
            except ModelHalted as e:
                budget.save()
                raise stopped(context, e) from e
            budget.save()
    with store.write() as s:
        row = runs.get_run(s, run.id)
        if shared and row.status == RunStatus.ABANDONED:
            raise UsageError(f"Run {run.id} was abandoned.", "Begin another: reflect run TASKSET")
        if row.status != RunStatus.DONE:
            save_checkpoint(s, row, trials.states())
        runs.finish_run(s, run.id)
    read_checks(store, settings.profile)
    context.report(len(tasks), len(tasks), "done")
    return report(store, run, waves, time.monotonic() - began, superseded)


class WaveWork(NamedTuple):
    """What to do next for some tasks of a wave."""

    tasks: Sequence[Task]
    rollouts: bool
    reflections: bool
    done: int
    """Tasks of the run whose rollouts were made before."""

    @property
    def what(self) -> str:
        """What is made, for progress."""
        return "rollouts" if self.rollouts else "reflections"


def all_work(
    context: RunContext, waves: Sequence[Sequence[Task]], learn: bool
) -> Generator[WaveWork]:
    """The work of a run that has one process; none if it is done."""
    for number, wave in enumerate(waves if context.run.status != RunStatus.DONE else ()):
        yield WaveWork(wave, True, False, number * WAVE)
        if learn:
            yield WaveWork(wave, False, True, number * WAVE + len(wave) // 2)


def claimed_work(context: RunContext, waves: Sequence[Sequence[Task]]) -> Generator[WaveWork]:
    """The work of a run that this process claims, while other processes do the rest."""
    run, total = context.run, sum(map(len, waves))
    settings, most = context.settings, WAVE
    if isinstance(context.model, MeteredModel):  # enough for its concurrent requests, twice
        most = min(WAVE, math.ceil(2 * settings.concurrency / run.k))
    worker = RunWorker(context.store, run.id, settings.lease, most)
    with closing(worker.work()) as claimed:
        for number, keys in claimed:
            with context.store.read() as s:
                tasks_left, _ = claims.left(s, run.id)
            tasks = [task for task in waves[number] if not keys or task.key in keys]
            yield WaveWork(tasks, bool(keys), not keys, total - tasks_left)


def learn_from_grades(context: TasksetContext, run_id: int) -> Report:
    """Learn from a finished run whose rollouts people have graded: the same stages as in practice,
    after the rollouts. Update the lesson trials with the present rewards, then reflect on each
    group that has no reflection. A second call reflects only on what was graded in the meantime.

    Raises UsageError for an unfinished run, and for a run without any reward.
    """
    began = time.monotonic()
    with context.store.read() as s:
        run, tasks = runs.get_run(s, run_id), tasks_of(s, run_id)
        rewards = [row.reward for row in runs.rollouts(s, run_id)]
    if run.status != RunStatus.DONE:
        hint = f"Finish it: reflect runs resume {run_id}"
        raise UsageError(f"Run {run_id} is not finished.", hint)
    if all(reward is None for reward in rewards):
        hint = f"See: reflect grade list --run {run_id}"
        raise UsageError(f"No rollout of run {run_id} has a grade.", hint)
    mine, trials, move = context.in_run(run), RunTrials(run), not context.settings.require_approval
    waves = waves_of(tasks)
    for number, wave in enumerate(waves):
        context.report(number * WAVE, len(tasks), "reflections")
        groups = load_groups(mine, wave)
        with context.store.write() as s:
            shown = [lesson.id or 0 for group in groups for lesson in group.shown]
            trials.update(s, shown, move=move)
        edit_lessons(mine, reflect_on(mine, groups), groups)
    return report(context.store, run, waves, time.monotonic() - began)


def tasks_of(s: Session, run_id: int | None) -> list[Task]:
    """The tasks of a run's rollouts, in the order in which these were saved."""
    keys = dict.fromkeys(row.task_key for row in runs.rollouts(s, run_id))
    return [Task(**runs.task(s, key).content) for key in keys]


class RunTrials:
    """The trials that the rollouts of a run decide: of each lesson, and of all lessons together."""

    def __init__(self, run: Run) -> None:
        self.run_id = run.id
        scope = TrialScope.of(run)
        compete = run.config.get("proposals", 1) > 1
        self.lessons, self.bundle = LessonTrials(scope, compete=compete), Bundle(run)

    def update(self, s: Session, lesson_ids: Sequence[int], *, move: bool) -> None:
        """Record the effects of these lessons and of all together; `move`: verdicts move them."""
        self.lessons.judge(s, lesson_ids, self.run_id, move=move)
        self.bundle.judge(s, move=move)

    def states(self) -> States:
        """The estimates so far, for `save_checkpoint`."""
        return self.lessons.states() | self.bundle.states()


# -- the rollouts of a wave


class PlannedGroup(NamedTuple):
    """The rollouts of one task that are to be made."""

    task: Task
    lessons: list[Lesson]
    """The lessons selected for the prompt."""
    missing: list[int]
    """Index of each rollout that is not saved yet."""
    bundles: Sequence[Assignment] = ()
    """By rollout: whether all lessons are withheld together."""
    exposures: Sequence[list[Exposure]] = ()
    """By rollout: which lessons are withheld."""


def make_rollouts(
    context: RunContext,
    wave: Sequence[Task],
    trials: RunTrials,
    learn: bool,
    use_lessons: bool,
    shared: bool,
) -> None:
    """Make and save the rollouts of these tasks that are not saved yet. Those that the model did
    not make are saved as such, unless other workers can make them (`shared`)."""
    planned = assign(context, select(context, wave, use_lessons))
    rows, halted = run_rollouts(context, planned)
    if shared:
        rows = [row for row in rows if row.finish != Finish.HALTED]
    save(context, planned, rows, None if halted else trials, learn)
    if halted:
        raise halted


def select(context: RunContext, wave: Sequence[Task], use_lessons: bool) -> list[PlannedGroup]:
    """Select the lessons of each task that has rollouts to make."""
    run, model, planned = context.run, context.model, []
    with context.store.read() as s:
        saved = runs.groups(s, run.id, [task.key for task in wave])
        for task in wave:
            have = {row.index for row in saved[task.key]}
            missing = [index for index in range(run.k) if index not in have]
            lessons: list[Lesson] = []
            if missing and use_lessons:
                lessons = lessons_for(model, s, context.taskset, task, context.settings)
            planned.append(PlannedGroup(task, lessons, missing))
    return planned


def assign(context: RunContext, planned: Sequence[PlannedGroup]) -> list[PlannedGroup]:
    """Hash which lessons each rollout misses, so that a continued run draws the same."""
    settings, run = context.settings, context.run
    assigned = []
    for group in planned:
        lessons, key = group.lessons, group.task.key
        bundles = [draw(lessons, settings, run.seed, key, index) for index in range(run.k)]
        exposures = [
            LazyAssignment(bundle, settings, run.seed, key, index)
            if isinstance(lessons, PerTurnLessons)
            else bundle.applied(withhold(lessons, settings, run.seed, key, index))
            for index, bundle in enumerate(bundles)
        ]
        assigned.append(group._replace(bundles=bundles, exposures=exposures))
    return assigned


def run_rollouts(
    context: RunContext, planned: Sequence[PlannedGroup]
) -> tuple[list[Rollout], ModelHalted | None]:
    """Sample and score the missing rollouts in one batch; and why the model stopped answering."""
    parts = [
        part._replace(indices=indices)
        for group in planned
        for part in parts_of(group.task, group.lessons, group.exposures)
        if (indices := [i for i in part.indices if i in group.missing])
    ]
    options, halted = SamplingOptions.of(context.settings), None
    model, taskset, seed = context.model, context.taskset, context.run.seed
    try:
        groups = run_parts(model, taskset, parts, seed=seed, options=options)
    except RolloutsStopped as e:
        groups, halted = e.rollouts, e.why
    place = {group.task.key: number for number, group in enumerate(planned)}
    rows = [row for group in groups for row in group]
    return sorted(rows, key=lambda row: (place[row.task_key], row.index)), halted


def save(
    context: RunContext,
    planned: Sequence[PlannedGroup],
    rows: Sequence[Rollout],
    trials: RunTrials | None,
    learn: bool,
) -> None:
    """Save the rollouts with their exposures and update the trials, in one transaction. A rollout
    that was not made is no evidence on any lesson."""
    groups = {group.task.key: group for group in planned}
    exposures: list[list[Exposure]] = []
    for row in rows:
        group = groups[row.task_key]
        row.run_id, row.adapter_id = context.run.id or 0, context.run.adapter_id
        exposures.append([] if row.finish == Finish.HALTED else group.exposures[row.index])
        if row.finish != Finish.HALTED:
            row.bundle_shown, row.bundle_probability = group.bundles[row.index]
    with context.store.write() as s:
        earlier = trials_db.lessons_of(s, context.run.id, list(groups)) if learn else set()
        runs.save_rollouts(s, rows, exposures)
        if rows and trials:
            lessons = {lesson.id or 0 for group in planned for lesson in group.lessons}
            move = learn and not context.settings.require_approval
            trials.update(s, sorted(lessons | earlier) if learn else (), move=move)


def load_groups(context: RunContext, wave: Sequence[Task]) -> list[Group]:
    """The groups of these tasks as the run has saved them."""
    model, settings, keys = context.model, context.settings, [task.key for task in wave]
    distilled = (LessonStatus.DISTILLED,) if context.run.adapter_id else ()
    with context.store.read() as s:
        shown = shown_to(s, context.run.id, keys)
        rows = runs.groups(s, context.run.id, keys)
        groups = []
        for task in wave:
            in_weights: list[Lesson] = []
            if distilled:
                in_weights = lessons_for(model, s, context.taskset, task, settings, distilled)
            lessons, missed = shown[task.key]
            groups.append(Group(task, lessons, in_weights, rows[task.key], missed))
        return groups
