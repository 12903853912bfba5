"""Estimated cost of a night: answers to sample, rows to train on, tokens, time, disk.

The time follows from the speed of earlier nights on this machine, in seconds per row; the rows of a
night are its sampled answers and its training rows. Before the first night a few answers and one
training step are measured.

Not covered: other work on the machine, and answers that are much longer than those of earlier days.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from reflect.adapters import registry
from reflect.rollouts.episode import messages_for
from reflect.store import nights as nights_db
from reflect.store.runs import mean_tokens
from reflect.tasksets.base import has_environment
from reflect.training.examples import Example, Question
from reflect.training.lesson_set import practice_rows
from reflect.training.plan import PER_LESSON
from reflect.training.sampling import sample
from reflect.training.teacher_episodes import tokens_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """`measured`: how many nights of this base gave `seconds`; with 0 a few answers and one step
    did. `tokens` is None before the first attempt at the tasks."""

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
    seconds = total * statistics.median_low(speeds) if speeds else _measured(ctx)
    tokens = round(total * each) if each else None
    return CostEstimate(**work, tokens=tokens, seconds=round(seconds, 1), measured=len(speeds))


FEW = 8  # answers that are measured in each arm
PROBE = "cost estimate"


def _measured(ctx: NightContext) -> float:
    """Seconds of the whole night, from a few answers with and without lessons and one step."""
    from reflect.gate.exam import TRIED, TRIES, gate_rows  # torch

    plan, model = ctx.plan, ctx.model
    pairs = [(item, practice_rows(ctx, item)) for item in ctx.tasksets]
    some = [(task, lessons) for _, rows in pairs for task, lessons in rows][:FEW]
    questions = [Question(messages_for(task), messages_for(task, given)) for task, given in some]
    texts = [[q.student for q in questions], [q.teacher for q in questions]]
    each, answers = [], []
    for prompts in texts:
        began = time.monotonic()
        answers += sample(ctx, prompts, 1, PROBE)
        each.append((time.monotonic() - began) / len(prompts))
    examples = [
        Example(question, tokens_of(model, done)[: ctx.sampling.max_tokens // 2])
        for question, (done,) in zip(questions * 2, answers, strict=True)
        if done.tokens
    ]
    step = _step(ctx, examples) if examples else 0.0
    practice = sum(len(rows) for _, rows in pairs)
    gate = sum(len(gate_rows(ctx, item)) for item in ctx.tasksets)
    turns = 4 if any(has_environment(item.taskset) for item in ctx.tasksets) else 1
    tried = TRIES * TRIED * len(pairs)  # of pass@k
    taught = practice * (1 + plan.samples) + 2 * gate + tried
    student = sum(n for name, n, _ in plan.stages if name != "sft") * plan.batch
    alone = practice + plan.anchors + 2 * gate + tried + 4 * plan.gate_tasks
    alone += round(student * (1 - plan.anchor_share))
    steps = plan.steps
    if plan.placebo:
        taught += practice
        alone += gate
        steps += plan.stages[0][1]
    return turns * (taught * each[1] + alone * each[0]) + steps * step


def _step(ctx: NightContext, examples: Sequence[Example]) -> float:
    """Seconds of one training step with such answers, after a smaller one."""
    from reflect.training import distillation  # torch
    from reflect.training.loop import shared_backward

    model, plan = ctx.model, ctx.plan
    anchored = round(plan.anchor_share * plan.batch)
    drawn = [examples[i % len(examples)] for i in range(plan.batch)]
    same = [replace(x, question=Question(x.question.student, x.question.student)) for x in drawn]
    rows = distillation.rows_of(model, drawn[anchored:], "nll")
    rows += distillation.rows_of(model, same[:anchored], "forward")
    model.new_adapter(PROBE, rank=plan.rank, alpha=plan.alpha, seed=plan.seed)
    try:
        parameters = list(model.adapter_parameters(PROBE))
        seconds = 0.0
        for some in (rows[:2], rows):
            began = time.monotonic()
            shared_backward(model, PROBE, some, parameters, plan.micro_tokens)
            seconds = time.monotonic() - began
        return seconds
    finally:
        model.drop_adapter(PROBE)


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
    length = f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"
    if measured:
        nights = f"{measured} nights" if measured > 1 else "1 night"
        length = f"about {length}, at the speed of the last {nights} here"
    else:
        length = f"about {length}, by a few answers and one training step just now"
    tokens = f" ({cost['tokens']:,} tokens)" if cost["tokens"] else ""
    return (
        f"It needs about {cost['tasks']} tasks, {cost['answers']:,} answers and "
        f"{cost['trained']:,} rows of training{tokens}; {length}; and {disk} of disk."
    )
