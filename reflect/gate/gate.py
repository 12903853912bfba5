"""One adapter before the gate: its placebo, its exam, and the scale at which it passes, if it
passes at any."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reflect.adapters import registry
from reflect.config import Settings
from reflect.errors import NightError
from reflect.gate.exam import GateEvaluation, judge, placebo_rewards
from reflect.gate.placebo import placebo_data, placebo_plan
from reflect.records import Adapter
from reflect.store import Store
from reflect.training import loop
from reflect.training.lesson_set import TasksetLessons
from reflect.training.plan import Plan
from reflect.training.teacher_data import TrainingData
from reflect.types import Progress

PLACEBO = "placebo"


@dataclass(frozen=True)
class GateRun:
    """The adapter `name`, loaded into the model as it lies on the disk, and what it is judged
    by."""

    model: Any
    name: str
    store: Store
    subjects: Sequence[TasksetLessons]
    data: TrainingData
    settings: Settings
    plan: Plan
    previous: str | None = None  # the loaded adapter that would be replaced

    def placebo(self, folder: Path, progress: Progress) -> dict[str, Any]:
        """{"rewards": taskset -> rewards of the placebo adapter on the gate's tasks}; none where
        there is none."""
        given = (
            self.model,
            self.store,
            self.subjects,
            self.data,
            self.settings,
            self.plan,
            progress,
        )
        shuffled = (
            placebo_data(*given) if self.plan.placebo and self.plan.learns_from_teacher else None
        )
        if shuffled is None or not shuffled.harvest:
            return {"rewards": {}, "examples": 0}
        try:
            plan = placebo_plan(self.plan)
            loop.train(self.model, PLACEBO, shuffled, plan, folder / PLACEBO, progress)
            rewards = placebo_rewards(
                self.model, PLACEBO, self.store, self.subjects, self.settings, self.plan
            )
        finally:
            if PLACEBO in self.model.adapters:
                self.model.drop_adapter(PLACEBO)
        return {"rewards": rewards, "examples": len(shuffled.harvest)}

    def judge(self, placebo: dict[str, list[float]], progress: Progress) -> dict[str, Any]:
        """The verdict, with the scale that it is about."""
        exam = GateEvaluation(
            self.model,
            self.store,
            self.subjects,
            self.data,
            self.settings,
            self.plan,
            self.previous,
            progress,
        )

        def examine(scale: float) -> dict[str, Any]:
            self.model.scale_adapter(self.name, scale)
            return exam.examine(self.name, placebo)

        try:
            return judge(examine)
        finally:
            self.model.scale_adapter(self.name, 1.0)

    def at_scale(self, verdict: dict[str, Any], night_id: int | None) -> Adapter | None:
        """The adapter that passed at a smaller scale, as a folder of its own; None where that was
        not needed."""
        if not verdict["ok"] or verdict["scale"] == 1.0:
            return None
        weaker = f"{self.name}-x{round(1000 * verdict['scale']):03d}"
        about = registry.card(self.name, self.settings) | {"scale": verdict["scale"]}
        self.model.scale_adapter(self.name, verdict["scale"])
        registry.publish(self.model, self.name, self.settings, about, weaker)
        self.model.scale_adapter(self.name, 1.0)
        return registry.row(self.model, weaker, self.settings, night_id=night_id)


@contextmanager
def time_limit(plan: Plan) -> Iterator[Callable[[Progress], Progress]]:
    """Wraps progress so that a gate which takes longer than `plan.gate_minutes` ends with a
    NightError."""
    over = time.monotonic() + 60 * plan.gate_minutes

    def limited(tell: Progress) -> Progress:
        def told(done: int, total: int, what: str) -> None:
            if time.monotonic() > over:
                raise NightError(
                    f"It took longer than {plan.gate_minutes:g} minutes.", "Give more: --budget."
                )
            tell(done, total, what)

        return told

    yield limited
