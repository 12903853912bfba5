"""The statistics of a trial, by simulation. Each statistical assertion says how often it would fail
by chance."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from reflect.stats.confidence import (
    ALPHA,
    STAKES,
    WEIGHTS,
    BettingConfidenceSequence,
    Effect,
    PairedEstimator,
    WithheldEstimator,
    needed,
    noise_floor,
    resolvable,
)


def rollouts(rng: random.Random, effect: float, n: int, p: float = 0.5):
    """(group, shown, reward) of n rollouts in groups of 8, of tasks that differ as much as they
    can."""
    room = 1 - abs(effect)
    for i in range(n):
        if i % 8 == 0:
            base = max(0.0, -effect) + room * rng.betavariate(0.5, 0.5)
        shown = rng.random() < p
        yield i // 8, shown, float(rng.random() < base + effect * shown)


def looked_at(rng: random.Random, effect: float, n: int, p: float = 0.5) -> tuple[str, int, bool]:
    """(first verdict, after how many rollouts, the interval held the effect at every look)."""
    contrast, first, at, covered = WithheldEstimator(), "undecided", n, True
    for i, (group, shown, reward) in enumerate(rollouts(rng, effect, n, p)):
        contrast.update(group, shown, p, reward)
        if first == "undecided" and contrast.verdict() != "undecided":
            first, at = contrast.verdict(), i + 1
        covered = covered and not (contrast.above(effect) or contrast.below(effect))
    return first, at, covered


@pytest.mark.parametrize(
    ("effect", "p", "n", "verdict", "least", "most"),
    [
        # By Ville at most 2.5 % of nulls are accepted: more than 12 of 100 by chance in 1 of
        # 300,000.
        (0.0, 0.5, 300, "accept", 0.0, 0.12),
        (0.0, 0.9, 300, "accept", 0.0, 0.12),
        # 95 % are accepted (scripts/proofs/trial): fewer than 80 of 100 by chance in less than 1 of
        # 10,000,000.
        (0.2, 0.5, 400, "accept", 0.8, 1.0),
        # Harm is accepted in less than 1 %: more than 8 of 100 in less than 1 of 1,000,000.
        (-0.1, 0.5, 300, "accept", 0.0, 0.08),
        (-0.4, 0.9, 500, "reject", 0.8, 1.0),
    ],
)
def test_verdicts_looked_at_after_every_rollout(effect, p, n, verdict, least, most):
    rng = random.Random(f"{effect} {p}")
    result = [looked_at(rng, effect, n, p) for _ in range(100)]
    assert least <= sum(first == verdict for first, _, _ in result) / 100 <= most
    # At most 5 % of intervals ever miss: more than 17 of 100 by chance in 1 of 200,000.
    assert sum(covered for _, _, covered in result) >= 83


def test_different_chances_on_easy_and_hard_tasks_do_not_bias():
    """Shown to nine tenths of the easy rollouts and one tenth of the hard ones: the two means
    differ by +0.5, the effect is -0.15. The estimate has a standard error of about 0.015: 0.06 off
    by chance in 1 of 15,000."""
    rng, contrast = random.Random(1), WithheldEstimator()
    sums = {True: [0.0, 0], False: [0.0, 0]}
    for group in range(1500):
        base, p = rng.choice([(0.95, 0.9), (0.2, 0.1)])
        for _ in range(8):
            shown = rng.random() < p
            reward = float(rng.random() < base - 0.15 * shown)
            contrast.update(group, shown, p, reward)
            sums[shown] = [sums[shown][0] + reward, sums[shown][1] + 1]
    assert sums[True][0] / sums[True][1] - sums[False][0] / sums[False][1] > 0.3
    result = contrast.result()
    assert (
        result.effect == pytest.approx(-0.15, abs=0.06)
        and result.verdict == "reject"
        and result.high < 0
    )
    assert result.low <= -0.15 <= result.high


def test_the_interval_is_of_the_mean_effect_where_effects_differ():
    """+0.4 on half of the tasks, -0.4 on the others: more than 17 of 60 misses at 5 % are not
    chance."""
    rng, missed = random.Random(2), 0
    for _ in range(60):
        contrast, truth, bad = WithheldEstimator(), 0.0, False
        for i in range(240):
            if i % 8 == 0:
                effect = rng.choice([0.4, -0.4])
            shown = rng.random() < 0.5
            contrast.update(i // 8, shown, 0.5, float(rng.random() < 0.5 + effect * shown))
            truth += effect
            bad = bad or contrast.above(truth / (i + 1)) or contrast.below(truth / (i + 1))
        missed += bad
    assert missed <= 10  # by chance in 1 of 4,000 at the bound of 5 %


def test_a_useless_lesson_is_found_out_in_the_end():
    rng, contrast = random.Random(3), WithheldEstimator()
    for group, shown, reward in rollouts(rng, 0.0, 8000):
        contrast.update(group, shown, 0.5, reward)
    assert contrast.result().verdict == "reject" and 0 < contrast.result().high < 0.05


def test_one_by_one_and_all_at_once_are_the_same():
    rows = list(rollouts(random.Random(4), 0.1, 1000))
    once, often = WithheldEstimator(), WithheldEstimator()
    for row in rows:
        once.update(row[0], row[1], 0.5, row[2])
        often.update(row[0], row[1], 0.5, row[2])
        often.verdict()
    a, b = once.result(), often.result()
    assert (a.n, a.verdict) == (b.n, b.verdict) == (1000, b.verdict)
    assert (a.effect, a.low, a.high) == pytest.approx((b.effect, b.low, b.high), abs=1e-9)
    assert a.low < a.effect < a.high


def test_verdicts_and_interval_agree_and_nothing_is_known_of_nothing():
    assert (
        WithheldEstimator().result()
        == Effect(0.0, -1.0, 1.0, 0, "undecided")
        == PairedEstimator().result()
    )
    for effect in (0.3, -0.3, 0.0):
        contrast = WithheldEstimator()
        for group, shown, reward in rollouts(random.Random(5), effect, 400):
            contrast.update(group, shown, 0.5, reward)
        result = contrast.result()
        assert -1 <= result.low <= result.effect <= result.high <= 1
        assert (result.verdict == "accept") == (result.low > 0)
        assert result.verdict != "reject" or result.high < 0.05


def test_long_and_extreme_streams_stay_finite():
    contrast = WithheldEstimator()
    for i in range(20_000):
        contrast.update(i // 8, i % 2 == 0, 0.5, float(i % 2 == 0))
    result = contrast.result()
    assert result.verdict == "accept" and 0.9 < result.low <= result.effect <= result.high
    same = WithheldEstimator()
    for i in range(5_000):
        same.update(i // 8, i % 2 == 0, 0.5, 1.0)
    assert same.result().effect == pytest.approx(0.0, abs=0.01)
    assert same.noise == 0.01


@pytest.mark.parametrize(("p", "reward"), [(0.0, 1.0), (1.0, 1.0), (0.5, 1.5), (0.5, float("nan"))])
def test_what_is_no_experiment_is_refused(p, reward):
    with pytest.raises(ValueError, match=r"probability|reward"):
        WithheldEstimator().update(0, True, p, reward)
    if p == 0.5:
        with pytest.raises(ValueError, match="rewards"):
            PairedEstimator().update(reward, 0.0)


def test_the_stakes_are_a_mixture_that_no_increment_can_bankrupt():
    assert sum(WEIGHTS) == pytest.approx(1.0) and all(0 < stake < 1 for stake in STAKES)
    bets = BettingConfidenceSequence()
    for _ in range(300):
        bets.add(-1.0, 1.0)
    assert bets.interval() == (-1.0, pytest.approx(-0.98, abs=0.02))


@pytest.mark.parametrize("effect", [0.1, 0.2])
def test_a_planned_sample_is_large_enough(effect):
    """Planned for 90 %, and found to give more: fewer than 75 of 100 by chance in 1 of 100,000."""
    rng, result = random.Random(6), 0
    n = needed(effect, 0.6)
    assert resolvable(n, 0.6) == pytest.approx(effect, rel=0.02)
    assert needed(effect / 2, 0.6) > 3 * n and needed(effect, 0.3) < n
    for _ in range(100):
        paired, wins = PairedEstimator(), (0.36 + effect**2 + effect) / 2
        losses = wins - effect
        for _ in range(n):
            u = rng.random()
            paired.update(float(u < wins), float(wins <= u < wins + losses))
            if paired.verdict() == "accept":
                result += 1
                break
    assert result >= 75
    with pytest.raises(ValueError, match="effect of 0"):
        needed(0.0, 0.6)


def test_what_is_missing_shrinks_with_the_evidence():
    contrast, results = WithheldEstimator(), []
    for i, (group, shown, reward) in enumerate(rollouts(random.Random(7), 0.3, 400)):
        contrast.update(group, shown, 0.5, reward)
        if i in (39, 399):
            results.append(contrast.result())
    assert Effect(0.0, -1.0, 1.0, 0, "undecided").more() is None
    assert results[0].verdict == "undecided" and 0 < results[0].more() < 1000
    assert results[1].verdict == "accept" and results[1].more() == 0


def test_identical_prompts_raise_no_alarm():
    """At most 5 % of trials of nothing alarm: more than 9.6 % of 200 by chance in 1 of 300, were
    the bound reached."""
    rng = random.Random(8)
    rates = [rng.betavariate(0.5, 0.5) for _ in range(20)]
    rewards = [[float(rng.random() < rate) for _ in range(16)] for rate in rates]
    result = noise_floor(rewards)
    assert result.alarms <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 200) ** 0.5
    assert 0 < result.floor < result.smallest < 0.5
    assert result == noise_floor(rewards)
    more = noise_floor(rewards * 4, repeats=20)
    assert more.smallest < 0.7 * result.smallest


def test_the_statistics_import_nothing_slow():
    code = (
        "import sys, reflect.stats.confidence; print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "torch", "sqlmodel", "sqlalchemy"} & set(loaded)
