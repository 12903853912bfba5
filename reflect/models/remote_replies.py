"""Reads a server's reply. Many servers follow the API only approximately, so nothing is assumed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from reflect.errors import ModelError
from reflect.models.base import Completion, Request
from reflect.models.credentials import hide
from reflect.models.tool_calls import api_calls, read_calls
from reflect.tasksets.thoughts import split_thought

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
    read = [_choice(choice, request, key) for choice in choices[: len(seeds)]]
    shares = [
        max(count(text + thought) + sum(count(str(call)) for call in calls), 1)
        for thought, text, calls, _ in read
    ]
    usage = getattr(reply, "usage", None)
    tokens_in = _number(getattr(usage, "prompt_tokens", None), size)
    tokens_out = _number(getattr(usage, "completion_tokens", None), sum(shares))
    model = getattr(reply, "model", None)
    answers: list[Completion | ModelError] = []
    name = hide(model, key) if isinstance(model, str) else ""
    for seed, share, (thought, text, calls, finish) in zip(seeds, shares, read, strict=False):
        if finish == "content_filter":
            answers.append(ModelError("The server withheld the answer (content filter)."))
            continue
        ended: Literal["stop", "length", "tool_calls"] = "length" if finish == "length" else "stop"
        ended = "tool_calls" if calls else ended
        out = round(tokens_out * share / sum(shares))
        answers.append(
            Completion(text, tokens_in, out, ended, seed, calls=calls, model=name, thought=thought)
        )
    return answers, (tokens_in, tokens_out)


def _choice(
    choice: object, request: Request, key: str
) -> tuple[str, str, tuple[Json, ...], object]:
    """(thought, text up to the first stop, tool calls, why it ended). As with a local model, a
    thought is no part of the text, and calls that are written in the text count."""
    message = getattr(choice, "message", None)
    if message is None:
        raise NoCompletion("a choice has no text")
    finish = getattr(choice, "finish_reason", None)
    thought, text = split_thought(_text(getattr(message, "content", None)))
    fields = (getattr(message, name, None) for name in ("reasoning_content", "reasoning"))
    thought = thought or next((field for field in fields if isinstance(field, str)), "")
    cuts = [at for word in request.stop if word and (at := text.find(word)) >= 0]
    text = hide(text[: min(cuts)] if cuts else text, key)
    given = getattr(message, "tool_calls", None) or ()
    if function := getattr(message, "function_call", None):  # the API before tools
        given = given or [SimpleNamespace(function=function)]
    calls = tuple(_call(call, i, key) for i, call in enumerate(given))
    if request.tools and not calls and finish != "length":  # a cut text may end within a call
        text, parsed = read_calls(text, request.tools)
        calls = api_calls(parsed, text)
    return hide(thought, key), text, calls, finish


def _text(content: object) -> str:
    """The text of a message. Parts that are no text (thoughts, images) are left out."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(map(_part, parts))


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    fields = part if isinstance(part, dict) else getattr(part, "__dict__", None)
    if not fields:
        raise NoCompletion("a choice has no text")
    text = fields.get("text") if fields.get("type", "text") in ("text", "output_text") else ""
    text = text.get("value") if isinstance(text, dict) else text
    if not isinstance(text, str):
        raise NoCompletion("a choice has no text")
    return text


def _call(call: object, number: int, key: str) -> Json:
    """One tool call in the API's form. The arguments stay text: the tool's caller parses them."""
    function = _field(call, "function")
    name, arguments = _field(function, "name"), _field(function, "arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(arguments, str | None):
        raise NoCompletion("a tool call has no name")
    return {
        "id": str(_field(call, "id") or f"call_{number}"),
        "type": "function",
        "function": {"name": name, "arguments": hide(arguments or "{}", key)},
    }


def _field(row: object, name: str) -> object:
    """A field of an object of the client, which keeps a row that it cannot read as a dict."""
    return row.get(name) if isinstance(row, dict) else getattr(row, name, None)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value >= 0 else otherwise
