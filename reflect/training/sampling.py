"""Answers of the model to single prompts during a night, and their scores."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from reflect.models.base import Completion, Request, using
from reflect.rollouts.episode import validate_reward
from reflect.tasksets import isolation
from reflect.tasksets.task import Message, Score, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.tasksets.base import Taskset
    from reflect.training.context import NightContext


def sample(
    ctx: NightContext,
    prompts: Sequence[list[Message]],
    samples: int,
    what: str,
    *,
    temperature: float | None = None,
    adapter: str | None = None,
) -> list[list[Completion]]:
    """`samples` answers to each prompt by the bare base, or by a loaded adapter. The seeds follow
    from `what` and the plan's seed. Default temperature: the plan's."""
    answers: list[list[Completion]] = []
    rng, batch = random.Random(f"{what} {ctx.plan.seed}"), ctx.plan.sample_batch
    options = ctx.sampling if temperature is None else ctx.sampling_at(temperature)
    with using(ctx.model, adapter):
        for i in range(0, len(prompts), batch):
            ctx.report(i, len(prompts), what)
            requests = []
            for prompt in prompts[i : i + batch]:
                seeds = tuple(rng.getrandbits(60) for _ in range(samples))
                requests.append(Request(prompt, seeds, options.max_tokens, options.temperature))
            answers += ctx.model.sample(requests)
    return answers


def scored(taskset: Taskset, task: Task, text: str) -> Score:
    """The verifier's score; 0 if the verifier raises any error, or if the attempt passes the
    task's twin (see `isolation.verify`)."""
    try:
        score = isolation.verify(taskset, task, text)
        validate_reward(score.reward)
    except Exception:
        return Score(0.0)
    return score
