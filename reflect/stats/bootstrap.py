"""Percentile bootstrap intervals of figures that depend on means of rows.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife". Not covered: values that are
all equal give an interval of width 0, however few they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000

Means: TypeAlias = "NDArray[np.float64]"  # (..., columns): means of the columns of the rows
Statistic: TypeAlias = Callable[[Means], Means]  # (..., columns) -> (...); NaN: not defined


def mean(means: Means) -> Means:
    """The statistic of rows with one column: their mean."""
    return means[..., 0]


def bootstrap(
    rows: Sequence[float] | Sequence[Sequence[float]],
    seed: int = 0,
    level: float = 0.95,
    statistic: Statistic = mean,
) -> tuple[float, float]:
    """The interval of `statistic` at that level, rows resampled with replacement; equal for equal
    seeds. Draws with NaN are left out. (0, 0) if nothing remains."""
    if not len(rows):
        return 0.0, 0.0
    import numpy as np  # takes 0.1 s, which a command without statistics does not pay

    data = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    *state, position = random.Random(seed).getstate()[1]
    rng = np.random.RandomState()
    # draws as `random.Random(seed).choices` does
    rng.set_state(("MT19937", np.array(state, dtype=np.uint32), position, 0, 0.0))
    drawn = (rng.random_sample((RESAMPLES, len(data))) * len(data)).astype(np.int64)
    values = statistic(np.stack([column[drawn].mean(axis=1) for column in data.T], axis=-1))
    values = np.sort(values[~np.isnan(values)])
    tail = round((1 - level) / 2 * len(values))
    return (float(values[tail]), float(values[-tail - 1])) if len(values) else (0.0, 0.0)
