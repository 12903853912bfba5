"""The lines of the gate's report: each check is a small function from figures to a verdict with its
reason.

A check of kind `gain` asks whether the adapter brings what the lessons bring, `harm` whether it
takes something away (a weaker adapter may pass), `proof` whether the gain is what it seems.

A check with too little to measure says so: it is neither passed nor failed. With too few checks
left, nothing is promoted (`coverage`).

A drop is harm when its 99 % interval lies below the margin: a dozen such checks give a false alarm
in about one night of sixteen. Not covered: few tasks, where a bootstrap interval is too narrow.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reflect.evaluation.arms import ArmResult, paired_difference
from reflect.stats.bootstrap import Means, bootstrap
from reflect.tasksets.verifiers import exact
from reflect.types import CheckArea, CheckKind

if TYPE_CHECKING:
    from collections.abc import Sequence

ENOUGH = 0.8  # share of the gain that must survive in the weights
PLACEBO_MOST = 0.5  # share of the gain that an adapter trained on shuffled lessons may have
MARGIN = 0.01  # a drop of one point beyond noise is harm
LEVEL = 0.99  # of the interval of a drop
DRIFT_WARNS, DRIFT_STOPS = 0.05, 0.3  # bits per token
KEPT = 0.7  # of pass@k and of the entropy
OBEYED = 0.8  # of the rules in a prompt that contradict a distilled lesson
LEAST_BITS = 0.02  # entropy per token below which there is nothing to collapse
# text of the prompt in an answer
LEAKS = re.compile(r"\blessons?\b|\bwhen:|\bdo:|\[end|system prompt", re.IGNORECASE)
LEAKS_MOST, REPEATS_MOST = 0.02, 0.05  # share of the answers, beyond the base's
ERRORS_MOST = 0.02  # share of the tasks that it may leave without an answer
LONGER, LONGER_BY = 1.5, 8  # than the teacher's answers, in tokens
FEWEST = 8  # tasks or texts of a check; with fewer it is not measured
TEXT_MOST = 0.02  # nats per token that ordinary text may become less probable
FEWEST_AREAS = 2  # of CheckArea, measured


@dataclass(frozen=True)
class Check:
    """One line of the gate's report."""

    name: str
    ok: bool
    value: float
    limit: float
    text: str
    kind: CheckKind = CheckKind.HARM
    area: CheckArea | None = None
    measured: bool = True
    """False: there was too little to measure: neither passed nor failed, but `ok` is False."""

    @property
    def failed(self) -> bool:
        """Whether it speaks against the adapter."""
        return self.measured and not self.ok


def not_measured(name: str, why: str, area: CheckArea | None = None) -> Check:
    """A check without enough to measure."""
    return Check(name, False, 0.0, 0.0, f"{name}: {why}", area=area, measured=False)


def coverage(checks: Sequence[Check]) -> Check:
    """Whether enough could be measured to promote an adapter: FEWEST_AREAS of the areas of harm."""
    areas = sorted({check.area for check in checks if check.measured and check.area})
    missing = sorted(set(CheckArea) - set(areas))
    text = f"harm is measured in {len(areas)} of {len(CheckArea)} areas"
    text += f"; not measured: {', '.join(missing)}" if missing else ""
    ok = len(areas) >= FEWEST_AREAS
    return Check("coverage", ok, len(areas), FEWEST_AREAS, text, CheckKind.PROOF)


class Probe(NamedTuple):
    """One answer outside the night: its tokens, and sums over them in bits (see `gate.drift`)."""

    tokens: int
    drift: float
    base_entropy: float
    entropy: float


Triple = tuple[float, float, float]  # rewards of one task in the arms base, lessons, adapter


# -- gain


def recovered(triples: Sequence[Triple]) -> tuple[float, float]:
    """Share of the lessons' gain that the weights keep, with its lower 95 % bootstrap bound."""
    if not triples:
        return 0.0, 0.0
    share = float(_share(np.asarray(triples).sum(axis=0)))
    return share, bootstrap(triples, statistic=_share)[0]


