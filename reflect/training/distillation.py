"""The stages of a night that learn from the teacher, and the anchors: what rows does a step hold?

The teacher is the same network with the adapter off and the lessons in its prompt. `sft` takes the
teacher's good attempts, `distill` lets the student attempt the tasks itself and compares, token by
token, over the whole vocabulary. Every step also holds anchors: prompts outside the night, on which
the student is held to the bare base's own distribution.

All randomness follows from (seed, step), so a training that was killed ends with the same weights
as one that was not.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from reflect.models.base import Request
from reflect.training import collectives
from reflect.training.losses import TrainingRow
from reflect.training.teacher_episodes import hash_seed, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.training.examples import Question
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData


class DistillationStep(NamedTuple):
    """The rows of one step, and what there is to tell of them: figures, and how many rollouts they
    cost."""

    rows: list[TrainingRow]
    told: dict[str, float] = {}  # noqa: RUF012 (of a NamedTuple, never written)
    rollouts: int = 0


def sft(
    model: LocalModel, name: str | None, data: TrainingData, plan: Plan, step: int, size: int
) -> DistillationStep:
    """The teacher's good attempts, the lessons stripped from the prompt; what the bare model fails
    comes more often."""
    rng = random.Random(f"sft {plan.seed} {step}")
    drawn = rng.choices(data.harvest, weights=[example.weight for example in data.harvest], k=size)
    return DistillationStep(
        [
            TrainingRow(*prompts_of(model, example.question), example.answer, "nll")
            for example in drawn
        ]
    )


def distill(
    model: LocalModel, name: str | None, data: TrainingData, plan: Plan, step: int, size: int
) -> DistillationStep:
    """On-policy: the student attempts tasks without lessons; the teacher judges every token that it
    wrote. In a task of several turns a question is one turn, in a state that the teacher came to
    (see `episodes`)."""
    rng = random.Random(f"distill {plan.seed} {step}")
    questions = [rng.choice(data.questions) for _ in range(size)]
    answers = answers_of(model, name, questions, plan, f"{plan.seed}/{step}", data.max_tokens)
    rows = [
        TrainingRow(*prompts_of(model, question), answer, plan.divergence)
        for question, answer in zip(questions, answers, strict=True)
        if answer
    ]
    return DistillationStep(rows, rollouts=size)


def anchors(
    model: LocalModel, data: TrainingData, plan: Plan, step: int, size: int
) -> list[TrainingRow]:
    """What the base says to prompts outside the night; the student must go on saying it."""
    rng = random.Random(f"anchors {plan.seed} {step}")
    drawn = rng.choices(data.anchors, k=size) if data.anchors else []
    return [
        TrainingRow(*prompts_of(model, example.question), example.answer, "forward")
        for example in drawn
    ]


def answers_of(
    model: LocalModel,
    name: str | None,
    questions: Sequence[Question],
    plan: Plan,
    salt: str,
    max_tokens: int,
) -> list[list[int]]:
    """One sampled answer to each question as the student sees it, as token ids with the end token
    where it ended."""
    requests = [
        Request(
            messages=question.student,
            seeds=(hash_seed(f"{salt}/{i}"),),
            max_tokens=max_tokens,
            temperature=plan.temperature,
            tools=tuple(question.tools),
        )
        for i, question in enumerate(questions)
    ]
    with model.using(name):
        done = [completions[0] for completions in collectives.sample(model, requests)]
    return [tokens_of(model, c) for c in done]


def prompts_of(model: LocalModel, question: Question) -> tuple[list[int], list[int]]:
    """The prompt as the student sees it and as the teacher sees it, as token ids."""
    tools: dict[str, Any] = {"tools": question.tools} if question.tools else {}
    student = model.encode(question.student, **tools)
    return student, student if question.teacher == question.student else model.encode(
        question.teacher, **tools
    )
