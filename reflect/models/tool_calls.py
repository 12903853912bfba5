"""Tool calls in a model's answer, in the three formats of open models.

    Hermes, Qwen    <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>, any number
    Llama 3         {"name": "add", "parameters": {"a": 1}}, the whole answer; several with ";"
    Mistral         [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]
                    [TOOL_CALLS]add[ARGS]{"a": 1}

When any call cannot be parsed, there are no calls, and the answer stays text.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from reflect.types import Json

TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
MISTRAL = "[TOOL_CALLS]"
NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?\s*(?=\{)")
PYTHON = "<|python_tag|>"  # Llama 3 begins a call with it, or does not
DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """One tool call of an answer."""

    name: str
    arguments: Json


def read_calls(text: str, offered: Collection[str]) -> tuple[str, list[Call]]:
    """(the text without the calls, the calls). (text, []) without a call, or when one cannot be
    parsed.

    `offered`: the names of the tools. A bare JSON object is a call only when it names one of these.
    Within a format's own marks any name is a call; an unknown tool fails when it is run.
    """
    try:
        if "<tool_call>" in text or "</tool_call>" in text:
            return _tagged(text)
        if MISTRAL in text:
            return _mistral(text)
        return _bare(text, offered)
    except (ValueError, RecursionError):  # ValueError: json's own too
        return text, []


def api_calls(calls: Sequence[Call], salt: str) -> tuple[Json, ...]:
    """The calls in the API's form. The ids are hashes, so that the same answer has the same ids.
    They have nine letters, because Mistral's template takes no others."""
    return tuple(
        {
            "id": hashlib.sha256(f"{salt}/{i}/{call}".encode()).hexdigest()[:9],
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for i, call in enumerate(calls)
    )


def _tagged(text: str) -> tuple[str, list[Call]]:
    calls = [_call(json.loads(body)) for body in TAGGED.findall(text)]
    rest = TAGGED.sub("", text)
    if "tool_call>" in rest:
        raise ValueError("a tag without its other half")
    return rest.strip(), calls


def _mistral(text: str) -> tuple[str, list[Call]]:
    before, *parts = text.split(MISTRAL)
    calls: list[Call] = []
    for part in parts:
        if named := NAMED.match(part):
            arguments, end = DECODER.raw_decode(part, named.end())
            calls.append(_call({"name": named.group(1), "arguments": arguments}))
        else:
            rows, end = DECODER.raw_decode(part.lstrip())
            part = part.lstrip()
            calls += [_call(row) for row in (rows if isinstance(rows, list) else [rows])]
        if part[end:].strip():
            raise ValueError("words after a call")
    return before.strip(), calls


def _bare(text: str, offered: Collection[str]) -> tuple[str, list[Call]]:
    before, _tag, rest = text.rpartition(PYTHON)
    calls: list[Call] = []
    left = rest.strip()
    while left.startswith("{"):
        row, end = DECODER.raw_decode(left)
        calls.append(_call(row))
        left = left[end:].lstrip("; \n")
    if left or not calls or any(call.name not in offered for call in calls):
        return text, []
    return before.strip(), calls


def _call(row: object) -> Call:
    """ValueError when the row is not a call."""
    if not isinstance(row, dict):
        raise ValueError("no object")
    name, arguments = row.get("name"), row.get("arguments", row.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("no name, or no arguments")
    return Call(name, arguments)
