"""The protocol between reflect and any language model, and the capabilities that only some models
have.

The capability protocols are checked with isinstance. Each has only members of its own, so a check
never asks a server. A model whose weights can be trained is a `reflect.models.local.LocalModel`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

from reflect.types import Json, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.config import Settings
    from reflect.errors import ModelError
    from reflect.models.budget import Budget
    from reflect.tasksets.task import Message

ACTIVE: Final = ""  # the active adapter of the model; no adapter has an empty name


@dataclass(frozen=True)
class SamplingOptions:
    """How rollouts are sampled, except for their seeds."""

    temperature: float = 1.0  # 0 = greedy
    max_tokens: int = 96  # of one answer
    limits: Limits = Limits()  # of a rollout of several turns

    @classmethod
    def of(cls, settings: Settings, temperature: float | None = None) -> SamplingOptions:
        """Those of the settings, at another temperature if one is given."""
        chosen = settings.temperature if temperature is None else temperature
        return cls(chosen, settings.max_tokens, settings.limits)


@dataclass(frozen=True)
class Request:
    """Sample `len(seeds)` completions of one prompt. One seed per completion: a completion depends
    on its own seed and prompt only, never on what else is in the batch."""

    messages: Sequence[Message]
    seeds: tuple[int, ...] = (0,)
    max_tokens: int = 256
    temperature: float = 1.0  # 0 = greedy
    stop: tuple[str, ...] = ()
    # a loaded adapter, or None for the bare base: requests of one call may differ in it
    adapter: str | None = ACTIVE
    tools: tuple[Json, ...] = ()  # {"type": "function", "function": {name, description, ...}}
    top_p: float = 1.0  # sample only from the most probable tokens, which have this probability
    # The form of the answer, as in the API: {"type": "json_object"}, or {"type": "json_schema",
    # "json_schema": {"name", "schema"}}. A model that cannot be held to a form answers in text.
    response_format: Json | None = None


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `tokens`: the sampled ids (without the end token) of a local model.
    `calls`: the tool calls ({"id", "type": "function", "function": {"name", "arguments": JSON
    text}}, as in the API). `model`: the model that a server says has answered."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: Literal["stop", "length", "tool_calls"]
    seed: int
    tokens: tuple[int, ...] = ()
    calls: tuple[Json, ...] = ()
    model: str = ""
    thought: str = ""  # what the model thought before it answered; it is no part of the text
    stop: str = ""  # the stop string that ended the answer


class Model(Protocol):
    """A policy, a reflector or a judge."""

    name: str  # as the user gave it: pocket, hf:ORG/NAME, a path, openai:NAME

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of weights index, config, tokenizer and chat template of the base; behind an API, of
        its name, its host and the server's entry for it."""
        ...

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed, in order. Raises ModelError when the model
        cannot answer, UnknownName when a request names an adapter that is not loaded. A model
        without adapters is always bare."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""


class Sampler(Protocol):
    """Answers requests in place of a local model."""

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `Model.sample`."""
        ...


@runtime_checkable
class AdapterModel(Protocol):
    """A model with adapters. `active` is the name of the one in use, None for the bare base."""

    @property
    def active(self) -> str | None:
        """The active adapter, None for the bare base."""

    def using(self, name: str | None) -> AbstractContextManager[Any]:
        """Use an adapter, or with None the bare base, within a with-block."""
        ...


@runtime_checkable
class TrainedReviewer(Protocol):
    """A model that may have been trained on a wording of the reflection of its own."""

    reflection_template: str
    """Source of a template with the variables of prompts/reflect.jinja, whose answer is in lines
    (see `reflect.lessons.edit_format`); "" for a model without one."""


@runtime_checkable
class MeteredModel(Protocol):
    """A model behind an API, whose answers cost time and money."""

    url: str
    budget: Budget

    def new_budget(self, spent: Json | None = None) -> Budget:
        """A budget by the settings; `spent` is what the same run has spent before."""
        ...

    def answer_each(self, requests: Sequence[Request]) -> list[list[Completion | ModelError]]:
        """A completion or its own error per request and seed; no paid answer is lost."""
        ...


def active_adapter(model: Model) -> str | None:
    """Name of the adapter in use; None for the bare base and for a model without adapters."""
    return model.active if isinstance(model, AdapterModel) else None


def reflection_template(model: Model) -> str:
    """The model's own template of the reflection, "" without one."""
    return model.reflection_template if isinstance(model, TrainedReviewer) else ""


def using(model: Model, adapter: str | None) -> AbstractContextManager[Any]:
    """The model with that adapter (None: the base) within a with-block, if it has adapters."""
    return model.using(adapter) if isinstance(model, AdapterModel) else nullcontext()
