"""Several processes for the training of one night: `accelerate launch --num_processes 2 -m reflect sleep ...`

The first process lives the night: it alone reads the database, judges and promotes. The others wait (`serve`) until it
trains, and then do their share of every step: they sample a part of the answers and send a part of the rows through the
network; gradients are summed, so that all take the same optimizer step. What one process alone would do is done
here too, up to the rounding of sums.

Each process holds the whole network, or a part of every layer (`reflect.models.sharding`). Not covered: processes on
machines that do not share the night's folder, and the answers of the gate, which the first process samples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from reflect.errors import NightError
from reflect.models.local import LocalModel
from reflect.models.processes import begin, from_first, is_first, meet, part, rank, size
from reflect.models.sharding import LOAD
from reflect.night.sleep import NightReport

T = TypeVar("T")


# -- what every process calls, in the same order -----------------------------------------------------------------------


def sample(model: LocalModel, requests: Sequence[Any]) -> list[Any]:
    """`model.sample`, each process a share of the requests."""
    if size() == 1:
        return model.sample(requests)
    mine = model.sample(share(requests)) if share(requests) else []
    every: list[Any] = [None] * size()
    meet()
    torch.distributed.all_gather_object(every, mine)
    return [every[i % size()][i // size()] for i in range(len(requests))]


def share(rows: Sequence[T]) -> list[T]:
    """This process's part of the rows."""
    return list(rows[rank() :: size()])


def add_up(parameters: Sequence[torch.Tensor]) -> None:
    """The sum of all processes' gradients, in each."""
    if size() == 1:
        return
    meet()
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.distributed.all_reduce(p.grad)


def together(told: dict[str, list[float]]) -> dict[str, list[float]]:
    """The figures of all processes as one."""
    if size() == 1:
        return told
    meet()
    every: list[Any] = [None] * size()
    torch.distributed.all_gather_object(every, told)
    return {kind: [x for one in every for x in one.get(kind, [])] for kind in sorted({k for one in every for k in one})}


def as_first(parameters: Sequence[torch.Tensor]) -> None:
    """The first process's values, in each."""
    if size() > 1:
        meet()
    for p in parameters if size() > 1 else []:
        torch.distributed.broadcast(p.detach(), src=0)


# -- the first process and its helpers ---------------------------------------------------------------------------------


def announce(name: str, data: Any, plan: Any, folder: Path) -> None:
    """Tell the helpers that this training begins. Nothing where there are none, or this process is one."""
    if size() > 1 and is_first():
        from_first(lambda: (name, data.shape(), plan, str(folder)))


def lead(night: Callable[[], NightReport], model: Callable[[], Any]) -> NightReport:
    """The night, lived by the first process; the others help it until it is over."""
    begin()
    if not is_first():
        serve(model)
        return NightReport("helped", "")
    try:
        return night()
    finally:
        dismiss()


def dismiss() -> None:
    """Tell the helpers that the night is over."""
    if size() > 1 and is_first():
        from_first(lambda: None)
        part()


def serve(load: Callable[[], Any]) -> None:
    """The life of a helper: its share of each training that the first process begins, until it is dismissed."""
    from reflect.night.harvest import Data
    from reflect.night.training import train

    model: Any = None
    while (job := from_first(lambda: None)) is not None:
        model = model or load()
        if job == LOAD:
            continue
        name, shape, plan, folder = job
        try:
            train(model, name, Data.of(shape), plan, Path(folder))
        except (NightError, Stopped):
            continue  # the first process says why
        finally:
            model.drop_adapter(name)
    part()


class Stopped(Exception):
    """The first process has stopped the training between two steps."""


def go_on(ask: Callable[[], None]) -> None:
    """Between two steps: the first process asks whether to go on (an exception says no); the others do as it does."""
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
