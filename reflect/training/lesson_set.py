"""The lessons of a night and their tasks.

Lessons are chosen for each task exactly as at run time. Only practice tasks are used; holdout
belongs to the gate.

Not covered: a lesson is measured with the other lessons of its prompt, never alone. If lessons are
chosen at each turn, all of the taskset's lessons are measured by the same episodes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflect.errors import ReflectError, UnknownName
from reflect.lessons.selection import about, lessons_for
from reflect.records import HELD_STATUSES, Lesson, Trial
from reflect.rollouts.stepwise import only
from reflect.stats.bootstrap import bootstrap
from reflect.store import Store
from reflect.store import lessons as lessons_db
from reflect.store import runs as runs_db
from reflect.tasksets import load_taskset
from reflect.tasksets.task import Task
from reflect.training.context import NightContext, TasksetLessons
from reflect.types import TrialVerdict, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from reflect.evaluation.arms import ArmResult
    from reflect.tasksets.base import Taskset

Rows = list[tuple[Task, list[Lesson]]]  # tasks, each with the lessons in its prompt


# -- which lessons


def pick(store: Store, profile: str) -> list[Lesson]:
    """All lessons that the profile holds, in text or in weights, by id."""
    with store.read() as s:
        return [x for x in lessons_db.listing(s, profile, HELD_STATUSES) if x.trust == Trust.CLEAN]


def lessons_by_taskset(
    store: Store,
    profile: str,
    lessons: Sequence[Lesson],
    given: Sequence[Taskset] = (),
    load: Callable[[str], Taskset] = load_taskset,
) -> list[TasksetLessons]:
    """The given tasksets and those in the scopes of the lessons, by name. A general lesson goes
    with each of them, and if there is none with those that the profile has practised. A lesson
    whose taskset is not installed is left out: it stays in the prompt."""
    names = {lesson.scope for lesson in lessons if lesson.scope}
    if not names and not given:
        names = practised(store, profile)
    tasksets = installed(names, given, load)
    items = [
        TasksetLessons(taskset, tuple(lesson for lesson in lessons if lesson.scope in (name, "")))
        for name, taskset in tasksets.items()
    ]
    items = [item for item in items if item.lessons and item.taskset.tasks("practice", 1)]
    if not items:
        raise UnknownName(
            "No installed taskset belongs to any of the lessons.",
            "Name the tasksets, or run `reflect tasks` to list the installed ones.",
        )
    return items


def practised(store: Store, profile: str) -> set[str]:
    """The names of the tasksets in the last 100 runs that are of the profile."""
    with store.read() as s:
        return {run.taskset for run in runs_db.list_runs(s, limit=100) if run.profile == profile}


def installed(
    names: Iterable[str], given: Iterable[Taskset], load: Callable[[str], Taskset]
) -> dict[str, Taskset]:
    """The given tasksets and those of the names that can be loaded, by name."""
    tasksets = {taskset.name: taskset for taskset in given}
    for name in set(names) - set(tasksets):
        with contextlib.suppress(ReflectError):
            tasksets[name] = load(name)
    return dict(sorted(tasksets.items()))


def rows_for(ctx: NightContext, item: TasksetLessons, tasks: Sequence[Task], n: int) -> Rows:
    """The first n of the tasks whose prompt contains lessons of the night, each with these."""
    ids = {lesson.id for lesson in item.lessons}
    rows: Rows = []
    with ctx.store.read() as s:
        for task in tasks:
            chosen = lessons_for(ctx.model, s, item.taskset, task, ctx.settings, HELD_STATUSES)
            if lessons := only(chosen, lambda lesson: lesson.id in ids):
                rows.append((task, lessons))
            if len(rows) >= n:
                break
    return rows


def practice_rows(ctx: NightContext, item: TasksetLessons) -> Rows:
    """Practice tasks that show each lesson often, without tasks that read bytes from outside."""
    n = max(ctx.plan.fewest_tasks, ctx.plan.tasks_per_lesson * len(item.lessons))
    tasks = [x for x in item.taskset.tasks("practice", None, ctx.plan.seed) if not x.untrusted]
    return rows_for(ctx, item, tasks, n)


# -- effects


@dataclass(frozen=True)
class PreflightEffect:
    """Mean reward with the lessons minus without, over the same tasks, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> TrialVerdict:
        """Accept or reject if the interval excludes 0."""
        if self.low > 0:
            return TrialVerdict.ACCEPT
        return TrialVerdict.REJECT if self.high < 0 else TrialVerdict.UNDECIDED


def effect(differences: Sequence[float]) -> PreflightEffect:
    """The mean of paired differences with its interval."""
    n = len(differences)
    return PreflightEffect(sum(differences) / max(1, n), *bootstrap(differences), n)


def lesson_effects(rows: Rows, gains: Sequence[float]) -> dict[int, PreflightEffect]:
    """lesson id -> effect over the tasks on which its condition fires."""
    per_lesson: dict[int, list[float]] = {}
    for (task, lessons), gain in zip(rows, gains, strict=True):
        for lesson in about(task, lessons):
            per_lesson.setdefault(lesson.id or 0, []).append(gain)
    return {lesson_id: effect(values) for lesson_id, values in per_lesson.items()}


def trials(
    figures: dict[str, Any], lessons: Sequence[Sequence[int]], kind: str, **common: Any
) -> list[Trial]:
    """The effects as rows; `lessons`: [id, version], `common`: the other columns of the rows."""
    versions = {str(lesson_id): version for lesson_id, version in lessons}
    return [
        Trial(
            lesson_id=int(i),
            version=versions[i],
            kind=kind,
            effect=e["mean"],
            **{name: e[name] for name in ("low", "high", "n", "verdict")},
            **common,
        )
        for i, e in figures.items()
        if i in versions
    ]


def gains(a: ArmResult, b: ArmResult) -> list[float]:
    """Paired differences of two arms."""
    return [x - y for x, y in zip(a.rewards, b.rewards, strict=True)]
