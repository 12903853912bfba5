"""The Berkeley Function Calling Leaderboard (Patil et al. 2025): calls in several turns, judged by
the state of the systems that they change.

    bfcl:multi_turn_base          four systems of files, tickets, trips, cars ...
    bfcl:multi_turn_long_context  the same with long results of calls

The model gets requests one after the other. For each it calls functions by lines such as
`call: cd(folder='document')`; a message without a call ends the request. Then the package compares
the systems with those after the expected calls, and the results of the calls. The reward is 1 if
every request of the conversation was done, as in the suite.

The data, the systems and both comparisons are those of the package bfcl-eval. Its own runner
evaluates the model's text as Python; here calls are read as literals (`tasksets.tools`). Tasks with
an expected call that is no literal are left out.

Not covered: categories that need the network (web search), a vector database (memory), compilers
(Java, JavaScript), or calls that must be refused (miss_func, miss_param).
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.tasksets.environment import Environment, EnvironmentStep, as_messages
from reflect.tasksets.suites import SuiteTaskset, known_name, require, side, user_task
from reflect.tasksets.tools import Result, Tool, call_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.tasksets.task import Message, Split, Task
    from reflect.types import Json

CATEGORIES = {
    "multi_turn_base": "requests to systems of files, tickets, trips, cars, in several turns",
    "multi_turn_long_context": "the same with long results",
}
STEPS = 20  # messages for one request, as in the suite
EVALUATION = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker"
HOW = """Do the requests with the functions below. Call one by a line such as
call: cd(folder='document')
A message may have several such lines. When a request is done, answer without a call.

{}

Request: {}"""


def load(category: str) -> Bfcl:
    """The conversations of a category."""
    return Bfcl(known_name("bfcl", category, CATEGORIES), CATEGORIES[category])


def listing() -> list[tuple[str, str]]:
    """See `suites.listing`."""
    return [(f"bfcl:{name}", about) for name, about in CATEGORIES.items()]


class Bfcl(SuiteTaskset):
    """The conversations of one category."""

    suite = "bfcl"

    def __init__(self, category: str, about: str) -> None:
        super().__init__(category, about)
        self.category = category
        require(EVALUATION, "bfcl")

    def keys(self, split: Split) -> list[int]:
        """The numbers of the conversations, divided by their scenes, of which several may have the
        same."""
        return [
            number
            for number, row in conversations(self.category).items()
            if side(json.dumps(row["initial_config"], sort_keys=True)) == split
        ]

    def make(self, split: Split, key: int) -> Task:
        """See `SuiteTaskset.make`."""
        row = conversations(self.category)[key]
        functions = "\n".join(described(name) for name in row["involved_classes"])
        text = HOW.format(functions, requests(row)[0])
        return user_task(f"{self.category}-{key}", text, split)

    def environment(self, task: Task) -> Environment:
        """See `Taskset.environment`."""
        return BfclEpisode(self._row(task), self.long)

    def gold(self, task: Task) -> list[str]:
        """The expected calls of each request, and a message without a call."""
        texts = []
        for calls in self._row(task)["expected"]:
            texts += ["\n".join(f"call: {call}" for call in calls), "done"]
        return texts

    def version(self) -> str:
        """See `SuiteTaskset.version`."""
        return f"bfcl-eval {version('bfcl-eval')}"

    @property
    def long(self) -> bool:
        """Whether the results of calls are long."""
        return "long_context" in self.category

    def _row(self, task: Task) -> Json:
        return conversations(self.category)[self.key_of(task)]


class Systems:
    """The systems of one conversation, and calls of their functions."""

    def __init__(self, row: Json, long: bool) -> None:
        self.instances: dict[str, object] = {}
        tools: dict[str, Tool] = {}
        config = importlib.import_module("bfcl_eval.constants.executable_backend_config")
        for name in row["involved_classes"]:
            kind = getattr(importlib.import_module(config.CLASS_FILE_PATH_MAPPING[name]), name)
            system = self.instances[name] = kind()
            if name not in config.STATELESS_CLASSES:
                scene = copy.deepcopy(row["initial_config"].get(name, {}))
                system._load_scenario(scene, long_context=long)
            members = inspect.getmembers(system, predicate=inspect.ismethod)
            tools |= {method: tool for method, tool in members if not method.startswith("_")}
        self.tools = list(tools.values())

    def call(self, message: Message) -> list[Result]:
        """The results of the calls of a message."""
        return call_all(self.tools, message, lines=True)


class BfclEpisode(Environment):
    """One conversation: the systems of the model, and those after the expected calls."""

    lines = True

    def __init__(self, row: Json, long: bool) -> None:
        self.row, self.request, self.steps = row, 0, 0
        self.own, self.expected = Systems(row, long), Systems(row, long)
        self.tools = self.own.tools
        self.results: list[str] = []
        self.called = False
        self.turns = STEPS * len(row["expected"])

    def step(self, message: Message) -> EnvironmentStep:
        """Carry out the calls of a message; without any, judge the request and ask the next."""
        results = self.own.call(message)
        self.steps += 1
        if results and self.steps < STEPS:
            self.called = True
            self.results += [result.text for result in results]
            errors = tuple(f"{result.call}: {result.error}" for result in results if result.error)
            return EnvironmentStep(as_messages(results), errors=errors)
        problem = self._problem() if self.called else "it ended without a call"
        if problem or results:
            feedback = f"request {self.request + 1}: {problem or 'too many messages'}"
            return EnvironmentStep(done=True, reward=0.0, feedback=feedback)
        self.request, self.steps, self.called = self.request + 1, 0, False
        if self.request == len(self.row["expected"]):
            return EnvironmentStep(done=True, reward=1.0)
        text = f"Request: {requests(self.row)[self.request]}"
        return EnvironmentStep([{"role": "user", "content": text}])

    def _problem(self) -> str:
        """Why the request is not done, by the package's comparisons; "" if it is."""
        checker = require(EVALUATION, "bfcl")
        calls = self.row["expected"][self.request]
        expected = [result.text for result in self.expected.call(as_message(calls))]
        state = checker.state_checker(self.own.instances, self.expected.instances)
        if not state["valid"]:
            return "the systems are not in the state that was asked for"
        answer = checker.response_checker(self.results, expected, self.request)
        return "" if answer["valid"] else "a call whose result was asked for is missing"


