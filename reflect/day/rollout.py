"""Sample and score the rollouts of groups: k attempts at each task, all tasks in one batched call.

A bad rollout is data: where the model or the verifier breaks, the rollout keeps the error, has no reward, and the run
goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, NamedTuple, Protocol

from reflect import prompts
from reflect.errors import ModelError
from reflect.models.base import Completion, Model, Request
from reflect.records import CHEATED, Rollout
from reflect.tasksets import scoring
from reflect.tasksets.base import Message, Task, Taskset

AUDIT = "audit"  # in `Rollout.parts`: what Taskset.audit says of it
Progress = Callable[[int, int, str], None]  # (done, total, what)


class Advice(Protocol):
    """What the prompt needs of a lesson: a `records.Lesson` is one."""

    when: str
    do: str


def rollout_seed(seed: int, task_key: str, index: int) -> int:
    """The seed of one rollout, 0 <= seed < 2**63: a hash, so that it depends on nothing else in the run."""
    digest = hashlib.sha256(f"{seed}/{task_key}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def messages_for(task: Task, lessons: Sequence[Advice] = ()) -> list[Message]:
    """Exactly what the model will see: the task, with `lessons` and the lessons that the task brings itself."""
    rows = [{"when": lesson.when, "do": lesson.do} for lesson in lessons]
    rows += [{"when": when, "do": do} for when, do in task.lessons]
    return prompts.with_lessons(task.messages, rows)


def run_groups(
    model: Model,
    taskset: Taskset,
    groups: Sequence[tuple[Task, Sequence[Advice]]],
    *,
    k: int,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = 96,
) -> list[list[Rollout]]:
    """k scored rollouts for each (task, lessons), in order. `run_id` and `adapter_id` are left for the caller."""
    parts = [Part(task, lessons, range(k)) for task, lessons in groups]
    return run_parts(model, taskset, parts, seed=seed, temperature=temperature, max_tokens=max_tokens)


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
    temperature: float = 1.0,
    max_tokens: int = 96,
) -> list[list[Rollout]]:
    """The scored rollouts of each part, in order: one batched call, each prompt in it once."""
    scoring.require(part.task for part in parts)
    requests = [
        Request(
            messages=messages_for(part.task, part.lessons),
            seeds=tuple(rollout_seed(seed, part.task.key, i) for i in part.indices),
            max_tokens=max_tokens,
            temperature=temperature,
        )
        for part in parts
    ]
    answers = sample_each(model, requests)
    attempts = [
        (part.task, request, at, i, answer)
        for part, request, answer in zip(parts, requests, answers, strict=True)
        for at, i in enumerate(part.indices)
    ]
    rows = iter(scoring.each(taskset, [x.task for x in parts], lambda one: _rollout(model, taskset, *one), attempts))
    return [list(islice(rows, len(part.indices))) for part in parts]


def run_group(
    model: Model,
    taskset: Taskset,
    task: Task,
    lessons: Sequence[Advice] = (),
    *,
    k: int,
    seed: int,
    temperature: float = 1.0,
    max_tokens: int = 96,
) -> list[Rollout]:
    """k scored rollouts of one task."""
    (group,) = run_groups(
        model, taskset, [(task, lessons)], k=k, seed=seed, temperature=temperature, max_tokens=max_tokens
    )
    return group


def sample_each(model: Model, requests: Sequence[Request]) -> list[list[Completion] | ModelError]:
    """`model.sample`, but a request that the model cannot answer does not take the others with it."""
    if not requests:
        return []
    try:
        return list(model.sample(requests))
    except ModelError as whole:
        if len(requests) == 1:
            return [whole]
    answers: list[list[Completion] | ModelError] = []
    for request in requests:
        try:
            answers += model.sample([request])
        except ModelError as alone:
            answers.append(alone)
    return answers


def using(model: Model, adapter: str | None) -> AbstractContextManager[Any]:
    """The model with that adapter on (None = the bare base); a model that knows no adapters is always bare."""
    switch = getattr(model, "using", None)
    return switch(adapter) if switch else nullcontext()


def _rollout(
    model: Model,
    taskset: Taskset,
    task: Task,
    request: Request,
    at: int,
    index: int,
    answer: list[Completion] | ModelError,
) -> Rollout:
    """Rollout `index` of the task, which is completion `at` of its request."""
    row = Rollout(
        run_id=0,
        task_key=task.key,
        index=index,
        messages=list(request.messages),
        seed=request.seeds[at],
        model=model.name,
        trust="untrusted" if task.untrusted else "clean",
    )
    if isinstance(answer, ModelError):
        row.error, row.finish = f"model: {answer.message}", "error"
        return row
    done = answer[at]
    row.messages = [*request.messages, {"role": "assistant", "content": done.text}]
    row.prompt_tokens, row.completion_tokens, row.finish = done.prompt_tokens, done.completion_tokens, done.finish
    try:
        score = scoring.verify(taskset, task, done.text)
        row.trust = CHEATED if scoring.flagged(score) else row.trust
        row.reward, row.feedback, row.parts = checked(score.reward), score.feedback, dict(score.parts)
        hidden = scoring.audit(taskset, task, done.text)
        if hidden is not None:
            row.parts = row.parts | {AUDIT: checked(hidden)}
    except Exception as e:  # a user's verifier may raise anything; one task must not end a run
        row.error = f"verifier: {type(e).__name__}: {e}"
    return row


def checked(reward: float) -> float:
    """A reward in [0, 1]; anything else (NaN included) is a ValueError, stored as the rollout's error."""
    if not 0.0 <= float(reward) <= 1.0:
        raise ValueError(f"the reward {reward} is not between 0 and 1")
    return float(reward)
