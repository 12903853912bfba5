"""Rollouts that are spent on a question: does this lesson help, and how much noise is there?

A planned comparison runs the same tasks with the same seeds with the lesson and without it, all
other lessons as at run time (or with all chosen lessons and with none), and stops at the verdict.
It costs rollouts that ordinary runs give for free, so it is for lessons that are undecided.

Not covered: its rollouts are not kept, and the next comparison starts from nothing: each has its
own error rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from reflect.errors import UsageError
from reflect.lessons.selection import about, lessons_for
from reflect.models.base import SamplingOptions, active_adapter
from reflect.records import SHOWN_STATUSES, Lesson, Rollout, Trial
from reflect.rollouts.episode import AUDIT
from reflect.rollouts.runner import Part, run_parts
from reflect.rollouts.stepwise import only
from reflect.stats.confidence import (
    Effect,
    NoiseFloor,
    PairedEstimator,
    needed,
    noise_floor,
    resolvable,
)
from reflect.store import lessons as db
from reflect.store import nights, trials
from reflect.tasksets.task import Task
from reflect.trials.lesson_trial import LessonTrials, TrialScope, audited, record_trial
from reflect.trials.reward_version import reward_version
from reflect.types import TrialKind, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlmodel import Session

    from reflect.rollouts.context import TasksetContext

WAVE = 8  # tasks that run together

Rows = list[tuple[Task, list[Lesson]]]  # tasks, each with the lessons in its prompt


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison before it is run."""

    lesson: Lesson
    version: int
    known: Effect
    """The effect from ordinary runs so far."""
    scope: TrialScope
    tasks: Rows
    """The tasks on which the lesson's condition fires, with all lessons of their prompts."""
    k: int
    """Pairs per task."""
    sd: float
    """Standard deviation of the difference of a pair."""
    wanted: float
    """The effect to be detected."""
    needed: int
    """Pairs that detect it in 90 % of cases."""

    @property
    def pairs(self) -> int:
        """Number of paired rollouts."""
        return len(self.tasks) * self.k

    @property
    def smallest(self) -> float:
        """The effect that this many pairs detect in 90 % of cases."""
        return resolvable(self.pairs, self.sd)


def plan(
    ctx: TasksetContext, lesson_id: int, *, n: int, k: int, wanted: float = 0.1, seed: int = 0
) -> ComparisonPlan:
    """Plan to compare a lesson on at most n practice tasks, k pairs each. Raises UsageError."""
    adapter, name = active_adapter(ctx.model), ctx.taskset.name
    with ctx.store.read() as s:
        lesson = db.get(s, lesson_id)
        if lesson.status not in SHOWN_STATUSES:
            raise UsageError(
                f"Lesson {lesson_id} is {lesson.status}, so it is in no prompt.",
                "Approve it first.",
            )
        adapter_id = nights.get_adapter(s, adapter).id if adapter else None
        scope = TrialScope(ctx.model.fingerprint, adapter_id, reward_version(ctx.taskset))
        version, estimator = LessonTrials(scope).update(s, lesson)
        rows = (
            (task, chosen)
            for task, chosen in _with_lessons(ctx, s, None, seed)
            if any(x.id == lesson_id for x in about(task, chosen))
        )
        tasks = list(islice(rows, n))
    if not tasks:
        raise UsageError(
            f"Lesson {lesson_id} is chosen for no practice task of {name}.",
            "Name the tasks that it is for with --taskset; lesson_limit and lesson_budget may "
            "leave it out.",
        )
    # the prompts of a pair differ, so its rewards are as good as independent
    sd, known = math.sqrt(2) * estimator.noise, estimator.result()
    pairs = needed(wanted, sd)
    return ComparisonPlan(lesson, version, known, scope, tasks, k, sd, wanted, pairs)


def _with_lessons(
    ctx: TasksetContext, s: Session, n: int | None, seed: int
) -> Iterator[tuple[Task, list[Lesson]]]:
    """The practice tasks, each with the lessons of its prompt."""
    for task in ctx.taskset.tasks("practice", n, seed):
        yield task, lessons_for(ctx.model, s, ctx.taskset, task, ctx.settings)


