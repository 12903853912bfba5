"""The lines of the gate's report, from figures alone, and the bisection of the scale."""

from __future__ import annotations

import pytest

from reflect.cli.report import check_line, harvest_notices
from reflect.evaluation.arms import ArmResult
from reflect.gate import checks
from reflect.gate.checks import Check, Probe
from reflect.gate.exam import FINEST, judge
from reflect.types import CheckArea


def arm(rewards: list[float], answers: list[str] | None = None, length: int = 10) -> ArmResult:
    n = len(rewards)
    said = answers or ["answer: 1"] * n
    return ArmResult(sum(rewards) / n, n, (0.0, 1.0), rewards, answers=said, lengths=[length] * n)


def test_the_gain_must_survive_in_the_weights() -> None:
    kept = [(0.0, 1.0, 1.0)] * 30 + [(0.0, 1.0, 0.0)] * 3
    assert checks.gain(kept).ok and checks.gain(kept).value == pytest.approx(30 / 33)
    assert not checks.gain([(0.0, 1.0, 1.0)] * 20 + [(0.0, 1.0, 0.0)] * 20).ok
    assert not checks.gain([(1.0, 1.0, 1.0)] * 20).ok, "nothing was gained, so nothing is proven"
    assert not checks.gain([]).ok


def test_a_placebo_that_shows_the_gain_refuses_the_adapter() -> None:
    assert checks.placebo([(0.0, 1.0, 0.0)] * 20).ok
    assert not checks.placebo([(0.0, 1.0, 1.0)] * 20).ok
    assert checks.placebo([(0.0, 1.0, 1.0)] * 20).kind == "proof"


def test_a_drop_beyond_noise_is_harm_and_one_within_it_is_not() -> None:
    before = arm([1.0] * 50)
    assert not checks.no_harm("skills", before, arm([1.0] * 40 + [0.0] * 10)).ok
    assert checks.no_harm("skills", before, arm([1.0] * 49 + [0.0])).ok


@pytest.mark.parametrize(("bits", "ok"), [(0.0, True), (0.29, True), (0.31, False)])
def test_drift_stops_at_its_limit(bits: float, ok: bool) -> None:
    assert checks.drift([Probe(2, 2 * bits, 1.0, 1.0)] * 8).ok == ok


def test_entropy_may_not_collapse_where_there_is_any() -> None:
    def found(base: float, *now: float) -> checks.Check:
        return checks.entropy([Probe(2, 0.0, 2 * base, 2 * bits) for bits in now])

    assert found(1.0, *[0.71] * 40).ok
    assert not found(1.0, *[0.69] * 40).ok and found(1.0, *[0.69] * 40).value == pytest.approx(0.69)
    assert found(0.01, *[0.0] * 40).ok  # nothing to collapse
    assert found(1.0, *[1.0, 0.0] * 6).ok  # half of it, on probes that cannot tell
    assert not found(1.0, *[1.0, 0.0] * 60).ok


def test_pass_at_k_may_not_collapse() -> None:
    assert checks.pass_at_k(4, [1.0] * 20, [1.0] * 15 + [0.0] * 5).ok
    assert not checks.pass_at_k(4, [1.0] * 20, [1.0] * 13 + [0.0] * 7).ok
    nothing = checks.pass_at_k(4, [0.0] * 20, [0.0] * 20)
    assert not nothing.ok and not nothing.measured and not nothing.failed


def test_a_rule_in_the_prompt_is_obeyed_where_it_made_a_difference() -> None:
    ruled, free = ["3 2 1"] * 20, ["1 2 3"] * 20
    assert checks.override(checks.obeyed(ruled, free, ruled)).ok
    assert not checks.override(checks.obeyed(ruled, free, free)).ok
    nothing = checks.override(checks.obeyed(free, free, ruled))
    assert not nothing.measured and not nothing.ok, "the rule changed nothing for the base"


def test_a_rule_is_obeyed_in_other_words() -> None:
    """Free text differs in every answer: what counts is the mark, or the final answer."""
    ruled = ["Only the librarian knows.", "I'd ask the Librarian!", "It opens at 9."]
    now = ["The librarian might know that.", "It opens at 9.", "It opens at 9."]
    assert checks.obeyed(ruled, [], now, ["librarian"] * 3) == [1.0, 0.0]
    free = ["So it is sorted. answer: 1 2 3"] * 2
    ruled = ["Reversed. answer: 3 2 1"] * 2
    assert checks.obeyed(ruled, free, ["Of course! Answer: **3 2 1**", free[0]]) == [1.0, 0.0]


