"""GRPO: reinforcement learning by the verifier's reward alone (DeepSeekMath, arXiv 2402.03300).

A step samples groups of attempts at practice tasks, without lessons. The advantage of an attempt is
how far its reward stands above its group's mean, in the group's standard deviations. A group whose
rewards are all equal says nothing: it is skipped, and another task takes its place (DAPO, arXiv
2503.14476, section 3.2). The loss is a mean over tokens.

In a task of several turns every answer has the advantage of its whole episode. All randomness
follows from (seed, step).
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from reflect.models.base import Completion, Request, SamplingOptions
from reflect.models.distributed import from_first
from reflect.tasksets import isolation
from reflect.training import collectives, teacher_episodes
from reflect.training.distillation import DistillationStep, prompts_of
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.losses import TrainingRow, View, chosen, compare, micro_batches
from reflect.training.teacher_data import TrainingData, scored
from reflect.training.teacher_episodes import any_environment, hash_seed, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.training.plan import Plan

ROUNDS = 4  # of sampling in one step, while groups are missing
TINY = 1e-4  # added to the standard deviation of a group


def grpo(
    model: LocalModel, name: str | None, data: TrainingData, plan: Plan, step: int, size: int
) -> DistillationStep:
    """The rows of `size // plan.group` groups with some variance, fewer where `ROUNDS` rounds find
    no more.

    Its figures: the mean `reward` of all attempts, and the share of the groups with `variance`.
    """
    wanted = max(1, size // plan.group)
    rng = random.Random(f"grpo {plan.seed} {step}")
    rewards: list[list[float]] = []
    rows: list[list[TrainingRow]] = []
    for number in range(ROUNDS):
        missing = wanted - len(rows)
        if not missing or not data.tasks:
            break
        tasks = rng.choices(data.tasks, k=missing)
        groups, scores = sample_groups(model, name, tasks, data, plan, f"{step}/{number}")
        rewards += scores
        rows += [
            group_rows(model, group, values, plan)
            for group, values in zip(groups, scores, strict=True)
            if max(values) > min(values)
        ]
        if min(score for group in rewards[-missing:] for score in group) >= 1.0:
            break  # there is nothing left to learn
    flat = [row for group in rows for row in group]
    if plan.updates > 1:
        flat = with_old_log_probabilities(model, name, flat, plan.micro_tokens)
    every = [score for group in rewards for score in group]
    figures = {
        "reward": sum(every) / max(1, len(every)),
        "variance": sum(max(g) > min(g) for g in rewards) / max(1, len(rewards)),
    }
    return DistillationStep(flat, figures, len(every))


def sample_groups(
    model: LocalModel,
    name: str | None,
    tasks: Sequence[PracticeTask],
    data: TrainingData,
    plan: Plan,
    salt: str,
) -> tuple[list[list[list[Example]]], list[list[float]]]:
    """`plan.group` attempts at each task without lessons: the answers of each (one per turn), and
    the rewards. Only the first process, which has the environments, runs episodes of several
    turns."""
    if from_first(lambda: any_environment(tasks, data.tasksets)):
        options = SamplingOptions(plan.temperature, data.max_tokens, data.limits)
        play = partial(
            teacher_episodes.attempts, model, name, tasks, data.tasksets, plan, salt, options
        )
        return from_first(play)
    requests = [
        Request(
            task.prompt,
            tuple(hash_seed(f"grpo/{plan.seed}/{salt}/{i}/{j}") for j in range(plan.group)),
            max_tokens=data.max_tokens,
            temperature=plan.temperature,
        )
        for i, task in enumerate(tasks)
    ]
    with model.using(name):
        groups = collectives.sample(model, requests)
    rewards = from_first(partial(score, tasks, groups, data))
    answers = [
        [[Example(Question(task.prompt, task.prompt), tokens_of(model, done))] for done in group]
        for task, group in zip(tasks, groups, strict=True)
    ]
    return answers, rewards


def score(
    tasks: Sequence[PracticeTask], groups: Sequence[Sequence[Completion]], data: TrainingData
) -> list[list[float]]:
    """The reward of each attempt of each group."""
    with isolation.batch():
        return [
            [scored(data.tasksets[x.taskset], x.task, done.text).reward for done in group]
            for x, group in zip(tasks, groups, strict=True)
        ]


def group_rows(
    model: LocalModel, group: Sequence[Sequence[Example]], scores: Sequence[float], plan: Plan
) -> list[TrainingRow]:
    """A row for each answer that says anything, with the advantage of its whole attempt. One that
    was cut ends without the end token."""
    rows = []
    encoded: dict[str, list[int]] = {}  # the attempts begin alike
    for attempt, a in zip(group, advantages(scores), strict=True):
        for example in attempt:
            asked = str(example.question.student)
            prompt = encoded[asked] = encoded.get(asked) or prompts_of(model, example.question)[0]
            row = TrainingRow(
                prompt,
                prompt,
                example.answer,
                "policy",
                advantage=a,
                beta=plan.kl,
                temperature=plan.temperature,
            )
            rows += [row] if example.answer else []
    return rows


def advantages(scores: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation of the group; all 0 where the rewards are equal."""
    mean = sum(scores) / len(scores)
    deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [(score - mean) / (deviation + TINY) for score in scores]


def with_old_log_probabilities(
    model: LocalModel, name: str | None, rows: Sequence[TrainingRow], most: int
) -> list[TrainingRow]:
    """The rows with the present log probabilities of their tokens, before the first update."""
    old: dict[int, tuple[float, ...]] = {}
    view = [View(name, "student", frozen=True)]
    with torch.no_grad():
        for batch in micro_batches(rows, model.memory_limits.most(most)):
            values = compare(model, batch, view, lambda row, logits_TV: chosen(logits_TV, row))
            for row, old_T in zip(batch, values, strict=True):
                old[id(row)] = tuple(old_T.tolist())
    return [replace(row, old=old[id(row)]) for row in rows]
