"""An interval for a share of yes and no."""

from __future__ import annotations

import math

Z95 = 1.959964  # of the normal distribution, two-sided 95 %


def wilson(yes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), for one look at a fixed sample; (0, 1) without
    an observation. Its coverage is close to 95 % also for shares near 0 and 1."""
    if not n:
        return 0.0, 1.0
    share, spread = yes / n, z * z / n
    middle = share + spread / 2
    width = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, (middle - width) / (1 + spread)), min(1.0, (middle + width) / (1 + spread))
