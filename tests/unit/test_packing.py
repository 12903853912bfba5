"""Packing: whole groups when they fit; best, worst and median longest when they do not; what was
cut is said."""

import pytest

from reflect.day.packing import Attempt, pack, reward_text


def count(text: str) -> int:
    return len(text.split())


GROUP = [
    Attempt("zubi means sort. answer: 1 2 3", 0.0),
    Attempt("zubi means reverse. answer: 2 1 3", 1.0, "right"),
    Attempt("", None),
]


def test_a_group_that_fits_is_complete_in_the_format_the_pocket_model_knows():
    packed = pack(GROUP, 1000, count)
    assert packed.text == (
        "attempt 1, reward 0:\nzubi means sort. answer: 1 2 3\n"
        "attempt 2, reward 1:\nzubi means reverse. answer: 2 1 3\nfeedback: right\n"
        "attempt 3, reward none:\n(empty)"
    )
    assert packed.cut == ""
    assert packed.tokens == count(packed.text)
    assert packed.hash == pack(GROUP, 1000, count).hash != pack(GROUP[:2], 1000, count).hash


@pytest.mark.parametrize(
    ("reward", "text"), [(0.0, "0"), (1.0, "1"), (0.5, "0.5"), (1 / 3, "0.33"), (None, "none")]
)
def test_rewards_are_short(reward, text):
    assert reward_text(reward) == text


def long_group() -> list[Attempt]:
    rewards = [0.3, 1.0, 0.2, 0.4, 0.0, 0.6, 0.5, 0.1]
    return [
        Attempt(" ".join(f"w{i}x{j}" for j in range(100)), reward)
        for i, reward in enumerate(rewards)
    ]


def test_best_worst_and_median_stay_whole_longest():
    packed = pack(long_group(), 500, count)
    assert packed.tokens <= 500
    for i in (1, 4, 0):  # best, worst, median
        assert f"w{i}x50" in packed.text
    assert "w2x50" not in packed.text
    assert "w2x0" in packed.text and "w2x99" in packed.text  # the ends outlive the middle
    assert packed.cut == "the middle of attempts 3, 4, 6, 7, 8"
    assert "words cut]" in packed.text


def test_a_tighter_budget_drops_the_others_and_then_trims_the_three():
    packed = pack(long_group(), 120, count)
    assert packed.tokens <= 120
    assert "attempts 3, 4, 6, 7, 8" in packed.cut
    assert "the middle of attempts 1, 2, 5" in packed.cut
    assert packed.text.count("attempt ") == 3


@pytest.mark.parametrize("budget", [0, 1, 5, 40])
def test_nothing_overflows(budget):
    endless = [Attempt("x" * 5000, 1.0, "y " * 3000), Attempt("z" * 5000, 0.0)]
    packed = pack(endless, budget, len)
    assert packed.tokens <= max(budget, len("\n[cut]\n"))
    assert "the middle of what remained" in packed.cut


def test_an_empty_group_is_an_empty_text():
    assert pack([], 10, count).text == ""
