"""A server's reply, read with care: servers that speak the API nearly as it is written are the
rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from reflect.errors import ModelError
from reflect.models.base import Completion, Request
from reflect.models.credentials import hide
from reflect.types import Json


class NoCompletion(ValueError):
    """What came back is no chat completion."""


def completions(
    reply: Any,
    request: Request,
    seeds: Sequence[int],
    size: int,
    count: Callable[[str], int],
    key: str,
) -> tuple[list[Completion | ModelError], tuple[int, int]]:
    """(an answer for each of the first seeds, as many as the server gave; tokens in and out that it
    counts).

    `size`: an estimate of the prompt's tokens, for a server that counts none. NoCompletion for what
    cannot be read.
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
    model = reply.model if isinstance(getattr(reply, "model", None), str) else ""
    found: list[Completion | ModelError] = []
    for seed, share, (text, calls, finish) in zip(seeds, shares, read, strict=False):
        if finish == "content_filter":
            found.append(ModelError("The server withheld the answer (content filter)."))
            continue
        ended: Literal["stop", "length", "tool_calls"] = "length" if finish == "length" else "stop"
        out = round(tokens_out * share / sum(shares))
        name = hide(model, key)
        found.append(
            Completion(
                text,
                tokens_in,
                out,
                "tool_calls" if calls else ended,
                seed,
                calls=calls,
                model=name,
            )
        )
    return found, (tokens_in, tokens_out)


def _choice(choice: Any, stop: Sequence[str], key: str) -> tuple[str, tuple[Json, ...], Any]:
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


def _call(call: Any, number: int, key: str) -> Json:
    """One tool call, as the API has it. Its arguments stay text: whether they are JSON is for who
    runs the tool."""
    function = getattr(call, "function", None)
    name, arguments = getattr(function, "name", None), getattr(function, "arguments", None)
    if not isinstance(name, str) or not isinstance(arguments, str | None):
        raise NoCompletion("a tool call has no name")
    made = {"name": name, "arguments": hide(arguments or "{}", key)}
    return {
        "id": str(getattr(call, "id", None) or f"call_{number}"),
        "type": "function",
        "function": made,
    }


def _number(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise
