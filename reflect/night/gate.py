"""The held-out proof that an adapter must pass before promotion.

Four arms on holdout, the same tasks in each: {base, adapter} x {lessons out, lessons in}; then what must not have been
harmed. Each check is a small function that returns its verdict and the figures behind it.

Not covered: harm outside the tasksets that are here, and a holdout that leaks into practice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reflect.config import Settings
from reflect.day.rollout import Progress
from reflect.evaluate import RESAMPLES, ArmResult, paired_difference, run_arm
from reflect.models.local import LocalModel
from reflect.night.checks import MARGIN, Check
from reflect.night.curriculum import Rows, Subject, lesson_effects, rows_for
from reflect.night.distill import drift
from reflect.night.harvest import Data
from reflect.night.plan import Plan
from reflect.night.revoke import check_gone
from reflect.store import Store
from reflect.tasksets import available
from reflect.tasksets.base import Task, Taskset

PER_LESSON = 8  # holdout tasks, where a taskset has many lessons
ENOUGH = 0.8  # share of the gain that must survive in the weights
DRIFT_WARNS, DRIFT_STOPS = 0.05, 0.3  # bits per token
LESSON_ENOUGH = 0.7  # of one lesson's own gain: few tasks are behind it


@dataclass(frozen=True)
class Arms:
    """The four arms of one taskset, paired by task, and the tasks with their lessons."""

    taskset: Taskset
    rows: Rows
    base_out: ArmResult
    base_in: ArmResult
    adapter_out: ArmResult
    adapter_in: ArmResult

    def shape(self) -> dict[str, Any]:
        return {name: getattr(self, name).shape() for name in ARMS}


ARMS = ("base_out", "base_in", "adapter_out", "adapter_in")


def four_arms(
    model: LocalModel,
    name: str,
    store: Store,
    subject: Subject,
    settings: Settings,
    plan: Plan,
    progress: Progress | None = None,
) -> Arms:
    """Greedy, one answer to each holdout task in whose prompt a lesson of the night stands."""
    n = max(plan.gate_tasks, PER_LESSON * len(subject.lessons))
    rows = rows_for(model, store, subject, settings, subject.taskset.tasks("holdout"), n)
    bare: Rows = [(task, []) for task, _ in rows]

    def arm(adapter: str | None, what: Rows) -> ArmResult:
        with model.using(adapter):
            return run_arm(model, subject.taskset, what, max_tokens=settings.max_tokens, progress=progress)

    return Arms(subject.taskset, rows, arm(None, bare), arm(None, rows), arm(name, bare), arm(name, rows))


# -- checks ------------------------------------------------------------------------------------------------------------


def recovered(arms: Sequence[Arms]) -> tuple[float, float]:
    """Share of the lessons' gain that the weights keep, over all tasksets, with its lower 95 % bootstrap bound."""
    triples = [
        row for a in arms for row in zip(a.base_out.rewards, a.base_in.rewards, a.adapter_out.rewards, strict=True)
    ]
    rng = random.Random(0)
    shares = sorted(_share(rng.choices(triples, k=len(triples))) for _ in range(RESAMPLES)) if triples else [0.0]
    return _share(triples), shares[int(0.025 * len(shares))]


def _share(triples: Sequence[tuple[float, float, float]]) -> float:
    out, into, adapter = (sum(column) for column in zip(*triples, strict=True)) if triples else (0, 0, 0)
    return (adapter - out) / (into - out) if into > out else 0.0


def check_gain(arms: Sequence[Arms]) -> Check:
    share, low = recovered(arms)
    if not any(a.rows for a in arms):
        return Check("gain", False, 0.0, ENOUGH, "there are no holdout tasks for these lessons, so nothing is proven")
    text = f"the weights keep {share:.0%} of the gain that the lessons give in the prompt (at least {low:.0%})"
    return Check("gain", share >= ENOUGH and low > 0, share, ENOUGH, text)


def check_each_taskset(arms: Arms) -> Check:
    """A taskset that got worse than the bare base cannot hide behind one that got better."""
    mean, _, high = paired_difference(arms.adapter_out, arms.base_out)
    text = f"{arms.taskset.name} without lessons: {arms.base_out.reward:.2f} before, {arms.adapter_out.reward:.2f} now"
    return Check(f"taskset {arms.taskset.name}", high >= -MARGIN, mean, -MARGIN, text)


def check_no_harm(name: str, before: ArmResult, after: ArmResult) -> Check:
    """`after` may be lower than `before` by no more than the margin beyond noise."""
    mean, _, high = paired_difference(after, before)
    text = f"{name}: {before.reward:.2f} before, {after.reward:.2f} now, on {after.n} tasks"
    return Check(name, high >= -MARGIN, mean, -MARGIN, text)


