"""A language model that works by rule, for tests of the day: it answers dialect tasks and reviews
packed groups.

It reads nothing but its prompt: lessons from the system message, attempts and rewards from the
review. Without a lesson it guesses an operation from the request's seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import contextmanager

from reflect.config import shipped
from reflect.errors import ModelError
from reflect.models.base import Completion, Request
from reflect.tasksets.imports import load_module

dialect = load_module(shipped("tasks") / "dialect.py")
OPS = sorted(dialect.OPS)


class RuleModel:
    name = "rule"
    fingerprint = "rule-1"

    def __init__(self, context: int = 2000) -> None:
        self.context = context
        self.calls = 0
        self.prompts: list[str] = []
        self.active: str | None = None
        self.weights: dict[
            str, dict[str, str]
        ] = {}  # adapter name -> what it knows: verb -> operation

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
        self.calls += 1
        return [[self._complete(request, seed) for seed in request.seeds] for request in requests]

    def _complete(self, request: Request, seed: int) -> Completion:
        prompt = "\n".join(m["content"] for m in request.messages)
        self.prompts.append(prompt)
        size = self.count_tokens(prompt)
        if size + request.max_tokens > self.context:
            raise ModelError(f"{size} tokens of prompt do not fit into {self.context}.")
        rng = random.Random(seed if request.temperature else 0)
        text = self.review(prompt) if "You review attempts" in prompt else self.solve(prompt, rng)
        words = text.split(" ")
        said = words[: request.max_tokens]
        return Completion(
            " ".join(said), size, len(said), "stop" if said == words else "length", seed
        )

    def solve(self, prompt: str, rng: random.Random) -> str:
        verb, numbers = re.findall(r"Apply (\w+) to the list ([\d ]+)", prompt)[-1]
        xs = [int(x) for x in numbers.split()]
        advice = re.findall(rf"- when: the task says {verb} do: (.*)", prompt)
        used = [op for text in advice for op in re.findall(r"use (\w+)", text)]
        used = used or [op for op in [self.weights.get(self.active or "", {}).get(verb)] if op]
        ruled_out = {op for text in advice for op in re.findall(r"not (\w+)", text)}
        op = used[0] if used else rng.choice([op for op in OPS if op not in ruled_out])
        return f"{verb} means {op}. answer: {' '.join(map(str, dialect.OPS[op](xs)))}"

    def review(self, prompt: str) -> str:
        verb = re.findall(r"Task: Apply (\w+)", prompt)[0]
        known = re.findall(rf"lesson (\d+) when: the task says {verb} do: (.*)", prompt)
        tried = re.findall(r"attempt \d+, reward ([\d.]+):\n\w+ means (\w+)\.", prompt)
        good = sorted({op for reward, op in tried if reward == "1"})
        bad = {op for reward, op in tried if reward == "0"} - set(good)
        note = "NOTE " + ", ".join(f"{i + 1} {op} {reward}" for i, (reward, op) in enumerate(tried))
        if known and not good:
            bad |= set(re.findall(r"not (\w+)", known[0][1]))
        do = f"use {good[0]}" if good else ", ".join(f"not {op}" for op in sorted(bad))
        if not do or (known and known[0][1] == do):
            return f"{note}\nNONE"
        verb_and_do = f"when: the task says {verb} do: {do}"
        return (
            f"{note}\nREVISE {known[0][0]} {verb_and_do}" if known else f"{note}\nADD {verb_and_do}"
        )
