"""Tasks of several turns by night: every answer of the assistant is an example for itself.

Its prompt is the conversation before it, as the student sees it (no lessons) and as the teacher saw
it. Between the turns nothing is learned: what tools and the environment say is only read. The
states are the teacher's, so distillation on them is on-policy within a turn and off-policy between
turns; good trajectories of the teacher are what holds over many nights (arXiv 2606.04703).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from reflect.config import Settings
from reflect.models.base import Completion, SamplingOptions
from reflect.rollouts.episode import Advice, Episode
from reflect.rollouts.runner import Part, messages_for, play, using
from reflect.tasksets.base import Taskset, has_environment
from reflect.tasksets.task import Task
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.plan import Plan
from reflect.types import Progress

TOGETHER = 64  # episodes that are played at a time


def teach(
    model: Any,
    taskset: Taskset,
    rows: Sequence[tuple[Task, Sequence[Advice]]],
    settings: Settings,
    plan: Plan,
    samples: int,
    what: str,
    progress: Progress | None,
) -> list[list[Episode]]:
    """`samples` episodes of each task by the bare base under its lessons."""
    seed = _seed(f"{what} {plan.seed}")
    options = SamplingOptions.of(settings, plan.temperature)
    found: list[list[Episode]] = []
    size = max(1, TOGETHER // samples)
    with using(model, None):
        for i in range(0, len(rows), size):
            if progress:
                progress(i, len(rows), what)
            parts = [Part(task, lessons, range(samples)) for task, lessons in rows[i : i + size]]
            found += play(model, taskset, parts, seed=seed, options=options)
    return found


def good(episode: Episode, enough: float) -> bool:
    """Is it worth imitating: enough reward, every answer whole, and no bytes from outside?"""
    row = episode.row
    whole = all(turn.done.finish != "length" for turn in episode.turns)
    return (row.reward or 0.0) >= enough and not row.error and whole and row.trust == "clean"


def examples(model: Any, episode: Episode, task: Task, weight: float = 1.0) -> list[Example]:
    """One for each answer of the assistant; the student sees `task` without any lessons."""
    made = []
    for turn in episode.turns:
        student = messages_for(task, (), episode.said[: turn.at])
        question = Question(student, episode.asked(turn), list(episode.tools))
        made.append(Example(question, tokens_of(model, turn.done), weight))
    return [example for example in made if example.answer]


def attempts(
    model: Any,
    name: str | None,
    tasks: Sequence[PracticeTask],
    tasksets: Mapping[str, Taskset],
    plan: Plan,
    salt: str,
    options: SamplingOptions,
) -> tuple[list[list[list[Example]]], list[list[float]]]:
    """`plan.group` episodes at each task by the student, without lessons, as (the answers of each,
    their rewards)."""
    groups: dict[int, list[Episode]] = {}
    with using(model, name):
        for each in dict.fromkeys(one.taskset for one in tasks):
            mine = [i for i, one in enumerate(tasks) if one.taskset == each]
            # A task may be drawn twice: its attempts are numbered on.
            parts = [
                Part(tasks[i].task, (), range(i * plan.group, (i + 1) * plan.group)) for i in mine
            ]
            found = play(
                model,
                tasksets[each],
                parts,
                seed=_seed(f"grpo/{plan.seed}/{salt}"),
                options=options,
            )
            groups |= dict(zip(mine, found, strict=True))
    order = [groups[i] for i in range(len(tasks))]
    made = [[examples(model, episode, episode.task) for episode in group] for group in order]
    return made, [[episode.row.reward or 0.0 for episode in group] for group in order]


def tokens_of(model: Any, done: Completion) -> list[int]:
    """The answer as training sees it: with the end token where the model ended."""
    return list(done.tokens) if done.finish == "length" else [*done.tokens, model.end]


def any_plays(tasks: Sequence[PracticeTask], tasksets: Mapping[str, Taskset]) -> bool:
    return any(one.taskset in tasksets and has_environment(tasksets[one.taskset]) for one in tasks)


def _seed(words: str) -> int:
    return int(hashlib.sha256(words.encode()).hexdigest()[:15], 16)