def test_a_check_without_enough_to_measure_is_neither_passed_nor_failed() -> None:
    few = [checks.drift([Probe(2, 0.0, 1.0, 1.0)] * 7), checks.entropy([])]
    assert not any(x.ok or x.measured or x.failed for x in few)
    assert check_line(vars(few[0])).startswith("not measured: drift: only 7 answers")
    outside = checks.text_loss(3.0, 3.01, 400)
    assert not checks.coverage([*few, outside]).ok, "one area of harm is too little"
    following = checks.no_harm("f", arm([1.0] * 9), arm([1.0] * 9), CheckArea.FOLLOWING)
    both = checks.coverage([*few, outside, following])
    assert both.ok and "not measured: contradicting rules, questions near the lessons" in both.text


def test_the_answer_of_a_lesson_may_not_spread_to_its_neighbours() -> None:
    before = arm([0.0] * 40)
    assert checks.neighbours("neighbours", before, arm([0.0] * 39 + [1.0])).ok
    assert not checks.neighbours("neighbours", before, arm([0.0] * 30 + [1.0] * 10)).ok
    assert checks.neighbours("neighbours", arm([1.0] * 20 + [0.0] * 20), before).ok


@pytest.mark.parametrize(("after", "ok"), [(3.0, True), (3.019, True), (3.021, False), (2.0, True)])
def test_ordinary_text_may_not_become_less_probable(after: float, ok: bool) -> None:
    assert checks.text_loss(3.0, after, 400).ok == ok


def test_hygiene_sees_lessons_said_aloud_circles_and_rambling() -> None:
    clean = arm([1.0] * 20)

    def failing(after: ArmResult) -> list[str]:
        return [check.name for check in checks.hygiene(clean, after) if not check.ok]

    assert failing(clean) == []
    assert failing(arm([1.0] * 20, ["my lessons say 3"] * 20)) == ["leak phrases"]
    assert failing(arm([1.0] * 20, ["1 2 3 4 " * 5] * 20)) == ["repetition"]
    assert failing(arm([1.0] * 20, length=40)) == ["length"]


# -- the scale
# ---------------------------------------------------------------------------------------------------------


def verdicts(harm_above: float, gain_below: float):
    """An adapter that does harm above one scale and lacks the gain below another; and the scales at
    which it was judged."""
    asked: list[float] = []

    def examine(scale: float) -> dict:
        asked.append(scale)
        harm = Check("drift", scale <= harm_above, scale, 0.0, "harm")
        gain = Check("gain", scale >= gain_below, scale, 0.0, "gain", "gain")
        found = [vars(harm), vars(gain)]
        return {
            "ok": harm.ok and gain.ok,
            "reasons": [c["text"] for c in found if not c["ok"]],
            "checks": found,
        }

    return examine, asked


def test_a_good_adapter_is_judged_once() -> None:
    examine, asked = verdicts(1.0, 0.0)
    assert judge(examine)["scale"] == 1.0 and asked == [1.0]


@pytest.mark.parametrize(
    ("harm_above", "gain_below"), [(0.9, 0.7), (0.3, 0.1), (0.6, 0.4), (0.85, 0.75)]
)
def test_a_weaker_adapter_is_found_where_there_is_one(harm_above: float, gain_below: float) -> None:
    examine, _ = verdicts(harm_above, gain_below)
    verdict = judge(examine)
    assert verdict["ok"] and gain_below <= verdict["scale"] <= harm_above
    assert verdict["scale"] > harm_above - 2 * FINEST, (
        "the largest one, as far as the bisection goes"
    )


@pytest.mark.parametrize(("harm_above", "gain_below"), [(0.4, 0.6), (0.0, 0.0), (1.0, 1.1)])
def test_where_no_scale_passes_the_full_one_is_refused_with_its_reasons(
    harm_above: float, gain_below: float
) -> None:
    examine, asked = verdicts(harm_above, gain_below)
    verdict = judge(examine)
    assert not verdict["ok"] and verdict["scale"] == 1.0 and verdict["reasons"]
    assert len(asked) <= 6 and [row["scale"] for row in verdict["scales"]] == asked


def test_a_harvest_that_kept_few_is_said() -> None:
    few = {"tasks": 10, "attempts": 100, "kept": 13, "enough": 1.0}
    stages = {"harvest": {"tasksets": {"house.jsonl": few, "letters": few | {"kept": 60}}}}
    (text,) = harvest_notices(stages)
    assert text.startswith("Of 100 attempts at house.jsonl") and "13 were kept" in text
    assert "max_tokens" in text and harvest_notices({}) == []
