"""A taskset as one function: what it yields are the tasks of a side, and its verifier may be one
more function.

    @taskset(verify=close)
    def sums(split):
        '''Adding two numbers.'''
        for a in range(10, 40) if split == "practice" else range(40, 50):
            yield f"What is {a} + 7?", a + 7

    def close(text, answer):
        return abs(float(judged(text)) - answer) < 0.5

A task is (prompt, answer), a dict of the fields that a task file has (`id`, `messages`, `rubric`,
...), or a Task.
"""

from __future__ import annotations

import functools
import json
import random
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

from reflect.errors import BadTaskFile
from reflect.tasksets.base import Taskset
from reflect.tasksets.files import FileRow, messages_of, task_of
from reflect.tasksets.task import Score, Split, Task

Tasks = Callable[[Split], Iterable[Any]]
Verify = Callable[
    [str, Any], Any
]  # (final text, answer) -> a Score, a reward in [0, 1], or (reward, feedback)
SHAPE = 'Yield (prompt, answer), or {"prompt": ..., "answer": ...}, or a Task.'


@overload
def taskset(function: Tasks) -> FunctionTaskset: ...
@overload
def taskset(
    *, verify: Verify | None = None, about: str = "", rubric: str = ""
) -> Callable[[Tasks], FunctionTaskset]: ...
def taskset(
    function: Tasks | None = None,
    *,
    verify: Verify | None = None,
    about: str = "",
    rubric: str = "",
) -> FunctionTaskset | Callable[[Tasks], FunctionTaskset]:
    """Make a taskset of a function that yields the tasks of a split, `practice` or `holdout`.

    `verify(text, answer)` scores the final text of a rollout where the named verifiers do not fit;
    `rubric` has a judge grade it. `about` is the line in `reflect tasks list`; by default the first
    one of the docstring.
    """
    make = functools.partial(FunctionTaskset, verify=verify, about=about, rubric=rubric)
    return make(function) if function else make


class FunctionTaskset(Taskset):
    """The tasks that a function yields. It is asked once for each side, so it may read files or
    make tasks at random from a seed of its own; the same call must yield the same tasks."""

    def __init__(
        self, function: Tasks, *, verify: Verify | None = None, about: str = "", rubric: str = ""
    ) -> None:
        self.function, self.verifier, self.rubric = function, verify, rubric
        self.name = function.__name__
        self.about = about or next(iter((function.__doc__ or "").strip().splitlines()), "")
        self.golds: dict[str, str] = {}
        self._sides: dict[str, list[Task]] = {}

    def again(self) -> FunctionTaskset:
        """The same taskset, its function not asked yet."""
        return FunctionTaskset(
            self.function, verify=self.verifier, about=self.about, rubric=self.rubric
        )

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        if split not in self._sides:
            self._sides[split] = self._made(split)
        rows = list(self._sides[split])
        random.Random(f"{split} {seed}").shuffle(rows)
        return rows[:n]

    def verify(self, task: Task, text: str) -> Score:
        if task.verifier == "taskset" and self.verifier:
            return as_score(self.verifier(text, task.answer), self.verifier.__name__)
        return super().verify(task, text)

    def gold(self, task: Task) -> str | Sequence[str]:
        return self.golds[task.id] if task.id in self.golds else super().gold(task)

    def rules(self) -> Sequence[object]:
        return [*super().rules(), *([self.verifier] if self.verifier else [])]

    def _made(self, split: Split) -> list[Task]:
        """The tasks of a side. One without an id that stands there twice counts once."""
        found: list[Task] = []
        seen: set[str] = set()
        for number, made in enumerate(self.function(split), 1):
            named = isinstance(made, Task) or (isinstance(made, dict) and "id" in made)
            task = made if isinstance(made, Task) else self._task(made, split, number)
            if named or task.id not in seen:
                found.append(task)
            seen.add(task.id)
        return found

    def _task(self, made: Any, split: Split, number: int) -> Task:
        where = f"{self.name}, {split} task {number}"
        if isinstance(made, tuple) and len(made) == 2:
            made = dict(zip(("prompt", "answer"), made, strict=True))
        if not isinstance(made, dict):
            raise BadTaskFile(f"{where}: {reprlib.repr(made)} is no task.", SHAPE)
        if self.rubric:
            made = {"rubric": self.rubric, **made}
        try:
            made = json.loads(
                json.dumps(made)
            )  # as it stands in the database, where it is read back
        except (TypeError, ValueError) as e:
            raise BadTaskFile(
                f"{where}: it cannot be kept as JSON: {e}.", "Use texts, numbers, lists, dicts."
            ) from e
        row = FileRow(where, {name: value for name, value in made.items() if value is not None})
        own = self.verifier is not None and not {"verifier", "rubric"} & set(made)
        task, gold = task_of(row, messages_of(row), split, own)
        self.golds[task.id] = gold
        return task


def as_score(given: object, whose: str) -> Score:
    """What a verifier returned as a Score. TypeError for anything that is no reward."""
    if isinstance(given, Score):
        return given
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
        given, feedback = given
    else:
        feedback = ""
    if isinstance(given, bool | int | float):
        return Score(float(given), feedback)
    told = f"{whose} returned {reprlib.repr(given)}: return a reward in [0, 1], (reward, feedback) or a Score"
    raise TypeError(told)
