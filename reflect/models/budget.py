"""The budget of a run for models behind an API: seconds, tokens, money.

A request is sent only when it fits in full, with its longest answer and with the running requests;
so tokens and money by the server's counts never exceed the budget. No request is sent after the
time is over; running requests are finished, because their answers are paid for.

Not covered: attempts that the client itself repeats (a timeout that the server charged for), and
reasoning tokens beyond `max_tokens`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.errors import ModelHalted, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from reflect.config import Settings
    from reflect.types import Json


@dataclass(eq=False)
class Hold:
    """A running request: its maximum, and `took`, which is the maximum until the server counts."""

    tokens_in: int
    tokens_out: int
    cost: float
    took: tuple[int, int]


class Budget:
    """The limits of the settings (0 = none) and the spending; `spent`: an earlier `shape`."""

    def __init__(self, settings: Settings, spent: Json | None = None) -> None:
        self.seconds, self.tokens = settings.budget_seconds, settings.budget_tokens
        self.cost = settings.budget_cost
        self.prices = read_prices(settings.prices)
        before = spent or {}
        self.spent_in = int(before.get("tokens_in", 0))
        self.spent_out = int(before.get("tokens_out", 0))
        self.requests = int(before.get("requests", 0))
        self.spent_cost = float(before.get("cost", 0.0))
        self._began = time.monotonic() - float(before.get("seconds", 0.0))
        self._saved = self.shape()
        self._running: list[Hold] = []
        self._freed = asyncio.Condition()

    def shape(self) -> Json:
        """What was spent so far, as `Run.config` stores it."""
        return {
            "requests": self.requests,
            "tokens_in": self.spent_in,
            "tokens_out": self.spent_out,
            "cost": round(self.spent_cost, 6),
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def add_to(self, saved: Json) -> Json:
        """`saved`, an earlier `shape` of this budget or of another worker's of the same run, plus
        what this one has spent since its last call. From now on that is its own spending, too."""
        own, total = self.shape(), dict(saved)
        for name, value in own.items():
            total[name] = saved.get(name, 0) + value - self._saved[name]
        total |= {
            "cost": round(total["cost"], 6),
            "seconds": max(own["seconds"], saved.get("seconds", 0)),
        }
        self.requests += total["requests"] - own["requests"]
        self.spent_in += total["tokens_in"] - own["tokens_in"]
        self.spent_out += total["tokens_out"] - own["tokens_out"]
        self.spent_cost += total["cost"] - own["cost"]
        self._saved = self.shape()
        return total

    def price(self, model: str, tokens_in: int, tokens_out: int) -> float:
        """The price of these tokens. UsageError when cost is limited and the model has no price."""
        if model not in self.prices:
            if self.cost:
                hint = f'Set the prices per million tokens: prices = "{model} 0.15 0.60"'
                raise UsageError(f"budget_cost is set, and {model} has no price.", hint)
            return 0.0
        price_in, price_out = self.prices[model]
        return (tokens_in * price_in + tokens_out * price_out) / 1e6

    @asynccontextmanager
    async def room(self, model: str, tokens_in: int, tokens_out: int) -> AsyncIterator[Hold]:
        """Reserve the budget of one request, and wait while running ones may free some. ModelHalted
        when it does not fit."""
        cost = self.price(model, tokens_in, tokens_out)
        hold = Hold(tokens_in, tokens_out, cost, (tokens_in, tokens_out))
        async with self._freed:
            while (why := self._lacks(hold)) and self._running:
                await self._freed.wait()
            if why:
                raise why
            self._running.append(hold)
        try:
            yield hold
        finally:
            self._running.remove(hold)
            self.spent_in += hold.took[0]
            self.spent_out += hold.took[1]
            self.spent_cost += self.price(model, *hold.took)
            async with self._freed:
                self._freed.notify_all()

    def _lacks(self, hold: Hold) -> ModelHalted | None:
        holds = [*self._running, hold]
        tokens = self.spent_in + self.spent_out
        reserved = sum(each.tokens_in + each.tokens_out for each in holds)
        seconds = time.monotonic() - self._began
        if self.seconds and seconds >= self.seconds:
            return _over("seconds", f"{seconds:.0f} of {self.seconds:g} seconds are over")
        if self.tokens and tokens + reserved > self.tokens:
            most = hold.tokens_in + hold.tokens_out
            spent = f"{tokens} of {self.tokens} tokens are spent"
            return _over("tokens", f"{spent}, and the next request may take {most}")
        if self.cost and self.spent_cost + sum(each.cost for each in holds) > self.cost:
            spent = f"{self.spent_cost:.4f} of {self.cost:g} are spent"
            return _over("cost", f"{spent}, and the next request may cost {hold.cost:.4f}")
        return None


def _over(setting: str, why: str) -> ModelHalted:
    return ModelHalted(f"The budget of the run is used up: {why}.", f"Raise budget_{setting}.")


def read_prices(text: str) -> dict[str, tuple[float, float]]:
    """model -> prices of a million tokens in and out, from `NAME IN OUT, NAME IN OUT`."""
    prices: dict[str, tuple[float, float]] = {}
    for row in filter(None, (row.strip() for row in text.split(","))):
        try:
            name, price_in, price_out = row.split()
            price = float(price_in), float(price_out)
        except ValueError as e:
            hint = 'Write for example: prices = "gpt-x 0.15 0.60, qwen3 0 0"'
            raise UsageError(f"prices: '{row}' is not a model with two prices.", hint) from e
        if min(price) < 0:
            raise UsageError(f"prices: '{row}' has a price below 0.")
        prices[name.removeprefix("openai:")] = price
    return prices
