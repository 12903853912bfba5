"""A language model that works by rule, for tests of tasks with several turns: it plays calc and
shop, and reviews them.

It reads nothing but its prompt. Without a lesson it answers arithmetic at once, with a guess, and
asks any price. With the lesson "call the calculator" it calls, and with "ask price 4" it asks that.
Its reviews state what the packed attempts show. As an adapter it may know prices, or that it has to
call.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from contextlib import contextmanager

from reflect.errors import ModelError
from reflect.models.base import Completion, Request

CALL = "call the calculator for each step"
ARITHMETIC = "the task is arithmetic"


class WorldModel:
    name = "worlds"
    fingerprint = "worlds-1"
    end = 2  # the token that ends an answer

    def __init__(self, context: int = 4000, native: bool = False) -> None:
        self.context, self.native = (
            context,
            native,
        )  # native: it makes calls of the API in place of lines of text
        self.batches: list[int] = []  # requests of each call
        self.requests: list[Request] = []
        self.sizes: list[int] = []  # tokens of each prompt with what it may answer
        self.active: str | None = None
        self.knows: dict[str, str] = {}  # adapter -> lessons that it follows without reading them

    def count_tokens(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    @contextmanager
    def using(self, name: str | None):
        before, self.active = self.active, name
        try:
            yield self
        finally:
            self.active = before

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.batches.append(len(requests))
        self.requests += requests
        return [[self._complete(request, seed) for seed in request.seeds] for request in requests]

    def _complete(self, request: Request, seed: int) -> Completion:
        size = sum(self.count_tokens(str(m["content"])) for m in request.messages)
        self.sizes.append(size + request.max_tokens)
        if self.sizes[-1] > self.context:
            raise ModelError(f"{size} tokens of prompt do not fit into {self.context}.")
        last = request.messages[-1]["content"]
        if "You take notes" in last:
            text = self.note(last)
        elif "You review attempts" in last:
            text = self.review(last)
        else:
            text = self.play(request, random.Random(seed if request.temperature else 0))
        words = text.split(" ")
        said, ended = " ".join(words[: request.max_tokens]), len(words) <= request.max_tokens
        calls = ()
        if self.native and (found := re.fullmatch(r"call: (\w+)\((\d+), (\d+)\)", said)):
            arguments = json.dumps({"a": int(found[2]), "b": int(found[3])})
            calls = (
                {
                    "id": f"c{seed}",
                    "type": "function",
                    "function": {"name": found[1], "arguments": arguments},
                },
            )
            said = ""
        finish = "length" if not ended else "tool_calls" if calls else "stop"
        tokens = tuple(3 + sum(map(ord, word)) % 100 for word in words[: request.max_tokens])
        return Completion(said, size, len(tokens), finish, seed, tokens=tokens, calls=calls)

    def play(self, request: Request, rng: random.Random) -> str:
        system = "\n".join(m["content"] for m in request.messages if m["role"] == "system")
        told = f"{system}\n{self.knows.get(self.active or '', '')}"
        asked = next(m["content"] for m in request.messages if m["role"] == "user")
        if found := re.search(r"What is (\d+) \* (\d+) ([+-]) (\d+)", asked):
            a, b, sign, c = found.groups()
            back = [int(n) for m in request.messages[1:] if m["role"] in ("user", "tool")
                    for n in re.findall(r"result: (-?\d+)|^(-?\d+)$", m["content"]) for n in n if n]  # fmt: skip
            if CALL not in told:
                return f"answer: {rng.randint(1000, 99999)}"
            if len(back) == 2:
                return f"answer: {back[1]}"
            return (
                f"call: {'plus' if sign == '+' else 'minus'}({back[0]}, {c})"
                if back
                else f"call: times({a}, {b})"
            )
        if not (customers := re.findall(r"Day \d+, a (\w+)", request.messages[-1]["content"])):
            return "answer: 0"  # of another world
        customer = customers[-1]
        lesson = re.findall(rf"when: the customer is a {customer} do: ask price (\d)", told)
        return f"price: {lesson[-1] if lesson else rng.randint(1, 9)}"

    def review(self, prompt: str) -> str:
        if "What is" in prompt.split("Task:")[1].split("\n")[0]:
            good = re.findall(r"reward 1:\nturn 1: call:", prompt)
            known = CALL in prompt.split("attempt 1")[0]
            return (
                f"NOTE calls\nADD when: {ARITHMETIC} do: {CALL}"
                if good and not known
                else "NOTE none\nNONE"
            )
        known = dict(re.findall(r"lesson (\d+) when: the customer is a (\w+)", prompt))
        now = {kind: (i, price) for i, kind in known.items()
               for price in re.findall(rf"lesson {i} when: .* do: ask price (\d)", prompt)}  # fmt: skip
        best: dict[str, int] = {}
        opening = re.findall(r"Day 1, a (\w+)", prompt)[0]
        for attempt in prompt.split("attempt ")[1:]:
            kind = opening
            for price, got, then in re.findall(
                r"price: (\d)\n> (\d) paid\. (?:Day \d+, a (\w+)|The shop)", attempt
            ):
                if got == price:
                    best[kind] = max(best.get(kind, 0), int(got))
                kind = then
        edits = []
        for kind, price in sorted(best.items()):
            if kind not in now:
                edits.append(f"ADD when: the customer is a {kind} do: ask price {price}")
            elif price > int(now[kind][1]):
                edits.append(
                    f"REVISE {now[kind][0]} when: the customer is a {kind} do: ask price {price}"
                )
        return "\n".join(["NOTE prices", *(edits or ["NONE"])])

    def note(self, prompt: str) -> str:
        return f"numbers {' '.join(re.findall(r'w[0-9]+', prompt)[:3])}"
