"""The arms of a comparison: the same tasks in each, greedy, one answer per task, with intervals.

    base      base model, no lessons
    lessons   base model, all lessons kept as text (candidate, active and distilled)
    adapter   active adapter, no lessons
    both      active adapter, and the lessons that a run shows

The tasks are paired across arms, so a difference has a smaller variance than either mean: see
`paired_difference`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from reflect.errors import UsageError, ensure_known
from reflect.lessons.selection import format_lesson, lessons_for
from reflect.models.base import Model, SamplingOptions, active_adapter, using
from reflect.records import HELD_STATUSES, SHOWN_STATUSES, Rollout
from reflect.rollouts.runner import DEFAULTS, Part, run_parts
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.rollouts.transcript import LESSONS, last_words
from reflect.stats.bootstrap import bootstrap
from reflect.types import Arm, Finish, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.rollouts.context import TasksetContext
    from reflect.rollouts.episode import Advice
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Split, Task

BATCH = 64  # tasks per sample call: large enough to be quick, small enough to show progress


@dataclass(frozen=True)
class ArmResult:
    """Mean reward of one arm. A failed rollout counts as reward 0 and is counted in `errors`."""

    reward: float
    n: int
    ci95: tuple[float, float]  # bootstrap over tasks
    rewards: list[float] = field(
        default_factory=list, repr=False
    )  # per task, in the same order in every arm
    lesson_tokens: float = 0.0  # of lessons per prompt, on average
    errors: int = 0
    answers: list[str] = field(
        default_factory=list, repr=False
    )  # the final texts, in the same order
    lengths: list[int] = field(default_factory=list, repr=False)  # tokens of each answer
    cut: int = 0  # answers that did not end by themselves

    def shape(self) -> dict[str, Any]:
        """The public JSON shape."""
        return {
            "reward": round(self.reward, 4),
            "n": self.n,
            "ci95": [round(x, 4) for x in self.ci95],
            "lesson_tokens": round(self.lesson_tokens, 1),
            "errors": self.errors,
        }


def evaluate(
    ctx: TasksetContext,
    *,
    arms: Sequence[str] = (Arm.BASE, Arm.LESSONS),
    n: int | None = None,
    split: Split = "holdout",
    seed: int = 0,
    statuses: Sequence[str] = HELD_STATUSES,
    both_statuses: Sequence[str] = SHOWN_STATUSES,
) -> dict[Arm, ArmResult]:
    """The result of each arm on the first n tasks of the split (None: all). `statuses` and
    `both_statuses`: of the lessons in the arms `lessons` and `both`.

    The arms `adapter` and `both` use the model's active adapter. Raises UnknownName for an unknown
    arm, UsageError if there is no task, or no active adapter to compare.
    """
    model, taskset = ctx.model, ctx.taskset
    chosen = [arm_of(name) for name in arms]
    active = active_adapter(model)
    if active is None and any(arm.has_adapter for arm in chosen):
        problem = "No adapter is active, so there is nothing to compare."
        raise UsageError(problem, "Run `reflect sleep` first.")
    tasks = taskset.tasks(split, n, seed)
    if not tasks:
        problem = f"The taskset {taskset.name} has no {split} tasks."
        raise UsageError(problem, "Add some, or choose another split.")
    shown = {Arm.LESSONS: statuses, Arm.BOTH: both_statuses}
    results = {}
    for i, arm in enumerate(chosen):
        find = partial(lessons_for, model, taskset=taskset, settings=ctx.settings)
        with ctx.store.read() as s:
            rows = [
                (task, find(s, task=task, statuses=shown[arm]) if arm in shown else [])
                for task in tasks
            ]
        progress = _part(ctx.progress, i * len(tasks), len(arms) * len(tasks), arm)
        options = SamplingOptions.of(ctx.settings)
        with using(model, active if arm.has_adapter else None):
            results[arm] = run_arm(model, taskset, rows, options=options, progress=progress)
    return results


def arm_of(name: str) -> Arm:
    """The arm of that name. Raises UnknownName."""
    ensure_known("arm", name, Arm)
    return Arm(name)


def run_arm(
    model: Model,
    taskset: Taskset,
    rows: Sequence[tuple[Task, Sequence[Advice]]],
    *,
    options: SamplingOptions = DEFAULTS,
    progress: Progress | None = None,
) -> ArmResult:
    """One greedy rollout of each task with its lessons, by the model with its active adapter."""
    rollouts: list[Rollout] = []
    for i in range(0, len(rows), BATCH):
        if progress:
            progress(i, len(rows), taskset.name)
        parts = [Part(task, lessons, range(1)) for task, lessons in rows[i : i + BATCH]]
        greedy = replace(options, temperature=0.0)
        for group in run_parts(model, taskset, parts, seed=0, options=greedy):
            rollouts += group
    if progress:
        progress(len(rows), len(rows), taskset.name)
    tokens = [
        _lesson_tokens(model, lessons, row)
        for (_, lessons), row in zip(rows, rollouts, strict=True)
    ]
    rewards = [row.reward or 0.0 for row in rollouts]
    return ArmResult(
        reward=_mean(rewards),
        n=len(rewards),
        ci95=bootstrap(rewards),
        rewards=rewards,
        lesson_tokens=_mean(tokens),
        errors=sum(row.reward is None for row in rollouts),
        answers=[last_words(row) if row.finish != Finish.ERROR else "" for row in rollouts],
        lengths=[row.completion_tokens for row in rollouts],
        cut=sum(row.finish == Finish.LENGTH for row in rollouts),
    )


def _lesson_tokens(model: Model, lessons: Sequence[Advice], row: Rollout) -> float:
    """Tokens of the lessons in the prompt; the mean over turns for PerTurnLessons."""
    cost = [model.count_tokens(format_lesson(x.when, x.do)) for x in lessons]
    if not isinstance(lessons, PerTurnLessons):
        return sum(cost)
    by_id = {lesson.id: tokens for lesson, tokens in zip(lessons, cost, strict=True)}
    return _mean([sum(by_id.get(i, 0) for i in turn) for turn in row.parts.get(LESSONS, [])])


def following(
    model: Model,
    tasks: Sequence[Task],
    taskset: Taskset,
    *,
    options: SamplingOptions = DEFAULTS,
    progress: Progress | None = None,
) -> ArmResult:
    """How well the active adapter follows the new lessons of `tasks` (see `Taskset.following`)."""
    rows: list[tuple[Task, Sequence[Advice]]] = [(task, ()) for task in tasks]
    return run_arm(model, taskset, rows, options=options, progress=progress)


def paired_difference(
    a: ArmResult, b: ArmResult, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a minus b over the same tasks, with its bootstrap interval: (mean, low, high)."""
    differences = [x - y for x, y in zip(a.rewards, b.rewards, strict=True)]
    return _mean(differences), *bootstrap(differences, seed, level)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _part(progress: Progress | None, offset: int, total: int, what: str) -> Progress | None:
    """A callback that reports the progress of one arm as progress of the whole."""
    return (lambda done, _, __: progress(offset + done, total, what)) if progress else None