def compare(ctx: TasksetContext, plan: ComparisonPlan) -> Trial:
    """Run the plan until there is a verdict or no task is left; the verdict moves the lesson."""
    lesson_id = plan.lesson.id
    with ctx.store.read() as s:  # each comparison of a lesson has other seeds
        seed = sum(x.kind == TrialKind.PAIRED for x in nights.trials(s, lesson_id))
    rows = [
        (task, chosen, only(chosen, lambda lesson: lesson.id != lesson_id))
        for task, chosen in plan.tasks
    ]
    effect = _run_pairs(ctx, rows, plan.k, seed)
    with ctx.store.write() as s:
        lesson = db.get(s, lesson_id)
        unchanged = trials.since(s, lesson) == plan.version  # else the effect is of an old text
        trial = trials.new_trial(plan.scope.trial(lesson, plan.version, TrialKind.PAIRED))
        return record_trial(s, trial, lesson, effect, move=unchanged)


def compare_bundle(ctx: TasksetContext, *, n: int, k: int, seed: int = 0) -> Effect:
    """Compare all chosen lessons with none on at most n practice tasks with lessons, k pairs each,
    until there is a verdict. Moves no lesson, stores nothing. UsageError without such a task."""
    with ctx.store.read() as s:
        some = (row for row in _with_lessons(ctx, s, None, seed) if row[1])
        none: list[Lesson] = []
        rows = [(task, chosen, none) for task, chosen in islice(some, n)]
    if not rows:
        name = ctx.taskset.name
        raise UsageError(f"No prompt of {name} has a lesson.", f"Practise: reflect run {name}")
    return _run_pairs(ctx, rows, k, seed)


def _run_pairs(
    ctx: TasksetContext,
    rows: Sequence[tuple[Task, Sequence[Lesson], Sequence[Lesson]]],
    k: int,
    seed: int,
) -> Effect:
    """The effect of each row's first lessons against the second, same seeds, up to the verdict."""
    paired, audit = PairedEstimator(), PairedEstimator()
    options = SamplingOptions.of(ctx.settings)
    for start in range(0, len(rows), WAVE):
        ctx.report(start, len(rows), "pairs")
        wave = rows[start : start + WAVE]
        parts = [Part(task, lessons, range(k)) for task, *both in wave for lessons in both]
        groups = run_parts(ctx.model, ctx.taskset, parts, seed=seed, options=options)
        both = zip(groups[::2], groups[1::2], strict=True)
        pairs = [pair for group in both for pair in zip(*group, strict=True)]
        if _decided(paired, audit, pairs):
            break
    return audited(paired.result(), audit if audit.n else None)


def _decided(
    paired: PairedEstimator, audit: PairedEstimator, pairs: Sequence[tuple[Rollout, ...]]
) -> bool:
    """Add the pairs in order. True at a verdict that the hidden metric does not hold back."""
    for pair in pairs:
        paired.update(*(row.reward or 0.0 for row in pair))
        if all(AUDIT in row.parts for row in pair):
            audit.update(*(row.parts[AUDIT] for row in pair))
        verdict = paired.verdict()
        pending = audit.n > 0 and audit.verdict() == TrialVerdict.UNDECIDED
        if verdict == TrialVerdict.REJECT or (verdict == TrialVerdict.ACCEPT and not pending):
            return True
    return False


@dataclass(frozen=True)
class AAResult:
    """The same prompts, run twice with other seeds."""

    taskset: str
    tasks: int
    k: int
    """Rollouts of a task in each run."""
    first: float
    """Mean reward of the first run."""
    second: float
    noise: NoiseFloor


def run_twice(ctx: TasksetContext, *, n: int, k: int, seed: int = 0) -> AAResult:
    """Run n practice tasks with their lessons twice, k rollouts each. UsageError without a task."""
    name, options = ctx.taskset.name, SamplingOptions.of(ctx.settings)
    with ctx.store.read() as s:
        parts = [Part(*row, range(2 * k)) for row in _with_lessons(ctx, s, n, seed)]
    if not parts:
        raise UsageError(
            f"The taskset {name} has no practice tasks.", "Give some the split 'practice'."
        )
    rewards: list[list[float]] = []
    for start in range(0, len(parts), WAVE):
        ctx.report(start, len(parts), "rollouts")
        wave = parts[start : start + WAVE]
        groups = run_parts(ctx.model, ctx.taskset, wave, seed=seed, options=options)
        rewards += [[row.reward or 0.0 for row in group] for group in groups]
    first, second = (sum(sum(row[half]) for row in rewards) for half in (slice(k), slice(k, None)))
    size = len(rewards) * k
    return AAResult(name, len(rewards), k, first / size, second / size, noise_floor(rewards))
