"""The effect of a lesson from randomised withholding: an estimate, an interval and a verdict that
hold at every look.

Each rollout shows the lesson with a probability p that was fixed before (A = 1 shown, 0 withheld)
and earns a reward R in [0, 1]. With any m that is known before the rollout,

    h = (A - p) (R - m) / max(p, 1 - p)        lies in [-1, 1] and has mean v * tau,  v = min(p, 1 - p),

where tau is what the lesson changes in that rollout, whatever the task, the other lessons and the
past. m is the mean of the group's earlier rollouts, shrunk to the mean of all: it does not bias, it
only takes away what the difficulty of the task adds to the noise. What is estimated is the mean of
tau over the rollouts so far, weighted by v.

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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["accept", "reject", "undecided"]

# the interval misses the effect at any time in at most this share of streams; half of it on each
# side
ALPHA = 0.05
USEFUL = 0.05  # a lesson that is proven to bring less than this is not worth its tokens
POWER_Z = (
    1.2816  # of 90 %: how often a planned comparison is to find the effect that it was planned for
)

# A stake is best for one size of effect. Small ones need long streams, in which the price of a
# small weight is little.
STAKES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
WEIGHTS = (0.04, 0.04, 0.04, 0.22, 0.22, 0.22, 0.22)
LOG_WEIGHTS = tuple(map(math.log, WEIGHTS))
LOG_STAKES = math.log(len(STAKES))
REGRET = -math.log(0.4)  # of the mixture against its best stakes, for plans

# of a state that is put down: the last bits depend on how many rollouts were summed at a time
DIGITS = 9
# increments in one product: neither 0.2 nor 1.8 to the power of it leaves the range of a float
CHUNK = 200
SHRINK = 3.0  # rollouts of a group that the mean of all groups is worth
CAUTION = 5.0  # weight of "no effect" in the running effect that corrects m


@dataclass(frozen=True)
class Effect:
    """Mean reward with the lesson minus without it. The interval holds at every n at once, with 95
    %."""

    effect: float
    low: float
    high: float
    n: int
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.effect:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    def more(self, useful: float = USEFUL) -> int | None:
        """About how many more until the verdict, should the effect stay what it is: a width shrinks
        like 1 / sqrt(n). None before there is an interval to go by."""
        if self.verdict != "undecided":
            return 0
        ways = []
        if self.effect > 0 and self.low > -1:
            ways.append((self.effect - self.low) / self.effect)
        if self.effect < useful and self.high < 1:
            ways.append((self.high - self.effect) / (useful - self.effect))
        return max(1, math.ceil(self.n * (min(ways) ** 2 - 1))) if ways else None


class BettingConfidenceSequence:
    """The mean of tau from increments h in [-1, 1] whose conditional means are weight * tau, 0 <
    weight <= 1."""

    def __init__(self) -> None:
        self.n = 0
        self.sum = 0.0  # of h
        self.squares = 0.0
        self.weight = 0.0
        self._up = list(LOG_WEIGHTS)  # log wealth of each stake on h
        self._down = list(LOG_WEIGHTS)  # and on -h
        self._new: list[float] = []  # increments that are not yet in the wealth

    def state(self) -> dict[str, Any]:
        """All that it knows, as JSON; `of` makes the same bets of it."""
        self._settle()
        sums = {"sum": self.sum, "squares": self.squares, "weight": self.weight}
        wealth = {
            "up": [round(x, DIGITS) for x in self._up],
            "down": [round(x, DIGITS) for x in self._down],
        }
        return {"n": self.n} | {name: round(x, DIGITS) for name, x in sums.items()} | wealth

    @classmethod
    def of(cls, state: dict[str, Any]) -> BettingConfidenceSequence:
        bets = cls()
        bets.n, bets.sum, bets.squares, bets.weight = (
            state[key] for key in ("n", "sum", "squares", "weight")
        )
        bets._up, bets._down = list(state["up"]), list(state["down"])
        return bets

    def add(self, h: float, weight: float) -> None:
        self.n += 1
        self.sum += h
        self.squares += h * h
        self.weight += weight
        self._new.append(h)
        if len(self._new) == CHUNK:
            self._settle()

    def _settle(self) -> None:
        """Many increments at once: one logarithm of a product costs less than many logarithms."""
        new, self._new = self._new, []
        for i, s in enumerate(STAKES if new else ()):
            self._up[i] += math.log(math.prod([1 + s * h for h in new]))
            self._down[i] += math.log(math.prod([1 - s * h for h in new]))

    @property
    def mean(self) -> float:
        """The estimate; the interval always holds it."""
        return self.sum / self.weight if self.weight else 0.0

    @property
    def sd(self) -> float:
        """Standard deviation of h; 0.5, that of a coin, until there are ten."""
        if self.n < 10:
            return 0.5
        return math.sqrt(max(self.squares / self.n - (self.sum / self.n) ** 2, 1e-6))

    def above(self, tau: float, alpha: float = ALPHA) -> bool:
        """Is the mean proven to be above tau?"""
        self._settle()
        return self._proven(self._up, tau, alpha)

    def below(self, tau: float, alpha: float = ALPHA) -> bool:
        """Is the mean proven to be below tau?"""
        self._settle()
        return self._proven(self._down, -tau, alpha)

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """(low, high), within [-1, 1]: all that is proven neither above nor below."""
        low, high, mean = -1.0, 1.0, min(max(self.mean, -1.0), 1.0)
        if self.above(low, alpha):
            inside = mean
            for _ in range(30):
                middle = (low + inside) / 2
                low, inside = (middle, inside) if self.above(middle, alpha) else (low, middle)
        if self.below(high, alpha):
            inside = mean
            for _ in range(30):
                middle = (high + inside) / 2
                high, inside = (middle, inside) if self.below(middle, alpha) else (high, middle)
        return low, high

    def verdict(self, useful: float = USEFUL, alpha: float = ALPHA) -> Verdict:
        """accept: it helps. reject: it does harm, or less good than `useful`."""
        if self.above(0.0, alpha):
            return "accept"
        return "reject" if self.below(useful, alpha) else "undecided"

    def result(self, useful: float = USEFUL, alpha: float = ALPHA) -> Effect:
        low, high = self.interval(alpha)
        return Effect(
            min(max(self.mean, -1.0), 1.0), low, high, self.n, self.verdict(useful, alpha)
        )

    def _proven(self, wealth: list[float], tau: float, alpha: float) -> bool:
        """Has a bettor made 2 / alpha of 1 against the belief that the mean is tau?"""
        need = math.log(2 / alpha)
        if tau and self.n:
            share = tau * self.weight / self.n
            wealth = [
                w - self.n * math.log1p(s * share) for w, s in zip(wealth, STAKES, strict=True)
            ]
        top = max(wealth)
        if (
            top >= need or top + LOG_STAKES < need
        ):  # the mixture lies between its largest part and that many of it
            return top >= need
        return top + math.log(sum([math.exp(w - top) for w in wealth])) >= need


class WithheldEstimator:
    """The effect of a lesson, rollout by rollout, in the order in which they were saved."""

    def __init__(self) -> None:
        self.bets = BettingConfidenceSequence()
        self._rewards = 0.5  # sum over all rollouts, with one rollout of 0.5 to begin with
        self._noise = 0.0  # sum of (R - m)^2
        self._groups: dict[
            Hashable, tuple[int, float, float]
        ] = {}  # rollouts, sum of rewards, sum of A - (1 - p)

    def state(self) -> dict[str, Any]:
        """All that it knows but its groups, as JSON: those that are complete say nothing more."""
        rewards, noise = round(self._rewards, DIGITS), round(self._noise, DIGITS)
        return {"bets": self.bets.state(), "rewards": rewards, "noise": noise}

    @classmethod
    def of(cls, state: dict[str, Any]) -> WithheldEstimator:
        contrast = cls()
        contrast.bets = BettingConfidenceSequence.of(state["bets"])
        contrast._rewards, contrast._noise = state["rewards"], state["noise"]
        return contrast

    def update(self, group: Hashable, shown: bool, p: float, reward: float) -> None:
        """One rollout. `group`: what the rollouts of one task in one run share. 0 < p < 1."""
        if not 0.0 < p < 1.0:
            raise ValueError(f"a lesson that is shown with probability {p} is not on trial")
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"the reward {reward} is not between 0 and 1")
        bets = self.bets
        n, rewards, tilt = self._groups.get(group, (0, 0.0, 0.0))
        tau = min(max(bets.sum / (bets.weight + CAUTION), -1.0), 1.0)
        # The best m is (1 - p) mean(with) + p mean(without): take out what the earlier ones owe to
        # another mix.
        m = (rewards - tau * tilt + SHRINK * self._rewards / (bets.n + 1)) / (n + SHRINK)
        m = min(max(m, 0.0), 1.0)
        bets.add((shown - p) * (reward - m) / max(p, 1 - p), min(p, 1 - p))
        self._groups[group] = (n + 1, rewards + reward, tilt + shown - (1 - p))
        self._rewards += reward
        self._noise += (reward - m) ** 2

    @property
    def n(self) -> int:
        return self.bets.n

    @property
    def noise(self) -> float:
        """Standard deviation of the rewards within a group; 0.5, that of a coin, until there are
        ten."""
        return max(math.sqrt(self._noise / self.n), 0.01) if self.n >= 10 else 0.5

    def verdict(self, useful: float = USEFUL, alpha: float = ALPHA) -> Verdict:
        """The verdict alone: cheaper than `result`."""
        return self.bets.verdict(useful, alpha)

    def result(self, useful: float = USEFUL, alpha: float = ALPHA) -> Effect:
        return self.bets.result(useful, alpha)


class PairedEstimator:
    """A planned comparison: the same task with the same seed, with the lesson and without it."""

    def __init__(self) -> None:
        self.bets = BettingConfidenceSequence()

    def update(self, with_lesson: float, without: float) -> None:
        """The two rewards of one pair, each in [0, 1]."""
        if not (0.0 <= with_lesson <= 1.0 and 0.0 <= without <= 1.0):
            raise ValueError(f"the rewards {with_lesson} and {without} are not between 0 and 1")
        self.bets.add(with_lesson - without, 1.0)

    @property
    def n(self) -> int:
        return self.bets.n

    def verdict(self, useful: float = USEFUL, alpha: float = ALPHA) -> Verdict:
        return self.bets.verdict(useful, alpha)

    def result(self, useful: float = USEFUL, alpha: float = ALPHA) -> Effect:
        return self.bets.result(useful, alpha)


# -- plans
# -------------------------------------------------------------------------------------------------------------


def needed(effect: float, sd: float, weight: float = 1.0, alpha: float = ALPHA) -> int:
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
    cost = math.log(2 / alpha) + REGRET
    root = (POWER_Z * math.sqrt(2) + math.sqrt(2 * POWER_Z**2 + 4 * cost)) / 2
    return math.ceil(root * root / growth)


def resolvable(n: int, sd: float, weight: float = 1.0, alpha: float = ALPHA) -> float:
    """The smallest effect that n increments prove in 90 % of streams; 1.0 when they prove none."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if needed(middle, sd, weight, alpha) <= n else (middle, high)
    return high


