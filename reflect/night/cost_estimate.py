"""Estimated cost of a night: answers to sample, rows to train on, tokens, time, disk.

The time is that of earlier nights on this machine, for as much work: a night counts as its rows,
which are the answers that it samples and the rows of its training steps. Where there was no night
yet nothing has been measured, and all that can be said is the budget, which is the time for
training alone.

Not covered: other work on the machine, and nights whose answers are much longer than those of the
days before.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session

from reflect.adapters import registry
from reflect.config import Settings
from reflect.records import Night
from reflect.store import Store
from reflect.store import nights as nights_db
from reflect.store.runs import mean_tokens
from reflect.training.lesson_set import TasksetLessons
from reflect.training.plan import Plan

NIGHTS = 5  # earlier ones whose speed counts


def rows(plan: Mapping[str, Any], lessons: int, tasksets: int) -> dict[str, int]:
    """About how many tasks a night practises, answers it samples and rows it trains on, at most.

    Two arms of preflight, the teacher's attempts, the anchors, the gate's four arms on holdout and
    two on other tasks.
    """
    from reflect.training.plan import PER_LESSON  # torch

    tasks = max(plan["fewest_tasks"] * tasksets, plan["tasks_per_lesson"] * lessons)
    judged = max(plan["gate_tasks"] * tasksets, PER_LESSON * lessons)
    sampled = tasks * (2 + plan["samples"]) + plan["anchors"] + 6 * judged
    steps = sum(
        steps for name, steps, _ in plan["stages"] if name != "sft"
    )  # in which the student makes attempts
    sampled += round(steps * plan["batch"] * (1 - plan["anchor_share"]))
    trained = plan["steps"] * plan["batch"]
    if plan.get("placebo"):
        sampled, trained = sampled + tasks + judged, trained + plan["stages"][0][1] * plan["batch"]
    return {"tasks": tasks, "answers": sampled, "trained": trained}


def estimate(
    store: Store, settings: Settings, subjects: Sequence[TasksetLessons], plan: Plan, base: str
) -> dict[str, Any]:
    """{tasks, answers, trained, tokens, seconds, measured}; `measured` nights of this base (a
    fingerprint) gave the seconds, 0: the budget did. Tokens are None where no attempt was ever made
    here."""
    lessons = {lesson.id for subject in subjects for lesson in subject.lessons}
    work = rows(plan.shape(), len(lessons), len(subjects))
    with store.read() as s:
        each = mean_tokens(s, [subject.taskset.name for subject in subjects])
        speeds = [
            speed
            for night in nights_db.list_nights(s)
            if (speed := _speed(s, settings, night, base))
        ][:NIGHTS]
    total = work["answers"] + work["trained"]
    # The lower median: a night that was interrupted counts the hours in which nobody worked on it.
    seconds = total * statistics.median_low(speeds) if speeds else plan.budget * 60
    tokens = round(total * each) if each else None
    return work | {"tokens": tokens, "seconds": round(seconds, 1), "measured": len(speeds)}


def _speed(s: Session, settings: Settings, night: Night, base: str) -> float | None:
    """Seconds a row of a night that went through all its stages on this machine; None for another
    one."""
    if night.ended is None or night.adapter_id is None:
        return None
    adapter = nights_db.get_adapter(s, night.adapter_id)
    found = night.stages.get("preflight", {})
    if (
        adapter.base_fingerprint != base
        or not registry.exists(adapter.name, settings)
        or "tasksets" not in found
    ):
        return None
    try:
        work = rows(night.config, len(found["lessons"]), len(found["tasksets"]))
    except (KeyError, TypeError, ValueError):  # a plan of another version
        return None
    return (night.ended - night.started).total_seconds() / (work["answers"] + work["trained"])


def in_words(cost: Mapping[str, Any], disk: str) -> str:
    minutes = (
        f"{cost['seconds'] / 60:.1f} min" if cost["seconds"] >= 100 else f"{cost['seconds']:.0f} s"
    )
    if cost["measured"]:
        nights = f"{cost['measured']} nights" if cost["measured"] > 1 else "1 night"
        time = f"about {minutes}, as fast as the last {nights} here"
    else:
        time = f"{minutes} of training by its budget, and the time for the answers, which no night here has measured"
    tokens = f" ({cost['tokens']:,} tokens)" if cost["tokens"] else ""
    return (
        f"It takes about {cost['tasks']} tasks, {cost['answers']:,} answers and {cost['trained']:,} rows of training"
        f"{tokens}; {time}; and {disk} of disk."
    )
