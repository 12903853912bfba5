"""Estimated cost of a night: answers to sample, rows to train on, tokens, time, disk.

The time follows from the speed of earlier nights on this machine, in seconds per row; the rows of a
night are its sampled answers and its training rows. Before the first night only the budget is
known, which is the time of training alone.

Not covered: other work on the machine, and answers that are much longer than those of earlier days.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, TypedDict

from reflect.adapters import registry
from reflect.store import nights as nights_db
from reflect.store.runs import mean_tokens
from reflect.training.plan import PER_LESSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmodel import Session

    from reflect.records import Night
    from reflect.training.context import NightContext


class NightRows(TypedDict):
    """About how many tasks a night uses, answers it samples and rows it trains on, at most."""

    tasks: int
    answers: int
    trained: int


NIGHTS = 5  # the newest ones, whose speed counts


def rows(plan: Mapping[str, Any], lessons: int, tasksets: int) -> NightRows:
    """The rows of a night with this plan (`Plan.shape`).

    Answers: two arms of preflight, the teacher's attempts, the anchors, the gate's four arms on
    holdout and two on other tasks, and the student's attempts.
    """
    tasks = max(plan["fewest_tasks"] * tasksets, plan["tasks_per_lesson"] * lessons)
    gate_tasks = max(plan["gate_tasks"] * tasksets, PER_LESSON * lessons)
    sampled = tasks * (2 + plan["samples"]) + plan["anchors"] + 6 * gate_tasks
    steps = sum(steps for name, steps, _ in plan["stages"] if name != "sft")  # by the student
    sampled += round(steps * plan["batch"] * (1 - plan["anchor_share"]))
    trained = plan["steps"] * plan["batch"]
    if plan.get("placebo"):
        sampled += tasks + gate_tasks
        trained += plan["stages"][0][1] * plan["batch"]
    return {"tasks": tasks, "answers": sampled, "trained": trained}


class CostEstimate(NightRows):
    """`measured`: how many nights of this base gave `seconds`; with 0 the budget did. `tokens` is
    None before the first attempt at the tasks."""

    tokens: int | None
    seconds: float
    measured: int


def estimate(ctx: NightContext) -> CostEstimate:
    """What a night would cost, before anything runs."""
    work = rows(ctx.plan.shape(), len(ctx.lessons), len(ctx.tasksets))
    with ctx.store.read() as s:
        each = mean_tokens(s, [item.taskset.name for item in ctx.tasksets])
        every = (_speed(ctx, s, night) for night in nights_db.list_nights(s))
        speeds = [speed for speed in every if speed][:NIGHTS]
    total = work["answers"] + work["trained"]
    # The lower median, because an interrupted night counts the hours of its interruption.
    seconds = total * statistics.median_low(speeds) if speeds else ctx.plan.budget * 60
    tokens = round(total * each) if each else None
    return CostEstimate(**work, tokens=tokens, seconds=round(seconds, 1), measured=len(speeds))


def _speed(ctx: NightContext, s: Session, night: Night) -> float | None:
    """Seconds per row of a complete night on this machine with this base; None for another one."""
    if night.ended is None or night.adapter_id is None:
        return None
    adapter = nights_db.get_adapter(s, night.adapter_id)
    base = adapter.base_fingerprint == ctx.model.fingerprint
    if not base or not registry.exists(adapter.name, ctx.settings):
        return None
    try:
        preflight = night.stages["preflight"]
        work = rows(night.config, len(preflight["lessons"]), len(preflight["tasksets"]))
    except (KeyError, TypeError, ValueError):  # the plan of another version
        return None
    return (night.ended - night.started).total_seconds() / (work["answers"] + work["trained"])


def describe(cost: CostEstimate, disk: str) -> str:
    """The estimate as a sentence."""
    seconds, measured = cost["seconds"], cost["measured"]
    time = f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"
    if measured:
        nights = f"{measured} nights" if measured > 1 else "1 night"
        time = f"about {time}, at the speed of the last {nights} here"
    else:
        time += " of training by its budget, plus sampling, which no night here has measured yet"
    tokens = f" ({cost['tokens']:,} tokens)" if cost["tokens"] else ""
    return (
        f"It needs about {cost['tasks']} tasks, {cost['answers']:,} answers and "
        f"{cost['trained']:,} rows of training{tokens}; {time}; and {disk} of disk."
    )
