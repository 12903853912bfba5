"""Sample and score groups of rollouts: several attempts at each task, all tasks in one batched call
per turn.

A failed rollout is data: if the model or the verifier fails, the rollout keeps the error and has no
reward, and the run continues. `reflect.rollouts.episode` plays one rollout.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from reflect.errors import ModelHalted
from reflect.models.base import Model, Request, SamplingOptions
from reflect.models.partial import Answer, ask
from reflect.rollouts import judge
from reflect.rollouts.episode import Advice, Episode
from reflect.tasksets import isolation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.records import Rollout
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Message, Task

DEFAULTS = SamplingOptions()


class Part(NamedTuple):
    """The rollouts of one task with the same lessons in their prompt."""

    task: Task
    lessons: Sequence[Advice]
    indices: Sequence[int]
    """Index of each rollout in the group of its task; it decides the seed."""


def run_parts(
    model: Model,
    taskset: Taskset,
    parts: Sequence[Part],
    *,
    seed: int,
    options: SamplingOptions = DEFAULTS,
) -> list[list[Rollout]]:
    """The scored rollouts of each part, in order. The caller sets `run_id` and `adapter_id`.

    Each turn is one batched call that has each prompt once. Raises RolloutsStopped if the model
    stops answering.
    """
    isolation.require(part.task for part in parts)
    episodes = play(model, taskset, parts, seed=seed, options=options)
    rollouts = [[episode.row for episode in group] for group in episodes]
    why = next((one.halted for group in episodes for one in group if one.halted), None)
    pairs = [(p.task, row) for p, rows in zip(parts, rollouts, strict=True) for row in rows]
    try:
        judge.grade(model, taskset, pairs)
    except ModelHalted as e:
        why = why or e
    if why:
        raise RolloutsStopped(why, rollouts) from why.__cause__
    return rollouts


class RolloutsStopped(ModelHalted):
    """The model stopped answering, for the reason `why`. `rollouts`: the return value of
    `run_parts`, in which `finish` is "halted" for each rollout that was not made."""

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
    """The finished episodes of each part, in order. Each turn is one batched call; episodes of a
    part with the same conversation so far share a request."""

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
    """The unfinished episodes of a part by their next prompt: (prompt, its episodes)."""
    by_prompt: dict[str, tuple[list[Message], list[Episode]]] = {}
    for episode in group:
        if episode.over:
            continue
        if not episode.multi_turn and "" in by_prompt:  # a task of one turn has one prompt
            by_prompt[""][1].append(episode)
            continue
        prompt = episode.prompt()
        key = json.dumps([prompt, episode.tools], default=str) if episode.multi_turn else ""
        by_prompt.setdefault(key, (prompt, []))[1].append(episode)
    return list(by_prompt.values())


def request_for(messages: Sequence[Message], max_tokens: int) -> Request:
    """A greedy request for one answer, so that the same messages always get the same one."""
    return Request(messages=messages, seeds=(0,), max_tokens=max_tokens, temperature=0.0)
