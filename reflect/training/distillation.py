"""The stages of a night that learn from the teacher, and the anchors: the rows of one step.

The teacher is the same network with the adapter off and the lessons in its prompt. `sft` takes the
teacher's good attempts, `distill` lets the student attempt the tasks itself and compares, token by
token, over the whole vocabulary. Every step also has anchors: prompts outside the night, on which
the student keeps the distribution of the base.

All randomness follows from (seed, step), so a training that was killed ends with the same weights
as one that was not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reflect.models.base import Request
from reflect.training import collectives
from reflect.training.examples import Example, Question
from reflect.training.losses import TrainingRow
from reflect.training.teacher_episodes import hash_seed, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData


@dataclass(frozen=True)
class Student:
    """What is trained: the adapter `name`, or with None the network itself; by which plan, on which
    data."""

    model: LocalModel
    name: str | None
    data: TrainingData
    plan: Plan


@dataclass(frozen=True)
class DistillationStep:
    """The rows of one step, its figures, and the number of rollouts that it sampled."""

    rows: list[TrainingRow]
    figures: dict[str, float] = field(default_factory=dict)
    rollouts: int = 0


def sft(student: Student, step: int, size: int) -> DistillationStep:
    """The teacher's good attempts without lessons in the prompt, drawn by their weights."""
    rng, harvest = random.Random(f"sft {student.plan.seed} {step}"), student.data.harvest
    drawn = rng.choices(harvest, weights=[example.weight for example in harvest], k=size)
    return DistillationStep(rows_of(student.model, drawn, "nll"))


def distill(student: Student, step: int, size: int) -> DistillationStep:
    """On-policy: the student attempts tasks without lessons; the teacher scores every token of
    them. In a task of several turns a question is one turn, in a state that the teacher reached."""
    model, plan = student.model, student.plan
    rng = random.Random(f"distill {plan.seed} {step}")
    questions = [rng.choice(student.data.questions) for _ in range(size)]
    answers = answers_of(student, questions, f"{plan.seed}/{step}")
    examples = [Example(*pair) for pair in zip(questions, answers, strict=True) if pair[1]]
    return DistillationStep(rows_of(model, examples, plan.divergence), rollouts=size)


def anchors(student: Student, step: int, size: int) -> list[TrainingRow]:
    """The base's answers to prompts outside the night, which the student must keep."""
    rng = random.Random(f"anchors {student.plan.seed} {step}")
    drawn = rng.choices(student.data.anchors, k=size) if student.data.anchors else []
    return rows_of(student.model, drawn, "forward")


def rows_of(model: LocalModel, examples: Sequence[Example], loss: str) -> list[TrainingRow]:
    """The examples as rows with that loss."""
    return [TrainingRow(*prompts_of(model, x.question), x.answer, loss) for x in examples]


def answers_of(student: Student, questions: Sequence[Question], salt: str) -> list[list[int]]:
    """One sampled answer to each student prompt, as token ids with the end token if it ended."""
    model, limits = student.model, (student.data.max_tokens, student.plan.temperature)
    requests = [
        Request(x.student, (hash_seed(f"{salt}/{i}"),), *limits, tools=tuple(x.tools))
        for i, x in enumerate(questions)
    ]
    with model.using(student.name):
        answers = collectives.sample(model, requests)
    return [tokens_of(model, completions[0]) for completions in answers]


def prompts_of(model: LocalModel, question: Question) -> tuple[list[int], list[int]]:
    """The prompt as the student sees it and as the teacher sees it, as token ids."""
    tools: dict[str, Any] = {"tools": question.tools} if question.tools else {}
    student = model.encode(question.student, **tools)
    if question.teacher == question.student:
        return student, student
    return student, model.encode(question.teacher, **tools)
