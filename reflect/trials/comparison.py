"""Rollouts that are spent on a question: does this lesson help, and how much noise is there?

A planned comparison runs the same tasks with the same seeds with the lesson and without it, all
other lessons as at run time (or with all chosen lessons and with none), and stops at the verdict.
It costs rollouts that ordinary runs give for nothing, so it is for what is undecided.

Not covered: its rollouts are not kept, and the next comparison starts from nothing: each has its
own error rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from reflect.config import Settings
from reflect.errors import UsageError
from reflect.lessons.selection import lessons_for
from reflect.models.base import Model, SamplingOptions, active_adapter
from reflect.records import SHOWN_STATUSES, Lesson, Rollout, Trial
from reflect.rollouts.runner import AUDIT, Part, run_parts
from reflect.rollouts.stepwise import only
from reflect.stats.confidence import (
    Effect,
    NoiseFloor,
    PairedEstimator,
    needed,
    noise_floor,
    resolvable,
)
from reflect.store import Store, nights, trials
from reflect.store import lessons as db
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.trials.lesson_trial import LessonTrials, TrialScope, audited, record_trial
from reflect.trials.reward_version import reward_version
from reflect.types import Progress

WAVE = 8  # tasks that run together

Rows = list[tuple[Task, list[Lesson]]]  # tasks, each with the lessons in its prompt


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison before it is made. `known`: what ordinary runs say so far."""

    lesson: Lesson
    version: int
    known: Effect
    holds: TrialScope
    tasks: Rows  # those for which the lesson is chosen, with all that are
    k: int
    sd: float  # of the difference of a pair
    wanted: float  # the effect to be found
    needed: int  # pairs that find it in 90 % of cases

    @property
    def pairs(self) -> int:
        return len(self.tasks) * self.k

    @property
    def smallest(self) -> float:
        """The effect that this many pairs find in 90 % of cases."""
        return resolvable(self.pairs, self.sd)


def plan(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    lesson_id: int,
    *,
    n: int,
    k: int,
    wanted: float = 0.1,
    seed: int = 0,
) -> ComparisonPlan:
    """How a lesson would be compared on at most n practice tasks, k pairs each. UsageError for a
    lesson that does not stand in any prompt."""
    adapter = active_adapter(model)
    found: Rows = []
    with store.read() as s:
        lesson = db.get(s, lesson_id)
        if lesson.status not in SHOWN_STATUSES:
            raise UsageError(
                f"Lesson {lesson_id} is {lesson.status}: it stands in no prompt.",
                "Approve it first.",
            )
        holds = TrialScope(
            model.fingerprint,
            nights.get_adapter(s, adapter).id if adapter else None,
            reward_version(taskset),
        )
        version, contrast = LessonTrials(holds).hear(s, lesson)
        for task in taskset.tasks("practice", None, seed):
            chosen = lessons_for(model, s, taskset, task, settings) if len(found) < n else []
            if any(one.id == lesson_id for one in chosen):
                found.append((task, chosen))
    if not found:
        raise UsageError(
            f"Lesson {lesson_id} is chosen for no practice task of {taskset.name}.",
            "Name the tasks that it is for with --taskset; lesson_limit and lesson_budget may leave it out.",
        )
    sd = (
        math.sqrt(2) * contrast.noise
    )  # the two of a pair differ in their prompt: they are as good as independent
    return ComparisonPlan(
        lesson, version, contrast.result(), holds, found, k, sd, wanted, needed(wanted, sd)
    )


def compare(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    plan: ComparisonPlan,
    progress: Progress | None = None,
) -> Trial:
    """Carry out the plan until there is a verdict or no task is left; the verdict moves the
    lesson."""
    with store.read() as s:
        seed = sum(
            trial.kind == "paired" for trial in nights.trials(s, plan.lesson.id)
        )  # each time other attempts
    rows = [
        (task, chosen, only(chosen, lambda lesson: lesson.id != plan.lesson.id))
        for task, chosen in plan.tasks
    ]
    effect = _pairs(model, taskset, settings, rows, plan.k, seed, progress)
    with store.write() as s:
        lesson = db.get(s, plan.lesson.id)
        same = (
            trials.since(s, lesson) == plan.version
        )  # else somebody changed it meanwhile: this is about what was
        return record_trial(s, lesson, effect, "paired", plan.version, plan.holds, move=same)


