"""Several processes for the training of one night: `accelerate launch --num_processes 2 -m reflect
sleep ...`

The first process runs the night: it alone reads the database, runs the gate and promotes. The
others (`serve`) wait for each training and then take the same steps as the first: every process
samples a share of the answers, sends a share of every micro-batch through the network, and sums the
gradients with the others. The result is that of one process, up to the rounding of sums.

Each process holds the whole network; with FSDP the layers are sharded while gradients are computed
(`reflect.models.fsdp`). Not covered: processes on machines that do not share the night's folder,
and the answers of the gate, which the first process samples alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch

from reflect.models.distributed import connect, from_first, gather, is_first, rank, size
from reflect.training.losses import TrainingRow, micro_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reflect.models.base import Completion, Request
    from reflect.models.local import LocalModel
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData

T = TypeVar("T")


# -- called by every process, in the same order


def sample(model: LocalModel, requests: Sequence[Request]) -> list[list[Completion]]:
    """`model.sample`, each process a share of the requests; all processes return all answers."""
    if size() == 1:
        return model.sample(requests)
    mine = share(requests)
    every = gather(model.sample(mine) if mine else [])
    return [every[i % size()][i // size()] for i in range(len(requests))]


def share(rows: Sequence[T]) -> list[T]:
    """This process's share of the rows."""
    return list(rows[rank() :: size()])


def micro_batches_in_step(rows: Sequence[TrainingRow], most: int) -> list[list[TrainingRow]]:
    """This process's share of each micro-batch, of about `most` padded tokens.

    All processes get equally many, with the same passes through the network in each: rows that need
    the teacher are not mixed with others, and a process without a row of its own repeats one with
    weight 0.
    """
    if size() == 1:
        return micro_batches(rows, most)
    kinds = [[row for row in rows if row.asks_teacher == asks] for asks in (True, False)]
    batches = [batch for kind in kinds for batch in micro_batches(kind, most * size())]
    return [share(batch) or [replace(batch[0], weight=0.0)] for batch in batches]


def add_up(parameters: Sequence[torch.Tensor]) -> None:
    """Replace each gradient by its sum over all processes."""
    if size() == 1:
        return
    connect()
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.distributed.all_reduce(p.grad)


def together(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    """The figures of all processes, concatenated by kind."""
    if size() == 1:
        return figures
    every = gather(figures)
    return {
        kind: [x for one in every for x in one.get(kind, [])]
        for kind in sorted({k for one in every for k in one})
    }


def as_first(parameters: Sequence[torch.Tensor]) -> None:
    """Copy the first process's values to all."""
    if size() == 1:
        return
    connect()
    for p in parameters:
        torch.distributed.broadcast(p.detach(), src=0)


# -- the first process and its helpers


def announce(name: str, data: TrainingData, plan: Plan, folder: Path) -> None:
    """Start this training in the helpers. No effect in a helper or a single process."""
    if size() > 1 and is_first():
        from_first(lambda: (name, data.shape(), plan, str(folder)))


class ProcessesStopped(Exception):
    """The first process stopped the training between two steps."""


def sync_continue(ask: Callable[[], None]) -> None:
    """Between two steps the first process calls `ask`, which raises to stop; then all raise."""
    if size() == 1:
        return ask()
    if not is_first():
        if not from_first(lambda: True):
            raise ProcessesStopped
        return
    try:
        ask()
    except BaseException:
        from_first(lambda: False)
        raise
    from_first(lambda: True)
