"""Messages and responses in front of an upstream: only the instructions of a request change, and
any answer is read or left out, never an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect.models.base import Completion
from reflect.serve.answer_reader import AnswerReader
from reflect.serve.messages import MessagesApi, MessagesReader
from reflect.serve.raw_request import rewrite_messages, rewrite_responses
from reflect.serve.responses import ResponsesApi, ResponsesReader

BLOCK = 'Lessons "1"\nend \u00e9'
TEXT = json.dumps(BLOCK)[1:-1]
USER = {"role": "user", "content": "u"}


def part(kind: str = "text") -> str:
    return json.dumps({"type": kind, "text": BLOCK})


# (body, the same with lessons); @ is the lessons' text, # a part, $ an input part
MESSAGES = [
    ('{"messages":[], "system": "S\\u00e9\\/" }', '{"messages":[], "system": "S\\u00e9\\/\\n@" }'),
    ('{"system":[ {"type":"text","text":"S","cache_control":{}} ],"a":1.50}', '{"system":[ {"type":"text","text":"S","cache_control":{}}, # ],"a":1.50}'),
    ('{"system":[],"messages":[]}', '{"system":[#],"messages":[]}'),
    ('{"system": null}', '{"system": "@"}'),
    ('{"system": ""}', '{"system": "@"}'),
    ('{ "a": 1 }', '{ "a": 1, "system": "@" }'),
    ('{"a":1,"reflect":{"x":1}}', '{"a":1, "system": "@"}'),
    ('{"reflect":{}, "a":1}', '{"a":1, "system": "@"}'),
    ('{"system":"x","system":"S"}', '{"system":"x","system":"S\\n@"}'),
    ('{"system":"S","messages":[{"role":"system","content":"later"}]}', '{"system":"S\\n@","messages":[{"role":"system","content":"later"}]}'),
]  # fmt: skip
RESPONSES = [
    ('{"input":"x","instructions":"S"}', '{"input":"x","instructions":"S\\n@"}'),
    ('{"input":"x","instructions":null}', '{"input":"x","instructions":"@"}'),
    ('{"input":"x" }', '{"input":"x", "instructions": "@" }'),
    ('{"input":[{"role":"user","content":"u"}]}', '{"input":[{"role":"user","content":"u"}], "instructions": "@"}'),
    ('{"input":[{"type":"message","role":"developer","content":"S"},{"role":"system","content":"T"}]}', '{"input":[{"type":"message","role":"developer","content":"S\\n@"},{"role":"system","content":"T"}]}'),
    ('{"input":[{"role":"developer","content":[{"type":"input_text","text":"S"}]}],"instructions":""}', '{"input":[{"role":"developer","content":[{"type":"input_text","text":"S"}, $]}],"instructions":""}'),
    ('{"input":[{"role":"developer","content":"D"}],"instructions":"S"}', '{"input":[{"role":"developer","content":"D"}],"instructions":"S\\n@"}'),
    ('{"input":[{"type":"reasoning"},{"role":"user","content":"system"}],"reflect":1}', '{"input":[{"type":"reasoning"},{"role":"user","content":"system"}], "instructions": "@"}'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rewrite", "body", "want"),
    [(rewrite_messages, *row) for row in MESSAGES]
    + [(rewrite_responses, *row) for row in RESPONSES],
)
def test_lessons_come_after_the_instructions(rewrite: Any, body: str, want: str) -> None:
    want = want.replace("@", TEXT).replace("#", part()).replace("$", part("input_text"))
    api = MessagesApi() if rewrite is rewrite_messages else ResponsesApi()
    raw = {"model": "m", "messages": [USER]} | json.loads(body)
    raw["messages"] = raw["messages"] or [USER]
    asked = api.parse({**raw, "reflect": None}, {}, strict=False).messages
    system = next((one["content"] for one in asked if one["role"] == "system"), "")
    extended = f"{system}\n{BLOCK}" if system else BLOCK
    assert rewrite(body.encode(), system, extended).decode() == want
    if "reflect" not in body:
        assert rewrite(body.encode(), "", "") == body.encode()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one, max_size=3),
    max_leaves=6,
)
KINDS = [
    "message_start", "message", "content_block_start", "content_block_delta", "message_delta", "message_stop", "error", "ping",
    "response.created", "response.output_item.done", "response.completed", "response.incomplete", "response.failed",
]  # fmt: skip
NAMES = [
    "message", "content_block", "delta", "index", "usage", "content", "text", "partial_json", "input", "name", "id", "model", "stop_reason",
    "response", "item", "output", "status", "arguments", "call_id", "error", "input_tokens", "output_tokens",
]  # fmt: skip
TYPES = ["text", "tool_use", "text_delta", "input_json_delta", "message", "function_call", "custom_tool_call", "output_text", "completed"]  # fmt: skip
NESTED = st.recursive(
    VALUES | st.sampled_from(TYPES),
    lambda one: st.dictionaries(st.sampled_from([*NAMES, "type"]), one, max_size=6) | st.lists(one, max_size=3),
    max_leaves=12,
)  # fmt: skip
EVENTS = st.builds(
    lambda kind, fields: fields | {"type": kind},
    st.sampled_from(KINDS) | VALUES,
    st.dictionaries(st.sampled_from(NAMES), NESTED, max_size=6),
)


def as_bytes(rows: list[Any], end: str = "\n") -> bytes:
    return "".join(f"event: x{end}data: {json.dumps(row)}{end}{end}" for row in rows).encode()


def read(reader: AnswerReader, data: bytes, cut: int) -> list[Completion]:
    reader.feed(data[:cut])
    reader.feed(data[cut:])
    return reader.completions()


@pytest.mark.parametrize("kind", [MessagesReader, ResponsesReader])
@given(rows=st.lists(EVENTS, max_size=5), cut=st.integers(0, 200), whole=st.booleans())
def test_no_answer_raises(kind: type[AnswerReader], rows: list[Any], cut: int, whole: bool) -> None:
    data = json.dumps(rows[0] if rows else {}).encode() if whole else as_bytes(rows)
    one, two = read(kind(), data, cut), read(kind(), data, len(data))
    assert one == two
    assert all(isinstance(call["function"]["arguments"], str) for c in one for call in c.calls)


MESSAGE = {"id": "msg_1", "type": "message", "model": "m", "content": [{"type": "text", "text": "h\u00e9"}], "stop_reason": "end_turn", "usage": {"input_tokens": 2, "output_tokens": 3}}  # fmt: skip
STREAM = [
    {"type": "message_start", "message": MESSAGE | {"content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "h\u00e9"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
]  # fmt: skip


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_message_is_read_at_every_cut(end: str) -> None:
    data = as_bytes(STREAM, end)
    for cut in range(0, len(data), 7):
        reader = MessagesReader()
        (answer,) = read(reader, data, cut)
        assert (answer.text, answer.finish, reader.id) == ("h\u00e9", "tool_calls", "msg_1")
        assert (answer.prompt_tokens, answer.completion_tokens) == (2, 3)
        assert answer.calls[0]["function"] == {"name": "f", "arguments": "{}"}
        assert reader.complete
    (answer,) = read(MessagesReader(), json.dumps(MESSAGE).encode(), 9)
    assert (answer.text, answer.finish) == ("h\u00e9", "stop")
