"""business: a shop that is run for sixty days, and one number at the end.

    Business 17: run a shop for 60 days with 40 in cash. Rent is 3 a day ...
    Day 1. Cash 40, stock 0.                      the model: buy: 8 price: 6
    Day 2. Cash 27, stock 6. Sold 2 at 6 ...      ...

Each morning the model orders goods and sets a price. How many customers come depends on the day of the
week and on the price, by rules that it does not know; what is not sold after three days is spoiled. Without
cash for the rent the business closes. The reward comes once, at the end: the profit as a share of what the
best fixed plan for each weekday earns, at least 0.

This is our own simulation in the place of a public one (yc-bench needs a later Python than the oldest that
we support). It is longer and harder than `shop`: two decisions in each of sixty turns, stock that spoils,
and a bankruptcy. `business:N` is the Nth town, with other rules; its holdout has other starting conditions.
"""

from __future__ import annotations

import functools
import random
import re
from typing import NamedTuple

from reflect.errors import UnknownName
from reflect.tasksets.base import Taskset
from reflect.tasksets.environment import Environment, EnvironmentStep
from reflect.tasksets.task import Message, Score, Split, Task

DAYS = 60
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MOST, SHELF_LIFE = 20, 3  # goods ordered in one day; days until they are spoiled
PRICES = range(1, 13)
SIZE = {"practice": 200, "holdout": 100}
ORDER = re.compile(r"(buy|price)\s*:\s*(\d{1,4})(?!\d)", re.IGNORECASE)
OPENING = """Business {}: run a shop for {} days with {} in cash. Rent is {} a day, goods cost {} each and spoil after {} days.
Each morning answer with your order of goods (0 to {}) and your price (1 to {}), such as: buy: 5 price: 4
How many customers come depends on the weekday and on your price. If you cannot pay the rent, the shop closes.
{}"""


class Town(NamedTuple):
    """The rules that hold in all businesses of a town."""

    crowds: tuple[int, ...]  # customers on each weekday at the price 0
    limit: tuple[int, ...]  # the highest price at which anybody buys, on each weekday
    rent: int
    cost: int

    def customers(self, day: int, price: int) -> int:
        """Goods that can be sold on a day: fewer, the nearer the price is to the weekday's limit."""
        crowd, limit = self.crowds[day % 7], self.limit[day % 7]
        return max(0, -(-crowd * (limit + 1 - price) // (limit + 1))) if price <= limit else 0


class Ledger:
    """The business on a day: its cash and the ages of its goods."""

    def __init__(self, town: Town, cash: int, first: int) -> None:
        self.town, self.cash, self.first, self.day = town, cash, first, 0
        self.stock = [0] * SHELF_LIFE  # by remaining days, the oldest first

    def trade(self, order: int, price: int) -> tuple[int, int]:
        """A day: order, sell, pay the rent. Returns the goods sold and spoiled."""
        bought = min(order, self.cash // self.town.cost)
        self.cash -= bought * self.town.cost
        self.stock[-1] += bought
        wanted = self.town.customers(self.first + self.day, price)
        sold = min(wanted, sum(self.stock))
        left = sold
        for age, goods in enumerate(self.stock):
            taken = min(goods, left)
            self.stock[age] -= taken
            left -= taken
        self.cash += sold * price - self.town.rent
        spoiled, self.stock = self.stock[0], [*self.stock[1:], 0]
        self.day += 1
        return sold, spoiled


@functools.cache
def best_plan(town: Town) -> tuple[tuple[int, int], ...]:
    """(order, price) of each weekday that earns most when each day sells what it orders."""
    plans = []
    for day in range(7):
        offers = [(town.customers(day, price), price) for price in PRICES]
        plans.append(max(offers, key=lambda offer: offer[0] * (offer[1] - town.cost)))
    return tuple((min(order, MOST), price) for order, price in plans)


def best_profit(town: Town, cash: int, first: int) -> int:
    """What the best plan earns in all."""
    ledger = Ledger(town, cash, first)
    while ledger.day < DAYS:
        ledger.trade(*best_plan(town)[(first + ledger.day) % 7])
    return ledger.cash - cash


class Business(Environment):
    """One episode."""

    turns = DAYS

    def __init__(self, town: Town, cash: int, first: int) -> None:
        self.start, self.ledger = cash, Ledger(town, cash, first)

    def step(self, message: Message) -> EnvironmentStep:
        words = {
            name.lower(): int(number)
            for name, number in ORDER.findall(message.get("content") or "")
        }
        order, price = words.get("buy", 0), words.get("price", 0)
        feedback = ""
        if set(words) != {"buy", "price"} or order > MOST or price not in PRICES:
            feedback = "there is no order: write buy: and a number, price: and a number"
            order, price = 0, PRICES[-1]
        today = WEEKDAYS[(self.ledger.first + self.ledger.day) % 7]
        sold, spoiled = self.ledger.trade(order, price)
        text = f"{today}: sold {sold} at {price}, {spoiled} spoiled."
        if self.ledger.cash < 0:
            return EnvironmentStep(
                [{"role": "user", "content": f"{text} The shop is bankrupt."}], True, 0.0, feedback
            )
        if self.ledger.day < DAYS:
            reply = f"{text} {morning(self.ledger)}"
            return EnvironmentStep([{"role": "user", "content": reply}], feedback=feedback)
        profit = self.ledger.cash - self.start
        reward = min(
            max(profit / best_profit(self.ledger.town, self.start, self.ledger.first), 0.0), 1.0
        )
        reply = f"{text} The shop closes with {self.ledger.cash} in cash."
        return EnvironmentStep([{"role": "user", "content": reply}], True, reward, feedback)

    def state(self) -> str:
        return f"It is {WEEKDAYS[(self.ledger.first + self.ledger.day) % 7]}."


def morning(ledger: Ledger) -> str:
    """What is known before a decision."""
    weekday = WEEKDAYS[(ledger.first + ledger.day) % 7]
    return f"Day {ledger.day + 1}, a {weekday}. Cash {ledger.cash}, stock {sum(ledger.stock)}."


class Businesses(Taskset):
    name = "business"
    about = "a shop run for sixty days with one reward at the end; business:N is the Nth town"
    stepwise = True

    def __init__(self, number: int = 1) -> None:
        self.name = "business" if number == 1 else f"business:{number}"
        rng = random.Random(f"business {number}")
        crowds = tuple(rng.choice((6, 8, 10, 14, 18)) for _ in WEEKDAYS)
        limits = tuple(rng.choice((6, 7, 8, 9, 10)) for _ in WEEKDAYS)
        self.town = Town(crowds, limits, rent=rng.randint(2, 5), cost=rng.randint(1, 3))

    def variant(self, argument: str) -> Businesses:
        """`business:N`, N from 1 to 100."""
        if not argument.isdigit() or not 1 <= int(argument) <= 100:
            raise UnknownName(
                f"There is no taskset business:{argument}.", "Use business:1 to business:100."
            )
        return Businesses(int(argument))

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        first, size = (
            (1, SIZE["practice"])
            if split == "practice"
            else (SIZE["practice"] + 1, SIZE["holdout"])
        )
        numbers = list(range(first, first + size))
        random.Random(f"order {split} {seed}").shuffle(numbers)
        return [self.task(number, split) for number in numbers[:n]]

    def task(self, number: int, split: Split) -> Task:
        """A business of this town: its cash, and the weekday on which it opens."""
        rng = random.Random(f"{self.name} {number}")
        cash, first = rng.randint(40, 99), rng.randrange(7)
        town = self.town
        today = morning(Ledger(town, cash, first))
        text = OPENING.format(
            number, DAYS, cash, town.rent, town.cost, SHELF_LIFE, MOST, PRICES[-1], today
        )
        return Task(
            f"business-{number}",
            [{"role": "user", "content": text}],
            "taskset",
            [cash, first],
            split,
        )

    def environment(self, task: Task) -> Environment:
        return Business(self.town, *task.answer)

    def verify(self, task: Task, text: str) -> Score:
        """Of an episode that did not come to its end: the environment rewards the others."""
        return Score(0.0, "the shop was not run to the last day")

    def gold(self, task: Task) -> list[str]:
        _, first = task.answer
        plan = best_plan(self.town)
        orders = (plan[(first + day) % 7] for day in range(DAYS))
        return [f"buy: {order} price: {price}" for order, price in orders]


TASKSET = Businesses()
