"""Which lessons a night sleeps over, on which tasks, and the proof that they help the bare base.

Lessons are chosen for each task exactly as at run time. Only practice tasks are used; holdout
belongs to the gate.

Not covered: a lesson that helps only beside another one is judged with that other one in the
prompt, never alone. Where lessons are chosen at each turn, all of the taskset's are judged by the
same episodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reflect.config import Settings
from reflect.errors import ReflectError, UnknownName
from reflect.evaluation.arms import HELD_STATUSES, ArmResult, run_arm
from reflect.lessons.selection import lessons_for
from reflect.models.base import Model, SamplingOptions
from reflect.records import Lesson, Trial
from reflect.rollouts.runner import using
from reflect.rollouts.stepwise import only
from reflect.stats.bootstrap import bootstrap
from reflect.store import Store
from reflect.store import lessons as lessons_db
from reflect.store import runs as runs_db
from reflect.tasksets import load_taskset
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.training.plan import Plan
from reflect.types import Progress

Rows = list[tuple[Task, list[Lesson]]]  # tasks, each with the lessons in its prompt


@dataclass(frozen=True)
class TasksetLessons:
    """A taskset of the night and the lessons that may stand in its prompts."""

    taskset: Taskset
    lessons: tuple[Lesson, ...]


# -- which lessons
# -----------------------------------------------------------------------------------------------------


def pick(store: Store, profile: str) -> list[Lesson]:
    """All lessons that the profile holds, in text or in weights, by id."""
    with store.read() as s:
        rows = [
            row
            for status in HELD_STATUSES
            for row in lessons_db.listing(s, profile=profile, status=status)
        ]
    return sorted((row for row in rows if row.trust == "clean"), key=lambda row: row.id or 0)


def subjects(
    store: Store, profile: str, lessons: Sequence[Lesson], given: Sequence[Taskset] = ()
) -> list[TasksetLessons]:
    """The tasksets that the lessons speak of, by name. A general lesson goes with every taskset of
    the night, and where there is none with those that the profile has practised. A lesson whose
    taskset is gone is left out."""
    tasksets = {taskset.name: taskset for taskset in given}
    names = {lesson.scope for lesson in lessons if lesson.scope}
    if not names and not tasksets:
        with store.read() as s:
            names = {
                run.taskset for run in runs_db.list_runs(s, limit=100) if run.profile == profile
            }
    for name in sorted(names - set(tasksets)):
        try:
            tasksets[name] = load_taskset(name)
        except ReflectError:
            continue  # its lessons stay in the prompt: nothing can be measured without tasks
    found = [
        TasksetLessons(taskset, tuple(lesson for lesson in lessons if lesson.scope in (name, "")))
        for name, taskset in sorted(tasksets.items())
    ]
    found = [
        subject for subject in found if subject.lessons and subject.taskset.tasks("practice", 1)
    ]
    if not found:
        raise UnknownName(
            "None of the lessons belongs to a taskset that is here.",
            "Name the tasksets, or run `reflect tasks` to see what there is.",
        )
    return found


def rows_for(
    model: Model,
    store: Store,
    subject: TasksetLessons,
    settings: Settings,
    tasks: Sequence[Task],
    n: int,
) -> Rows:
    """The first n of the tasks in whose prompt lessons of the night stand, each with these."""
    held = {lesson.id for lesson in subject.lessons}
    rows: Rows = []
    with store.read() as s:
        for task in tasks:
            chosen = lessons_for(model, s, subject.taskset, task, settings, HELD_STATUSES)
            if standing := only(chosen, lambda lesson: lesson.id in held):
                rows.append((task, standing))
            if len(rows) >= n:
                break
    return rows


def practice_rows(
    model: Model, store: Store, subject: TasksetLessons, settings: Settings, plan: Plan
) -> Rows:
    """What preflight and harvest use of the taskset: enough that each lesson comes up often; no
    outside bytes."""
    n = max(plan.fewest_tasks, plan.tasks_per_lesson * len(subject.lessons))
    tasks = [
        task for task in subject.taskset.tasks("practice", None, plan.seed) if not task.untrusted
    ]
    return rows_for(model, store, subject, settings, tasks, n)


# -- preflight
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreflightEffect:
    """Mean reward with the lessons minus without them, over the same tasks, with its 95 %
    interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        return "accept" if self.low > 0 else "reject" if self.high < 0 else "undecided"


def effect(differences: Sequence[float]) -> PreflightEffect:
    n = len(differences)
    return PreflightEffect(sum(differences) / max(1, n), *bootstrap(differences), n)


def lesson_effects(rows: Rows, gains: Sequence[float]) -> dict[int, PreflightEffect]:
    """lesson id -> effect over the tasks in whose prompt it stands."""
    per_lesson: dict[int, list[float]] = {}
    for (_, lessons), gain in zip(rows, gains, strict=True):
        for lesson in lessons:
            per_lesson.setdefault(lesson.id or 0, []).append(gain)
    return {lesson_id: effect(values) for lesson_id, values in per_lesson.items()}


def preflight(
    model: Model,
    store: Store,
    subjects: Sequence[TasksetLessons],
    settings: Settings,
    plan: Plan,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Do the lessons help the bare base on practice tasks? Figures per taskset and per lesson.

    `worth` are the ids of the lessons whose effect is proven: those are slept, the others stay in
    the prompt.
    """
    figures: dict[str, Any] = {
        "model_fingerprint": model.fingerprint,
        "tasksets": {},
        "lessons": {},
        "worth": [],
    }
    effects: dict[int, PreflightEffect] = {}
    with using(model, None):
        for subject in subjects:
            rows = practice_rows(model, store, subject, settings, plan)
            options = SamplingOptions.of(settings)
            bare = [(task, ()) for task, _ in rows]
            arms = {
                "base": run_arm(model, subject.taskset, bare, options=options, progress=progress),
                "lessons": run_arm(
                    model, subject.taskset, rows, options=options, progress=progress
                ),
            }
            gained = gains(arms["lessons"], arms["base"])
            figures["tasksets"][subject.taskset.name] = {
                "base": arms["base"].reward,
                "lessons": arms["lessons"].reward,
                "failed": [
                    task.key
                    for (task, _), r in zip(rows, arms["base"].rewards, strict=True)
                    if r < 1
                ],
                **dataclasses.asdict(effect(gained)),
            }
            for lesson_id, found in lesson_effects(rows, gained).items():
                if (
                    lesson_id not in effects or found.n > effects[lesson_id].n
                ):  # a general lesson: where it fires most
                    effects[lesson_id] = found
    figures["lessons"] = {
        str(i): dataclasses.asdict(e) | {"verdict": e.verdict} for i, e in sorted(effects.items())
    }
    figures["worth"] = sorted(i for i, e in effects.items() if e.verdict == "accept")
    return figures


def trials(
    figures: dict[str, Any], lessons: Sequence[Sequence[int]], kind: str, **common: Any
) -> list[Trial]:
    """The measured effects as rows; `lessons` are [id, version], `common` model_fingerprint,
    adapter_id, night_id."""
    versions = {str(lesson_id): version for lesson_id, version in lessons}
    return [
        Trial(
            lesson_id=int(i),
            version=versions[i],
            kind=kind,
            effect=e["mean"],
            low=e["low"],
            high=e["high"],
            n=e["n"],
            verdict=e["verdict"],
            **common,
        )
        for i, e in figures.items()
        if i in versions
    ]


def gains(a: ArmResult, b: ArmResult) -> list[float]:
    return [x - y for x, y in zip(a.rewards, b.rewards, strict=True)]
