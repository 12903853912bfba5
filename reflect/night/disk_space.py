"""Disk space that a night needs, checked before it starts."""

from __future__ import annotations

import shutil
from typing import Any

from reflect.config import Settings
from reflect.errors import NightError
from reflect.training.plan import Plan

SPARE = 16 * 2**20  # bytes for the harvest and the database
# of the adapter: two checkpoints at once, each with two moments of Adam, and the folder twice
COPIES = 8


def needed(network: Any, plan: Plan) -> int:
    """Bytes that a night may have on the disk at its fullest. LoRA has rank x (in + out) floats a
    linear layer."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D  # what GPT-2 has in the place of linear layers

    width = 0
    for name, module in network.named_modules():
        if ".lora_" not in name and isinstance(module, (Linear, Conv1D)):
            width += (
                module.in_features + module.out_features
                if isinstance(module, Linear)
                else module.nf + module.nx
            )
    return COPIES * plan.rank * width * 4 + SPARE


def check(network: Any, settings: Settings, plan: Plan) -> None:
    """NightError when the disk under the home folder has too little room."""
    need, free = needed(network, plan), shutil.disk_usage(settings.home_path).free
    if free < need:
        raise NightError(
            f"A night needs {in_mb(need)} of disk, and {settings.home_path} has {in_mb(free)}.",
            "Free some space (`reflect doctor` removes what killed nights left), or set `home` to another disk.",
        )


def in_mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
