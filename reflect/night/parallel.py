"""Several processes for the training of one night: `accelerate launch --num_processes 2 -m reflect sleep ...`

The first process lives the night: it alone reads the database, judges and promotes. The others wait (`serve`) until it
trains, and then do their share of every step: they sample a part of the answers and send a part of the rows through the
network; gradients are summed, so that all take the same optimizer step. What one process alone would do is done
here too, up to the rounding of sums.

Each process holds the whole network (data parallel). Not covered: a network that does not fit one device (FSDP wants
the same calls of the network in every process, and these sample different answers), processes on machines that do not
share the night's folder, and the answers of the gate, which the first process samples alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from reflect.errors import NightError
from reflect.models.local import LocalModel
from reflect.night.sleep import NightReport

T = TypeVar("T")


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def _connect() -> None:
    """Connects the processes, once; the launcher has told each who it is."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


# -- what every process calls, in the same order -----------------------------------------------------------------------


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if size() == 1:
        return make()
    _connect()
    found: list[Any] = [make() if is_first() else None]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def sample(model: LocalModel, requests: Sequence[Any]) -> list[Any]:
    """`model.sample`, each process a share of the requests."""
    if size() == 1:
        return model.sample(requests)
    mine = model.sample(share(requests)) if share(requests) else []
    every: list[Any] = [None] * size()
    _connect()
    torch.distributed.all_gather_object(every, mine)
    return [every[i % size()][i // size()] for i in range(len(requests))]


def share(rows: Sequence[T]) -> list[T]:
    """This process's part of the rows."""
    return list(rows[rank() :: size()])


def add_up(parameters: Sequence[torch.Tensor]) -> None:
    """The sum of all processes' gradients, in each."""
    if size() == 1:
        return
    _connect()
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.distributed.all_reduce(p.grad)


def together(told: dict[str, list[float]]) -> dict[str, list[float]]:
    """The figures of all processes as one."""
    if size() == 1:
        return told
    _connect()
    every: list[Any] = [None] * size()
    torch.distributed.all_gather_object(every, told)
    return {kind: [x for one in every for x in one.get(kind, [])] for kind in sorted({k for one in every for k in one})}


def as_first(parameters: Sequence[torch.Tensor]) -> None:
    """The first process's values, in each."""
    if size() > 1:
        _connect()
    for p in parameters if size() > 1 else []:
        torch.distributed.broadcast(p.detach(), src=0)


# -- the first process and its helpers ---------------------------------------------------------------------------------


def announce(name: str, data: Any, plan: Any, folder: Path) -> None:
    """Tell the helpers that this training begins. Nothing where there are none, or this process is one."""
    if size() > 1 and is_first():
        from_first(lambda: (name, data.shape(), plan, str(folder)))


def lead(night: Callable[[], NightReport], model: Callable[[], Any]) -> NightReport:
    """The night, lived by the first process; the others help it until it is over."""
    if not is_first():
        serve(model())
        return NightReport("helped", "")
    try:
        return night()
    finally:
        dismiss()


def dismiss() -> None:
    """Tell the helpers that the night is over."""
    if size() > 1 and is_first():
        from_first(lambda: None)
        torch.distributed.destroy_process_group()


def serve(model: Any) -> None:
    """The life of a helper: its share of each training that the first process begins, until it is dismissed."""
    from reflect.night.harvest import Data
    from reflect.night.training import train

    while (job := from_first(lambda: None)) is not None:
        name, shape, plan, folder = job
        try:
            train(model, name, Data.of(shape), plan, Path(folder))
        except (NightError, Stopped):
            continue  # the first process says why
        finally:
            model.drop_adapter(name)
    torch.distributed.destroy_process_group()


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
