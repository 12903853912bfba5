"""Changes a chat request in its bytes: lessons in, the `reflect` object out.

Every other byte stays as the client has written it: key order, number formats, escapes, content
parts, unknown fields, and every message but the first system message.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """The request for the upstream. `system` is the text of the first system message ("" without
    one), `extended` the same text with lessons, "" to add none. `body` is valid JSON."""
    encoding = json.detect_encoding(body)
    text = body.decode(encoding, "surrogatepass")
    fields = list(_members(text, _skip(text, 0)))
    edits = _without(fields, "reflect")
    if extended:
        messages = next(field for field in reversed(fields) if field.name == "messages")
        edits += _extend(text, messages, system, extended)
    return _apply(text, edits).encode(encoding, "surrogatepass") if edits else body


def _extend(text: str, messages: Value, system: str, extended: str) -> list[Edit]:
    before, same, after = extended.partition(system) if system else ("", "", extended)
    if system and not same:  # the template of the system prompt has changed the text
        before, after = "", f"\n{extended}"
    for message in _elements(text, messages.start):
        fields = list(_members(text, message.start))
        last = {field.name: field for field in fields}
        if "role" not in last or last["role"].value not in SYSTEM_ROLES:
            continue
        content = last.get("content")
        if content is None:
            end = fields[-1].end
            return [(end, end, f', "content": {json.dumps(before + after)}')]
        start, end = content.start, content.end
        if isinstance(content.value, str):
            start, end = start + 1, end - 1
            return [(start, start, _escaped(before)), (end, end, _escaped(after))]
        if not isinstance(content.value, list):
            return [(start, end, json.dumps(before + after))]
        parts = list(_elements(text, start))
        first = [(start + 1, start + 1, f"{_part(before)}, ")] if before.strip() else []
        at = parts[-1].end if parts else start + 1
        return [*first, (at, at, ", " * bool(parts) + _part(after.lstrip("\n")))]
    new: Json = {"role": "system", "content": extended}
    at = messages.start + 1
    return [(at, at, f"{json.dumps(new)}, ")]


def _part(text: str) -> str:
    return json.dumps({"type": "text", "text": text})


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
