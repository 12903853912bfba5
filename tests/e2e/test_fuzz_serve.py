"""Bodies that no client sends on purpose, to a real server: 2xx or 4xx in the error format of
OpenAI's API with the invalid field, never a 500, never a hang."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from conftest import TEMPLATE, save_tiny
from hostile import damaged, places, replaced, texts, to_json, values
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from serving import ask, serving

from reflect.models import load_model
from reflect.models.local import LocalModel
from reflect.serve.openapi import document
from reflect.serve.schema import LocalBody

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
BODY = ask(
    "Hi",
    max_tokens=1,
    n=1,
    stream=False,
    temperature=0,
    seed=1,
    stop=["x"],
    tools=[TOOL],
    tool_choice="auto",
    reflect={"conversation": "c"},
)
BODY["messages"] += [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "1"},
]
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]},
]
MESSAGES = {
    "model": "pocket",
    "messages": TALK,
    "system": [{"type": "text", "text": "be brief"}],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f"},
}
ITEMS = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "1"},
    {"type": "custom_tool_call", "call_id": "b", "name": "g", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "1"}]},
    {"type": "reasoning", "summary": []},
]  # fmt: skip
POSTS = {
    "chat/completions": BODY,
    "messages": MESSAGES
    | {"max_tokens": 1, "stream": False, "temperature": 0, "stop_sequences": ["x"]},
    "messages/count_tokens": MESSAGES,
    "responses": {
        "model": "pocket",
        "input": ITEMS,
        "instructions": "be brief",
        "max_output_tokens": 1,
        "temperature": 0,
        "tools": [
            {"type": "function", "name": "f", "parameters": None},
            {"type": "custom", "name": "g"},
        ],
        "tool_choice": {"type": "custom", "name": "g"},
        "text": {"format": {"type": "text"}},
        "stream": False,
    },
    "feedback": {"id": "chatcmpl-x", "reward": 0.5, "feedback": "good", "choice": 0},
    "completions": {
        "model": "pocket",
        "prompt": [4, 100, 2],
        "n": 2,
        "seed": 3,
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["."],
        "return_token_ids": True,
        "stream": False,
    },
    "load_lora_adapter": {"lora_name": "a", "lora_path": "/nowhere"},
    "unload_lora_adapter": {"lora_name": "a"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, pocket_model: LocalModel) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("serve") / "lessons.db", pocket_model) as base:
        yield base


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: str) -> Iterator[str]:
    """A proxy in front of the server."""
    with serving(tmp_path_factory.mktemp("proxy") / "lessons.db", upstream=server) as base:
        yield base


def send(base: str, path: str, content: bytes, **headers: str) -> httpx2.Response:
    """The reply, which is as documented."""
    reply = httpx2.post(f"{base}/{path}", content=content, headers=headers, timeout=20)
    assert 200 <= reply.status_code < 500, (path, content[:2000], reply.status_code, reply.text)
    if reply.status_code >= 400:
        error = reply.json()["error"]
        fields = {"message", "type"} | ({"param", "code"} if "messages" not in path else set())
        assert set(error) == fields and error["message"] and len(error["message"]) < 1000
        assert error["type"] in ("invalid_request_error", "not_found_error")
    return reply


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """(path, body): a valid body with one value replaced, one field added, or damaged bytes."""
    path = draw(st.sampled_from(sorted(POSTS)))
    body: Any = POSTS[path]
    kind = draw(st.sampled_from(["value", "value", "field", "bytes", "any"]))
    if kind == "bytes":
        return path, draw(damaged(json.dumps(body).encode()))
    if kind == "any":
        return path, draw(st.one_of(values.map(to_json), st.binary(max_size=40)))
    if kind == "field":
        names = st.one_of(st.sampled_from(sorted(LocalBody.model_fields)), texts)
        changed = body | {draw(names): draw(values)}
    else:
        changed = replaced(body, draw(st.sampled_from(list(places(body))[1:])), draw(values))
    for field in ("max_tokens", "max_output_tokens"):
        if isinstance(changed.get(field), int):
            changed[field] = min(changed[field], 3)  # short answers: fast tests
    if isinstance(changed.get("n"), int):
        changed["n"] = min(changed["n"], 2)
    try:
        return path, json.dumps(changed).encode()
    except RecursionError:
        return path, b'{"messages": ' + b"[" * 1500 + b"]" * 1500 + b"}"


@given(bodies())
@settings(max_examples=max(80, settings().max_examples // 4))
def test_any_body(server: str, case: tuple[str, bytes]) -> None:
    send(server, *case)


@given(bodies())
def test_any_body_through_a_proxy(proxy: str, case: tuple[str, bytes]) -> None:
    send(proxy, *case)


@given(
    st.sampled_from(["taskset", "conversation", "lessons"]),
    st.text(
        st.characters(min_codepoint=32, max_codepoint=255, exclude_categories=["Cc"]), max_size=30
    ),
)
@settings(max_examples=max(10, settings().max_examples // 4))
def test_any_header(server: str, name: str, text: str) -> None:
    raw = f"x-reflect-{name}".encode(), text.strip().encode("latin-1")
    reply = httpx2.post(
        f"{server}/chat/completions",
        content=json.dumps(ask("Hi", max_tokens=1)),
        headers=[raw],
        timeout=20,
    )
    assert reply.status_code < 500


N600: Any = "x"
for _ in range(600):
    N600 = [N600]
HALF = "half \ud83d"
REFUSED = [  # (change of the body, param)
    ({"response_format": "json"}, "response_format"),
    ({"response_format": ["json"]}, "response_format"),
    ({"stream_options": "include_usage"}, "stream_options"),
    ({"stream_options": [1]}, "stream_options"),
    ({"tool_choice": {"type": "function", "function": "f"}, "tools": [TOOL]}, "tool_choice"),
    ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
    ({"n": 10**400}, "n"),
    ({"temperature": 10**399}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"user": float("inf")}, "user"),
    ({"metadata": N600}, "metadata[0][0][0]"),
    ({"messages": [{"role": "user", "content": HALF}]}, "messages[0].content"),
    ({"reflect": {"conversation": HALF}}, "reflect.conversation"),
    ({"reflect": {"taskset": "a\0"}}, "reflect.taskset"),
    ({"model": HALF}, "model"),
    ({"tools": [{"type": "function", "function": {"name": "f", "description": HALF}}]}, "tools[0].function.description"),
    ({"stream": "true"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"frequency_penalty": 0.1}, "frequency_penalty"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": "f()"}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 5}}]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]}]}, "messages[0].tool_calls"),
    ({"messages": ["hi"]}, "messages[0]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param"), REFUSED, ids=lambda x: str(x)[:40] if isinstance(x, dict) else ""
)
def test_a_value_that_is_refused_with_its_field(
    server: str, change: dict[str, Any], param: str
) -> None:
    reply = send(server, "chat/completions", json.dumps(ask("Hi", max_tokens=1) | change).encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("change", "param"),
    [({"choice": 2**63}, "choice"), ({"choice": 10**400}, "choice"), ({"feedback": HALF}, "feedback"), ({"id": HALF}, "id"),
     ({"reward": 10**399}, "reward"), ({"reward": float("nan")}, "reward"), ({"reward": True}, "reward"), ({"feedback": "\0"}, "feedback"),
     ({"id": []}, "id")],
)  # fmt: skip
def test_feedback_that_is_refused_with_its_field(
    server: str, change: dict[str, Any], param: str
) -> None:
    reply = send(server, "feedback", json.dumps(POSTS["feedback"] | change).encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "change",
    [{"top_p": 1}, {"top_p": 1.0}, {"modalities": ["text"]}, {"functions": []}, {"response_format": {"type": "text"}}, {"logprobs": False},
     {"tools": []}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, {"user": None, "store": True},
     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]}]},
     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 300}}]}]},
     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}]}],
    ids=lambda x: str(x)[:40],
)  # fmt: skip
def test_a_value_that_is_taken(server: str, change: dict[str, Any]) -> None:
    assert (
        send(
            server, "chat/completions", json.dumps(ask("Hi", max_tokens=1) | change).encode()
        ).status_code
        == 200
    )


def test_messages_that_the_chat_template_refuses(tmp_path: Path) -> None:
    template = (
        "{% if messages|length > 2 %}{{ raise_exception('one message') }}{% endif %}" + TEMPLATE
    )
    model = load_model(str(save_tiny(tmp_path / "strict", template=template)))
    assert isinstance(model, LocalModel)
    with serving(tmp_path / "lessons.db", model) as base:
        body = {
            "model": model.name,
            "messages": [{"role": "user", "content": "w1"}] * 3,
            "max_tokens": 1,
        }
        reply = send(base, "chat/completions", json.dumps(body).encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages")
    assert "refuses these messages" in reply.json()["error"]["message"]


@pytest.mark.parametrize("host", ["[", "[::1", "[]", "a b", "::", "\xff", "localhost:99999999", ""])
def test_a_host_that_is_none(server: str, host: str) -> None:
    name, port = server.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((name, int(port)), timeout=10) as connection:
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: "
            + host.encode("latin-1")
            + b"\r\nConnection: close\r\n\r\n"
        )
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 4"), data


def test_bodies_of_the_own_openapi_document(server: str) -> None:
    """schemathesis: valid and invalid requests by the server's own description."""
    url = server.removesuffix("/v1") + "/openapi.json"
    schema = schemathesis.openapi.from_url(url)

    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @given(strategy)
        @settings(max_examples=max(8, settings().max_examples // 20))
        def check_operation(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict) and "model" in case.body:
                case.body |= {"model": "pocket", "max_tokens": 1, "max_completion_tokens": None}
                case.body |= {"max_output_tokens": 1} | ({"n": 1} if case.body.get("n") else {})
            case.call_and_validate(
                checks=[not_a_server_error, status_code_conformance, response_schema_conformance],
                timeout=20,
            )

        check_operation()


def test_the_openapi_document(server: str) -> None:
    url = server.removesuffix("/v1") + "/openapi.json"
    own = httpx2.get(url).json()
    assert set(own["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        *(f"/v1/{path}" for path in POSTS),
    }
    assert "top_p" in own["components"]["schemas"]["LocalBody"]["properties"]
    relayed = document("1", local=False, key=True)
    assert "/v1/load_lora_adapter" not in relayed["paths"] and relayed["security"] == [{"key": []}]
