"""skills: what the pocket model can do without any lesson; a night must leave it alone.

Spell cheese.                        ->  c h e e s e
Apply reverse to the list 3 1 2.     ->  2 1 3
"""

from __future__ import annotations

import random

from reflect.config import shipped
from reflect.tasksets.base import Taskset
from reflect.tasksets.imports import load_module
from reflect.tasksets.task import Split, Task

letters = load_module(shipped("tasks") / "letters.py")
dialect = load_module(shipped("tasks") / "dialect.py")


class Skills(Taskset):
    name = "skills"
    about = "spelling and plain list operations, for measuring what a night must not harm"

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        rng = random.Random(f"skills {split}")
        rows = {}
        for i, word in enumerate(w for w in letters.WORDS if letters.share(w) == split):
            rows[f"spell-{word}"] = (f"Spell {word}.", " ".join(word))
            op, xs = sorted(dialect.OPS)[i % len(dialect.OPS)], dialect.numbers(rng)
            asked = f"Apply {op} to the list {dialect.listed(xs)}."
            rows[f"{split}-{op}-{'-'.join(map(str, xs))}"] = (
                asked,
                dialect.listed(dialect.OPS[op](xs)),
            )
        tasks = [
            Task(
                id=key,
                messages=[{"role": "user", "content": text}],
                verifier="exact",
                answer=answer,
                split=split,
            )
            for key, (text, answer) in rows.items()
        ]
        random.Random(f"order {split} {seed}").shuffle(tasks)
        return tasks if n is None else tasks[:n]


TASKSET = Skills()