def as_message(calls: Sequence[str]) -> Message:
    """Calls as a message of the assistant."""
    return {"role": "assistant", "content": "\n".join(f"call: {call}" for call in calls)}


def requests(row: Json) -> list[str]:
    """The requests of a conversation, in order."""
    return ["\n".join(message["content"] for message in turn) for turn in row["question"]]


@functools.cache
def conversations(category: str) -> dict[int, Json]:
    """The conversations by number, each with its expected calls. Left out: those with an expected
    call that is no literal or fails here."""
    answers = {
        row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/{_file(category)}")
    }
    found = {}
    for row in _rows(_file(category)):
        row["expected"] = answers[row["id"]]
        systems = Systems(row, "long_context" in category)
        messages = [as_message(calls) for calls in row["expected"]]
        results = [systems.call(message) for message in messages]
        counts = [len(calls) for calls in row["expected"]]
        misfit = any("arguments do not fit" in x.error for turn in results for x in turn)
        if not misfit and all(counts) and [len(turn) for turn in results] == counts:
            found[int(row["id"].rpartition("_")[2])] = row
    return found


@functools.cache
def described(system: str) -> str:
    """The functions of a system: name, parameters and their types, and the first sentence."""
    config = importlib.import_module("bfcl_eval.constants.executable_backend_config")
    file = config.MULTI_TURN_FUNC_DOC_FILE_MAPPING[system]
    lines = []
    for row in _rows(f"multi_turn_func_doc/{file}"):
        properties = row["parameters"]["properties"]
        needed = row["parameters"].get("required", [])
        names = ", ".join(
            f"{name}: {value['type']}{'' if name in needed else ' = optional'}"
            for name, value in properties.items()
        )
        about = row["description"].rpartition("Tool description: ")[2].partition(". ")[0]
        lines.append(f"{row['name']}({names}): {about.rstrip('.')}")
    return "\n".join(lines)


def _file(category: str) -> str:
    return f"BFCL_v4_{category}.json"


def _rows(path: str) -> list[Json]:
    folder = Path(str(require("bfcl_eval", "bfcl").__file__)).parent / "data"
    return [json.loads(line) for line in (folder / path).read_text().splitlines()]
