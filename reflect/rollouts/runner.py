"""Sample and score the rollouts of groups: k attempts at each task, all tasks in one batched call a
turn.

A bad rollout is data: where the model or the verifier breaks, the rollout keeps the error, has no
reward, and the run goes on. How one rollout goes is in `reflect.rollouts.episode`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from reflect.errors import ModelHalted
from reflect.models.base import Model, Request, SamplingOptions, using
from reflect.models.partial import Answer, ask
from reflect.records import Rollout
from reflect.rollouts import judge
from reflect.rollouts.episode import (
    AUDIT,
    HALTED,
    Advice,
    Episode,
    messages_for,
    rollout_seed,
    validate_reward,
)
from reflect.tasksets import isolation
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Message, Task
from reflect.types import Progress

__all__ = [
    "AUDIT",
    "HALTED",
    "Advice",
    "Part",
    "Progress",
    "RolloutsStopped",
    "messages_for",
    "play",
    "validate_reward",
]
__all__ += ["rollout_seed", "run_group", "run_groups", "run_parts", "using"]

DEFAULTS = SamplingOptions()


def run_groups(
    model: Model,
    taskset: Taskset,
    groups: Sequence[tuple[Task, Sequence[Advice]]],
    *,
    k: int,
    seed: int,
    options: SamplingOptions = DEFAULTS,
) -> list[list[Rollout]]:
    """k scored rollouts for each (task, lessons), in order. `run_id` and `adapter_id` are left for
    the caller."""
    parts = [Part(task, lessons, range(k)) for task, lessons in groups]
    return run_parts(model, taskset, parts, seed=seed, options=options)


class Part(NamedTuple):
    """The rollouts of one task that have the same lessons in their prompt."""

    task: Task
    lessons: Sequence[Advice]
    indices: Sequence[int]


def run_parts(
    model: Model,
    taskset: Taskset,
    parts: Sequence[Part],
    *,
    seed: int,
    options: SamplingOptions = DEFAULTS,
) -> list[list[Rollout]]:
    """The scored rollouts of each part, in order: one batched call a turn, each prompt in it once.
    Raises Stopped where the model answers nothing more."""
    isolation.require(part.task for part in parts)
    episodes = play(model, taskset, parts, seed=seed, options=options)
    rollouts = [[episode.row for episode in group] for group in episodes]
    why = next((one.halted for group in episodes for one in group if one.halted), None)
    try:
        judge.grade(
            model,
            taskset,
            [(p.task, row) for p, rows in zip(parts, rollouts, strict=True) for row in rows],
        )
    except ModelHalted as e:
        why = why or e
    if why:
        raise RolloutsStopped(why, rollouts) from why.__cause__
    return rollouts


class RolloutsStopped(ModelHalted):
    """The model answers nothing more, for the reason `why`. `rollouts`: of each part, as
    `run_parts` would have given them; those that were not made have `finish` HALTED."""

    def __init__(self, why: ModelHalted, rollouts: list[list[Rollout]]) -> None:
        super().__init__(why.message, why.hint)
        self.why, self.rollouts = why, rollouts


def play(
    model: Model,
    taskset: Taskset,
    parts: Sequence[Part],
    *,
    seed: int,
    options: SamplingOptions = DEFAULTS,
) -> list[list[Episode]]:
    """The episodes of each part, in order, each at its end. Those that still run are asked
    together, turn by turn; rollouts of a part whose conversations are the same so far share a
    request."""

    def take(one: tuple[Episode, list[Message], Answer]) -> None:
        episode, prompt, answer = one
        episode.take(prompt, answer, options.limits, model.context - options.max_tokens)

    groups = [
        [Episode(model, taskset, part.task, part.lessons, i, seed) for i in part.indices]
        for part in parts
    ]
    while alike := [members for group in groups for members in _alike(group)]:
        requests = [
            Request(
                messages=prompt,
                seeds=tuple(episode.seed for episode in members),
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                tools=members[0].tools,
            )
            for prompt, members in alike
        ]
        taken = [
            (episode, prompt, answer)
            for (prompt, members), answers in zip(alike, ask(model, requests), strict=True)
            for episode, answer in zip(members, answers, strict=True)
        ]
        isolation.each(taskset, [x.task for x in parts], take, taken)
    return groups


def _alike(group: Sequence[Episode]) -> list[tuple[list[Message], list[Episode]]]:
    """The episodes of a part that still run, by what they ask next: (prompt, those that ask it)."""
    found: dict[str, tuple[list[Message], list[Episode]]] = {}
    for episode in group:
        if episode.over:
            continue
        if not episode.several and "" in found:  # of a task of one turn all ask the same
            found[""][1].append(episode)
            continue
        prompt = episode.prompt()
        key = json.dumps([prompt, episode.tools], default=str) if episode.several else ""
        found.setdefault(key, (prompt, []))[1].append(episode)
    return list(found.values())


def run_group(
    model: Model,
    taskset: Taskset,
    task: Task,
    lessons: Sequence[Advice] = (),
    *,
    k: int,
    seed: int,
    options: SamplingOptions = DEFAULTS,
) -> list[Rollout]:
    """k scored rollouts of one task."""
    (group,) = run_groups(model, taskset, [(task, lessons)], k=k, seed=seed, options=options)
    return group


def request_for(messages: Sequence[Message], max_tokens: int) -> Request:
    """Greedy: the same group always yields the same lessons."""
    return Request(messages=messages, seeds=(0,), max_tokens=max_tokens, temperature=0.0)
