"""Changes a request in its bytes: lessons in, the `reflect` object out.

Lessons follow the client's instructions: the first system message (chat completions), `system`
(Anthropic's messages), `instructions` (OpenAI's responses). So a prompt cache still holds all that
comes before the first lesson. Every other byte stays as the client has written it: key order,
number formats, escapes, content parts, unknown fields, and every other message.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reflect.types import Json

Edit = tuple[int, int, str]
"""(start, end, text): `text` replaces the characters from start to end."""
SPACE = re.compile(r"[ \t\n\r]*")
SYSTEM_ROLES = ("system", "developer")


class Value(NamedTuple):
    """A JSON value and its place in the text. `begin` is the place of its name in an object."""

    name: str
    begin: int
    start: int
    end: int
    value: object


def rewrite(body: bytes, system: str, extended: str) -> bytes:
    """A request of the chat completions API for the upstream. `system` is the text of the first
    system message ("" without one), `extended` the same text with lessons, "" to add none. `body`
    is valid JSON."""

    def extend(text: str, fields: list[Value]) -> list[Edit]:
        messages = _last(fields)["messages"]
        edits = _extend_message(text, messages, system, extended, "text")
        if edits is None:
            new: Json = {"role": "system", "content": extended}
            at = messages.start + 1
            edits = [(at, at, f"{json.dumps(new)}, ")]
        return edits

    return _edited(body, extend if extended else None)


def rewrite_messages(body: bytes, system: str, extended: str) -> bytes:
    """A request of Anthropic's API for the upstream; arguments as in `rewrite`."""

    def extend(text: str, fields: list[Value]) -> list[Edit]:
        return _extend_member(text, fields, "system", system, extended)

    return _edited(body, extend if extended else None)


def rewrite_responses(body: bytes, system: str, extended: str) -> bytes:
    """A request of OpenAI's responses API for the upstream; arguments as in `rewrite`. Without
    instructions, a system or developer message of the input is extended, so that all before it
    stays as it was."""

    def extend(text: str, fields: list[Value]) -> list[Edit]:
        last = _last(fields)
        edits = None
        has_instructions = "instructions" in last and last["instructions"].value
        if not has_instructions and isinstance(last["input"].value, list):
            edits = _extend_message(text, last["input"], system, extended, "input_text")
        if edits is None:
            edits = _extend_member(text, fields, "instructions", system, extended)
        return edits

    return _edited(body, extend if extended else None)


def _edited(body: bytes, extend: Callable[[str, list[Value]], list[Edit]] | None) -> bytes:
    encoding = json.detect_encoding(body)
    text = body.decode(encoding, "surrogatepass")
    fields = list(_members(text, _skip(text, 0)))
    edits = _without(fields, "reflect")
    if extend:
        edits += extend(text, fields)
    return _apply(text, edits).encode(encoding, "surrogatepass") if edits else body


def _last(fields: list[Value]) -> dict[str, Value]:
    """The members by name: of several with one name the last counts."""
    return {field.name: field for field in fields}


def _extend_message(
    text: str, messages: Value, system: str, extended: str, part: str
) -> list[Edit] | None:
    """Extend the first system message; None without one. `part`: the type of a text part."""
    for message in _elements(text, messages.start):
        fields = list(_members(text, message.start)) if isinstance(message.value, dict) else []
        last = _last(fields)
        if "role" in last and last["role"].value in SYSTEM_ROLES:
            return _extend_member(text, fields, "content", system, extended, part)
    return None


def _extend_member(
    text: str, fields: list[Value], name: str, system: str, extended: str, part: str = "text"
) -> list[Edit]:
    """Extend the member of an object that holds the system text: a string, a list of parts, or
    nothing yet."""
    before, same, after = extended.partition(system) if system else ("", "", extended)
    if system and not same:  # the template of the system prompt has changed the text
        before, after = "", f"\n{extended}"
    content = _last(fields).get(name)
    if content is None:
        # After the last member: a removed member takes a comma before or after it.
        kept = [field for field in fields if field.name != "reflect"]
        end = kept[-1].end
        return [(end, end, f', "{name}": {json.dumps(before + after)}')]
    start, end = content.start, content.end
    if isinstance(content.value, str):
        start, end = start + 1, end - 1
        return [(start, start, _escaped(before)), (end, end, _escaped(after))]
    if not isinstance(content.value, list):
        return [(start, end, json.dumps(before + after))]
    parts = list(_elements(text, start))
    first = [(start + 1, start + 1, f"{_part(before, part)}, ")] if before.strip() else []
    at = parts[-1].end if parts else start + 1
    return [*first, (at, at, ", " * bool(parts) + _part(after.lstrip("\n"), part))]


def _part(text: str, kind: str) -> str:
    return json.dumps({"type": kind, "text": text})


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _without(fields: list[Value], name: str) -> list[Edit]:
    """Remove the members of this name, with one comma each."""
    edits: list[Edit] = []
    kept = 0  # where the last kept member ends
    for i, field in enumerate(fields):
        if field.name != name:
            kept = field.end
        elif i + 1 < len(fields):
            edits.append((field.begin, fields[i + 1].begin, ""))
        else:
            edits.append((kept or field.begin, field.end, ""))
    return edits


def _apply(text: str, edits: list[Edit]) -> str:
    parts, at = [], 0
    for start, end, new in sorted(edits):
        parts += [text[at:start], new]
        at = max(at, end)
    return "".join([*parts, text[at:]])


# `text` is valid JSON: it was parsed before.

_decode = json.JSONDecoder().raw_decode


def _skip(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str, at: int) -> Iterator[Value]:
    """The members of the object at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, end = _decode(text, at)
        start = _skip(text, _skip(text, end) + 1)
        value, end = _decode(text, start)
        yield Value(name, at, start, end, value)
        at = _next(text, end)


def _elements(text: str, at: int) -> Iterator[Value]:
    """The elements of the array at `at`."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        value, end = _decode(text, at)
        yield Value("", at, at, end, value)
        at = _next(text, end)


def _next(text: str, at: int) -> int:
    """The place after a comma, or of the closing bracket."""
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at
