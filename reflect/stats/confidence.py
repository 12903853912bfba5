"""The effect of a lesson from randomised withholding: an estimate, an interval and a verdict that
are valid at every look.

Each rollout shows the lesson with a probability p that was fixed before (A = 1 shown, 0 withheld)
and earns a reward R in [0, 1]. With any m that is known before the rollout,

    h = (A - p) (R - m) / max(p, 1 - p)    lies in [-1, 1] and has mean v * tau,  v = min(p, 1 - p),

where tau is what the lesson changes in that rollout, whatever the task, the other lessons and the
past. m is the mean of the group's earlier rollouts, shrunk to the mean of all: it adds no bias, it
only removes the noise that the difficulty of the task adds. The estimate is the mean of tau over
the rollouts so far, weighted by v.

We bet on h (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by
betting", section 4): for a fixed stake s, prod (1 + s h) / (1 + s v tau) is a martingale that
begins at 1, so in at most alpha / 2 of all streams does it ever reach 2 / alpha (Ville). The stakes
are fixed, and mixed with fixed weights, because then the inequality of the arithmetic and geometric
mean puts the *mean* of tau in the place of its values: no task needs to have the effect of another.
Hence looking after every rollout costs nothing, and the interval holds for effects that differ or
drift.

Not covered: a reward outside [0, 1]; a probability that is not the one with which the lesson was
shown; several lessons at once (each has its own error rate).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict

from reflect.types import TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

# The interval misses the effect at any time in at most this share of streams, half on each side.
ALPHA = 0.05
LOG_NEED = math.log(2 / ALPHA)  # log wealth that proves something
USEFUL = 0.05  # a lesson with a smaller proven effect is not worth its tokens
POWER_Z = 1.2816  # of 90 %: how often a planned comparison finds the effect that it is planned for

# A stake is best for one size of effect. Small effects need long streams, in which the price of a
# small weight is little.
STAKES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
WEIGHTS = (0.04, 0.04, 0.04, 0.22, 0.22, 0.22, 0.22)
LOG_WEIGHTS = tuple(map(math.log, WEIGHTS))
LOG_STAKES = math.log(len(STAKES))
REGRET = -math.log(0.4)  # of the mixture against its best stakes, for plans

DIGITS = 9  # of a saved state: the last bits depend on how many rollouts were summed at a time
CHUNK = 200  # increments in one product: 0.2 and 1.8 to that power are within the range of a float
SHRINK = 3.0  # the mean of all groups counts as much as this many rollouts of the group
CAUTION = 5.0  # weight of "no effect" in the running effect that corrects m


@dataclass(frozen=True)
class Effect:
    """Mean reward with the lesson minus without it. The 95 % interval holds at every n at once."""

    effect: float
    low: float
    high: float
    n: int
    verdict: TrialVerdict

    def __str__(self) -> str:
        return f"{self.effect:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    def more(self) -> int | None:
        """About how many more increments until the verdict if the effect stays the same: a width
        shrinks like 1 / sqrt(n). None if the interval says nothing yet."""
        if self.verdict != TrialVerdict.UNDECIDED:
            return 0
        ways = []
        if self.effect > 0 and self.low > -1:
            ways.append((self.effect - self.low) / self.effect)
        if self.effect < USEFUL and self.high < 1:
            ways.append((self.high - self.effect) / (USEFUL - self.effect))
        return max(1, math.ceil(self.n * (min(ways) ** 2 - 1))) if ways else None


class BetsState(TypedDict):
    """A saved `BettingConfidenceSequence`."""

    n: int
    sum: float
    squares: float
    weight: float
    up: list[float]
    down: list[float]


class BettingConfidenceSequence:
    """The mean of tau from increments h in [-1, 1] with conditional means weight * tau."""

    def __init__(self, state: BetsState | None = None) -> None:
        self.n = state["n"] if state else 0
        self.sum = state["sum"] if state else 0.0  # of h
        self.squares = state["squares"] if state else 0.0
        self.weight = state["weight"] if state else 0.0
        self._up = list(state["up"] if state else LOG_WEIGHTS)  # log wealth of each stake on h
        self._down = list(state["down"] if state else LOG_WEIGHTS)  # and on -h
        self._new: list[float] = []  # increments that are not in the wealth yet

    def bets_state(self) -> BetsState:
        """All that it knows, as JSON: a sequence made from it bets the same."""
        self._flush()
        n, sums = self.n, (self.sum, self.squares, self.weight)
        total, squares, weight = (round(x, DIGITS) for x in sums)
        up, down = ([round(x, DIGITS) for x in side] for side in (self._up, self._down))
        return {"n": n, "sum": total, "squares": squares, "weight": weight, "up": up, "down": down}

    def add(self, h: float, weight: float) -> None:
        """Take one observation with its weight."""
        self.n += 1
        self.sum += h
        self.squares += h * h
        self.weight += weight
        self._new.append(h)
        if len(self._new) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        """Many increments at once: one logarithm of a product is faster than many logarithms."""
        new, self._new = self._new, []
        for i, s in enumerate(STAKES if new else ()):
            self._up[i] += math.log(math.prod([1 + s * h for h in new]))
            self._down[i] += math.log(math.prod([1 - s * h for h in new]))

    @property
    def mean(self) -> float:
        """The estimate, which is always in the interval."""
        return self.sum / self.weight if self.weight else 0.0

    def above(self, tau: float, share: float = 1.0) -> bool:
        """Is the mean proven to be above tau, at a `share` of the error rate ALPHA / 2?"""
        return self._proven(self._up, tau, LOG_NEED - math.log(share))

    def below(self, tau: float) -> bool:
        """Is the mean proven to be below tau?"""
        return self._proven(self._down, -tau)

    def interval(self) -> tuple[float, float]:
        """(low, high), within [-1, 1]: all that is proven neither above nor below."""
        mean = min(max(self.mean, -1.0), 1.0)
        return self._end(-1.0, mean, self.above), self._end(1.0, mean, self.below)

    def _end(self, end: float, inside: float, outside: Callable[[float], bool]) -> float:
        """The last value that is proven to be outside, by bisection."""
        for _ in range(30 if outside(end) else 0):
            middle = (end + inside) / 2
            end, inside = (middle, inside) if outside(middle) else (end, middle)
        return end

    def verdict(self, share: float = 1.0) -> TrialVerdict:
        """accept: it helps, at this share of the error rate. reject: harm, or less than USEFUL.
        Faster than `result`."""
        if self.above(0.0, share):
            return TrialVerdict.ACCEPT
        return TrialVerdict.REJECT if self.below(USEFUL) else TrialVerdict.UNDECIDED

    def result(self, share: float = 1.0) -> Effect:
        """The effect: mean, interval, n and verdict. `share`: as in `verdict`."""
        verdict, mean = self.verdict(share), min(max(self.mean, -1.0), 1.0)
        return Effect(mean, *self.interval(), self.n, verdict)

    def _proven(self, wealth: list[float], tau: float, need: float = LOG_NEED) -> bool:
        """Whether a bettor made exp(need) (2 / ALPHA) of 1 against a mean of tau."""
        self._flush()
        if tau and self.n:
            share = tau * self.weight / self.n
            growth = [self.n * math.log1p(s * share) for s in STAKES]
            wealth = [w - g for w, g in zip(wealth, growth, strict=True)]
        top = max(wealth)  # the mixture is at least that, and at most that times its parts
        if top >= need or top + LOG_STAKES < need:
            return top >= need
        return top + math.log(sum([math.exp(w - top) for w in wealth])) >= need


class EstimatorState(TypedDict):
    """A saved `WithheldEstimator`; `reflect.trials.checkpoints` adds the rest."""

    bets: BetsState
    rewards: float
    noise: float
    last: NotRequired[int]
    since: NotRequired[int]
    audit: NotRequired[EstimatorState]


class WithheldEstimator(BettingConfidenceSequence):
    """The effect of a lesson, rollout by rollout, in the order in which they were saved."""

    def __init__(self, state: EstimatorState | None = None) -> None:
        super().__init__(state["bets"] if state else None)
        # sum over all rollouts, with one rollout of 0.5 to begin with
        self._rewards = state["rewards"] if state else 0.5
        self._noise = state["noise"] if state else 0.0  # sum of (R - m)^2
        # of each group: rollouts, sum of rewards, sum of A - (1 - p)
        self._groups: dict[Hashable, tuple[int, float, float]] = {}

    def state(self) -> EstimatorState:
        """All that it knows but its groups, as JSON: complete groups add nothing."""
        rewards, noise = round(self._rewards, DIGITS), round(self._noise, DIGITS)
        return {"bets": self.bets_state(), "rewards": rewards, "noise": noise}

    def update(self, group: Hashable, shown: bool, p: float, reward: float) -> None:
        """Add one rollout. `group`: what the rollouts of one task in one run share. 0 < p < 1."""
        if not 0.0 < p < 1.0:
            raise ValueError(f"a lesson that is shown with probability {p} is not on trial")
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"the reward {reward} is not between 0 and 1")
        n, rewards, tilt = self._groups.get(group, (0, 0.0, 0.0))
        tau = min(max(self.sum / (self.weight + CAUTION), -1.0), 1.0)
        # The best m is (1 - p) mean(with) + p mean(without): subtract what the earlier rollouts
        # owe to another mix.
        m = (rewards - tau * tilt + SHRINK * self._rewards / (self.n + 1)) / (n + SHRINK)
        m = min(max(m, 0.0), 1.0)
        self.add((shown - p) * (reward - m) / max(p, 1 - p), min(p, 1 - p))
        self._groups[group] = (n + 1, rewards + reward, tilt + shown - (1 - p))
        self._rewards += reward
        self._noise += (reward - m) ** 2

    @property
    def noise(self) -> float:
        """Standard deviation of rewards within a group; 0.5 (a coin) before the tenth."""
        return max(math.sqrt(self._noise / self.n), 0.01) if self.n >= 10 else 0.5


class PairedEstimator(BettingConfidenceSequence):
    """A planned comparison: the same task with the same seed, with the lesson and without it."""

    def update(self, with_lesson: float, without: float) -> None:
        """Add the two rewards of one pair, each in [0, 1]."""
        if not (0.0 <= with_lesson <= 1.0 and 0.0 <= without <= 1.0):
            raise ValueError(f"the rewards {with_lesson} and {without} are not between 0 and 1")
        self.add(with_lesson - without, 1.0)


def needed(effect: float, sd: float, weight: float = 1.0) -> int:
    """How many increments prove an effect in 90 % of streams; `sd` of an increment. ValueError for
    no effect.

    The log wealth of a stake s grows by g = s d - s^2 (sd^2 + d^2) / 2 an increment (d = weight *
    effect), with a variance of about 2 g: the smallest n for which g n - z sqrt(2 g n) pays 2 /
    alpha and the mixture's regret.
    """
    d = abs(effect) * weight
    if d == 0.0:
        raise ValueError("no number of rollouts proves an effect of 0")
    square = sd * sd + d * d
    stake = min(d / square, STAKES[-1])
    growth = stake * d - stake * stake * square / 2
    cost = LOG_NEED + REGRET
    root = (POWER_Z * math.sqrt(2) + math.sqrt(2 * POWER_Z**2 + 4 * cost)) / 2
    return math.ceil(root * root / growth)


def resolvable(n: int, sd: float, weight: float = 1.0) -> float:
    """The smallest effect that n increments prove in 90 % of streams; 1.0 when they prove none."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle, sd, weight) <= n else (middle, high)
    return high


