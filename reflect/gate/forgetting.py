"""The proof that a revoked lesson is gone from a new adapter.

A night is rebuilt from the base over the lessons that stand, so a revoked one is in none of its
data. That it is gone is shown all the same, on holdout tasks which the base passes with the revoked
lesson in its prompt: there the adapter without lessons is paired with the base without that lesson.
Other lessons may rightly help on the same tasks, so the base has the night's others in its prompt.

Not covered: a behaviour that another lesson teaches as well (it stands, and so does the behaviour),
and an old wording of a lesson that was about other tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from reflect.config import Settings
from reflect.errors import ReflectError
from reflect.evaluation.arms import HELD_STATUSES, ArmResult, paired_difference, run_arm
from reflect.gate.checks import MARGIN, Check
from reflect.lessons.selection import POOL, lessons_for
from reflect.models.base import Model, SamplingOptions
from reflect.records import LESSON_STATUSES, Lesson
from reflect.rollouts.runner import using
from reflect.rollouts.stepwise import only
from reflect.store import Store, revoked_adapters
from reflect.store import lessons as lessons_db
from reflect.store import runs as runs_db
from reflect.tasksets import load_taskset
from reflect.tasksets.base import Taskset
from reflect.training.lesson_set import Rows, TasksetLessons
from reflect.training.plan import Plan
from reflect.types import CheckKind, Progress

# times as many tasks are tried with the lesson as are needed: it may stand where it does not belong
WIDER = 4


@dataclass(frozen=True)
class ForgettingProbe:
    """One revoked lesson, the holdout tasks where it would stand, and what the base makes of them.

    `rows` are tasks that the base passes with the lesson, each with the lessons of the night that
    stand in its prompt; `base`: with those in the prompt.
    """

    lesson: Lesson
    taskset: Taskset
    rows: Rows
    base: ArmResult


def revoked(store: Store, profile: str) -> list[Lesson]:
    """The lessons that stand no more and are marked in an adapter with which the profile has ever
    answered, by id."""
    with store.read() as s:
        used = [
            a
            for a, _ in revoked_adapters.of_profile(s, profile)
            if a.status in ("promoted", "rolled_back")
        ]
        return lessons_db.by_ids(s, sorted({i for adapter in used for i in adapter.revoked}))


def gone(
    model: Model, store: Store, subjects: Sequence[TasksetLessons], settings: Settings, plan: Plan
) -> list[ForgettingProbe]:
    """The questions about each revoked lesson, at most `plan.gate_tasks` of a taskset, asked of the
    bare base.

    A lesson which no holdout task speaks of, or which no longer leads to a pass, has one question
    without rows.
    """
    found: list[ForgettingProbe] = []
    for lesson in revoked(store, settings.profile):
        mine = []
        for taskset in tasksets_of(store, settings.profile, lesson, subjects):
            rows = rows_of(
                model, store, lesson, taskset, subjects, settings, WIDER * plan.gate_tasks
            )
            with using(model, None):
                taught: Rows = [(task, [lesson, *others]) for task, others in rows]
                options = SamplingOptions.of(settings)
                passed = run_arm(model, taskset, taught, options=options).rewards
                rows = [row for row, reward in zip(rows, passed, strict=True) if reward >= 1.0][
                    : plan.gate_tasks
                ]
                base = run_arm(model, taskset, rows, options=options)
            if rows:
                mine.append(ForgettingProbe(lesson, taskset, rows, base))
        found += mine or [ForgettingProbe(lesson, Taskset(), [], ArmResult(0.0, 0, (0.0, 0.0)))]
    return found


def judge_probe(
    model: Model,
    name: str,
    one: ForgettingProbe,
    settings: Settings,
    progress: Progress | None = None,
) -> Check:
    """The adapter may be above the base by no more than the margin beyond noise."""
    what = f"revoked lesson {one.lesson.id}"
    if not one.rows:
        text = f"{what} is in no data of this night; no holdout task is left that it would pass, to show more"
        return Check(what, True, 0.0, MARGIN, text, CheckKind.PROOF)
    bare: Rows = [(task, []) for task, _ in one.rows]
    with using(model, name):
        now = run_arm(
            model, one.taskset, bare, options=SamplingOptions.of(settings), progress=progress
        )
    mean, low, _ = paired_difference(now, one.base)
    against = (
        "the base with the other lessons" if any(lessons for _, lessons in one.rows) else "the base"
    )
    text = f"{what} in {one.taskset.name}: {against} {one.base.reward:.2f}, the adapter {now.reward:.2f}, "
    return Check(what, low <= MARGIN, mean, MARGIN, f"{text}on {now.n} tasks", CheckKind.PROOF)


def rows_of(
    model: Model,
    store: Store,
    lesson: Lesson,
    taskset: Taskset,
    subjects: Sequence[TasksetLessons],
    settings: Settings,
    n: int,
) -> Rows:
    """The first n holdout tasks in whose prompt the lesson would stand, first those where no other
    lesson would; each with the night's lessons that stand there."""
    night = {x.id for subject in subjects for x in subject.lessons}
    every = dataclasses.replace(
        settings, lesson_limit=POOL, lesson_budget=10**9
    )  # it competes with none
    alone: Rows = []
    beside: Rows = []
    with store.read() as s:
        for task in taskset.tasks("holdout"):
            if lesson.id in {
                x.id for x in lessons_for(model, s, taskset, task, every, LESSON_STATUSES)
            }:
                standing = lessons_for(model, s, taskset, task, settings, HELD_STATUSES)
                others = only(standing, lambda x: x.id in night)
                (beside if others else alone).append((task, others))
            if len(alone) >= n:
                break
    return [*alone, *beside][:n]


def tasksets_of(
    store: Store, profile: str, lesson: Lesson, subjects: Sequence[TasksetLessons]
) -> list[Taskset]:
    """Where the lesson would be shown: its scope's taskset; a general lesson in all of the night
    and of the runs."""
    found = {subject.taskset.name: subject.taskset for subject in subjects}
    names = {lesson.scope} if lesson.scope else set(found)
    if not lesson.scope:
        with store.read() as s:
            names |= {
                run.taskset for run in runs_db.list_runs(s, limit=100) if run.profile == profile
            }
    for name in sorted(names - set(found)):
        try:
            found[name] = load_taskset(name)
        except ReflectError:
            continue  # its tasks are gone: nothing can be shown with them
    return [found[name] for name in sorted(names & set(found))]
