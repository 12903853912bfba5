"""Prove without a model that a taskset is sound: known-good answers score 1, ids are unique, the
splits are apart."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import UsageError
from reflect.tasksets import isolation
from reflect.tasksets.task import HUMAN, JUDGE, Score, Split, Task
from reflect.tasksets.thoughts import split_thought
from reflect.tasksets.verifiers import VERIFIERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.tasksets.base import Taskset

SILENCE = [""] * 100  # turns of an assistant that says nothing
SIDES: tuple[Split, Split] = ("practice", "holdout")


def check(taskset: Taskset, n: int | None = None, max_tokens: int = 0) -> list[str]:
    """What is wrong with the first n tasks of each side (all when None), in sentences; [] when
    nothing is. `max_tokens`: the longest answer that a model may give; 0 is no limit.

    Not covered: whether two differently worded tasks are the same task, and whether a verifier can
    be fooled.
    """
    sides = {side: taskset.tasks(side, n) for side in SIDES}
    problems = apart(sides)
    afresh = getattr(taskset, "again", lambda: taskset)()
    for side in SIDES:
        if not sides[side]:
            problems.append(f"there is no {side} task")
        if afresh.tasks(side, 3, 7) != taskset.tasks(side, n and max(n, 3), 7)[:3]:
            problems.append(f"{side}: the order depends on more than the seed")
    with isolation.batch():
        for task in [*sides["practice"], *sides["holdout"], *taskset.following(20)]:
            problems += _wrong_scores(taskset, task) or _unreachable(taskset, task, max_tokens)
    return problems


def ensure_disjoint_splits(taskset: Taskset) -> Taskset:
    """The taskset itself. UsageError where an id occurs twice, or a task on both sides: no run
    should depend on that."""
    problems = apart({side: taskset.tasks(side) for side in SIDES})
    if problems:
        more = f" (and {len(problems) - 1} problems more)" if problems[1:] else ""
        raise UsageError(
            f"{taskset.name}: {problems[0]}{more}.",
            f"All of them: reflect tasks check {taskset.name}",
        )
    return taskset


def apart(sides: dict[Split, list[Task]]) -> list[str]:
    """Ids that occur twice, tasks that name another side than theirs, ids and questions that are on
    both sides."""
    problems = []
    for side, tasks in sides.items():
        twice = [name for name, times in Counter(task.id for task in tasks).items() if times > 1]
        problems += [f"{side}: the id {name} occurs more than once" for name in twice]
        problems += [
            f"{side}: task {task.id} says that it is {task.split}"
            for task in tasks
            if task.split != side
        ]
    for what, of in (("id", lambda task: task.id), ("question", _question)):
        shared = {of(task) for task in sides["practice"]} & {of(task) for task in sides["holdout"]}
        problems += [f"the {what} {one} is in practice and in holdout" for one in sorted(shared)]
    return problems


def _wrong_scores(taskset: Taskset, task: Task) -> list[str]:
    if task.verifier in (JUDGE, HUMAN):  # without a model no more can be checked
        wrong = prompts.rubric_problem(task.rubric) if task.rubric else "there is none"
        return [f"task {task.id}: its rubric: {wrong}"] if wrong and task.verifier == JUDGE else []
    if task.verifier not in VERIFIERS and task.verifier != "taskset":
        return [f"task {task.id}: there is no verifier {task.verifier!r}"]
    try:
        good, empty = replay(taskset, task, taskset.gold(task)), replay(taskset, task, SILENCE)
    except Exception as e:  # a user's verifier may raise anything
        return [f"task {task.id}: its verifier broke: {type(e).__name__}: {e}"]
    problems = []
    if good.reward != 1.0:
        gold = f"its known-good answer {taskset.gold(task)!r}"
        problems.append(f"task {task.id}: {gold} scores {good.reward:g}, not 1")
    if empty.reward >= 1.0:
        problems.append(f"task {task.id}: an empty answer scores 1")
    return problems


def _unreachable(taskset: Taskset, task: Task, max_tokens: int) -> list[str]:
    """Why no model can give the known-good answer."""
    if task.verifier in ("exact", "contains"):
        answer = str(task.answer).strip()
        if split_thought(answer) != ("", answer):
            problem = "its answer begins with a thought, and a thought is no part of an answer"
            return [f"task {task.id}: {problem}: leave it out"]
    gold = taskset.gold(task)
    words = max(len(text.split()) for text in ([gold] if isinstance(gold, str) else gold or [""]))
    if 0 < max_tokens < words:  # a token is at most a word
        problem = f"its known-good answer has {words} words, and max_tokens is {max_tokens}"
        return [f"task {task.id}: {problem}: raise it"]
    return []


def _question(task: Task) -> str:
    return json.dumps(task.messages, sort_keys=True, ensure_ascii=False)


def replay(taskset: Taskset, task: Task, texts: str | Sequence[str]) -> Score:
    """The score of an episode in which the assistant says these texts, one a turn, up to the end of
    either; what a single text is in a task without an environment. Raises what the environment
    raises."""
    env = taskset.environment(task)
    turns = [texts] if isinstance(texts, str) else list(texts)
    if env is None:
        return isolation.verify(taskset, task, turns[-1] if turns else "")
    env.reset(task)
    reward, feedback = None, ""
    for text in turns:
        step = env.step({"role": "assistant", "content": text})
        reward, feedback = reward if step.reward is None else step.reward, step.feedback
        if step.done:
            return (
                isolation.verify(taskset, task, text) if reward is None else Score(reward, feedback)
            )
    return Score(reward or 0.0, "the episode did not end")
