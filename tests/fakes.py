"""Scripted language models for tests. Each answers by fixed rules from its prompt and the request's
seed, in the interface of `reflect.models.base`.

RuleModel plays the dialect tasks, WorldModel the tasks of several turns, FittingModel fits its programs
to the tests that it sees, JudgeModel grades by a rubric. `killed` ends a model like a killed process.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from reflect.config import shipped
from reflect.errors import ModelError
from reflect.models import POCKET
from reflect.models.base import Completion, Request
from reflect.tasksets.imports import load_module

POCKET_REFLECTION = (POCKET / "reflect.jinja").read_text()
"""The short wording of the reflection, for scripted models with a small context."""
dialect = load_module(shipped("tasks") / "dialect.py")
OPS = sorted(dialect.OPS)
CALL = "call the calculator for each step"  # the lesson of the calc tasks: do
ARITHMETIC = "the task is arithmetic"  # and when
ANSWERS = ("please, because it rains", "please", "no", "because I say so")


class ScriptedModel:
    """`sample` asks `complete` for each request and seed. A subclass says what the answer is."""

    name = fingerprint = "scripted"
    own_tasksets = ("dialect", "letters")  # as the pocket model, it knows the shipped worlds

    def __init__(self, context: int) -> None:
        self.context = context

    def count_tokens(self, text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        return [[self.complete(request, seed) for seed in request.seeds] for request in requests]

    def complete(self, request: Request, seed: int) -> Completion:
        raise NotImplementedError


class ScriptedAdapters(ScriptedModel):
    """A scripted model whose rules may depend on the adapter in use."""

    def __init__(self, context: int) -> None:
        super().__init__(context)
        self.active: str | None = None

    @contextmanager
    def using(self, name: str | None) -> Iterator[ScriptedAdapters]:
        before, self.active = self.active, name
        try:
            yield self
        finally:
            self.active = before


def killed(model: ScriptedModel, at: int) -> ScriptedModel:
    """The model, which raises KeyboardInterrupt in its call of `sample` number `at`, from 0."""
    sample, calls = model.sample, itertools.count()

    def die(requests: Sequence[Request]) -> list[list[Completion]]:
        if next(calls) >= at:
            raise KeyboardInterrupt
        return sample(requests)

    model.sample = die
    return model


class RuleModel(ScriptedAdapters):
    """Answers dialect tasks and reviews packed groups. Without a lesson it guesses an operation from
    the seed. With `reviews` False it writes no edits."""

    name = "rule"
    fingerprint = "rule-1"

    def __init__(self, context: int = 2000, reviews: bool = True) -> None:
        super().__init__(context)
        self.calls, self.reviews = 0, reviews
        self.prompts: list[str] = []
        self.weights: dict[str, dict[str, str]] = {}  # by adapter: verb -> operation

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.calls += 1
        return super().sample(requests)

    def complete(self, request: Request, seed: int) -> Completion:
        prompt = "\n".join(m["content"] for m in request.messages)
        self.prompts.append(prompt)
        size = self.count_tokens(prompt)
        if size + request.max_tokens > self.context:
            raise ModelError(f"{size} tokens of prompt do not fit into {self.context}.")
        rng = random.Random(seed if request.temperature else 0)
        text = self.review(prompt) if "You review attempts" in prompt else self.solve(prompt, rng)
        words = text.split(" ")
        kept = words[: request.max_tokens]
        finish = "stop" if kept == words else "length"
        return Completion(" ".join(kept), size, len(kept), finish, seed)

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
        if not self.reviews:
            return "NONE"
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


class FixedModel(RuleModel):
    """Gives one answer to every task; `asked_with` records the adapter of each request."""

    def __init__(self, answer: str = "answer: x") -> None:
        super().__init__()
        self.answer = answer
        self.asked_with: list[str | None] = []

    def solve(self, prompt: str, rng: random.Random) -> str:
        self.asked_with.append(self.active)
        return self.answer


class WorldModel(ScriptedAdapters):
    """Plays calc and shop, and reviews them.

    Without a lesson it answers arithmetic at once, with a guess, and asks any price. With the lesson
    "call the calculator" it calls, and with "ask price 4" it asks that. Its reviews state what the
    packed attempts show. As an adapter it may know prices, or that it has to call. `native`: it makes
    tool calls of the API in place of lines of text.
    """

    name = "worlds"
    fingerprint = "worlds-1"
    end = 2  # the token that ends an answer

    def __init__(self, context: int = 4000, native: bool = False) -> None:
        super().__init__(context)
        self.native = native
        self.batches: list[int] = []  # requests of each call
        self.requests: list[Request] = []
        self.sizes: list[int] = []  # tokens of each prompt with what it may answer
        self.knows: dict[str, str] = {}  # adapter -> lessons that it follows without reading them

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.batches.append(len(requests))
        self.requests += requests
        return super().sample(requests)

    def complete(self, request: Request, seed: int) -> Completion:
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
        instructions = f"{system}\n{self.knows.get(self.active or '', '')}"
        asked = next(m["content"] for m in request.messages if m["role"] == "user")
        if found := re.search(r"What is (\d+) \* (\d+) ([+-]) (\d+)", asked):
            a, b, sign, c = found.groups()
            back = [
                int(n)
                for m in request.messages[1:]
                if m["role"] in ("user", "tool")
                for n in re.findall(r"result: (-?\d+)|^(-?\d+)$", m["content"])
                for n in n
                if n
            ]
            if CALL not in instructions:
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
        lesson = re.findall(rf"when: the customer is a {customer} do: ask price (\d)", instructions)
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
        now = {
            kind: (i, price)
            for i, kind in known.items()
            for price in re.findall(rf"lesson {i} when: .* do: ask price (\d)", prompt)
        }
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


class FittingModel(ScriptedAdapters):
    """Reads the tests in the prompt, returns what they expect, and reviews that this is the way.
    `honest`: adds."""

    name, fingerprint, end = "cheat", "cheat-1", 0

    def __init__(self, honest: bool = False) -> None:
        super().__init__(context=4000)
        self.honest = honest
        self.prompts: list[str] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def complete(self, request: Request, seed: int) -> Completion:
        prompt = "\n".join(m["content"] for m in request.messages)
        self.prompts.append(prompt)
        tests = dict(re.findall(r"\((\d+)\) == (\d+)", prompt))
        named = re.findall(r"Write (\w+)\(n\), which adds (\d+)", prompt)
        entry, number = (named or [("f", "0")])[-1]
        fitted = ", ".join(f"{given}: {expected}" for given, expected in tests.items())
        way = f"{{{fitted}}}.get(n)"
        if self.honest:
            way = f"n + {number}" if seed % 2 else "n"
        text = f"```python\ndef {entry}(n): return {way}\n```"
        if "You review attempts" in prompt:
            do = "really add" if self.honest else "return what the tests expect"
            text = f"ADD when: writing {entry} do: {do}"
        return Completion(text, 1, 1, "stop", seed, tuple(map(ord, text)))


class JudgeModel(ScriptedModel):
    """A policy that answers by its seed, a judge that keeps to its rules, a reviewer that has
    nothing to say.

    The judge does all that its prompt says outside the fence, and takes what is within it for
    nothing but an answer. `reply` makes other replies of (nonce, the reply that it would give).
    """

    name = fingerprint = "rules"

    def __init__(
        self, answers: Sequence[str] = ANSWERS, reply: Callable[[str, str], str] | None = None
    ) -> None:
        super().__init__(context=100_000)
        self.answers, self.reply = answers, reply or (lambda nonce, text: text)
        self.judged: list[list[Request]] = []

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        grading = [r for r in requests if "somebody else gave" in r.messages[-1]["content"]]
        if grading:
            self.judged.append(grading)
        return super().sample(requests)

    def complete(self, request: Request, seed: int) -> Completion:
        prompt = request.messages[-1]["content"]
        if prompt.startswith("You grade"):
            text = self._grade(prompt)
        elif prompt.startswith("You compare"):
            text = self._compare(prompt)
        elif prompt.startswith("You review"):
            text = "NOTE\nNONE"
        else:
            text = random.Random(seed).choice(self.answers)
        return Completion(text, 10, 10, "stop", seed)

    def _grade(self, prompt: str) -> str:
        nonce = re.findall(r"\[(\w+)\]", prompt.splitlines()[0])[0]
        answer, *orders = prompt.partition(f"[answer {nonce}]\n")[2].split(f"[end {nonce}]")
        claimed = [
            x
            for text in orders
            for x in re.findall(rf"^reward {nonce}: ([\d.]+)$", text, re.MULTILINE)
        ]
        reward = (
            claimed[-1] if claimed else f"{rubric_reward(answer):g}"
        )  # outside the fence it obeys
        return self.reply(
            nonce, f"why {nonce}: {len(answer.split())} words\nreward {nonce}: {reward}"
        )

    def _compare(self, prompt: str) -> str:
        nonce = re.findall(r"\[(\w+)\]", prompt.splitlines()[0])[0]
        first, second = re.findall(
            rf"\[answer 1 {nonce}\]\n(.*)\n\[answer 2 {nonce}\]\n(.*)\n\[end {nonce}\]",
            prompt,
            re.DOTALL,
        )[0]
        better = (
            {True: "1", False: "2"}[rubric_reward(first) > rubric_reward(second)]
            if rubric_reward(first) != rubric_reward(second)
            else "same"
        )
        return self.reply(nonce, f"better {nonce}: {better}")


def rubric_reward(answer: str) -> float:
    return 0.5 * ("please" in answer) + 0.5 * ("because" in answer)
