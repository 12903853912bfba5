"""dialect: made-up verbs that stand for list operations.

    Apply zubi to the list 3 1 2.      ->  2 1 3        (if zubi means reverse)

Nothing about a verb can be known in advance: its meaning is found by attempts and rewards, stated
in a lesson, followed from the prompt, and finally known from the weights. Practice and holdout use
the same verbs on different lists. None of these verbs occurs in the pocket model's pretraining.
`dialect:2` is the second set of verbs, and so on: a new day.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

from reflect.errors import UnknownName
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Split, Task

OPS = {
    "first": lambda xs: xs[:1],
    "largest": lambda xs: [max(xs)],
    "last": lambda xs: xs[-1:],
    "rest": lambda xs: xs[1:],
    "reverse": lambda xs: xs[::-1],
    "rotate": lambda xs: xs[1:] + xs[:1],
    "sort": sorted,
    "swap": lambda xs: [xs[-1], *xs[1:-1], xs[0]],
}
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
VERBS_PER_SET = 6
# Short words of the vocabulary: the tokenizer would not split a verb that starts with one into its
# two syllables.
TAKEN = {
    *(word for word in (Path(__file__).parent / "words.txt").read_text().split() if len(word) <= 4),
    *"for get has had how let may new not now one say see ten too two use was way yes you buy sum".split(),
    *"try map mix top".split(),
    *"did but put fit per five gone done fail gave give hold kept keep like line".split(),
    *"long look made make more name nine none note over part same".split(),
    *"some take time tool type turn very wait went were work zero data tuna puma sofa pony kiwi rule page tell".split(),
}


def is_shipped(verb: str) -> bool:
    """One verb in five is kept for tasks and never occurs in the pocket model's pretraining."""
    return hashlib.sha256(verb.encode()).digest()[0] % 5 == 0


def verbs(shipped: bool) -> list[str]:
    """All two-syllable verbs of one side, in a fixed random order."""
    every = (a + b for a, b in itertools.product(SYLLABLES, SYLLABLES) if a != b)
    chosen = [
        v for v in every if v not in TAKEN and v[:3] not in TAKEN and is_shipped(v) == shipped
    ]
    random.Random("dialect").shuffle(chosen)
    return chosen


def numbers(rng: random.Random) -> list[int]:
    """3 to 5 different numbers on which no two operations agree."""
    while True:
        xs = rng.sample(range(1, 21), rng.randint(3, 5))
        if len({tuple(op(xs)) for op in OPS.values()}) == len(OPS):
            return xs


def listed(xs: list[int]) -> str:
    return " ".join(map(str, xs))


class Dialect(Taskset):
    name = "dialect"
    about = "made-up verbs for list operations; dialect:N is the Nth set of verbs"

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self.name = "dialect" if number == 1 else f"dialect:{number}"
        rng = random.Random(f"meanings {number}")
        pool = verbs(shipped=True)
        mine = pool[(number - 1) * VERBS_PER_SET : number * VERBS_PER_SET]
        self.meanings = dict(zip(mine, rng.sample(sorted(OPS), VERBS_PER_SET), strict=True))

    def variant(self, argument: str) -> Dialect:
        """`dialect:N`, N from 1 to 100."""
        if not argument.isdigit() or not 1 <= int(argument) <= 100:
            raise UnknownName(
                f"There is no taskset dialect:{argument}.", "Use dialect:1 to dialect:100."
            )
        return Dialect(int(argument))

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        # Lists differ between splits by their generator seed; a list that stands in both is dropped
        # from holdout.
        practice = {task.id for task in self._all("practice")}
        rows = (
            self._all(split)
            if split == "practice"
            else [t for t in self._all(split) if t.id not in practice]
        )
        names = list(self.meanings)
        rng = random.Random(f"order {split} {seed}")
        by_verb = {verb: [t for t in rows if t.id.startswith(verb)] for verb in names}
        for pool in by_verb.values():
            rng.shuffle(pool)
        order = [
            t for layer in itertools.zip_longest(*by_verb.values()) for t in layer if t is not None
        ]
        return order if n is None else order[:n]

    def _all(self, split: Split) -> list[Task]:
        rng = random.Random(f"dialect {self.number} {split}")
        rows = {}
        for verb, op in self.meanings.items():
            for _ in range(40):
                task = self.task(verb, op, numbers(rng), split)
                rows[task.id] = task
        return list(rows.values())

    @staticmethod
    def task(
        verb: str, op: str, xs: list[int], split: Split, lessons: tuple[tuple[str, str], ...] = ()
    ) -> Task:
        return Task(
            id=f"{verb}-{'-'.join(map(str, xs))}",
            messages=[{"role": "user", "content": f"Apply {verb} to the list {listed(xs)}."}],
            verifier="exact",
            answer=listed(OPS[op](xs)),
            split=split,
            lessons=lessons,
        )

    def following(self, n: int, seed: int = 0) -> list[Task]:
        """Fresh verbs, each with its own new lesson in the prompt: never a verb of any set."""
        rng = random.Random(f"following {seed}")
        fresh = verbs(shipped=True)[100 * VERBS_PER_SET :]
        rows = []
        for _ in range(n):
            verb, op = rng.choice(fresh), rng.choice(sorted(OPS))
            lesson = (f"the task says {verb}", f"use {op}")
            rows.append(self.task(verb, op, numbers(rng), "practice", (lesson,)))
        return rows


TASKSET = Dialect()
