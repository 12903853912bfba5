"""How much memory a model takes and how much there is, and what to do when it was not enough.

Not covered: what other programs take after the look, and the working memory of a layer, which no
formula here knows: where the estimate was too bold the machine says so, and half as much goes
through the network from then on.
"""

from __future__ import annotations

import gc
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GB = 1e9
FOUR_BIT = 0.57  # bytes a parameter: four bits and the scales of their blocks
SLACK = 1.05  # of the weights: buffers, and what loading holds for a moment
CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass
class MemoryLimits:
    """What was learned from errors of too little memory, for as long as the model is loaded.

    `sampled`: tokens of one batch of answers; `trained`: padded tokens of one training pass;
    `checkpoints`: are the values of a layer computed again in the backward pass, and not kept?
    """

    sampled: float = math.inf
    trained: float = math.inf
    checkpoints: bool = False

    def most(self, planned: int) -> int:
        """Tokens of one training pass, where so many were planned."""
        return int(min(planned, self.trained))


def out_of_memory(e: BaseException) -> bool:
    """Does this error say that there was too little memory? CUDA has a class for it, other devices
    have words."""
    if isinstance(e, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
    return isinstance(e, RuntimeError) and any(word in str(e) for word in words)


def release() -> None:
    """Give back what nobody uses. Call it outside the `except` block, whose error still holds
    tensors."""
    gc.collect(1)  # what the failed pass made is young; to go through everything takes a second
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parameters_of(folder: Path) -> int:
    """Numbers in the safetensors files of a model, read from their headers; 0 where there are
    none."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(
                f.read(min(length, file.stat().st_size))
            )  # a broken file may say anything
        total += sum(math.prod(x["shape"]) for name, x in header.items() if name != "__metadata__")
    return total


def weights_of(network: PreTrainedModel) -> int:
    """Bytes of the loaded weights; of those that processes share, this one's part."""
    mine = (p.to_local() if hasattr(p, "to_local") else p for p in network.parameters())
    return int(sum(p.numel() * p.element_size() for p in mine))


def free(device: torch.device, *, spread: bool = False) -> int:
    """Bytes that are free on the device; `spread`: on all GPUs and the CPU together."""
    if spread and torch.cuda.is_available():
        every = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return int(sum(every)) + free(torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _free_ram()


def _free_ram() -> int:
    """Of this machine, or of the container that this process may fill; a huge number where nobody
    says."""
    found = [2**60]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass  # no Linux
    for limit, used in CGROUPS:
        try:
            most = (Path("/sys/fs/cgroup") / limit).read_text().strip()
            if most != "max":
                found.append(int(most) - int((Path("/sys/fs/cgroup") / used).read_text()))
        except (OSError, ValueError):
            continue  # no such limit
    return max(0, min(found))


def in_words(size: float) -> str:
    """A number of bytes as GB or MB."""
    return f"{size / GB:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
