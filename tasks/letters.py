"""letters: how many of a letter are in a word?

    How many r are in strawberry?      ->  3

Words are single tokens to the pocket model, so it cannot see their letters. It can spell, and by
default it answers at once and is mostly wrong. Practice and holdout ask about different words;
neither is counted in its pretraining.
"""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Split, Task

WORDS = (Path(__file__).parent / "words.txt").read_text().split()


def share(word: str) -> str:
    """practice, holdout or pretraining: to which the word belongs (one sixth, one sixth, the
    rest)."""
    return {0: "practice", 1: "holdout"}.get(
        hashlib.sha256(word.encode()).digest()[0] % 6, "pretraining"
    )


def questions(words: list[str], rng: random.Random) -> list[tuple[str, str, int]]:
    """(word, letter, count), the counts 1, 2, 3 and 0 in turn while there are any: no constant
    answer is good."""
    pools: dict[int, list[tuple[str, str, int]]] = {0: [], 1: [], 2: [], 3: []}
    for word in words:
        absent = [c for c in "aeiourstnlpbmdc" if c not in word]
        for letter in [
            *sorted(set(word)),
            random.Random(word).choice(absent),
        ]:  # the same for every seed: ids stay
            pools[min(3, word.count(letter))].append((word, letter, word.count(letter)))
    for pool in pools.values():
        rng.shuffle(pool)
    asked = []
    while any(pools.values()):
        asked += [pools[count].pop() for count in (1, 2, 3, 0) if pools[count]]
    return asked


class Letters(Taskset):
    name = "letters"
    about = "count a letter in a word"

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        words = [word for word in WORDS if share(word) == split]
        rows = questions(words, random.Random(f"letters {split} {seed}"))
        return [
            self.task(word, letter, split) for word, letter, _ in (rows if n is None else rows[:n])
        ]

    @staticmethod
    def task(word: str, letter: str, split: Split) -> Task:
        return Task(
            id=f"{word}-{letter}",
            messages=[{"role": "user", "content": f"How many {letter} are in {word}?"}],
            verifier="number",
            answer=word.count(letter),
            split=split,
        )


TASKSET = Letters()
