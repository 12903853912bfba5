"""Training examples from episodes of several turns: one example per answer of the assistant.

The prompt of an example is the conversation before the answer, without lessons for the student and
with them for the teacher. Output of tools and of the environment is never a target. The states are
the teacher's, so distillation is on-policy within a turn and off-policy between turns; successful
trajectories of the teacher stay stable over many nights (arXiv 2606.04703).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from reflect.models.base import Completion, using
from reflect.rollouts.episode import Advice, Episode, messages_for
from reflect.rollouts.runner import Part, play
from reflect.training.examples import Example, Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.local import LocalModel
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Task
    from reflect.training.context import NightContext

EPISODES_AT_ONCE = 64


def teach(
    ctx: NightContext,
    taskset: Taskset,
    rows: Sequence[tuple[Task, Sequence[Advice]]],
    samples: int,
    what: str,
) -> list[list[Episode]]:
    """`samples` episodes of each task by the bare base under its lessons."""
    seed = hash_seed(f"{what} {ctx.plan.seed}")
    groups: list[list[Episode]] = []
    size = max(1, EPISODES_AT_ONCE // samples)
    with using(ctx.model, None):
        for i in range(0, len(rows), size):
            ctx.report(i, len(rows), what)
            parts = [Part(task, lessons, range(samples)) for task, lessons in rows[i : i + size]]
            groups += play(ctx.model, taskset, parts, seed=seed, options=ctx.sampling)
    return groups


def successful(episode: Episode, enough: float) -> bool:
    """Whether to imitate it: enough reward, every answer complete, no bytes from outside."""
    row = episode.row
    whole = all(turn.completion.finish != "length" for turn in episode.turns)
    return (row.reward or 0.0) >= enough and not row.error and whole and row.trust == "clean"


def examples(model: LocalModel, episode: Episode, task: Task, weight: float = 1.0) -> list[Example]:
    """One example per answer of the assistant; the student's prompt has `task` and no lessons."""
    answers = []
    for turn in episode.turns:
        student = messages_for(task, (), episode.conversation[: turn.at])
        question = Question(student, episode.prompt_of(turn), list(episode.tools))
        answers.append(Example(question, tokens_of(model, turn.completion), weight))
    return [example for example in answers if example.answer]


def tokens_of(model: LocalModel, done: Completion) -> list[int]:
    """Token ids of the answer, with the end token if the model ended it."""
    return list(done.tokens) if done.finish == "length" else [*done.tokens, model.end]


def hash_seed(text: str) -> int:
    """A seed from a text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
