"""What the gate's report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MARGIN = 0.01  # a drop of one point beyond noise is harm


@dataclass(frozen=True)
class Check:
    """One line of the gate's report."""

    name: str
    ok: bool
    value: float
    limit: float
    text: str
    kind: Literal["gain", "harm", "proof"] = "harm"
