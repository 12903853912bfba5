"""What a run may spend on models behind an API: seconds, tokens, money. Asked before each request,
told after it.

A request is only begun when it fits in full, its longest answer included, beside those that are
under way; so tokens and money never exceed the budget by what the server counts. No request begins
after the time is over; those that are under way are waited for, as their answers are paid for.

Not covered: attempts that the client itself repeats (a timeout that the server charged for), and
what a model thinks beyond `max_tokens`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from reflect.config import Settings
from reflect.errors import ModelHalted, UsageError
from reflect.types import Json


@dataclass(eq=False)
class Hold:
    """A request under way: what it may take at most, and `took`, which is that until the server
    says less."""

    tokens_in: int
    tokens_out: int
    cost: float
    took: tuple[int, int]


class Budget:
    """The limits of the settings, 0 = none, and what was spent of them. `spent`: by the same run
    before (`shape`)."""

    def __init__(self, settings: Settings, spent: Json | None = None) -> None:
        self.seconds, self.tokens, self.cost = (
            settings.budget_seconds,
            settings.budget_tokens,
            settings.budget_cost,
        )
        self.prices = read_prices(settings.prices)
        before = spent or {}
        self.spent_in, self.spent_out = (
            int(before.get("tokens_in", 0)),
            int(before.get("tokens_out", 0)),
        )
        self.requests, self.spent_cost = (
            int(before.get("requests", 0)),
            float(before.get("cost", 0.0)),
        )
        self._began = time.monotonic() - float(before.get("seconds", 0.0))
        self._under_way: list[Hold] = []
        self._freed = asyncio.Condition()

    def shape(self) -> Json:
        """What was spent so far, as it stands in `Run.config`."""
        told = {"requests": self.requests, "tokens_in": self.spent_in, "tokens_out": self.spent_out}
        return told | {
            "cost": round(self.spent_cost, 6),
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def price(self, model: str, tokens_in: int, tokens_out: int) -> float:
        """Of so many tokens. UsageError where money is limited and the model has no price."""
        if model not in self.prices:
            if self.cost:
                told = f"budget_cost is set, and {model} has no price."
                raise UsageError(
                    told, f'Give those of a million tokens in and out: prices = "{model} 0.15 0.60"'
                )
            return 0.0
        price_in, price_out = self.prices[model]
        return (tokens_in * price_in + tokens_out * price_out) / 1e6

    @asynccontextmanager
    async def room(self, model: str, tokens_in: int, tokens_out: int) -> AsyncIterator[Hold]:
        """Room for one request, waited for while others may give some back. ModelHalted where there
        is none."""
        hold = Hold(
            tokens_in, tokens_out, self.price(model, tokens_in, tokens_out), (tokens_in, tokens_out)
        )
        async with self._freed:
            while (why := self._lacks(hold)) and self._under_way:
                await self._freed.wait()
            if why:
                raise why
            self._under_way.append(hold)
        try:
            yield hold
        finally:
            self._under_way.remove(hold)
            self.spent_in += hold.took[0]
            self.spent_out += hold.took[1]
            self.spent_cost += self.price(model, *hold.took)
            async with self._freed:
                self._freed.notify_all()

    def _lacks(self, hold: Hold) -> ModelHalted | None:
        every = [*self._under_way, hold]
        tokens = self.spent_in + self.spent_out
        cost = self.spent_cost + sum(one.cost for one in every)
        if self.seconds and (gone := time.monotonic() - self._began) >= self.seconds:
            return _over("seconds", f"{gone:.0f} of {self.seconds:g} seconds are over")
        if (
            self.tokens
            and tokens + sum(one.tokens_in + one.tokens_out for one in every) > self.tokens
        ):
            asked = hold.tokens_in + hold.tokens_out
            return _over(
                "tokens",
                f"{tokens} of {self.tokens} tokens are spent, and the next request may take {asked}",
            )
        if self.cost and cost > self.cost:
            told = f"{self.spent_cost:.4f} of {self.cost:g} are spent, and the next request may cost {hold.cost:.4f}"
            return _over("cost", told)
        return None


def _over(what: str, told: str) -> ModelHalted:
    return ModelHalted(f"The budget of the run is used up: {told}.", f"Raise budget_{what}.")


def read_prices(text: str) -> dict[str, tuple[float, float]]:
    """model -> price of a million tokens in and out, from `NAME IN OUT, NAME IN OUT`. UsageError
    where it is not so."""
    found: dict[str, tuple[float, float]] = {}
    for row in filter(None, (row.strip() for row in text.split(","))):
        try:
            name, price_in, price_out = row.split()
            found[name.removeprefix("openai:")] = float(price_in), float(price_out)
        except ValueError as e:
            told = f"prices: '{row}' is not a model with two prices."
            raise UsageError(
                told, 'Write for example: prices = "gpt-x 0.15 0.60, qwen3 0 0"'
            ) from e
        if min(found[name.removeprefix("openai:")]) < 0:
            raise UsageError(f"prices: '{row}' has a price below 0.")
    return found
