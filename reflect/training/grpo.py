"""GRPO: reinforcement learning by the verifier's reward alone (DeepSeekMath, arXiv 2402.03300).

A step samples groups of attempts at practice tasks, without lessons. The advantage of an attempt is
its reward minus its group's mean, in the group's standard deviations. A group with equal rewards
has no gradient: another task replaces it (DAPO, arXiv 2503.14476, section 3.2). The loss is a mean
over tokens.

In a task of several turns every answer has the advantage of its whole episode. All randomness
follows from (seed, step).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from reflect.models.base import Completion, Request, SamplingOptions, using
from reflect.models.distributed import from_first
from reflect.rollouts.runner import Part, play
from reflect.tasksets import isolation
from reflect.tasksets.base import has_environment
from reflect.training import collectives
from reflect.training.distillation import DistillationStep, Student, prompts_of
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.losses import TrainingRow, View, chosen, compare, micro_batches
from reflect.training.sampling import scored
from reflect.training.teacher_episodes import examples, hash_seed, tokens_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.rollouts.episode import Episode
    from reflect.training.plan import Plan
    from reflect.training.teacher_data import TrainingData

Groups = tuple[list[list[list[Example]]], list[list[float]]]
"""The answers of each attempt of each group, and the rewards of the attempts."""
ROUNDS = 4  # of sampling in one step, while groups are missing
TINY = 1e-4  # added to the standard deviation of a group


def grpo(student: Student, step: int, size: int) -> DistillationStep:
    """The rows of `size // plan.group` groups with some variance, fewer where `ROUNDS` rounds find
    no more.

    Its figures: the mean `reward` of all attempts, and the share of the groups with `variance`.
    """
    data, plan = student.data, student.plan
    wanted = max(1, size // plan.group)
    rng = random.Random(f"grpo {plan.seed} {step}")
    rewards: list[list[float]] = []
    rows: list[list[TrainingRow]] = []
    for number in range(ROUNDS):
        missing = wanted - len(rows)
        if not missing or not data.tasks:
            break
        tasks = rng.choices(data.tasks, k=missing)
        groups, scores = sample_groups(student, tasks, f"{step}/{number}")
        rewards += scores
        rows += [
            group_rows(student.model, group, values, plan)
            for group, values in zip(groups, scores, strict=True)
            if max(values) > min(values)
        ]
        if min(score for group in rewards[-missing:] for score in group) >= 1.0:
            break  # there is nothing left to learn
    flat = [row for group in rows for row in group]
    if plan.updates > 1:
        flat = with_old_log_probabilities(student, flat)
    every = [score for group in rewards for score in group]
    figures = {
        "reward": sum(every) / max(1, len(every)),
        "variance": sum(max(g) > min(g) for g in rewards) / max(1, len(rewards)),
    }
    return DistillationStep(flat, figures, len(every))


def sample_groups(student: Student, tasks: Sequence[PracticeTask], salt: str) -> Groups:
    """`plan.group` attempts at each task without lessons: the answers (one per turn) and the
    rewards. Only the first process, which has the environments, runs episodes of several turns."""
    model, data, plan = student.model, student.data, student.plan
    if from_first(lambda: any(has_environment(data.tasksets[x.taskset]) for x in tasks)):
        return from_first(lambda: sample_episodes(student, tasks, salt))
    requests = [
        Request(
            task.prompt,
            tuple(hash_seed(f"grpo/{plan.seed}/{salt}/{i}/{j}") for j in range(plan.group)),
            max_tokens=data.max_tokens,
            temperature=plan.temperature,
        )
        for i, task in enumerate(tasks)
    ]
    with model.using(student.name):
        groups = collectives.sample(model, requests)
    rewards = from_first(lambda: score(tasks, groups, data))
    answers = [
        [[Example(Question(task.prompt, task.prompt), tokens_of(model, done))] for done in group]
        for task, group in zip(tasks, groups, strict=True)
    ]
    return answers, rewards


def sample_episodes(student: Student, tasks: Sequence[PracticeTask], salt: str) -> Groups:
    """`plan.group` episodes of each task by the student without lessons: answers, and rewards."""
    model, data, plan = student.model, student.data, student.plan
    options = SamplingOptions(plan.temperature, data.max_tokens, data.limits)
    groups: dict[int, list[Episode]] = {}
    seed, k = hash_seed(f"grpo/{plan.seed}/{salt}"), plan.group
    with using(model, student.name):
        for name in dict.fromkeys(one.taskset for one in tasks):
            numbers = [i for i, one in enumerate(tasks) if one.taskset == name]
            # A task may be drawn twice; its attempts then have other indices.
            parts = [Part(tasks[i].task, (), range(i * k, (i + 1) * k)) for i in numbers]
            episodes = play(model, data.tasksets[name], parts, seed=seed, options=options)
            groups |= dict(zip(numbers, episodes, strict=True))
    order = [groups[i] for i in range(len(tasks))]
    answers = [[examples(model, episode, episode.task) for episode in group] for group in order]
    return answers, [[episode.row.reward or 0.0 for episode in group] for group in order]


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
    """A row for each nonempty answer, with the advantage of its whole attempt. A cut answer has no
    end token."""
    rows = []
    encoded: dict[str, list[int]] = {}  # the attempts begin alike
    for attempt, a in zip(group, advantages(scores), strict=True):
        for example in attempt:
            asked = str(example.question.student)
            prompt = encoded[asked] = encoded.get(asked) or prompts_of(model, example.question)[0]
            row = TrainingRow(prompt, prompt, example.answer, "policy", advantage=a)
            row = replace(row, beta=plan.kl, temperature=plan.temperature)
            rows += [row] if example.answer else []
    return rows


def advantages(scores: Sequence[float]) -> list[float]:
    """(reward - mean) / standard deviation of the group; all 0 where the rewards are equal."""
    mean = sum(scores) / len(scores)
    deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    return [(score - mean) / (deviation + TINY) for score in scores]


def with_old_log_probabilities(student: Student, rows: Sequence[TrainingRow]) -> list[TrainingRow]:
    """The rows with the present log probabilities of their tokens, before the first update."""
    old: dict[int, tuple[float, ...]] = {}
    model, view = student.model, [View(student.name, "student", frozen=True)]
    most = model.memory_limits.most(student.plan.micro_tokens)
    with torch.no_grad():
        for batch in micro_batches(rows, most):
            values = compare(model, batch, view, lambda row, logits_TV: chosen(logits_TV, row))
            for row, old_T in zip(batch, values, strict=True):
                old[id(row)] = tuple(old_T.tolist())
    return [replace(row, old=old[id(row)]) for row in rows]
