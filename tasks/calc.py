"""calc: arithmetic that is too long for the head, and a calculator.

    What is 374 * 58 + 912? ...            the model: call: times(374, 58)
    result: 21692                          the model: call: plus(21692, 912)
    result: 22604                          the model: answer: 22604

Two calls and an answer. The lesson is to call the calculator: nothing forbids an answer at once,
and it is nearly always wrong. A question belongs to practice, holdout or the pocket model's
pretraining by its hash.
"""

from __future__ import annotations

import hashlib
import random

from reflect.tasksets.base import Taskset
from reflect.tasksets.environment import Environment, Toolbox
from reflect.tasksets.task import Split, Task

HOW = "Calculator: plus(a, b), minus(a, b), times(a, b). To use it, write a line such as call: plus(1, 2)"
SIZE = {"practice": 240, "holdout": 120}


def plus(a: int, b: int) -> int:
    """a + b."""
    return a + b


def minus(a: int, b: int) -> int:
    """a - b."""
    return a - b


def times(a: int, b: int) -> int:
    """a * b."""
    return a * b


def share(question: str) -> str:
    """practice, holdout or pretraining: to which the question belongs (a third each)."""
    return ("practice", "holdout", "pretraining")[hashlib.sha256(question.encode()).digest()[0] % 3]


def steps(a: int, b: int, sign: str, c: int) -> list[tuple[str, int]]:
    """The two calls that solve a * b `sign` c, each with its result."""
    product = a * b
    name, total = ("plus", product + c) if sign == "+" else ("minus", product - c)
    return [(f"call: times({a}, {b})", product), (f"call: {name}({product}, {c})", total)]


def draw(rng: random.Random) -> tuple[int, int, str, int]:
    """a * b + c or a * b - c, never below zero."""
    return rng.randint(101, 999), rng.randint(12, 98), rng.choice("+-"), rng.randint(101, 999)


class Calc(Taskset):
    name = "calc"
    about = "arithmetic with a calculator to call: several turns"

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        rng = random.Random(f"calc {split}")
        rows: dict[str, Task] = {}
        while len(rows) < SIZE[split]:
            task = self.task(*draw(rng), split)
            if share(task.id) == split:
                rows[task.id] = task
        tasks = list(rows.values())
        random.Random(f"order {split} {seed}").shuffle(tasks)
        return tasks if n is None else tasks[:n]

    @staticmethod
    def task(a: int, b: int, sign: str, c: int, split: Split) -> Task:
        question = f"{a} * {b} {sign} {c}"
        message = {"role": "user", "content": f"What is {question}?\n{HOW}"}
        answer = steps(a, b, sign, c)[-1][1]
        return Task(id=question, messages=[message], verifier="number", answer=answer, split=split)

    def environment(self, task: Task) -> Environment:
        return Toolbox(plus, minus, times, lines=True)

    def gold(self, task: Task) -> list[str]:
        a, _, b, sign, c = task.id.split()
        return [
            *(call for call, _ in steps(int(a), int(b), sign, int(c))),
            f"answer: {task.answer}",
        ]


TASKSET = Calc()