def compare_bundle(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Effect:
    """All lessons that are chosen against none, on at most n practice tasks in whose prompt some
    stand, k pairs each, until there is a verdict. It moves no lesson, and is not kept. UsageError
    where no task has a lesson."""
    with store.read() as s:
        every = (
            (t, lessons_for(model, s, taskset, t, settings))
            for t in taskset.tasks("practice", None, seed)
        )
        rows: list[tuple[Task, list[Lesson], list[Lesson]]]
        rows = list(islice(((task, chosen, []) for task, chosen in every if chosen), n))
    if not rows:
        raise UsageError(
            f"No lesson stands in a prompt of {taskset.name}.",
            f"Practise: reflect run {taskset.name}",
        )
    return _pairs(model, taskset, settings, rows, k, seed, progress)


def _pairs(
    model: Model,
    taskset: Taskset,
    settings: Settings,
    rows: Sequence[tuple[Task, Sequence[Lesson], Sequence[Lesson]]],
    k: int,
    seed: int,
    progress: Progress | None,
) -> Effect:
    """The effect of the first lessons of each row against the second, with the same seeds, up to
    the verdict."""
    paired, audit = PairedEstimator(), PairedEstimator()
    options = SamplingOptions.of(settings)
    for start in range(0, len(rows), WAVE):
        if progress:
            progress(start, len(rows), "pairs")
        parts = [
            Part(task, some, range(k))
            for task, *both in rows[start : start + WAVE]
            for some in both
        ]
        groups = run_parts(model, taskset, parts, seed=seed, options=options)
        pairs = [
            pair
            for with_lessons, without in zip(groups[::2], groups[1::2], strict=True)
            for pair in zip(with_lessons, without, strict=True)
        ]
        if _settled(paired, audit, pairs):
            break
    return audited(paired.result(), audit if audit.n else None)


def _settled(
    paired: PairedEstimator, audit: PairedEstimator, pairs: Sequence[tuple[Rollout, Rollout]]
) -> bool:
    """Take in the pairs, one after the other, up to the verdict. Is there one, under the hidden
    metric too?"""
    for pair in pairs:
        paired.update(*(row.reward or 0.0 for row in pair))
        if all(AUDIT in row.parts for row in pair):
            audit.update(*(row.parts[AUDIT] for row in pair))
        if paired.verdict() == "reject" or (paired.verdict() == "accept" and not _open(audit)):
            return True
    return False


def _open(audit: PairedEstimator) -> bool:
    """Is there a hidden metric whose verdict is still to come?"""
    return audit.n > 0 and audit.verdict() == "undecided"


# -- identical prompts
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AAResult:
    """The same prompts, run twice with other seeds."""

    taskset: str
    tasks: int
    k: int  # rollouts of a task in each run
    first: float  # mean reward
    second: float
    noise: NoiseFloor


def run_twice(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> AAResult:
    """n practice tasks with their lessons, k rollouts each, twice. UsageError where there is no
    task."""
    tasks = taskset.tasks("practice", n, seed)
    if not tasks:
        raise UsageError(
            f"The taskset {taskset.name} has no practice tasks.", "Give some the split 'practice'."
        )
    with store.read() as s:
        parts = [
            Part(task, lessons_for(model, s, taskset, task, settings), range(2 * k))
            for task in tasks
        ]
    options = SamplingOptions.of(settings)
    rewards: list[list[float]] = []
    for start in range(0, len(parts), WAVE):
        if progress:
            progress(start, len(parts), "rollouts")
        groups = run_parts(model, taskset, parts[start : start + WAVE], seed=seed, options=options)
        rewards += [[row.reward or 0.0 for row in group] for group in groups]
    first, second = (sum(sum(row[half]) for row in rewards) for half in (slice(k), slice(k, None)))
    size = len(rewards) * k
    return AAResult(
        taskset.name, len(rewards), k, first / size, second / size, noise_floor(rewards)
    )
