"""bootstrap."""

from __future__ import annotations

import random
from collections.abc import Sequence

RESAMPLES = 2000


def bootstrap(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean at that level; the same seed gives the same interval. (0, 0)
    for no values.

    Not covered: values that are all equal give an interval of no width, however few they are.
    """
    if not values:
        return 0.0, 0.0
    rng = random.Random(seed)
    means = sorted(_mean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    beside = round((1 - level) / 2 * RESAMPLES)
    return means[beside], means[RESAMPLES - beside - 1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
