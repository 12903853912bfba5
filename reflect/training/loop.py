"""The loop of a training: steps, rates, checkpoints. The stage makes the rows of a step.

A step is one optimizer step; one of GRPO is several, over parts of the same rollouts (the ratio
corrects for that). The rows go through the network in micro-batches, which several processes share
(see `collectives`).
"""

from __future__ import annotations

import io
import math
import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from reflect.errors import NightError
from reflect.models import distributed, memory
from reflect.models.fsdp import sharded
from reflect.training import collectives
from reflect.training.deadline import Paused
from reflect.training.distillation import Student, anchors, distill, sft
from reflect.training.grpo import grpo
from reflect.training.losses import TrainingRow, backward
from reflect.training.memory_fallback import reduce_memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect.models.local import LocalModel
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData
    from reflect.types import Progress

CHECKPOINT_STEPS = 10
WARM_UP_STEPS = 5
CLIP = 1.0
STAGES = {"sft": sft, "distill": distill, "grpo": grpo}


def train(
    model: LocalModel,
    name: str,
    data: TrainingData,
    plan: Plan,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a new adapter `name` by the plan, or continue from the checkpoint in `folder`. Returns
    figures per stage.

    Leaves the adapter in the model. It begins as the loaded adapter `plan.start`, if the plan names
    one. Raises NightError when a loss or gradient is not a finite number, or when that adapter is
    not there.
    """
    if name in model.adapters:
        model.drop_adapter(name)
    if plan.start and distributed.is_first() and plan.start not in model.adapters:
        why = f"The adapter {plan.start} cannot be read, so it cannot be continued."
        raise NightError(why, "Leave --continue out.")
    collectives.announce(name, data, plan, folder)
    if plan.start in model.adapters:
        model.clone_adapter(plan.start, name)
    else:
        model.new_adapter(name, rank=plan.rank, alpha=plan.alpha, seed=plan.seed)
    collectives.as_first(model.adapter_parameters(name))
    return fit(model, name, list(model.adapter_parameters(name)), data, plan, folder, progress)


def fit(
    model: LocalModel,
    name: str | None,
    parameters: Sequence[torch.nn.Parameter],
    data: TrainingData,
    plan: Plan,
    folder: Path | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train these parameters: those of the adapter `name`, or with None those of the network
    itself, which then is no teacher any more. Without a folder there are no checkpoints."""
    student = Student(model, name, data, plan)
    optimizer = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.95))
    figures = _restore(folder, parameters, optimizer)
    schedule = [(stage, rate) for stage, steps, rate in plan.stages for _ in range(steps)]
    for number in range(figures["step"], len(schedule)):
        stage, rate = schedule[number]
        try:
            collectives.sync_continue(partial(progress or _quiet, number, len(schedule), stage))
        except Paused:
            if folder:
                _save(folder, parameters, optimizer, figures)
            raise
        anchored = round(plan.anchor_share * plan.batch) if data.anchors else 0
        step = STAGES[stage](student, number, plan.batch - anchored)
        rows = [*step.rows, *anchors(student, number, anchored)]
        warmth = min(1.0, (number + 1) / WARM_UP_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - number / len(schedule)) * warmth
        means: dict[str, float] = {}
        for _ in range((plan.updates if stage == "grpo" else 1) if rows else 0):
            means |= shared_backward(model, name, rows, parameters, plan.micro_tokens)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
            if not all(map(math.isfinite, (norm, *means.values()))):
                where = f"Training broke down at step {number}"
                raise NightError(f"{where}: the loss or its gradient is not a finite number.")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rounded = {kind: round(value, 5) for kind, value in (means | step.figures).items()}
        figures["stages"].setdefault(stage, []).append(rounded)
        figures["tokens"] += sum(len(row.student) + len(row.answer) for row in rows)
        figures["rollouts"] += step.rollouts
        figures["step"] = number + 1
        if folder and (number + 1) % CHECKPOINT_STEPS == 0 and distributed.is_first():
            _save(folder, parameters, optimizer, figures)
    if progress:
        progress(len(schedule), len(schedule), "trained")
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        raise NightError("Training broke down: the adapter holds a number that is not finite.")
    return figures | {"stages": {stage: _ends(rows) for stage, rows in figures["stages"].items()}}


def shared_backward(
    model: LocalModel,
    name: str | None,
    rows: Sequence[TrainingRow],
    parameters: Sequence[torch.Tensor],
    most: int,
) -> dict[str, float]:
    """`losses.backward` over the rows, shared between the processes: each ends with the gradient of
    all rows.

    After an error of too little memory it is repeated with less memory; NightError when there is
    too little for one row. With FSDP it is not repeated: OutOfStep.
    """
    while True:
        try:
            with sharded(model.network) if model.share_layers else nullcontext():
                losses = backward(model, name, rows, most, collectives.micro_batches_in_step)
            break
        except Exception as e:
            if not memory.out_of_memory(e):
                raise
        for p in parameters:
            p.grad = None  # the gradient of some of the rows
        memory.release()
        reduce_memory(model, rows, most)
    collectives.add_up(parameters)
    return {
        kind: sum(values) / len(values) for kind, values in collectives.together(losses).items()
    }


def _quiet(done: int, total: int, what: str) -> None:
    """No progress."""


def _ends(steps: list[dict[str, float]]) -> dict[str, list[float]]:
    """figure -> its means over the first and last five steps of a stage; losses in nats a token."""

    def mean(kind: str, rows: list[dict[str, float]]) -> float:
        values = [row[kind] for row in rows if kind in row]
        return round(sum(values) / max(1, len(values)), 5)

    kinds = dict.fromkeys(kind for row in steps for kind in row)
    return {kind: [mean(kind, steps[:5]), mean(kind, steps[-5:])] for kind in kinds}


# -- checkpoints


def _save(
    folder: Path,
    parameters: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    figures: dict[str, Any],
) -> None:
    """Visible only when complete: written under another name, flushed, renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "training.tmp"
    state = {
        "weights": [p.detach() for p in parameters],
        "optimizer": optimizer.state_dict(),
        "figures": figures,
    }
    whole = io.BytesIO()  # so that a full disk is an OSError
    torch.save(state, whole)
    with temporary.open("wb") as f:
        f.write(whole.getbuffer())
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, folder / "training.pt")


def _restore(
    folder: Path | None, parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    path = folder / "training.pt" if folder else None
    if path is None or not path.exists():
        return {"step": 0, "tokens": 0, "rollouts": 0, "stages": {}}
    saved = torch.load(path, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for p, weights in zip(parameters, saved["weights"], strict=True):
            p.copy_(weights)
    optimizer.load_state_dict(saved["optimizer"])
    figures: dict[str, Any] = saved["figures"]
    return figures
