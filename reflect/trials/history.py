"""The interval of a lesson's effect as the evidence grew, for charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from reflect.stats.confidence import WithheldEstimator
from reflect.store import trials

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.records import Trial

MOST = 4000  # rollouts that are read
LOOKS = 40  # intervals that are computed


class Look(NamedTuple):
    """The effect and its interval after the first n rollouts."""

    n: int
    effect: float
    low: float
    high: float


def effect_history(s: Session, trial: Trial) -> list[Look]:
    """The effect that `trial` measures after each of LOOKS numbers of rollouts, [] without any.

    At most MOST rollouts are read, the oldest ones; each draw counts once, as in the trial.
    """
    scope = trial.model_fingerprint, trial.adapter_id, trial.measure
    rows = trials.observations(s, trial.lesson_id, trial.version, *scope, limit=MOST)
    every = max(1, -(-len(rows) // LOOKS))
    estimator, draws, looks = WithheldEstimator(), set(), []
    for i, row in enumerate(rows, 1):
        if (row.task_key, row.seed) not in draws:
            draws.add((row.task_key, row.seed))
            group = row.run_id, row.task_key
            estimator.update(group, row.shown, row.probability, row.reward)
        if i % every == 0 or i == len(rows):
            effect = estimator.result()
            looks.append(Look(effect.n, effect.effect, effect.low, effect.high))
    return looks
