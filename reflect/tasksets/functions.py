"""A taskset as one function that yields the tasks of a split; its verifier may be a second
function.

    @taskset(verify=close)
    def sums(split):
        '''Adding two numbers.'''
        for a in range(10, 40) if split == "practice" else range(40, 50):
            yield f"What is {a} + 7?", a + 7

    def close(text, answer):
        return abs(float(extract_answer(text)) - answer) < 0.5

A task is (prompt, answer), a dict of the fields that a task file has (`id`, `messages`, `rubric`,
...), or a Task.
"""

from __future__ import annotations

import functools
import json
import random
import reprlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from reflect.errors import BadTaskFile
from reflect.tasksets.base import Taskset
from reflect.tasksets.files import messages_of, task_of
from reflect.tasksets.rows import FileRow
from reflect.tasksets.task import Score, Split, Task

if TYPE_CHECKING:
    from reflect.types import Json

Tasks = Callable[[Split], Iterable[Any]]
Verify = Callable[[str, Any], object]
"""(final text, answer) -> a Score, a reward in [0, 1], or (reward, feedback)."""
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
    """The tasks that a function yields. It is called once per split, so it may read files or
    generate tasks from a seed of its own; the same call must yield the same tasks."""

    def __init__(
        self, function: Tasks, *, verify: Verify | None = None, about: str = "", rubric: str = ""
    ) -> None:
        self.function, self.verifier, self.rubric = function, verify, rubric
        self.name = function.__name__
        self.about = about or next(iter((function.__doc__ or "").strip().splitlines()), "")
        self.golds: dict[str, str] = {}
        self._sides: dict[str, list[Task]] = {}

    def again(self) -> FunctionTaskset:
        """The same taskset, before its function was called."""
        return FunctionTaskset(
            self.function, verify=self.verifier, about=self.about, rubric=self.rubric
        )

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """See `Taskset.tasks`."""
        if split not in self._sides:
            self._sides[split] = self._read(split)
        rows = list(self._sides[split])
        random.Random(f"{split} {seed}").shuffle(rows)
        return rows[:n]

    def verify(self, task: Task, text: str) -> Score:
        """See `Taskset.verify`."""
        if task.verifier == "taskset" and self.verifier:
            return as_score(self.verifier(text, task.answer), self.verifier.__name__)
        return super().verify(task, text)

    def gold(self, task: Task) -> str | Sequence[str]:
        """See `Taskset.gold`."""
        return self.golds[task.id] if task.id in self.golds else super().gold(task)

    def rules(self) -> Sequence[object]:
        """See `Taskset.rules`."""
        return [*super().rules(), *([self.verifier] if self.verifier else [])]

    def _read(self, split: Split) -> list[Task]:
        """The tasks of a split. A repeated task without an id counts once."""
        tasks: list[Task] = []
        seen: set[str] = set()
        for number, item in enumerate(self.function(split), 1):
            named = isinstance(item, Task) or (isinstance(item, dict) and "id" in item)
            task = item if isinstance(item, Task) else self._task(item, split, number)
            if named or task.id not in seen:
                tasks.append(task)
            seen.add(task.id)
        return tasks

    def _task(self, item: object, split: Split, number: int) -> Task:
        where = f"{self.name}, {split} task {number}"
        if isinstance(item, tuple) and len(item) == 2:
            item = dict(zip(("prompt", "answer"), item, strict=True))
        if not isinstance(item, dict):
            raise BadTaskFile(f"{where}: {reprlib.repr(item)} is no task.", SHAPE)
        if self.rubric:
            item = {"rubric": self.rubric, **item}
        try:
            fields: Json = json.loads(json.dumps(item))  # as the database returns it
        except (TypeError, ValueError) as e:
            problem = f"{where}: it cannot be stored as JSON: {e}."
            raise BadTaskFile(problem, "Use texts, numbers, lists, dicts.") from e
        row = FileRow(where, {name: value for name, value in fields.items() if value is not None})
        own = self.verifier is not None and not {"verifier", "rubric"} & set(fields)
        task, gold = task_of(row, messages_of(row), split, own)
        self.golds[task.id] = gold
        return task


def as_score(given: object, whose: str) -> Score:
    """The result of a verifier as a Score. TypeError for any other type."""
    if isinstance(given, Score):
        return given
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str):
        given, feedback = given
    else:
        feedback = ""
    if isinstance(given, bool | int | float):
        return Score(float(given), feedback)
    message = f"{whose} returned {reprlib.repr(given)}: "
    raise TypeError(message + "return a reward in [0, 1], (reward, feedback) or a Score")