def _share(means: Means) -> Means:
    """From (base, lessons, adapter); 0 if the lessons bring no gain."""
    base, lessons, adapter = (means[..., i] for i in range(3))
    gained = lessons > base
    return np.where(gained, (adapter - base) / np.where(gained, lessons - base, 1.0), 0.0)


def gain(triples: Sequence[Triple]) -> Check:
    """Whether the adapter recovers the gain of the lessons."""
    if not triples:
        text = "there are no holdout tasks for these lessons, so nothing is proven"
        return Check("gain", False, 0.0, ENOUGH, text, CheckKind.GAIN)
    share, low = recovered(triples)
    text = (
        f"the weights keep {share:.0%} of the gain that the lessons give in the prompt "
        f"(at least {low:.0%})"
    )
    return Check("gain", share >= ENOUGH and low > 0, share, ENOUGH, text, CheckKind.GAIN)


def placebo(triples: Sequence[Triple]) -> Check:
    """`triples` with the placebo's rewards in the third place."""
    share, _ = recovered(triples)
    text = f"an adapter that was trained on shuffled lessons shows {share:.0%} of the gain"
    return Check("placebo", share < PLACEBO_MOST, share, PLACEBO_MOST, text, CheckKind.PROOF)


def taskset(name: str, base: ArmResult, adapter: ArmResult) -> Check:
    """A taskset that got worse than the base is not balanced by one that got better."""
    check = no_harm(f"{name} without lessons", base, adapter)
    return replace(check, name=f"taskset {name}", kind=CheckKind.GAIN)


# -- harm


def no_harm(name: str, before: ArmResult, after: ArmResult, area: CheckArea | None = None) -> Check:
    """`after` may be lower than `before` by no more than the margin beyond noise."""
    mean, _, high = paired_difference(after, before, level=LEVEL)
    text = f"{name}: {before.reward:.2f} before, {after.reward:.2f} now, on {after.n} tasks"
    return Check(name, high >= -MARGIN, mean, -MARGIN, text, area=area)


def neighbours(name: str, before: ArmResult, after: ArmResult) -> Check:
    """Questions like those of a lesson about something else. `before`, `after`: how often the base
    and the adapter give the lesson's answer to them, which may not grow beyond noise."""
    mean, low, _ = paired_difference(after, before, level=LEVEL)
    text = (
        f"{name}: the lesson's answer is given in {after.reward:.0%} of {after.n} questions about "
        f"something else, {before.reward:.0%} before"
    )
    return Check(name, low <= MARGIN, mean, MARGIN, text, area=CheckArea.NEAR)


def text_loss(before: float, after: float, tokens: int) -> Check:
    """Whether ordinary English became less probable; in nats per token."""
    text = f"a page of English: {before:.3f} nats per token before, {after:.3f} now"
    rise = after - before
    return Check("text", rise <= TEXT_MOST, rise, TEXT_MOST, text, area=CheckArea.OUTSIDE)


def drift(probes: Sequence[Probe]) -> Check:
    """How far the adapter moves the base on unrelated tasks, in bits per token."""
    if len(probes) < FEWEST:
        why = f"only {len(probes)} answers outside the night to compare"
        return not_measured("drift", why, CheckArea.OUTSIDE)
    bits = sum(p.drift for p in probes) / sum(p.tokens for p in probes)
    warning = ", which is a lot" if bits > DRIFT_WARNS else ""
    text = f"on tasks outside the night it is {bits:.3f} bits per token away from the base{warning}"
    return Check("drift", bits <= DRIFT_STOPS, bits, DRIFT_STOPS, text, area=CheckArea.OUTSIDE)


