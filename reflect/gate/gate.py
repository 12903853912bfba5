"""The gate of one adapter: placebo, evaluation, and the largest scale at which it passes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from reflect.adapters import registry
from reflect.errors import NightError
from reflect.gate.exam import GateEvaluation, judge, placebo_rewards
from reflect.gate.placebo import placebo_data, placebo_plan
from reflect.training import loop
from reflect.training.context import NightContext

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reflect.records import Adapter
    from reflect.training.teacher_data import TrainingData
    from reflect.types import Json

PLACEBO = "placebo"
Context = TypeVar("Context", bound=NightContext)


@dataclass(frozen=True)
class GateRun:
    """The gate of the adapter `name`, which is loaded into the model as it is on the disk."""

    ctx: NightContext
    name: str
    data: TrainingData
    previous: str | None = None
    """The loaded adapter that would be replaced."""

    def placebo(self, ctx: NightContext, folder: Path) -> Json:
        """{"rewards": taskset -> rewards of the placebo adapter on the gate's tasks, "examples"};
        without rewards if the plan has no placebo."""
        model = ctx.model
        wanted = ctx.plan.placebo and ctx.plan.learns_from_teacher
        data = placebo_data(ctx, self.data) if wanted else None
        if data is None or not data.harvest:
            return {"rewards": {}, "examples": 0}
        try:
            plan = placebo_plan(ctx.plan)
            loop.train(model, PLACEBO, data, plan, folder / PLACEBO, ctx.progress)
            rewards = placebo_rewards(ctx, PLACEBO)
        finally:
            if PLACEBO in model.adapters:
                model.drop_adapter(PLACEBO)
        return {"rewards": rewards, "examples": len(data.harvest)}

    def judge(self, ctx: NightContext, placebo: Mapping[str, list[float]]) -> Json:
        """The verdict, with the scale that it is about."""
        evaluation = GateEvaluation(ctx, self.data, self.previous)

        def examine(scale: float) -> Json:
            ctx.model.scale_adapter(self.name, scale)
            return evaluation.examine(self.name, placebo)

        try:
            return judge(examine)
        finally:
            ctx.model.scale_adapter(self.name, 1.0)

    def at_scale(self, verdict: Json, night_id: int | None) -> Adapter | None:
        """The adapter as a folder of its own, if it passed at a smaller scale; else None."""
        if not verdict["ok"] or verdict["scale"] == 1.0:
            return None
        model, settings = self.ctx.model, self.ctx.settings
        weaker = f"{self.name}-x{round(1000 * verdict['scale']):03d}"
        about = registry.card(self.name, settings) | {"scale": verdict["scale"]}
        model.scale_adapter(self.name, verdict["scale"])
        registry.publish(model, self.name, settings, about, weaker)
        model.scale_adapter(self.name, 1.0)
        return registry.row(model, weaker, settings, night_id=night_id)


def limited(ctx: Context) -> Context:
    """The same context; its progress raises NightError after `plan.gate_minutes`."""
    end, minutes = time.monotonic() + 60 * ctx.plan.gate_minutes, ctx.plan.gate_minutes

    def report(done: int, total: int, what: str) -> None:
        if time.monotonic() > end:
            raise NightError(f"It took longer than {minutes:g} minutes.", "Give more: --budget.")
        ctx.report(done, total, what)

    return replace(ctx, progress=report)
