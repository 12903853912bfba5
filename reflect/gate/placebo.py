"""The placebo of a night: the same tasks and the same training, but each lesson with another one's
advice.

If an adapter that was slept on that shows the gain too, the gain is not the lessons'.

Not covered: the placebo is trained by the warm start alone, whatever the method of the night.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from reflect.config import Settings
from reflect.rollouts.runner import messages_for
from reflect.store import Store
from reflect.tasksets import isolation
from reflect.tasksets.base import has_environment
from reflect.training import teacher_episodes
from reflect.training.examples import Example, Question
from reflect.training.lesson_set import TasksetLessons, practice_rows
from reflect.training.plan import Plan
from reflect.training.teacher_data import (
    TrainingData,
    advice_of,
    contradicted,
    guarded,
    sample,
    scored,
)
from reflect.training.teacher_episodes import tokens_of
from reflect.types import Progress

FEWEST = 8  # good attempts that are worth training on; with fewer it trains on all


def placebo_data(
    model: Any,
    store: Store,
    subjects: Sequence[TasksetLessons],
    data: TrainingData,
    settings: Settings,
    plan: Plan,
    progress: Progress | None = None,
) -> TrainingData:
    """As `harvest`, under shuffled lessons: what has as much reward as there, or all where hardly
    anything has. The anchors are the night's. Nothing to train on where no other advice is
    known."""
    advice, rng = other_advice(subjects), random.Random(f"placebo {plan.seed}")
    good: list[list[Example]] = []  # for each attempt its answers
    rest: list[list[Example]] = []
    for subject in subjects:
        rows = practice_rows(model, store, subject, settings, plan)
        wrong = contradicted(rows, advice, rng)
        enough = data.figures["tasksets"][subject.taskset.name].get(
            "enough", 1.0
        )  # older nights: the full reward
        if not wrong:
            continue
        if has_environment(subject.taskset):
            for group in teacher_episodes.teach(
                model, subject.taskset, wrong, settings, plan, 1, "placebo", progress
            ):
                for one in (one for one in group if one.row.trust == "clean"):
                    bare = dataclasses.replace(one.task, lessons=())
                    (good if teacher_episodes.good(one, enough) else rest).append(
                        teacher_episodes.examples(model, one, bare)
                    )
            continue
        questions = [
            Question(messages_for(task), messages_for(told))
            for (task, _), (told, _) in zip(rows, wrong, strict=True)
        ]
        answers = sample(
            model, [q.teacher for q in questions], settings, plan, 1, "placebo", progress
        )
        with isolation.batch():
            for (task, _), question, (done,) in zip(rows, questions, answers, strict=True):
                if done.tokens and done.finish == "stop":
                    score = scored(subject.taskset, task, done.text)
                    if not isolation.flagged(score):
                        (good if score.reward >= enough else rest).append(
                            [Example(question, tokens_of(model, done))]
                        )
    kept = good if len(good) >= FEWEST else good + rest
    return dataclasses.replace(data, harvest=[example for made in kept for example in made])


def other_advice(subjects: Sequence[TasksetLessons]) -> list[str]:
    """What all lessons of the night advise; where that is one thing only, also what new lessons
    elsewhere advise."""
    found = {do for subject in subjects for do in advice_of(subject)}
    if len(found) < 2:
        found |= {
            do for t in guarded(subjects) for task in t.following(16) for _, do in task.lessons
        }
    return sorted(found)


def placebo_plan(plan: Plan) -> Plan:
    """The plan's first stage, as a warm start."""
    _, steps, rate = plan.stages[0]
    return dataclasses.replace(plan, method="sft", stages=(("sft", steps, rate),), start="")
