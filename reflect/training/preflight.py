"""The proof that the lessons help the bare base on practice tasks, before anything is trained.

A lesson's effect is measured on the tasks on which its condition fires. Trials of the day count
where they have accepted a lesson; only the tasks of other lessons are attempted anew (if the plan
reuses evidence). What the base answered here with lessons is kept for the harvest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from reflect.lessons.selection import about
from reflect.rollouts.episode import messages_for
from reflect.training import evidence
from reflect.training.lesson_set import (
    PreflightEffect,
    effect,
    gains,
    lesson_effects,
    practice_rows,
)
from reflect.training.sampling import sample, scored
from reflect.types import Json, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.evaluation.arms import ArmResult
    from reflect.training.context import NightContext, TasksetLessons
    from reflect.training.evidence import Attempt, DayEvidence
    from reflect.training.lesson_set import Rows

ROUNDS = 3  # further attempts at the tasks of a lesson without a verdict
UNSTORED = "attempts"  # in the night's folder only, not in the database


@dataclass
class Measured:
    """Attempts at the tasks of one taskset, by task key."""

    base: dict[str, list[float]] = field(default_factory=dict)
    lessons: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, list[Attempt]] = field(default_factory=dict)
    """The complete answers with lessons."""

    def add(self, rows: Rows, base: ArmResult, lessons: ArmResult, most: int) -> None:
        """Add the two arms on these tasks; an answer of `most` tokens was cut off."""
        for i, (task, _) in enumerate(rows):
            self.base.setdefault(task.key, []).append(base.rewards[i])
            self.lessons.setdefault(task.key, []).append(lessons.rewards[i])
            if lessons.lengths[i] < most:
                answer = (lessons.answers[i], lessons.rewards[i])
                self.answers.setdefault(task.key, []).append(answer)

    def gains(self, rows: Rows) -> tuple[Rows, list[float]]:
        """The tasks that were attempted in both arms, and the gain of each."""
        both = [row for row in rows if row[0].key in self.base and row[0].key in self.lessons]
        return both, [_mean(self.lessons[t.key]) - _mean(self.base[t.key]) for t, _ in both]


def preflight(ctx: NightContext) -> Json:
    """Figures per taskset and per lesson.

    `worth`: ids of the lessons with a proven effect. Only these are trained on; the others stay in
    the prompt.
    """
    tasksets: Json = {}
    effects: dict[int, PreflightEffect] = {}
    attempts: dict[str, dict[str, list[Attempt]]] = {}
    for item in ctx.tasksets:
        rows = practice_rows(ctx, item)
        if ctx.plan.reuse:
            figures, own, attempts[item.taskset.name] = _from_evidence(ctx, item, rows)
        else:
            figures, own = _from_arms(ctx, item, rows)
        tasksets[item.taskset.name] = figures
        for i, e in own.items():
            if i not in effects or e.n > effects[i].n:  # a general lesson: where it is shown most
                effects[i] = e
    return {
        "model_fingerprint": ctx.model.fingerprint,
        "tasksets": tasksets,
        "lessons": {str(i): asdict(e) | {"verdict": e.verdict} for i, e in sorted(effects.items())},
        "worth": sorted(i for i, e in effects.items() if e.verdict == TrialVerdict.ACCEPT),
        **({UNSTORED: attempts} if attempts else {}),
    }


def _from_arms(
    ctx: NightContext, item: TasksetLessons, rows: Rows
) -> tuple[Json, dict[int, PreflightEffect]]:
    """One greedy attempt at each task, without and with lessons."""
    base = ctx.run_arm(item.taskset, [(task, ()) for task, _ in rows])
    lessons = ctx.run_arm(item.taskset, rows)
    gained = gains(lessons, base)
    failed = [t.key for (t, _), r in zip(rows, base.rewards, strict=True) if r < 1]
    means = {"base": base.reward, "lessons": lessons.reward, "failed": failed}
    return means | asdict(effect(gained)), lesson_effects(rows, gained)


def _from_evidence(
    ctx: NightContext, item: TasksetLessons, rows: Rows
) -> tuple[Json, dict[int, PreflightEffect], dict[str, list[Attempt]]]:
    """The day's evidence; then one greedy attempt at each task of the lessons that no trial has
    accepted; then up to ROUNDS sampled attempts at those of lessons without a verdict."""
    day = evidence.of_day(ctx, item, rows)
    done = Measured(day.withheld, day.shown, day.answers)
    reused = sum(map(len, [*day.withheld.values(), *day.shown.values()]))
    most, attempted = ctx.sampling.max_tokens, 0
    open_ids = {x.id or 0 for x in item.lessons} - set(day.proven)
    todo = _tasks_of(rows, open_ids)
    bare: Rows = [(task, []) for task, _ in todo]
    if todo:
        done.add(todo, ctx.run_arm(item.taskset, bare), ctx.run_arm(item.taskset, todo), most)
        attempted += 2 * len(todo)
    effects = _effects(done, rows, day)
    for number in range(ROUNDS):
        undecided = {i for i in open_ids & set(effects) if _is_open(effects[i])}
        todo = _tasks_of(rows, undecided)
        if not todo:
            break
        _attempt(ctx, item, todo, done, number)
        attempted += 2 * len(todo)
        effects = _effects(done, rows, day)
    both, gained = done.gains(rows)
    figures = {
        "base": _mean([_mean(done.base[t.key]) for t, _ in both]),
        "lessons": _mean([_mean(done.lessons[t.key]) for t, _ in both]),
        "failed": [t.key for t, _ in both if _mean(done.base[t.key]) < 1],
        "attempts": attempted,
        "reused": reused,
        **asdict(effect(gained)),
    }
    return figures, effects, done.answers


def _attempt(
    ctx: NightContext, item: TasksetLessons, todo: Rows, done: Measured, number: int
) -> None:
    """One sampled attempt at each task, without and with lessons."""
    for arm, into in ((False, done.base), (True, done.lessons)):
        prompts = [messages_for(task, lessons if arm else ()) for task, lessons in todo]
        answers = sample(ctx, prompts, 1, f"preflight {number} {arm}")
        for (task, _), (one,) in zip(todo, answers, strict=True):
            reward = scored(item.taskset, task, one.text).reward
            into.setdefault(task.key, []).append(reward)
            if arm and one.finish == "stop":
                done.answers.setdefault(task.key, []).append((one.text, reward))


def _effects(done: Measured, rows: Rows, day: DayEvidence) -> dict[int, PreflightEffect]:
    return lesson_effects(*done.gains(rows)) | day.proven


def _is_open(e: PreflightEffect) -> bool:
    return e.verdict == TrialVerdict.UNDECIDED and e.mean > 0


def _tasks_of(rows: Rows, lesson_ids: set[int]) -> Rows:
    """The tasks on which one of these lessons fires."""
    return [row for row in rows if lesson_ids & {x.id for x in about(*row)}]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
