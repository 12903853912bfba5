"""Cohen's kappa: agreement of two raters beyond chance (Cohen 1960)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.stats.bootstrap import Means


def kappa(marks: Sequence[tuple[bool, bool]]) -> float | None:
    """Kappa of two raters' yes or no; None if chance explains all, as for constant raters."""
    if not marks:
        return None
    value = float(kappa_of(np.asarray([agreement_row(*mark) for mark in marks]).mean(axis=0)))
    return None if np.isnan(value) else value


def agreement_row(a: bool, b: bool) -> tuple[bool, bool, bool]:
    """One row for `kappa_of`: do they agree, and the two marks."""
    return a == b, a, b


def kappa_of(means: Means) -> Means:
    """Kappa from the means of (agree, first yes, second yes); NaN if chance explains all."""
    agree, one, other = (means[..., i] for i in range(3))
    chance = one * other + (1 - one) * (1 - other)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance == 1, np.nan, (agree - chance) / (1 - chance))
