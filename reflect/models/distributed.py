"""The processes of one program started by accelerate or torchrun: rank, size, connection.

Objects are exchanged over the CPU (gloo), gradients and weights over the devices (nccl on GPUs).
Not covered: processes on machines that share no files.
"""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from reflect.errors import UsageError
from reflect.reading import shortened

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# the others wait while the first one runs the gate; the launcher ends them if it dies
PATIENCE = timedelta(days=7)


def size() -> int:
    """Number of processes."""
    return _from_launcher("WORLD_SIZE", 1)


def rank() -> int:
    """Index of this process; 0 is the first."""
    return _from_launcher("RANK", 0)


def _from_launcher(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        message = f"The environment variable {name} is no number of a process: {shortened(text)}."
        raise UsageError(message, "Unset it, or start with accelerate launch or torchrun.")
    return int(text)


def is_first() -> bool:
    """Whether this is process 0."""
    return rank() == 0


def share_layers(device_map: str) -> bool:
    """Whether training shards layers: `device_map = "fsdp"` or `accelerate launch --use_fsdp`."""
    return size() > 1 and (device_map == "fsdp" or os.environ.get("ACCELERATE_USE_FSDP") == "true")


def connect() -> None:
    """Connect the processes, once; rank and address come from the launcher's environment."""
    import torch

    if torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    # not earlier: a second connection fails
    atexit.register(torch.distributed.destroy_process_group)


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process and return its result in all."""
    if size() == 1:
        return make()
    import torch

    connect()
    values: list[Any] = [make() if is_first() else None]
    torch.distributed.broadcast_object_list(values)
    result: T = values[0]
    return result


def gather(value: T) -> list[T]:
    """The values of all processes, by rank."""
    import torch

    connect()
    values: list[Any] = [None] * size()
    torch.distributed.all_gather_object(values, value)
    return values
