"""GRPO: reinforcement learning by the verifier's reward alone (DeepSeekMath, arXiv 2402.03300).

A step samples groups of attempts at practice tasks, without lessons. The advantage of an attempt is
how far its reward stands above its group's mean, in the group's standard deviations. A group whose
rewards are all equal says nothing: it is skipped, and another task takes its place (DAPO, arXiv
2503.14476, section 3.2). The loss is a mean over tokens.

In a task of several turns every answer has the advantage of its whole episode. All randomness
follows from (seed, step).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from reflect.models.base import Completion, Request, SamplingOptions
from reflect.models.local import LocalModel
from reflect.tasksets import isolation
from reflect.training import collectives, teacher_episodes
from reflect.training.distillation import DistillationStep, prompts_of
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.losses import TrainingRow, View, chosen, compare, micro_batches
from reflect.training.plan import Plan
from reflect.training.teacher_data import TrainingData, reward_of
from reflect.training.teacher_episodes import any_plays, tokens_of

ROUNDS = 4  # of sampling in one step, while groups are missing
TINY = 1e-4  # added to the standard deviation of a group


def grpo(
    model: LocalModel, name: str | None, data: TrainingData, plan: Plan, step: int, size: int
) -> DistillationStep:
    """The rows of `size // plan.group` groups with some variance, fewer where `ROUNDS` rounds find
    no more.

    Told are the mean `reward` of all that was sampled, and the share of the groups with `variance`.
    """
    wanted = max(1, size // plan.group)
    rng = random.Random(f"grpo {plan.seed} {step}")
    rewards: list[list[float]] = []
    rows: list[list[TrainingRow]] = []
    for turn in range(ROUNDS):
        missing = wanted - len(rows)
        if not missing or not data.tasks:
            break
        tasks = rng.choices(data.tasks, k=missing)
        groups, scored = tried(model, name, tasks, data, plan, f"{step}/{turn}")
        rewards += scored
        for group, scores in zip(groups, scored, strict=True):
            if max(scores) > min(scores):
                rows.append(group_rows(model, group, scores, plan))
        if min(score for group in rewards[-missing:] for score in group) >= 1.0:
            break  # there is nothing left to learn
    flat = [row for group in rows for row in group]
    if plan.updates > 1:
        flat = remembered(model, name, flat, plan.micro_tokens)
    every = [score for group in rewards for score in group]
    told = {
        "reward": sum(every) / max(1, len(every)),
        "variance": sum(max(g) > min(g) for g in rewards) / max(1, len(rewards)),
    }
    return DistillationStep(flat, told, len(every))


def tried(
    model: LocalModel,
    name: str | None,
    tasks: Sequence[PracticeTask],
    data: TrainingData,
    plan: Plan,
    salt: str,
) -> tuple[list[list[list[Example]]], list[list[float]]]:
    """`plan.group` attempts at each task, each as its answers (one for each turn), and their
    rewards. Episodes of several turns are played by the first process alone: it has the
    environments."""
    if collectives.from_first(lambda: any_plays(tasks, data.tasksets)):
        options = SamplingOptions(plan.temperature, data.max_tokens, data.limits)
        play = partial(
            teacher_episodes.attempts, model, name, tasks, data.tasksets, plan, salt, options
        )
        return collectives.from_first(play)
    groups = attempts(model, name, tasks, data, plan, salt)
    scored = collectives.from_first(partial(score, tasks, groups, data))
    questions = [Question(task.prompt, task.prompt) for task in tasks]
    made = [
        [[Example(question, tokens_of(model, done))] for done in group]
        for question, group in zip(questions, groups, strict=True)
    ]
    return made, scored


def score(
    tasks: Sequence[PracticeTask], groups: Sequence[Sequence[Completion]], data: TrainingData
) -> list[list[float]]:
    """The reward of each attempt of each group."""
    with isolation.batch():
        return [
            [reward_of(task, data.tasksets, done) for done in group]
            for task, group in zip(tasks, groups, strict=True)
        ]


def attempts(
    model: LocalModel,
    name: str | None,
    tasks: Sequence[PracticeTask],
    data: TrainingData,
    plan: Plan,
    salt: str,
) -> list[list[Completion]]:
    """`plan.group` attempts at each task, as the student sees it."""

    def seeds(i: int) -> tuple[int, ...]:
        words = (f"grpo/{plan.seed}/{salt}/{i}/{j}" for j in range(plan.group))
        return tuple(int(hashlib.sha256(word.encode()).hexdigest()[:15], 16) for word in words)

    requests = [
        Request(task.prompt, seeds(i), max_tokens=data.max_tokens, temperature=plan.temperature)
        for i, task in enumerate(tasks)
    ]
    with model.using(name):
        return collectives.sample(model, requests)


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


def remembered(
    model: LocalModel, name: str | None, rows: Sequence[TrainingRow], most: int
) -> list[TrainingRow]:
    """The rows with the log probabilities that their tokens have now, before the first update."""
    found: dict[int, tuple[float, ...]] = {}
    numbered = {id(row): i for i, row in enumerate(rows)}
    view = [View(name, "student", frozen=True)]
    with torch.no_grad():
        for batch in micro_batches(rows, model.memory_limits.most(most)):
            told = compare(model, batch, view, lambda row, mine_TV: chosen(mine_TV, row))
            for row, old_T in zip(batch, told, strict=True):
                found[numbered[id(row)]] = tuple(old_T.tolist())
    return [replace(row, old=found[i]) for i, row in enumerate(rows)]
