"""The memory that a model needs, the memory that is free, and the limits after an out-of-memory
error.

Not covered: memory that other programs take later, and the working memory of a layer. Where the
estimate was too high, an out-of-memory error halves the batches from then on.
"""

from __future__ import annotations

import gc
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GB = 1e9
FOUR_BIT = 0.57  # bytes a parameter: four bits and the scales of their blocks
SLACK = 1.05  # factor for buffers and for temporary copies during loading
CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass
class MemoryLimits:
    """Limits after out-of-memory errors, while the model is loaded.

    `sampled`: maximum tokens of one batch of answers; `trained`: maximum padded tokens of one
    training pass; `checkpoints`: True when the values of a layer are computed again in the
    backward pass (gradient checkpointing).
    """

    sampled: float = math.inf
    trained: float = math.inf
    checkpoints: bool = False

    def most(self, planned: int) -> int:
        """Tokens of one training pass, at most `planned`."""
        return int(min(planned, self.trained))


def out_of_memory(e: BaseException) -> bool:
    """Whether the error is an out-of-memory error. CUDA has a class for it; for other devices the
    text decides."""
    if isinstance(e, (torch.OutOfMemoryError, MemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(e, RuntimeError) and any(text in str(e) for text in texts)


def release() -> None:
    """Free unused memory. Call it outside the `except` block, whose error still refers to
    tensors."""
    gc.collect(1)  # the objects of the failed pass are young; a full collection takes a second
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parameters_of(folder: Path) -> int:
    """Number of parameters in the safetensors files of a model, from their headers; 0 without
    such files."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            # The length of a damaged file may be any number.
            header = json.loads(f.read(min(length, file.stat().st_size)))
        total += sum(math.prod(x["shape"]) for name, x in header.items() if name != "__metadata__")
    return total


def weights_of(network: PreTrainedModel) -> int:
    """Bytes of the loaded weights; of sharded weights, the part of this process."""
    local = (p.to_local() if hasattr(p, "to_local") else p for p in network.parameters())
    return int(sum(p.numel() * p.element_size() for p in local))


def free(device: torch.device, *, spread: bool = False) -> int:
    """Free bytes on the device; `spread`: on all GPUs and the CPU together."""
    if spread and torch.cuda.is_available():
        gpus = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return int(sum(gpus)) + free(torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _free_ram()


def _free_ram() -> int:
    """Free bytes of this machine, or of the container of this process."""
    limits = [int(psutil.virtual_memory().available)]
    for limit, used in CGROUPS:
        try:
            most = (Path("/sys/fs/cgroup") / limit).read_text().strip()
            if most != "max":
                limits.append(int(most) - int((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):
            continue  # no such limit
    return max(0, min(limits))


def format_bytes(size: float) -> str:
    """A number of bytes in GB or MB."""
    return f"{size / GB:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