def entropy(probes: Sequence[Probe]) -> Check:
    """Outside the night the adapter may not be surer than the base beyond noise (of the probes)."""
    if len(probes) < FEWEST:
        return not_measured("entropy", f"only {len(probes)} answers outside the night to compare")
    tokens = sum(p.tokens for p in probes)
    before, now = sum(p.base_entropy for p in probes), sum(p.entropy for p in probes)
    before, now = before / tokens, now / tokens
    text = f"entropy outside the night: {before:.3f} bits per token before, {now:.3f} now"
    if before <= LEAST_BITS:
        return Check("entropy", True, 1.0, KEPT, text)
    # the share is below KEPT beyond noise where the mean of `entropy - KEPT * base` is below 0
    # beyond noise
    _, high = bootstrap([p.entropy - KEPT * p.base_entropy for p in probes], level=LEVEL)
    return Check("entropy", high >= 0, now / before, KEPT, text)


def pass_at_k(k: int, before: Sequence[float], after: Sequence[float]) -> Check:
    """`before`, `after`: per task, whether one of k attempts passes: base with lessons, adapter."""
    was, now = _mean(before), _mean(after)
    if not was:
        return not_measured("pass@k", "the base with lessons passes no task")
    share = now / was
    text = (
        f"pass@{k}: {was:.2f} with lessons in the prompt, {now:.2f} by the adapter without, "
        f"on {len(after)} tasks"
    )
    return Check("pass@k", share >= KEPT, share, KEPT, text)


def obeyed(
    ruled: Sequence[str], free: Sequence[str], now: Sequence[str], marks: Sequence[str] = ()
) -> list[float]:
    """1 or 0 for each task in which the base obeys a contradicting rule: does the adapter too?

    `ruled`: the base's answers under the rule, `free`: under the true lesson, `now`: the adapter's
    under the rule. With `marks` an answer that holds its mark obeys. Without them the rule made a
    difference to the base's final answer, and the adapter must give the same one.
    """
    if marks:
        rows = zip(ruled, now, marks, strict=True)
        return [float(m in new.casefold()) for old, new, m in rows if m in old.casefold()]
    answers = zip(ruled, free, now, strict=True)
    return [exact(new, old).reward for old, true, new in answers if not exact(true, old).reward]


def override(obeyed: Sequence[float]) -> Check:
    """A rule in the prompt that contradicts a distilled lesson is still obeyed. `obeyed`: by the
    adapter, see the function `obeyed`."""
    if len(obeyed) < FEWEST:
        why = f"the base obeys a rule that contradicts a distilled lesson in {len(obeyed)} tasks"
        return not_measured("override", why, CheckArea.RULES)
    share, high = _mean(obeyed), bootstrap(obeyed)[1]
    text = (
        f"a rule that contradicts a distilled lesson is obeyed as before in {share:.0%} of "
        f"{len(obeyed)} tasks"
    )
    return Check("override", high >= OBEYED, share, OBEYED, text, area=CheckArea.RULES)


def answers(arms: Sequence[ArmResult]) -> Check:
    """An adapter whose numbers are not finite gives no answer at all."""
    errors, n = sum(arm.errors for arm in arms), max(1, sum(arm.n for arm in arms))
    text = f"it gave no answer, or none that could be scored, to {errors} of {n} tasks"
    return Check(
        "answers", errors <= ERRORS_MOST * n, errors / n, ERRORS_MOST, text, CheckKind.PROOF
    )


# -- hygiene


def hygiene(before: ArmResult, after: ArmResult) -> list[Check]:
    """Whether the adapter names its lessons, rambles or repeats more than the base with lessons."""
    results = []
    for name, test, most, text in (
        ("leak phrases", LEAKS.search, LEAKS_MOST, "of its answers mention lessons or the prompt"),
        ("repetition", repeats, REPEATS_MOST, "of its answers repeat themselves"),
    ):
        was, share = (_mean([bool(test(x)) for x in arm.answers]) for arm in (before, after))
        limit = was + most
        results.append(Check(name, share <= limit, share, limit, f"{share:.0%} {text}"))
    was, length = (_mean(arm.lengths) for arm in (before, after))
    most = LONGER * was + LONGER_BY
    text = f"its answers have {length:.0f} tokens on average"
    return [*results, Check("length", length <= most, length, most, text)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def repeats(text: str, n: int = 4, times: int = 4) -> bool:
    """Whether some run of n words occurs so many times."""
    words = text.split()
    runs = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return max(runs.values(), default=0) >= times