@dataclass(frozen=True)
class NoiseFloor:
    """The result of trials of rollouts that all had the same prompt."""

    noise: float
    """Standard deviation of the rewards within a task."""
    floor: float
    """95 % of trials of nothing measure an effect smaller than this, in either direction."""
    smallest: float
    """The effect that a trial of so many rollouts proves in 90 % of cases."""
    alarms: float
    """Share of trials of nothing that ever proved an effect."""


def noise_floor(
    rewards: Sequence[Sequence[float]], repeats: int = 200, seed: int = 0
) -> NoiseFloor:
    """Draw by a coin, `repeats` times, which rollouts were "shown" a lesson that does not exist,
    and run the trial.

    `rewards`: those of each task under one prompt. Each trial is looked at after every rollout, so
    `alarms` is at most ALPHA but for chance, whatever the rewards are.
    """
    rng = random.Random(seed)
    effects, alarms, estimator = [], 0, WithheldEstimator()
    for _ in range(repeats):
        estimator, alarm = WithheldEstimator(), False
        for group, row in enumerate(rewards):
            for reward in row:
                estimator.update(group, rng.random() < 0.5, 0.5, reward)
                alarm = alarm or estimator.above(0.0) or estimator.below(0.0)
        effects.append(abs(estimator.mean))
        alarms += alarm
    floor = sorted(effects)[max(0, math.ceil(0.95 * repeats) - 1)]
    smallest = resolvable(estimator.n, estimator.noise, 0.5)
    return NoiseFloor(estimator.noise, floor, smallest, alarms / repeats)
