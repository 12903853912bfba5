"""The placebo of a night: the same tasks and training, each lesson with another lesson's advice.

If an adapter that was trained on it shows the gain too, the gain is not due to the lessons.

Not covered: the placebo is trained by the warm start alone, whatever the method of the night.
"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

from reflect.rollouts.episode import messages_for
from reflect.tasksets import isolation
from reflect.tasksets.base import has_environment
from reflect.training.examples import Example, Question
from reflect.training.guards import advice_of, contradicted, guards_of
from reflect.training.lesson_set import practice_rows
from reflect.training.sampling import sample, scored
from reflect.training.teacher_episodes import examples, successful, teach, tokens_of
from reflect.types import Trust

if TYPE_CHECKING:
    from reflect.training.context import NightContext
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData

FEWEST = 8  # successful attempts; with fewer it trains on all attempts


def placebo_data(ctx: NightContext, data: TrainingData) -> TrainingData:
    """As `harvest`, under shuffled lessons: the attempts with as much reward as there, or all where
    few have it. The anchors are the night's. Without other advice there is nothing to train on."""
    advice, rng = other_advice(ctx), random.Random(f"placebo {ctx.plan.seed}")
    good: list[list[Example]] = []  # per attempt the examples of its answers
    rest: list[list[Example]] = []
    for item in ctx.tasksets:
        taskset, rows = item.taskset, practice_rows(ctx, item)
        wrong = contradicted(rows, advice, rng)
        enough = data.figures["tasksets"][taskset.name].get("enough", 1.0)  # none in older nights
        if not wrong:
            continue
        if has_environment(taskset):
            episodes = [x for group in teach(ctx, taskset, wrong, 1, "placebo") for x in group]
            for one in (x for x in episodes if x.row.trust == Trust.CLEAN):
                answers = examples(ctx.model, one, dataclasses.replace(one.task, lessons=()))
                (good if successful(one, enough) else rest).append(answers)
            continue
        questions = [
            Question(messages_for(task), messages_for(changed))
            for (task, _), (changed, _) in zip(rows, wrong, strict=True)
        ]
        completions = sample(ctx, [q.teacher for q in questions], 1, "placebo")
        with isolation.batch():
            for (task, _), question, (done,) in zip(rows, questions, completions, strict=True):
                if done.tokens and done.finish == "stop":
                    score = scored(taskset, task, done.text)
                    if not isolation.flagged(score):
                        example = Example(question, tokens_of(ctx.model, done))
                        (good if score.reward >= enough else rest).append([example])
    attempts = good if len(good) >= FEWEST else good + rest
    return dataclasses.replace(data, harvest=[x for attempt in attempts for x in attempt])


def other_advice(ctx: NightContext) -> list[str]:
    """The advice of the night's lessons; for a single one also that of new lessons elsewhere."""
    advice = {do for item in ctx.tasksets for do in advice_of(item)}
    if len(advice) < 2:
        tasksets = guards_of(ctx).tasksets(ctx, ctx.tasksets)
        tasks = [task for taskset in tasksets for task in taskset.following(16)]
        advice |= {do for task in tasks for _, do in task.lessons}
    return sorted(advice)


def placebo_plan(plan: Plan) -> Plan:
    """The plan's first stage, as a warm start."""
    _, steps, rate = plan.stages[0]
    return dataclasses.replace(plan, method="sft", stages=(("sft", steps, rate),), start="")
