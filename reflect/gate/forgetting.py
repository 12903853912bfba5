"""Checks that a revoked lesson has no effect in a new adapter.

A night trains from the base on the present lessons, so its data contains no revoked one. The gate
checks it all the same, on holdout tasks that the base passes with the revoked lesson in its prompt:
the adapter without lessons is compared with the base without that lesson. Other lessons may rightly
help on the same tasks, so the base has the night's other lessons in its prompt.

Not covered: behaviour that another lesson teaches as well, and an old version of a lesson that was
about other tasks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.evaluation.arms import ArmResult, paired_difference
from reflect.gate.checks import MARGIN, Check
from reflect.lessons.selection import POOL, lessons_for
from reflect.records import HELD_STATUSES, LESSON_STATUSES, Lesson
from reflect.rollouts.stepwise import only
from reflect.store import Store, revoked_adapters
from reflect.store import lessons as lessons_db
from reflect.tasksets.base import Taskset
from reflect.training.lesson_set import installed, practised
from reflect.types import AdapterStatus, CheckKind

if TYPE_CHECKING:
    from reflect.training.context import NightContext
    from reflect.training.lesson_set import Rows

# how many times more tasks are run with the lesson than are needed: it may not help on all of them
WIDER = 4


@dataclass(frozen=True)
class ForgettingProbe:
    """One revoked lesson, and the holdout tasks that the base passes with it.

    `rows`: the tasks, each with the lessons of the night that its prompt would contain; `base`: the
    base's result with these lessons.
    """

    lesson: Lesson
    taskset: Taskset
    rows: Rows
    base: ArmResult


def revoked(store: Store, profile: str) -> list[Lesson]:
    """The lessons that are revoked in an adapter which the profile has used, by id."""
    used = (AdapterStatus.PROMOTED, AdapterStatus.ROLLED_BACK)
    with store.read() as s:
        adapters = [a for a, _ in revoked_adapters.of_profile(s, profile) if a.status in used]
        return lessons_db.by_ids(s, sorted({i for adapter in adapters for i in adapter.revoked}))


def probes_of(ctx: NightContext) -> list[ForgettingProbe]:
    """The probes of the revoked lessons with the base's results, at most `plan.gate_tasks` tasks
    each. A lesson that helps the base on no holdout task has one probe without rows."""
    probes: list[ForgettingProbe] = []
    most = ctx.plan.gate_tasks
    for lesson in revoked(ctx.store, ctx.settings.profile):
        own = []
        for taskset in tasksets_of(ctx, lesson):
            rows = rows_of(ctx, lesson, taskset, WIDER * most)
            rewards = ctx.run_arm(taskset, [(t, [lesson, *others]) for t, others in rows]).rewards
            rows = [row for row, reward in zip(rows, rewards, strict=True) if reward >= 1.0][:most]
            base = ctx.run_arm(taskset, rows)
            if rows:
                own.append(ForgettingProbe(lesson, taskset, rows, base))
        probes += own or [ForgettingProbe(lesson, Taskset(), [], ArmResult(0.0, 0, (0.0, 0.0)))]
    return probes


def check(ctx: NightContext, name: str, probe: ForgettingProbe) -> Check:
    """The adapter `name` may be above the base by no more than the margin beyond noise."""
    what, base = f"revoked lesson {probe.lesson.id}", probe.base
    if not probe.rows:
        text = f"{what} is in no data of this night; no holdout task is left that depends on it"
        return Check(what, True, 0.0, MARGIN, text, CheckKind.PROOF)
    now = ctx.run_arm(probe.taskset, [(task, []) for task, _ in probe.rows], name)
    mean, low, _ = paired_difference(now, base)
    others = " with the other lessons" if any(lessons for _, lessons in probe.rows) else ""
    scores = f"the base{others} {base.reward:.2f}, the adapter {now.reward:.2f}"
    text = f"{what} in {probe.taskset.name}: {scores}, on {now.n} tasks"
    return Check(what, low <= MARGIN, mean, MARGIN, text, CheckKind.PROOF)


def rows_of(ctx: NightContext, lesson: Lesson, taskset: Taskset, n: int) -> Rows:
    """The first n holdout tasks whose prompt would contain the lesson, tasks without other lessons
    first; each with the night's lessons in its prompt."""
    ids = {x.id for x in ctx.lessons}
    unlimited = dataclasses.replace(ctx.settings, lesson_limit=POOL, lesson_budget=10**9)
    alone: Rows = []
    with_others: Rows = []
    with ctx.store.read() as s:
        for task in taskset.tasks("holdout"):
            every = lessons_for(ctx.model, s, taskset, task, unlimited, LESSON_STATUSES)
            if lesson.id in {x.id for x in every}:
                chosen = lessons_for(ctx.model, s, taskset, task, ctx.settings, HELD_STATUSES)
                others = only(chosen, lambda x: x.id in ids)
                (with_others if others else alone).append((task, others))
            if len(alone) >= n:
                break
    return [*alone, *with_others][:n]


def tasksets_of(ctx: NightContext, lesson: Lesson) -> list[Taskset]:
    """The tasksets that would show it: its scope, or for a general lesson the night's and runs'."""
    own = [item.taskset for item in ctx.tasksets]
    names = {lesson.scope} if lesson.scope else practised(ctx.store, ctx.settings.profile)
    tasksets = installed(names, own, ctx.load)
    return [x for name, x in tasksets.items() if not lesson.scope or name == lesson.scope]
