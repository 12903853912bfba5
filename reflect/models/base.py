"""The one small protocol between reflect and any language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from reflect.tasksets.base import Message

ACTIVE: Final = ""  # the adapter that the model has on; no adapter has an empty name


@dataclass(frozen=True)
class Request:
    """Sample `len(seeds)` completions of one prompt. One seed per completion: a completion depends on its own seed
    and prompt only, never on what else is in the batch."""

    messages: Sequence[Message]
    seeds: tuple[int, ...] = (0,)
    max_tokens: int = 256
    temperature: float = 1.0  # 0 = greedy
    stop: tuple[str, ...] = ()
    adapter: str | None = ACTIVE  # a loaded adapter, or None for the bare base: requests of one call may differ in it
    tools: tuple[dict[str, Any], ...] = ()  # {"type": "function", "function": {name, description, parameters}}


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `tokens` are the sampled ids (without the end token) where the model is local, `calls` the
    tool calls in it ({"id", "type": "function", "function": {"name", "arguments": JSON text}}, as the API has them),
    `model` the name of the model that answered, where a server says so."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: Literal["stop", "length", "tool_calls"]
    seed: int
    tokens: tuple[int, ...] = ()
    calls: tuple[dict[str, Any], ...] = ()
    model: str = ""
    thought: str = ""  # what the model thought before it answered; it is no part of the text


class Model(Protocol):
    """A policy, a reflector or a judge."""

    name: str  # as the user gave it: pocket, hf:ORG/NAME, a path, openai:NAME

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of weights index, config, tokenizer and chat template (of the base, whatever adapter is on); of what is
        behind an API, of its name, its host and what the server says of it."""
        ...

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed, in order. Raises ModelError when the model cannot answer,
        UnknownName when a request names an adapter that is not loaded. A model without adapters is always bare.

        A model whose answers cost something has `answer_each(requests)` too: for each request and seed a completion or
        its own ModelError, so that nothing which was answered is lost (see `reflect.day.asking`)."""
        ...

    def count_tokens(self, text: str) -> int: ...
