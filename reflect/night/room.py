"""Room on the disk: what a night writes, and whether that fits, asked before any work is done."""

from __future__ import annotations

import shutil
from typing import Any

from reflect.config import Settings
from reflect.errors import NightError
from reflect.night.plan import Plan

SPARE = 16 * 2**20  # bytes for the harvest and the database
COPIES = 8  # of the adapter: two checkpoints at once, each with two moments of Adam, and the folder twice


def needed(network: Any, plan: Plan) -> int:
    """Bytes that a night may have on the disk at its fullest. LoRA has rank x (in + out) floats a linear layer."""
    from torch.nn import Linear

    layers = (m for name, m in network.named_modules() if isinstance(m, Linear) and ".lora_" not in name)
    return COPIES * plan.rank * sum(m.in_features + m.out_features for m in layers) * 4 + SPARE


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
