"""Disk space that a night needs, checked before it starts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from reflect.errors import NightError

if TYPE_CHECKING:
    from torch.nn import Module

    from reflect.config import Settings
    from reflect.training.plan import Plan

SPARE = 16 * 2**20  # bytes for the training data and the database
# copies of the adapter: two checkpoints at once, each with two moments of Adam, and two folders
COPIES = 8


def needed(network: Module, plan: Plan) -> int:
    """The most bytes on disk. LoRA has rank x (in + out) floats per linear layer."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D  # GPT-2 has it in place of linear layers

    width = 0
    for name, module in network.named_modules():
        if ".lora_" not in name and isinstance(module, Linear):
            width += module.in_features + module.out_features
        elif ".lora_" not in name and isinstance(module, Conv1D):
            width += module.nf + module.nx
    return COPIES * plan.rank * width * 4 + SPARE


def check(network: Module, settings: Settings, plan: Plan) -> None:
    """NightError if the disk of the home folder has too little free space."""
    need, free = needed(network, plan), shutil.disk_usage(settings.home_path).free
    if free < need:
        raise NightError(
            f"A night needs {in_mb(need)} of disk, and {settings.home_path} has {in_mb(free)}.",
            "Free some space (`reflect doctor` removes files of killed nights), or set `home` to a "
            "folder on another disk.",
        )


def in_mb(size: int) -> str:
    """A number of bytes as MB."""
    return f"{size / 1e6:,.0f} MB"
