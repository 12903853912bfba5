"""A taskset is one class with four methods; a task is one problem; a score is what a verifier says
of one rollout."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.tasksets.task import HUMAN, JUDGE, Score, Split, Task

if TYPE_CHECKING:
    from reflect.tasksets.environment import Environment


Judge = Callable[
    [Sequence[tuple[Task, str]]], "list[Score | Exception]"
]  # grades (task, final text) in one batch


class Taskset:
    """Four methods; only `tasks` must be written.

    Practice and holdout are disjoint by id *and* by template or generator seed (DESIGN, section 1).
    """

    name = "taskset"
    about = ""  # one line for `reflect tasks list`
    load_error: ReflectError | None = None  # why its file could not be loaded: then it has no tasks
    stepwise = False  # choose the lessons again at each turn, by `Environment.state`
    judge: Judge | None = (
        None  # who grades tasks with the verifier "judge"; None: the model that practises, bare
    )

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """The first `n` tasks (all when None) of the split in an order that depends on `seed`
        only."""
        raise NotImplementedError

    def verify(self, task: Task, text: str) -> Score:
        """Score the final assistant text of one rollout. Never raises for a bad rollout."""
        from reflect.tasksets.verifiers import VERIFIERS

        if task.verifier == HUMAN or (task.verifier == JUDGE and self.judge is None):
            raise UsageError(f"No program can score the task {task.id}.", "See: reflect grade")
        if task.verifier == JUDGE and self.judge:
            (score,) = self.judge([(task, text)])
            if isinstance(score, Exception):
                raise score
            return score
        return VERIFIERS[task.verifier](text, task.answer)

    def environment(self, task: Task) -> Environment | None:
        """A new episode of a task of several turns; None where the first answer is the last."""
        return None

    def gold(self, task: Task) -> str | Sequence[str]:
        """A known-good final assistant text, or all texts of a known-good episode: must score 1.0
        without a model."""
        return f"answer: {task.answer}"

    def audit(self, task: Task, text: str) -> float | None:
        """A second opinion in [0, 1] that neither the policy nor the reflector ever sees; None when
        there is none.

        A lesson that raises the reward and not this is a reward hack, and its trial rejects it.
        """
        return None

    def rules(self) -> Sequence[object]:
        """What a reward depends on besides the code of `verify` and `audit`: functions and texts
        (see `trials.reward_version`)."""
        from reflect.tasksets.verifiers import VERIFIERS

        named = {task.verifier for task in self.tasks("practice")}
        judged = (
            [f"{JUDGE} {getattr(self.judge, 'name', '')} {prompts.version('judge')}"]
            if JUDGE in named
            else []
        )
        return [VERIFIERS[name] for name in sorted(named & set(VERIFIERS))] + judged

    def following(self, n: int, seed: int = 0) -> list[Task]:
        """Tasks that bring their own *new* lesson in `Task.lessons`: used as anchors by night and
        to measure whether an adapter still follows new lessons. Empty when the taskset has none."""
        return []


def find_task(taskset: Taskset, task_id: str | None) -> Task:
    """A task by its id or content key, of either split; the first holdout task when None."""
    if task_id is None and (first := taskset.tasks("holdout", 1) or taskset.tasks("practice", 1)):
        return first[0]
    tasks = [*taskset.tasks("holdout"), *taskset.tasks("practice")]
    for task in tasks:
        if task_id in (task.id, task.key):
            return task
    near = difflib.get_close_matches(task_id or "", [task.id for task in tasks], n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    message = f"The taskset {taskset.name} has no task '{task_id}'.{meant}"
    raise UnknownName(message, f"See: reflect tasks show {taskset.name}")


def has_environment(taskset: Taskset) -> bool:
    """Has the taskset environments at all?"""
    return type(taskset).environment is not Taskset.environment
