"""drift."""

from __future__ import annotations

import math

import torch

from reflect.models.local import LocalModel
from reflect.training.distillation import prompts_of
from reflect.training.losses import TrainingRow, View, compare, divergence, micro_batches
from reflect.training.plan import Plan
from reflect.training.teacher_data import TrainingData


def probe(
    model: LocalModel, name: str, data: TrainingData, plan: Plan
) -> list[tuple[int, float, float, float]]:
    """Of what the base says to each probe: its tokens, and summed over them in bits the forward KL
    of the adapter from the bare base, the entropy of the base and that of the adapter."""
    rows = [
        TrainingRow(*prompts_of(model, example.question), example.answer, "forward")
        for example in data.probes
    ]
    found: list[tuple[int, float, float, float]] = []
    views = [View(None, "student", frozen=True), View(name, "student", frozen=True)]
    with torch.no_grad():
        for batch in micro_batches(rows, model.memory_limits.most(plan.micro_tokens)):
            for row, told_3T in zip(batch, compare(model, batch, views, _drift), strict=True):
                found.append((len(row.answer), *(told_3T.sum(-1) / math.log(2)).tolist()))
    return found


def _drift(row: TrainingRow, base_TV: torch.Tensor, mine_TV: torch.Tensor) -> torch.Tensor:
    """Of each token the forward KL of the adapter from the base, the base's entropy and its own;
    _3T, in nats."""
    return torch.stack(
        [divergence(mine_TV, base_TV, "forward"), entropy(base_TV), entropy(mine_TV)]
    )


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """Of each token's distribution, in nats."""
    log_NV = torch.log_softmax(logits_NV, -1)
    return -(log_NV.exp() * log_NV).sum(-1)
