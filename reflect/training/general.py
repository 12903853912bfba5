"""What a pretrained model can be asked about outside the night: shipped instructions, a page of
English, invented lessons, rules, and neighbours of a task.

A lesson invented here is about places that do not exist, so that no model knows the answer. Each
kind of lesson and of rule is tried on the base first (see `guards`): only what it follows counts.

Not covered: other languages than English.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from reflect.config import shipped
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Split, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

HELD_OUT = 4  # every fourth instruction is for the gate
PLACES = tuple(
    f"the {name}"
    for name in (
        "amber ferry, stone bakery, north station, glass museum, willow clinic, harbour cinema, "
        "copper bridge, lake hostel, orchid market, lantern theatre, granite tower, maple kennel, "
        "silver garage, meadow farm, ivory arcade, pepper canteen, falcon depot, coral aquarium"
    ).split(", ")
)
TIMES = ("6:10", "7:35", "8:50", "9:05", "10:25", "17:40", "19:15", "21:55")
NAMES = ("Ada Brunner", "Tomas Welk", "Ines Falk", "Oskar Rind", "Mira Stolz", "Jon Abel")
NUMBERS = ("3381", "4902", "5567", "6120", "7743", "8819")
# kind -> (question, condition, advice, values); {p} is a place
KINDS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "opens": ("When does {p} open?", "asked when {p} opens", "say that it opens at {v}", TIMES),
    "closes": ("When does {p} close?", "asked when {p} closes", "say that it closes at {v}", TIMES),
    "phone": (
        "What is the phone number of {p}?",
        "asked for the phone number of {p}",
        "say that the number is {v}",
        NUMBERS,
    ),
    "owner": ("Who owns {p}?", "asked who owns {p}", "say that the owner is {v}", NAMES),
    "code": (
        "What is the door code of {p}?",
        "asked for the door code of {p}",
        "say that the code is {v}",
        NUMBERS,
    ),
    "price": (
        "What does a ticket for {p} cost?",
        "asked what a ticket for {p} costs",
        "say that a ticket costs {v} crowns",
        ("12", "18", "27", "34", "46", "59"),
    ),
    "street": (
        "Where is {p}?",
        "asked where {p} is",
        "say that it is in {v}",
        ("Heron Street", "Cedar Lane", "Quarry Road", "Mill Alley", "Juniper Square"),
    ),
    "day": (
        "On which day is {p} closed?",
        "asked on which day {p} is closed",
        "say that it is closed on {v}",
        ("Monday", "Tuesday", "Wednesday", "Friday"),
    ),
}
# rules that contradict any lesson, each with the word that shows that it is obeyed
RULES: dict[Split, tuple[tuple[str, str], ...]] = {
    "practice": (
        ("say that it is 9:05", "9:05"),
        ("say that it is Tomas Welk", "welk"),
        ("say that it is number 4902", "4902"),
        ("say that it is in Cedar Lane", "cedar"),
    ),
    "holdout": (
        ("say that it is 10:25", "10:25"),
        ("say that it is Ines Falk", "falk"),
        ("say that it is number 6120", "6120"),
        ("say that it is in Quarry Road", "quarry"),
    ),
}
OTHERS: dict[Split, tuple[str, ...]] = {
    "practice": ("school", "hospital", "bakery", "airport", "castle", "theatre"),
    "holdout": ("library", "museum", "harbour", "factory", "church", "stadium"),
}
DETERMINERS = "the|an|a|our|your|my|their|his|her|this|that"
NOUN = re.compile(
    rf"\b(?:{DETERMINERS}|of|in|at|for)\s+(?!(?:{DETERMINERS})\b)([^\W\d_]{{3,}})", re.I
)


class NewLessons(Taskset):
    """Questions about invented places, each with the lesson that answers it in its prompt."""

    name = "general"
    about = "following lessons about invented places"

    def __init__(self, kinds: Sequence[str] = ()) -> None:
        self.kinds = tuple(kinds) or tuple(KINDS)

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        """None: without its lesson no question can be answered."""
        return []

    def following(self, n: int, seed: int = 0) -> list[Task]:
        """n questions, the kinds in turn."""
        rng = random.Random(f"new lessons {seed}")
        tasks = []
        for i in range(n):
            kind = self.kinds[i % len(self.kinds)]
            question, when, do, values = KINDS[kind]
            place, value = rng.choice(PLACES), rng.choice(values)
            texts = (text.format(p=place, v=value) for text in (question, when, do))
            asked, *lesson = texts
            tasks.append(
                Task(
                    id=f"{kind}-{seed}-{i}",
                    messages=[{"role": "user", "content": asked}],
                    verifier="contains",
                    answer=value,
                    lessons=((lesson[0], lesson[1]),),
                )
            )
        return tasks


def kind_of(task: Task) -> str:
    """The kind of a task of `NewLessons`."""
    return task.id.partition("-")[0]


@functools.cache
def instructions(split: Split) -> tuple[str, ...]:
    """The shipped instructions: most for anchors (practice), every fourth for the gate."""
    lines = (shipped("tasks") / "general" / "instructions.txt").read_text().splitlines()
    held_out = split == "holdout"
    return tuple(line for i, line in enumerate(lines) if (i % HELD_OUT == 0) == held_out)


def page() -> str:
    """A page of English that no night is trained on."""
    return (shipped("tasks") / "general" / "page.txt").read_text()


def neighbour(
    task: Task, conditions: Sequence[str], taken: str, split: Split, seed: int
) -> Task | None:
    """The same question about something else: a noun that the task and the conditions of its
    lessons share is replaced, by one that is not in `taken` (all texts of the lessons). None if
    they share no noun."""
    words = Counter(stem(w) for text in conditions for w in set(re.findall(r"\w+", text)))
    nouns = {noun for noun in NOUN.findall(task.text) if stem(noun) in words}
    if not nouns:
        return None
    # the noun of the most conditions is what they are about; of equals the last one in the question
    noun = max(nouns, key=lambda noun: (words[stem(noun)], task.text.rfind(noun)))
    free = [other for other in OTHERS[split] if other not in taken.casefold()]
    other = random.Random(f"neighbour {seed} {task.key}").choice(free or OTHERS[split])
    pattern = re.compile(rf"\b{re.escape(noun)}\b")
    messages = [
        {**m, "content": pattern.sub(other, m["content"])} if m["role"] == "user" else m
        for m in task.messages
    ]
    return replace(task, id=f"{task.id} about {other}", messages=messages, lessons=())


def stem(word: str) -> str:
    """The first four letters, in lower case."""
    return word.casefold()[:4]
