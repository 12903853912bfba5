"""Several processes of one program, started by accelerate or torchrun: who they are, and how they talk.

Objects go from process to process over the CPU (gloo), gradients and weights over the devices (nccl on GPUs). Not
covered: processes on machines that share no files.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=7)  # the others wait while the first one judges; of a process that died the launcher knows

led = False  # do the others follow the first one's word?
_wait: Callable[[], None] | None = None  # what a process does until all have come to the same place


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    return int(os.environ.get("RANK") or 0)


def is_first() -> bool:
    return rank() == 0


def share_layers(device_map: str) -> bool:
    """Does each process hold a part of every layer? `device_map = "fsdp"`, or `accelerate launch --use_fsdp`."""
    return size() > 1 and (device_map == "fsdp" or os.environ.get("ACCELERATE_USE_FSDP") == "true")


def begin() -> None:
    """From now on the others follow the first one's word, until `part`."""
    global led
    led = True


def connect() -> None:
    """Connects the processes, once and until they end; the launcher has told each who it is."""
    import torch

    if torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    how = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(how, timeout=PATIENCE)
    atexit.register(torch.distributed.destroy_process_group)  # not earlier: they could not connect again


def meet() -> None:
    """Wait until all processes are here. Every exchange between them begins so."""
    connect()
    if _wait:
        _wait()


def while_waiting(wait: Callable[[], None]) -> None:
    """From now on `meet` calls this: it may help the others, and returns when all wait."""
    global _wait
    _wait = wait


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if size() == 1:
        return make()
    import torch

    made = make() if is_first() else None
    meet()
    found: list[Any] = [made]
    torch.distributed.broadcast_object_list(found)
    return found[0]


def part() -> None:
    """The end of a night: from now on each is alone."""
    global led, _wait
    led, _wait = False, None
