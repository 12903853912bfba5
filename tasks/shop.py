"""shop: ten days of asking a price, and one number at the end.

    Game 17: keep a shop for 10 days. Each day write price: and a number from 1 to 9.
    Day 1, a sailor.                       the model: price: 4
    4 paid. Day 2, a baker.                the model: price: 9
    0 paid. Day 3, a sailor.               ...
    4 paid. The shop closes. The book: sailor 4, baker 0.

Each kind of customer pays up to a price that nobody tells, and buys nothing for more. The reward is
what was earned in all, as a share of what could have been: one number for ten turns. In the end the
shop's book says the highest price that each kind has paid; what a kind would pay can be found out
by comparing episodes, stated as a lesson, and followed. Lessons are chosen again each day, by the
day's customer.

Practice and holdout have the same customers in other sequences. `shop:2` is the second shop, with
other customers and prices, and so on. In the pocket model's pretraining what each of them pays is
drawn anew in every game.
"""

from __future__ import annotations

import random
import re

from reflect.errors import UnknownName
from reflect.tasksets.base import Taskset
from reflect.tasksets.environment import Environment
from reflect.tasksets.environment import EnvironmentStep as Step  # a hash of the code names it
from reflect.tasksets.task import Message, Score, Split, Task

DAYS = 10
PRICES = range(1, 10)
KINDS = (
    "farmer sailor baker pirate teacher student soldier artist".split()
)  # single tokens of the pocket model
KINDS_PER_SHOP = 3
SIZE = {"practice": 200, "holdout": 100}
PRICE = re.compile(r"price\s*:\s*(-?\d+)", re.IGNORECASE)
OPENING = "Game {}: keep a shop for {} days. Each day write price: and a number from 1 to 9.\nDay 1, a {}."


def paid(limit: int, price: int) -> int:
    """What a customer pays who pays up to `limit`."""
    return price if price <= limit else 0


class Shop(Environment):
    """One episode: `days` are the kinds of customers, `limits` what each kind pays at most."""

    turns = DAYS

    def __init__(self, days: list[str], limits: dict[str, int]) -> None:
        self.days, self.limits = days, limits
        self.day = self.earned = 0
        self.book = dict.fromkeys(days, 0)  # the highest price that each kind has paid

    def step(self, message: Message) -> Step:
        asked = PRICE.findall(message["content"])
        price = int(asked[-1]) if len(asked) == 1 and len(asked[-1]) < 3 else 0
        feedback = "" if price in PRICES else "there is no price: with one number from 1 to 9"
        kind = self.days[self.day]
        got = paid(self.limits[kind], price) if not feedback else 0
        self.book[kind] = max(self.book[kind], got)
        self.earned += got
        self.day += 1
        if self.day < len(self.days):
            said = f"{got} paid. Day {self.day + 1}, a {self.days[self.day]}."
            return Step([{"role": "user", "content": said}], feedback=feedback)
        best = sum(self.limits[kind] for kind in self.days)
        book = ", ".join(f"{kind} {most}" for kind, most in self.book.items())
        said = f"{got} paid. The shop closes. The book: {book}."
        return Step([{"role": "user", "content": said}], True, self.earned / best, feedback)

    def state(self) -> str:
        return f"The customer is a {self.days[self.day]}."


class Shops(Taskset):
    name = "shop"
    about = "a game of ten turns with one reward at the end; shop:N is the Nth shop"
    stepwise = True

    def __init__(self, number: int = 1) -> None:
        self.name = "shop" if number == 1 else f"shop:{number}"
        self.number = number
        rng = random.Random(f"shop {number}")
        kinds = rng.sample(KINDS, KINDS_PER_SHOP)
        self.limits = dict(zip(kinds, rng.sample(PRICES[2:], KINDS_PER_SHOP), strict=True))

    def variant(self, argument: str) -> Shops:
        """`shop:N`, N from 1 to 100."""
        if not argument.isdigit() or not 1 <= int(argument) <= 100:
            raise UnknownName(f"There is no taskset shop:{argument}.", "Use shop:1 to shop:100.")
        return Shops(int(argument))

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        rng = random.Random(
            f"shop {self.number}"
        )  # one stream, so that no sequence stands on both sides
        every: dict[tuple[str, ...], None] = {}
        while len(every) < sum(SIZE.values()):
            every[tuple(rng.choice(list(self.limits)) for _ in range(DAYS))] = None
        rows = list(enumerate(every, 1))
        rows = rows[: SIZE["practice"]] if split == "practice" else rows[SIZE["practice"] :]
        random.Random(f"order {split} {seed}").shuffle(rows)
        return [self.task(game, days, split) for game, days in (rows if n is None else rows[:n])]

    @staticmethod
    def task(game: int, days: tuple[str, ...], split: Split) -> Task:
        """The days to come are for the environment alone: they stand where other tasks have their
        answer."""
        first = {"role": "user", "content": OPENING.format(game, len(days), days[0])}
        return Task(
            id=f"game-{game}",
            messages=[first],
            verifier="taskset",
            answer=" ".join(days),
            split=split,
        )

    def environment(self, task: Task) -> Environment:
        return Shop(task.answer.split(), self.limits)

    def verify(self, task: Task, text: str) -> Score:
        """Of an episode that did not come to its end: the environment rewards the others."""
        return Score(0.0, "the shop was not kept to the last day")

    def gold(self, task: Task) -> list[str]:
        return [f"price: {self.limits[kind]}" for kind in task.answer.split()]


TASKSET = Shops()
