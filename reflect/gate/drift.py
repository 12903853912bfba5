"""Drift and entropy of an adapter on prompts outside the night, measured on every token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from reflect.gate.checks import Probe
from reflect.training.distillation import prompts_of
from reflect.training.losses import (
    TrainingRow,
    View,
    answer_logits,
    compare,
    divergence,
    micro_batches,
)

if TYPE_CHECKING:
    from reflect.models.local import LocalModel
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData


def probe(model: LocalModel, name: str, data: TrainingData, plan: Plan) -> list[Probe]:
    """For the base's answer to each probe: its tokens and, in bits summed over them, the forward KL
    of the adapter from the bare base, the base's entropy and the adapter's."""
    rows = [
        TrainingRow(*prompts_of(model, example.question), example.answer, "forward")
        for example in data.probes
    ]
    probes: list[Probe] = []
    views = [View(None, "student", frozen=True), View(name, "student", frozen=True)]
    with torch.no_grad():
        for batch in micro_batches(rows, model.memory_limits.most(plan.micro_tokens)):
            for row, nats_3T in zip(batch, compare(model, batch, views, _drift), strict=True):
                drift, base, own = (nats_3T.sum(-1) / math.log(2)).tolist()
                probes.append(Probe(len(row.answer), drift, base, own))
    return probes


def page_loss(model: LocalModel, name: str, text: str) -> tuple[float, float, int]:
    """The negative log likelihood of a text in nats per token, by the bare base and by the adapter
    `name`, and its number of tokens. Each paragraph is read alone."""
    totals, count = [0.0, 0.0], 0
    rows = [model.encode_text(part) for part in text.split("\n\n") if part.strip()]
    rows = [[model.end, *ids] for ids in rows]
    for ids in rows:
        count += len(ids) - 1
        for i, adapter in enumerate((None, name)):
            with torch.no_grad(), model.using(adapter):
                logits_NV = answer_logits(model, [ids[:1]], [ids[1:]])
            targets = torch.tensor(ids[1:], device=logits_NV.device)
            totals[i] += float(
                torch.nn.functional.cross_entropy(logits_NV, targets, reduction="sum")
            )
    return totals[0] / count, totals[1] / count, count


def _drift(row: TrainingRow, base_TV: torch.Tensor, own_TV: torch.Tensor) -> torch.Tensor:
    """Per token the forward KL of the adapter from the base and the entropy of both; _3T, nats."""
    return torch.stack([divergence(own_TV, base_TV, "forward"), entropy(base_TV), entropy(own_TV)])


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """The entropy of each token's distribution, in nats."""
    log_NV = torch.log_softmax(logits_NV, -1)
    return -(log_NV.exp() * log_NV).sum(-1)
