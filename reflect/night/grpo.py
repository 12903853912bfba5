"""GRPO: reinforcement learning by the verifier's reward alone (DeepSeekMath, arXiv 2402.03300).

A step samples groups of attempts at practice tasks, without lessons. The advantage of an attempt is how far its reward
stands above its group's mean, in the group's standard deviations. A group whose rewards are all equal says nothing: it
is skipped, and another task takes its place (DAPO, arXiv 2503.14476, section 3.2). The loss is a mean over tokens.

All randomness follows from (seed, step). Not covered: tasks of several turns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from reflect.models.base import Completion, Request
from reflect.models.local import LocalModel
from reflect.night import parallel
from reflect.night.distill import Step
from reflect.night.harvest import Data, PracticeTask, reward_of
from reflect.night.losses import Row, answer_logits, chosen, micro_batches
from reflect.night.plan import Plan
from reflect.tasksets import scoring

ROUNDS = 4  # of sampling in one step, while groups are missing
TINY = 1e-4  # added to the standard deviation of a group


def grpo(model: LocalModel, name: str | None, data: Data, plan: Plan, step: int, size: int) -> Step:
    """The rows of `size // plan.group` groups with some variance, fewer where `ROUNDS` rounds find no more.

    Told are the mean `reward` of all that was sampled, and the share of the groups with `variance`.
    """
    wanted = max(1, size // plan.group)
    rng = random.Random(f"grpo {plan.seed} {step}")
    rewards: list[list[float]] = []
    rows: list[list[Row]] = []
    for turn in range(ROUNDS):
        missing = wanted - len(rows)
        if not missing or not data.tasks:
            break
        tasks = rng.choices(data.tasks, k=missing)
        groups = attempts(model, name, tasks, data, plan, f"{step}/{turn}")
        scored = parallel.from_first(partial(score, tasks, groups, data))
        rewards += scored
        for task, group, scores in zip(tasks, groups, scored, strict=True):
            if max(scores) > min(scores):
                rows.append(group_rows(model, task, group, scores, plan))
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
    return Step(flat, told, len(every))


def score(tasks: Sequence[PracticeTask], groups: Sequence[Sequence[Completion]], data: Data) -> list[list[float]]:
    """The reward of each attempt of each group."""
    with scoring.batch():
        return [
            [reward_of(task, data.tasksets, done) for done in group] for task, group in zip(tasks, groups, strict=True)
        ]


def attempts(
    model: LocalModel, name: str | None, tasks: Sequence[PracticeTask], data: Data, plan: Plan, salt: str
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
        return parallel.sample(model, requests)


def group_rows(
    model: LocalModel, task: PracticeTask, group: Sequence[Completion], scores: Sequence[float], plan: Plan
) -> list[Row]:
    """A row for each attempt that said anything. An attempt that was cut ends without the end token."""
    prompt = model.encode(task.prompt)
    answers = [[*done.tokens, model.end] if done.finish == "stop" else list(done.tokens) for done in group]
    return [
        Row(prompt, prompt, answer, "policy", advantage=a, beta=plan.kl, temperature=plan.temperature)
        for answer, a in zip(answers, advantages(scores), strict=True)
        if answer
    ]


def advantages(scores: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation of the group; all 0 where the rewards are equal."""
    mean = sum(scores) / len(scores)
    deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [(score - mean) / (deviation + TINY) for score in scores]


def remembered(model: LocalModel, name: str | None, rows: Sequence[Row], most: int) -> list[Row]:
    """The rows with the log probabilities that their tokens have now, before the first update."""
    found: dict[int, tuple[float, ...]] = {}
    numbered = {id(row): i for i, row in enumerate(rows)}
    with model.using(name), torch.no_grad():
        for batch in micro_batches(rows, most):
            logits_NV = answer_logits(model, [row.student for row in batch], [row.answer for row in batch])
            for row, mine_TV in zip(batch, logits_NV.split([len(row.answer) for row in batch]), strict=True):
                found[numbered[id(row)]] = tuple(chosen(mine_TV, row).tolist())
    return [replace(row, old=found[i]) for i, row in enumerate(rows)]
