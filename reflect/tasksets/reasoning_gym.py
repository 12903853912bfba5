"""The generators of reasoning-gym as tasksets: `gym:leg_counting`.

    gym:leg_counting                       one generator
    gym:chain_sum:min_terms=4,max_terms=6  with settings of its configuration
    gym:chain_sum:level=2                  at a level of its curriculum
    gym:chain_sum+leg_counting:level=1     several, mixed

A task is an item of the generator; the text after the last "answer:" is scored by the generator's
own `score_answer`. Practice and holdout use different seeds, and a question whose hash belongs to
the other split is left out, so no question is in both. An item whose right answer is an empty text
is left out too: an empty answer would solve it. Items are generated on demand in a separate process
(see `gymworker`).

Not covered: some scorers evaluate the model's text as a formula, without a time limit.
"""

from __future__ import annotations

import ast
import atexit
import difflib
import functools
import hashlib
import json
import random
import re
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.tasksets.base import Taskset
from reflect.tasksets.gymworker import Entry, Worker
from reflect.tasksets.task import Score, Split, Task
from reflect.tasksets.verifiers import extract_answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZE = 400  # maximum items generated per split: about 267 give practice tasks, 133 holdout tasks
SEEDS: dict[Split, int] = {"practice": 1_000_000, "holdout": 2_000_000}  # item i: seed + i
PRACTICE_SHARE = 2 / 3
ASK = '\n\nEnd with "answer:" and your final answer after it.'
# Fields in which generators keep a right answer.
ANSWERS = ("answer", "example_answer", "example_correct_answer", "possible_answer")
worker = Worker()
atexit.register(worker.end)


def load(spec: str) -> Taskset:
    """`NAME`, `NAME:KEY=VALUE,...`, several of them joined by "+". UnknownName for a generator or
    setting there is not, UsageError for a value that does not fit or where the library is
    missing."""
    if not spec:
        problem = "gym is many tasksets, one for each generator."
        raise UnknownName(problem, "See: reflect tasks list gym")
    parts = [_part(text) for text in _split(spec, "+")]
    if len({part.generator for part in parts}) < len(parts):
        raise UsageError(f"gym:{spec} names a generator twice.", "Name each one once.")
    return parts[0] if len(parts) == 1 else Mixed(f"gym:{spec}", parts)


def listing() -> list[tuple[str, str]]:
    """(name, what it is about) of every generator."""
    kinds = [(name, kind) for name, (kind, _) in sorted(_library().items())]
    return [(f"gym:{name}", f"{_category(kind)}: {_about(kind)}") for name, kind in kinds]


class Generator(Taskset):
    """One generator with its settings; `settings` never holds size and seed."""

    def __init__(
        self, generator: str, settings: Mapping[str, object], size: int = SIZE, spec: str = ""
    ) -> None:
        self.generator, self.settings, self.size = generator, dict(settings), size
        self.name = f"gym:{generator}" + (f":{spec}" if spec else "")
        made, config = _library()[generator]
        self.about = _about(made)
        try:
            self._scorer = made(config(**self.settings, size=2, seed=0))
        except Exception as e:  # its own check of the settings, an assertion as a rule
            why = f"{type(e).__name__}: {e}" if str(e) else type(e).__name__
            raise UsageError(f"{self.name} cannot be made: {why}.", _known(generator)) from e
        self._entries: dict[tuple[Split, int], Entry] = {}

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """See `Taskset.tasks`."""
        """See `Taskset.tasks`."""
        order = list(range(self.size))
        random.Random(f"{split} {seed}").shuffle(order)
        found: dict[str, Task] = {}
        for index in order:
            if n is not None and len(found) >= n:
                break
            entry = self._entry(split, index)
            question = str(entry["question"])
            if _side(question) == split and question not in found and own_answer(entry) != "":
                found[question] = self._task(split, index)
        return list(found.values())

    def verify(self, task: Task, text: str) -> Score:
        """The generator's own reward for the text after the last "answer:", or for all of it where
        there is none."""
        answer, entry = extract_answer(text), self._entry_of(task)
        return Score(min(max(float(self._scorer.score_answer(answer, entry)), 0.0), 1.0))

    def gold(self, task: Task) -> str:
        """What the generator itself, or the solution that it keeps with the puzzle, gives."""
        return f"answer: {own_answer(self._entry_of(task))}"

    def bare(self, task: Task) -> float:
        """The score of reasoning-gym itself for the item's own answer, without our words around
        it."""
        entry = self._entry_of(task)
        return float(self._scorer.score_answer(own_answer(entry), entry))

    def rules(self) -> Sequence[object]:
        """See `Taskset.rules`."""
        """See `Taskset.rules`."""
        settings = sorted(self.settings.items())
        return [f"reasoning-gym {version('reasoning-gym')}, {self.generator} {settings}"]

    def _entry(self, split: Split, index: int) -> Entry:
        key = (split, index)
        if key not in self._entries:
            words = {**self.settings, "size": self.size, "seed": SEEDS[split]}
            self._entries[key] = worker.entry(self.generator, words, index)
        return self._entries[key]

    def _entry_of(self, task: Task) -> Entry:
        """ReflectError where the generator makes another question now: its version has changed."""
        index = int(task.id.rpartition("-")[2])
        entry = self._entry(task.split, index)
        if task.messages[-1]["content"] != _asked(entry):
            problem = f"The generator {self.generator} makes another question of the task {task.id}"
            raise ReflectError(f"{problem} now.")
        return entry

    def _task(self, split: Split, index: int) -> Task:
        entry = self._entry(split, index)
        message = {"role": "user", "content": _asked(entry)}
        name = f"{self.generator}-{split}-{index}"
        return Task(name, [message], verifier="taskset", answer=own_answer(entry), split=split)