def check_drift(bits: float) -> Check:
    warning = ", which is a lot" if bits > DRIFT_WARNS else ""
    text = f"on tasks outside the night it is {bits:.3f} bits per token away from the base{warning}"
    return Check("drift", bits <= DRIFT_STOPS, bits, DRIFT_STOPS, text)


def held_lessons(arms: Sequence[Arms]) -> dict[str, Any]:
    """Lesson by lesson, over the holdout tasks in whose prompt it stands: how much of its gain do the weights keep?"""
    found: dict[str, Any] = {}
    for a in arms:
        gains = [x - y for x, y in zip(a.base_in.rewards, a.base_out.rewards, strict=True)]
        kept = [x - y for x, y in zip(a.adapter_out.rewards, a.base_out.rewards, strict=True)]
        in_prompt, in_weights = lesson_effects(a.rows, gains), lesson_effects(a.rows, kept)
        for i, e in in_weights.items():
            held = e.mean >= LESSON_ENOUGH * in_prompt[i].mean
            if str(i) not in found or found[str(i)]["n"] < e.n:
                found[str(i)] = asdict(e) | {"verdict": "accept" if held else "reject", "prompt": in_prompt[i].mean}
    return found


# -- the gate ----------------------------------------------------------------------------------------------------------


def gate(
    model: LocalModel,
    name: str,
    store: Store,
    subjects: Sequence[Subject],
    data: Data,
    settings: Settings,
    plan: Plan,
    previous: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge the adapter `name`: {ok, reasons, recovered, arms, checks, lessons, follows_new_lessons, drift}.

    `previous`: the loaded adapter that would be replaced; the lessons that it holds must be held as well.
    """
    arms = [four_arms(model, name, store, subject, settings, plan, progress) for subject in subjects]
    checks = [check_gain(arms), *map(check_each_taskset, arms)]
    if previous:
        checks += [c for a in arms for c in _earlier(model, previous, a, settings)]
    # None of the following tasks was an anchor: those have other seeds.
    new = [(t, t.following(plan.gate_tasks, seed=-1)) for t in _all_tasksets(subjects)]
    unrelated = [(t, t.tasks("holdout", plan.gate_tasks)) for t in available() if t.name in data.figures["outside"]]
    follows: dict[str, dict[str, float]] = {}
    for what, group in (("following new lessons in", new), ("unrelated", unrelated)):
        for taskset, tasks in group:
            if tasks:
                before, after = (_plain(model, who, taskset, tasks, settings, progress) for who in (None, name))
                checks.append(check_no_harm(f"{what} {taskset.name}", before, after))
                if what != "unrelated":
                    follows[taskset.name] = {"base": before.reward, "adapter": after.reward, "n": after.n}
    checks += check_gone(model, name, store, subjects, settings, plan, progress)
    bits = drift(model, name, data, plan)
    checks.append(check_drift(bits))
    return {
        "ok": all(check.ok for check in checks),
        "reasons": [check.text for check in checks if not check.ok],
        "recovered": recovered(arms)[0],
        "arms": {a.taskset.name: a.shape() for a in arms},
        "checks": [asdict(check) for check in checks],
        "lessons": held_lessons(arms),
        "follows_new_lessons": follows,
        "drift": bits,
    }


def _earlier(model: LocalModel, previous: str, arms: Arms, settings: Settings) -> list[Check]:
    """What the weights held until now must still be held, judged on the tasks of those lessons."""
    at = [i for i, (_, lessons) in enumerate(arms.rows) if any(lesson.status == "distilled" for lesson in lessons)]
    if not at:
        return []
    rows: Rows = [(arms.rows[i][0], []) for i in at]
    with model.using(previous):
        before = run_arm(model, arms.taskset, rows, max_tokens=settings.max_tokens)
    after = [arms.adapter_out.rewards[i] for i in at]
    now = ArmResult(sum(after) / len(after), len(after), (0.0, 1.0), after)
    return [check_no_harm(f"earlier lessons of {arms.taskset.name}", before, now)]


def _plain(
    model: LocalModel, adapter: str | None, taskset: Taskset, tasks: Sequence[Task], settings: Settings, progress: Any
) -> ArmResult:
    with model.using(adapter):
        return run_arm(
            model, taskset, [(task, ()) for task in tasks], max_tokens=settings.max_tokens, progress=progress
        )


def _all_tasksets(subjects: Sequence[Subject]) -> list[Taskset]:
    return list({t.name: t for t in (*available(), *(subject.taskset for subject in subjects))}.values())
