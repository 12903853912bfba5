"""Public suites of tasks from packages, as tasksets: `world:coin`, `ifbench:test`.

One module for each suite, with `load(argument)` and `listing()`. Its package is an extra of the
same name, imported only when the suite is used. Everything runs offline. docs/suites.md lists the
suites, their licences and what cannot run.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import random
from typing import TYPE_CHECKING

from reflect.errors import UnknownName, UsageError
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

SUITES = ("bfcl", "ifbench", "sokoban", "textarena", "world")
PRACTICE_SHARE = 2 / 3
SIZE: dict[Split, int] = {"practice": 200, "holdout": 100}  # tasks made from seeds
FIRST_SEED: dict[Split, int] = {"practice": 1_000_000, "holdout": 2_000_000}


def load(suite: str, argument: str) -> Taskset:
    """The taskset `suite:argument`. UnknownName, or UsageError where its package is missing."""
    if not argument:
        problem = f"{suite} is a suite of many tasksets."
        raise UnknownName(problem, f"See: reflect tasks list {suite}")
    module = importlib.import_module(f"{__name__}.{suite}")
    loaded: Taskset = module.load(argument)
    return loaded


def listing(suite: str) -> list[tuple[str, str]]:
    """(name, what it is about) of each taskset of a suite."""
    rows: list[tuple[str, str]] = importlib.import_module(f"{__name__}.{suite}").listing()
    return rows


def require(module: str, suite: str) -> ModuleType:
    """The imported module of the suite's package. UsageError where it cannot be imported. Some
    packages draw from the global generator when they are imported: its state is restored."""
    ours = random.getstate()
    try:
        return importlib.import_module(module)
    except ImportError as e:
        problem = f"{suite}:NAME needs the package {e.name or module}, which is not installed."
        raise UsageError(problem, f"Install it: pip install 'second-nature[{suite}]'") from e
    finally:
        random.setstate(ours)


def known_name(suite: str, name: str, known: Mapping[str, object]) -> str:
    """`name`, if the suite has it. UnknownName with a suggestion."""
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    problem = f"There is no taskset '{suite}:{name}'.{meant}"
    raise UnknownName(problem, f"See: reflect tasks list {suite}")


def side(text: str) -> Split:
    """The split to which a text belongs, by its hash."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    return "practice" if share < PRACTICE_SHARE else "holdout"


class SuiteTaskset(Taskset):
    """A taskset of a suite: a subclass makes the keys of the tasks of a split, and the task of a
    key. A task is made once."""

    suite = ""

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = f"{self.suite}:{name}", about
        self._made: dict[tuple[Split, int], Task] = {}

    def keys(self, split: Split) -> list[int]:
        """The keys of the tasks: seeds, by default."""
        return [FIRST_SEED[split] + i for i in range(SIZE[split])]

    def make(self, split: Split, key: int) -> Task:
        """The task of a key."""
        raise NotImplementedError

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """See `Taskset.tasks`."""
        keys = list(self.keys(split))
        random.Random(f"{split} {seed}").shuffle(keys)
        return [self.task(split, key) for key in keys[:n]]

    def task(self, split: Split, key: int) -> Task:
        """The task of a key, made at the first call."""
        if (split, key) not in self._made:
            self._made[split, key] = self.make(split, key)
        return self._made[split, key]

    def key_of(self, task: Task) -> int:
        """The key in the id of a task."""
        return int(task.id.rpartition("-")[2])

    def rules(self) -> list[object]:
        """See `Taskset.rules`."""
        return [f"{self.name} {self.version()}"]

    def version(self) -> str:
        """Name and version of the package that scores."""
        raise NotImplementedError


def user_task(task_id: str, text: str, split: Split, answer: object = "") -> Task:
    """A task with one message of the user, scored by its taskset."""
    return Task(task_id, [{"role": "user", "content": text}], "taskset", answer, split)