class Mixed(Taskset):
    """Several generators, their tasks one after the other."""

    def __init__(self, name: str, parts: Sequence[Generator]) -> None:
        self.name, self.about = name, " and ".join(part.generator for part in parts)
        self.parts = {part.generator: part for part in parts}

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """See `Taskset.tasks`."""
        for each in (None if n is None else -(-n // len(self.parts)), None):
            sides = [part.tasks(split, each, seed) for part in self.parts.values()]
            rounds = max(map(len, sides))
            found = [side[i] for i in range(rounds) for side in sides if i < len(side)][:n]
            if n is None or len(found) == n:
                break  # else a part has fewer than its share, and the others make up for it
        return found

    def verify(self, task: Task, text: str) -> Score:
        """See `Taskset.verify`."""
        return self._part(task).verify(task, text)

    def gold(self, task: Task) -> str:
        """See `Taskset.gold`."""
        return self._part(task).gold(task)

    def rules(self) -> Sequence[object]:
        """See `Taskset.rules`."""
        return [rule for part in self.parts.values() for rule in part.rules()]

    def _part(self, task: Task) -> Generator:
        return self.parts[task.id.rsplit("-", 2)[0]]


def own_answer(entry: Entry) -> str | None:
    """A right answer as the generator keeps it, None where it keeps none."""
    found = next(
        (x for name in ANSWERS if (x := {**entry["metadata"], **entry}.get(name)) is not None), None
    )
    return None if found is None else json.dumps(found) if isinstance(found, dict) else str(found)


def _asked(entry: Entry) -> str:
    return str(entry["question"]).strip() + ASK


def _side(question: str) -> Split:
    share = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") / 2**32
    return "practice" if share < PRACTICE_SHARE else "holdout"


def _part(text: str) -> Generator:
    """`chain_sum:min_terms=4,size=50`"""
    name, _, spec = text.partition(":")
    if name not in _library():
        near = difflib.get_close_matches(name, _library(), n=3)
        meant = f" Did you mean {', '.join(near)}?" if near else ""
        raise UnknownName(
            f"There is no generator '{name}' in reasoning-gym.{meant}",
            "See: reflect tasks list gym",
        )
    words = dict(_setting(name, word) for word in _split(spec, ",")) if spec else {}
    size, level = words.pop("size", SIZE), words.pop("level", None)
    for key, value in (("size", size), ("level", level)):
        if value is not None and not (isinstance(value, int) and value >= 0):
            problem = f"gym:{text}: {key} = {value!r} is no whole number."
            raise UsageError(problem, "As in: gym:chain_sum:level=2")
    return Generator(name, (_level(name, level) if level is not None else {}) | words, size, spec)


def _setting(name: str, word: str) -> tuple[str, Any]:
    """`min_terms=4` as ("min_terms", 4): a value is a Python literal, or else a text."""
    key, equals, value = (part.strip() for part in word.partition("="))
    known = {*_fields(name), "size", "level"} - {"seed"}
    if not equals or key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UnknownName(f"gym:{name} has no setting '{word}'.{meant}", _known(name))
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _split(text: str, at: str) -> list[str]:
    """The parts between `at`, but not within brackets or quotes: `operators=['+','-'],size=9` has
    two."""
    return re.split(rf"{re.escape(at)}(?![^(\[]*[)\]])", text)


def _level(name: str, level: int) -> dict[str, object]:
    """The settings of a level of the generator's curriculum."""
    import reasoning_gym.factory as factory

    if not factory.has_curriculum(name):
        raise UsageError(f"gym:{name} has no levels.", _known(name))
    curriculum = factory.create_curriculum(name)
    for attribute in curriculum.attributes.values():
        curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
    made = vars(curriculum.generate_configuration())
    return {key: made[key] for key in _fields(name)}


def _known(name: str) -> str:
    return f"Its settings are {', '.join([*_fields(name), 'level', 'size'])}."


def _fields(name: str) -> list[str]:
    return [
        field.name
        for field in fields(_library()[name][1])
        if field.init and field.name not in ("seed", "size")
    ]


@functools.cache
def _library() -> dict[str, tuple[Any, Any]]:
    """name -> (class, configuration) of every generator; `composite` is what "+" is for."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as e:
        problem = "gym:NAME needs the package reasoning-gym, which is not installed."
        raise UsageError(problem, "Install it: pip install 'second-nature[gym]'") from e
    return {name: made for name, made in DATASETS.items() if name != "composite"}


def _category(kind: type) -> str:
    return kind.__module__.split(".")[1]


def _about(kind: type) -> str:
    return next(iter((kind.__doc__ or "").strip().splitlines()), "").rstrip(".")
