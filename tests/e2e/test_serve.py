"""`reflect serve` as the official client and plain HTTP see it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from serving import ask, post, running, serving

from reflect.config import Settings
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.serve.app import build
from reflect.serve.engine import Engine
from reflect.serve.lesson_session import LessonSession
from reflect.serve.local_chat import LocalChat, _settled
from reflect.store import Store
from reflect.tasksets import load_taskset

WORD = "How many r are in strawberry?"


@pytest.fixture(scope="module")
def model(pocket_model: LocalModel) -> LocalModel:
    return pocket_model


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "lessons.db"


@pytest.fixture(scope="module")
def base(model: LocalModel, db: Path) -> Iterator[str]:
    with serving(db, model) as url:
        yield url


@pytest.fixture(scope="module")
def client(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base, api_key="none", max_retries=0)


# -- the API, by the official client
# -----------------------------------------------------------------------------------


def test_the_same_seeds_give_the_same_texts_as_the_local_model(
    client: openai.OpenAI, model: LocalModel
) -> None:
    tasks = load_taskset("dialect").tasks("practice", 3, 0)
    for i, task in enumerate(tasks):
        seed = 2**62 + i
        want = model.sample([Request(task.messages, (seed, seed + 1), 96, 0.7, adapter=None)])[0]
        got = client.chat.completions.create(
            model="pocket", messages=task.messages, n=2, seed=seed, max_tokens=96, temperature=0.7
        )
        assert [choice.message.content for choice in got.choices] == [one.text for one in want]
        assert [choice.finish_reason for choice in got.choices] == [one.finish for one in want]
        assert got.usage.prompt_tokens == want[0].prompt_tokens
        assert got.usage.completion_tokens == sum(one.completion_tokens for one in want)
        assert got.model == "pocket" and got.object == "chat.completion"


def test_stop_and_the_limits_of_length(client: openai.OpenAI) -> None:
    fields = {"model": "pocket", "messages": ask(WORD)["messages"], "seed": 1, "temperature": 0}
    free = client.chat.completions.create(**fields).choices[0]
    assert free.message.content.startswith("answer:") and free.finish_reason == "stop"
    for stop in (":", [":", "never"]):
        stopped = client.chat.completions.create(**fields, stop=stop).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == ("answer", "stop")
    for limit in (
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"max_tokens": 50, "max_completion_tokens": 1},
    ):
        short = client.chat.completions.create(**fields, **limit)
        assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI) -> None:
    fields = {
        "model": "pocket",
        "messages": ask("Apply zubi to the list 3 1 2.")["messages"],
        "seed": 5,
        "n": 2,
    }
    whole = client.chat.completions.create(**fields, stop="answer")
    chunks = list(
        client.chat.completions.create(
            **fields, stop="answer", stream=True, stream_options={"include_usage": True}
        )
    )
    for i in range(2):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == i]
        assert "".join(c.delta.content or "" for c in mine) == whole.choices[i].message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [
            whole.choices[i].finish_reason
        ]
        assert mine[0].delta.role == "assistant" and len(mine) > 3, "it comes as it is made"
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("text", "stop", "settled"),
    [
        ("a b", (), "a b"),
        ("a \ufffd", (), "a "),
        ("one END two", ("END",), "one "),
        ("one EN", ("END", "x"), "one "),
    ],
)
def test_what_is_sent_of_a_stream_never_has_to_be_taken_back(
    text: str, stop: tuple[str, ...], settled: str
) -> None:
    assert _settled(text, stop) == settled


def test_models_are_listed_with_their_length(client: openai.OpenAI, model: LocalModel) -> None:
    listed = client.models.list().data
    assert [row.id for row in listed] == ["pocket"]
    assert client.models.retrieve("pocket").model_extra["max_model_len"] == model.context
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_tools_are_offered_to_the_model(client: openai.OpenAI) -> None:
    """The pocket model calls none: what is proven here is that a request with tools is answered,
    whole and streamed."""
    function = {
        "name": "add",
        "description": "adds",
        "parameters": {"type": "object", "properties": {}},
    }
    tools = [{"type": "function", "function": function}]
    fields = {"model": "pocket", "messages": ask(WORD)["messages"], "temperature": 0}
    plain = client.chat.completions.create(**fields, tools=tools, tool_choice="none").choices[0]
    assert (
        plain.message.content == client.chat.completions.create(**fields).choices[0].message.content
    )
    reply = client.chat.completions.create(**fields, tools=tools, tool_choice="auto").choices[0]
    assert reply.finish_reason in ("stop", "tool_calls", "length")
    chunks = client.chat.completions.create(**fields, tools=tools, stream=True)
    assert [c.choices[0].finish_reason for c in chunks][-1] == reply.finish_reason


# -- errors, in the API's form
# -------------------------------------------------------------------------------------

BAD = [
    ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"messages": []}, 400, "messages", "invalid_value"),
    ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", None),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        400,
        "messages[0].content",
        "unsupported_value",
    ),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "invalid_type"),
    (
        {"messages": [{"role": "user", "content": "strawberry " * 2000}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": "two"}, 400, "n", "invalid_type"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"temperature": 3}, 400, "temperature", "invalid_value"),
    ({"seed": 2**64}, 400, "seed", "invalid_value"),
    ({"stop": list("abcde")}, 400, "stop", "invalid_value"),
    ({"top_p": 1.5}, 400, "top_p", "invalid_value"),
    ({"response_format": {"type": "xml"}}, 400, "response_format", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format", "invalid_value"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}},
            }
        },
        400,
        "response_format",
        "invalid_value",
    ),
    (
        {
            "response_format": {"type": "json_object"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        400,
        "response_format",
        "invalid_value",
    ),
    ({"tools": [{"type": "function"}]}, 400, "tools", "invalid_value"),
]


@pytest.mark.parametrize(("change", "status", "param", "code"), BAD, ids=lambda x: str(x)[:30])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_in_the_shape_of_the_api(
    base: str, change: dict, status: int, param: str, code: str | None, stream: bool
) -> None:
    reply = post(base, "chat/completions", {**ask(WORD), "stream": stream, **change})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error" and len(error["message"]) > 10
    if code == "context_length_exceeded":
        assert "2003 tokens" in error["message"] and "1024" in error["message"]


@pytest.mark.parametrize("strict", [None, False, True])
def test_an_answer_has_the_form_that_is_asked_for(client: openai.OpenAI, strict: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"enum": [1, 2, 3]}, "word": {"type": "string", "maxLength": 9}},
        "required": ["count", "word"],
        "additionalProperties": False,
    }
    form = {"name": "count", "schema": schema} | ({} if strict is None else {"strict": strict})
    request = {
        **ask(WORD, max_tokens=100),
        "response_format": {"type": "json_schema", "json_schema": form},
    }
    value = json.loads(client.chat.completions.create(**request).choices[0].message.content)
    assert value["count"] in (1, 2, 3) and len(value["word"]) <= 9
    with client.chat.completions.create(**request | {"stream": True}) as stream:
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert list(json.loads("".join(parts))) == ["count", "word"]
    request["response_format"] = {"type": "json_object"}
    answer = client.chat.completions.create(**request, seed=0).choices[0]
    assert answer.message.content.startswith("{")


def test_plain_http(base: str, client: openai.OpenAI) -> None:
    """As curl sends it: no content type but its own, a body that is no JSON, a URL that is none."""
    reply = httpx2.post(f"{base}/chat/completions", content=json.dumps(ask(WORD)), timeout=60)
    assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["role"] == "assistant"
    assert httpx2.post(f"{base}/chat/completions", content=b"{").status_code == 400
    assert httpx2.post(f"{base}/chat/completions", content=b"[1]").status_code == 400
    unknown = httpx2.get(f"{base}/nothing")
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "unknown_url"
    assert httpx2.get(f"{base}/chat/completions").status_code == 405
    assert httpx2.get(base.removesuffix("/v1") + "/health").status_code == 200
    too_long = httpx2.post(f"{base}/chat/completions", content=b" " * (8 * 2**20 + 1), timeout=60)
    assert too_long.status_code == 413 and too_long.json()["error"]["code"] == "request_too_large"


def test_a_key_is_asked_for(tiny: LocalModel, tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 3}
    with serving(tmp_path / "lessons.db", tiny, key="sesame") as base:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic sesame"}):
            reply = post(base, "chat/completions", body, headers=headers)
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=base, api_key="sesame").models.list().data[0].id == "tiny"
        assert httpx2.get(base.removesuffix("/v1") + "/health").status_code == 200


def test_a_full_server_says_when_to_come_again(tiny: LocalModel, tmp_path: Path) -> None:
    tiny.__dict__["ends"] = frozenset()
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "n": 100}
    found: list[httpx2.Response] = []
    with serving(tmp_path / "lessons.db", tiny, queue=1) as base:
        threads = [
            threading.Thread(target=lambda: found.append(post(base, "chat/completions", body)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [reply for reply in found if reply.status_code == 503]
    assert refused and len(refused) < 6 and {reply.status_code for reply in found} == {200, 503}
    assert (
        refused[0].headers["retry-after"] == "1"
        and refused[0].json()["error"]["code"] == "overloaded"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_being_computed(
    tiny: LocalModel, tmp_path: Path, stream: bool
) -> None:
    tiny.__dict__["ends"] = frozenset()
    tiny.context = 4000
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "w1"}],
        "max_tokens": 3900,
        "stream": stream,
    }
    engine, desk = (
        Engine(tiny, 9),
        LessonSession(Store(tmp_path / "lessons.db"), Settings(), count_tokens=tiny.count_tokens),
    )
    with running(build(LocalChat(engine, desk), desk)) as base:
        where = urlsplit(base)
        connection = http.client.HTTPConnection(where.hostname, where.port)
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        while not engine.steps:
            time.sleep(0.01)
        connection.close()
        assert (
            post(base, "chat/completions", {**body, "max_tokens": 2, "stream": False}).status_code
            == 200
        )
        time.sleep(0.2)
        steps = engine.steps
        time.sleep(0.2)
        assert engine.steps == steps < 3900
    engine.close()
    desk.stop()
