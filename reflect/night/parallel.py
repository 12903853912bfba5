"""Several processes for the training of one night: `accelerate launch --num_processes 2 -m reflect sleep ...`

The first process runs the night: it alone reads the database, runs the gate and promotes. The others (`serve`) wait for
each training and then take the same steps as the first: every process samples a share of the answers, sends a share of
every micro-batch through the network, and sums the gradients with the others. The result is that of one process, up to
the rounding of sums.

Each process holds the whole network; with FSDP the layers are sharded while gradients are computed
(`reflect.models.sharding`). Not covered: processes on machines that do not share the night's folder, and the answers of
the gate, which the first process samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from reflect.errors import NightError
from reflect.models.base import Completion, Request
from reflect.models.local import LocalModel
from reflect.models.processes import connect, from_first, gather, is_first, rank, size
from reflect.models.sharding import OutOfStep
from reflect.night.losses import Row, micro_batches
from reflect.night.plan import Plan
from reflect.night.sleep import NightReport

if TYPE_CHECKING:
    from reflect.night.harvest import Data

T = TypeVar("T")


# -- called by every process, in the same order ------------------------------------------------------------------------


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


def micro_batches_in_step(rows: Sequence[Row], most: int) -> list[list[Row]]:
    """This process's share of each micro-batch, of about `most` padded tokens.

    All processes get equally many, with the same passes through the network in each: rows that need the teacher are
    not mixed with others, and a process without a row of its own repeats one with weight 0.
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
    return {kind: [x for one in every for x in one.get(kind, [])] for kind in sorted({k for one in every for k in one})}


def as_first(parameters: Sequence[torch.Tensor]) -> None:
    """Copy the first process's values to all."""
    if size() == 1:
        return
    connect()
    for p in parameters:
        torch.distributed.broadcast(p.detach(), src=0)


# -- the first process and its helpers ---------------------------------------------------------------------------------


def announce(name: str, data: Data, plan: Plan, folder: Path) -> None:
    """Start this training in the helpers. No effect in a helper or a single process."""
    if size() > 1 and is_first():
        from_first(lambda: (name, data.shape(), plan, str(folder)))


def lead(night: Callable[[], NightReport], model: Callable[[], Any]) -> NightReport:
    """Run the night in the first process; the others help until it ends."""
    if not is_first():
        serve(model)
        return NightReport("helped", "")
    try:
        report = night()
    except OutOfStep:
        raise  # the helpers wait within a pass and cannot receive anything
    except BaseException:
        dismiss()
        raise
    dismiss()
    return report


def dismiss() -> None:
    """Tell the helpers that the night has ended."""
    if size() > 1 and is_first():
        from_first(lambda: None)


def serve(load: Callable[[], Any]) -> None:
    """The loop of a helper: its share of each training that the first process starts, until it is dismissed."""
    from reflect.night.harvest import Data
    from reflect.night.training import train

    model: Any = None
    while (job := from_first(lambda: None)) is not None:
        model = model or load()
        name, shape, plan, folder = job
        try:
            train(model, name, Data.of(shape), plan, Path(folder))
        except (NightError, Stopped):
            continue  # the first process reports the reason
        finally:
            model.drop_adapter(name)


class Stopped(Exception):
    """The first process stopped the training between two steps."""


def go_on(ask: Callable[[], None]) -> None:
    """Between two steps: the first process calls `ask`, which raises to stop; the others then raise Stopped."""
    if size() == 1:
        return ask()
    if not is_first():
        if not from_first(lambda: True):
            raise Stopped
        return
    try:
        ask()
    except BaseException:
        from_first(lambda: False)
        raise
    from_first(lambda: True)
