"""Reads a server's reply. Many servers follow the API only approximately, so nothing is assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reflect.errors import ModelError
from reflect.models.base import Completion, Request
from reflect.models.credentials import hide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reflect.types import Json


class NoCompletion(ValueError):
    """The reply is not a chat completion."""


def completions(
    reply: object,
    request: Request,
    seeds: Sequence[int],
    size: int,
    count: Callable[[str], int],
    key: str,
) -> tuple[list[Completion | ModelError], tuple[int, int]]:
    """(answers for the first seeds, as many as the server gave; its counts of tokens in and out).

    `size`: an estimate of the prompt's tokens, for a server without counts. Raises NoCompletion
    when the reply cannot be read.
    """
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise NoCompletion("there are no choices in it")
    read = [_choice(choice, request.stop, key) for choice in choices[: len(seeds)]]
    shares = [
        max(count(text) + sum(count(str(call)) for call in calls), 1) for text, calls, _ in read
    ]
    usage = getattr(reply, "usage", None)
    tokens_in = _number(getattr(usage, "prompt_tokens", None), size)
    tokens_out = _number(getattr(usage, "completion_tokens", None), sum(shares))
    model = getattr(reply, "model", None)
    answers: list[Completion | ModelError] = []
    name = hide(model, key) if isinstance(model, str) else ""
    for seed, share, (text, calls, finish) in zip(seeds, shares, read, strict=False):
        if finish == "content_filter":
            answers.append(ModelError("The server withheld the answer (content filter)."))
            continue
        ended: Literal["stop", "length", "tool_calls"] = "length" if finish == "length" else "stop"
        ended = "tool_calls" if calls else ended
        out = round(tokens_out * share / sum(shares))
        answers.append(Completion(text, tokens_in, out, ended, seed, calls=calls, model=name))
    return answers, (tokens_in, tokens_out)


def _choice(choice: object, stop: Sequence[str], key: str) -> tuple[str, tuple[Json, ...], object]:
    """(text up to the first stop, tool calls, why it ended)."""
    message = getattr(choice, "message", None)
    text = getattr(message, "content", None) or ""
    if message is None or not isinstance(text, str):
        raise NoCompletion("a choice has no text")
    calls = tuple(
        _call(call, i, key) for i, call in enumerate(getattr(message, "tool_calls", None) or ())
    )
    cuts = [at for word in stop if word and (at := text.find(word)) >= 0]
    return (
        hide(text[: min(cuts)] if cuts else text, key),
        calls,
        getattr(choice, "finish_reason", None),
    )


def _call(call: object, number: int, key: str) -> Json:
    """One tool call in the API's form. The arguments stay text: the tool's caller parses
    them."""
    function = getattr(call, "function", None)
    name, arguments = getattr(function, "name", None), getattr(function, "arguments", None)
    if not isinstance(name, str) or not isinstance(arguments, str | None):
        raise NoCompletion("a tool call has no name")
    named = {"name": name, "arguments": hide(arguments or "{}", key)}
    return {
        "id": str(getattr(call, "id", None) or f"call_{number}"),
        "type": "function",
        "function": named,
    }


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise
