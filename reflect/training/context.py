"""NightContext: what the functions of a night share."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from reflect.evaluation.arms import ArmResult, run_arm
from reflect.models.base import SamplingOptions, using
from reflect.tasksets import load_taskset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.config import Settings
    from reflect.models.local import LocalModel
    from reflect.records import Lesson
    from reflect.rollouts.episode import Advice
    from reflect.store import Store
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Task
    from reflect.training.plan import Plan
    from reflect.types import Progress


@dataclass(frozen=True)
class TasksetLessons:
    """A taskset of the night and the lessons that its prompts may contain."""

    taskset: Taskset
    lessons: tuple[Lesson, ...]


@dataclass(frozen=True)
class NightContext:
    """The model to train, database, settings, plan, and the tasksets with their lessons."""

    model: LocalModel
    store: Store
    settings: Settings
    plan: Plan
    tasksets: Sequence[TasksetLessons]
    _: KW_ONLY
    progress: Progress | None = None
    load: Callable[[str], Taskset] = load_taskset
    """Loads a taskset by name, bound to the judge of the settings."""

    def report(self, done: int, total: int, what: str) -> None:
        """Report progress, if a callback is set."""
        if self.progress:
            self.progress(done, total, what)

    @property
    def lessons(self) -> list[Lesson]:
        """The lessons of all tasksets, each once."""
        return list({x.id: x for item in self.tasksets for x in item.lessons}.values())

    @property
    def sampling(self) -> SamplingOptions:
        """Options of attempts that are sampled at the plan's temperature."""
        return self.sampling_at(self.plan.temperature)

    def sampling_at(self, temperature: float) -> SamplingOptions:
        """Options of attempts at a temperature, 0 = greedy."""
        options = SamplingOptions.of(self.settings, temperature)
        most = self.plan.answer_tokens
        return replace(options, max_tokens=min(most, options.max_tokens)) if most else options

    def run_arm(
        self,
        taskset: Taskset,
        rows: Sequence[tuple[Task, Sequence[Advice]]],
        adapter: str | None = None,
    ) -> ArmResult:
        """One greedy answer to each task with its lessons, by a loaded adapter or the base."""
        options = self.sampling_at(0.0)
        with using(self.model, adapter):
            return run_arm(self.model, taskset, rows, options=options, progress=self.progress)