# -- identical prompts
# -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseFloor:
    """What a trial makes of rollouts that all had the same prompt."""

    noise: float  # standard deviation of the rewards within a task
    floor: float  # 95 % of trials of nothing measure less than this, either way
    smallest: float  # effect that a trial of so many rollouts proves in 90 % of cases
    alarms: float  # share of trials of nothing that ever proved an effect


def noise_floor(
    rewards: Sequence[Sequence[float]], repeats: int = 200, seed: int = 0
) -> NoiseFloor:
    """Draw again and again by a coin which rollouts were "shown" a lesson that there is not, and
    hold the trial.

    `rewards`: those of each task under one prompt. Each trial is looked at after every rollout, so
    `alarms` is at most ALPHA but for chance, whatever the rewards are.
    """
    rng = random.Random(seed)
    found, alarms, contrast = [], 0, WithheldEstimator()
    for _ in range(repeats):
        contrast, alarm = WithheldEstimator(), False
        for group, row in enumerate(rewards):
            for reward in row:
                contrast.update(group, rng.random() < 0.5, 0.5, reward)
                alarm = alarm or contrast.bets.above(0.0) or contrast.bets.below(0.0)
        found.append(abs(contrast.bets.mean))
        alarms += alarm
    floor = sorted(found)[max(0, math.ceil(0.95 * repeats) - 1)]
    smallest = resolvable(contrast.n, contrast.noise, 0.5)
    return NoiseFloor(contrast.noise, floor, smallest, alarms / repeats)
