"""Anthropic's messages and OpenAI's responses, by the official clients and by plain HTTP: over the
model of this process, and in front of a server that speaks the same protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from serving import post, running, serving
from sqlmodel import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from reflect.config import Settings
from reflect.models.local import LocalModel
from reflect.records import Exchange
from reflect.store import Store, doctor, lessons

WORD = "How many r are in strawberry?"
ADD = {"name": "add", "description": "add two numbers", "input_schema": {"type": "object"}}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": "é"}}</tool_call>'
KEY = "sk-sentinel-0123456789abcdef"


def add_lesson(db: Path | str) -> None:
    with Store(db).write() as s:
        lessons.add(s, when="always", do="count twice", author="human", status="active", pinned=True, scope="traffic")  # fmt: skip


def exchanges_of(db: Path | str) -> list[Exchange]:
    store = Store(db)
    assert doctor.check(store) == []
    with store.read() as s:
        return list(s.exec(select(Exchange).order_by(Exchange.id)))


def events_of(content: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of the events of a stream."""
    rows = [block.split("\n") for block in content.decode().strip().split("\n\n")]
    pairs = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in rows]  # fmt: skip
    assert all(name == data["type"] for name, data in pairs)
    return pairs


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("protocols") / "lessons.db"
    add_lesson(path)
    return path


@pytest.fixture(scope="module")
def base(pocket_model: LocalModel, db: Path) -> Iterator[str]:
    with serving(db, pocket_model, settings=Settings(db=str(db), trials=False)) as url:
        yield url


@pytest.fixture
def claude(base: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base.removesuffix("/v1"), api_key="none", max_retries=0)


# -- messages over the local model


def ask(text: str = WORD, **fields: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": text}]
    return {"model": "pocket", "max_tokens": 60, "temperature": 0, "messages": talk, **fields}


def sdk(text: str = WORD, **fields: Any) -> dict[str, Any]:
    """The same for the official client, which does not know all fields any more."""
    rest = {key: value for key, value in ask(text, **fields).items() if key != "temperature"}
    return rest | {"extra_body": {"temperature": 0}}


def test_a_message_has_lessons_is_stored_and_rewarded(
    base: str, claude: anthropic.Anthropic, db: Path
) -> None:
    raw = claude.messages.with_raw_response.create(**sdk(system="be brief"))
    message = raw.parse()
    assert message.content[0].text.startswith("answer:") and message.id.startswith("msg_")
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")  # fmt: skip
    assert message.usage.input_tokens > 20 and message.usage.output_tokens > 1
    assert raw.headers["x-reflect-lessons"] == "1:1" and raw.headers["request-id"] == message.id
    chat = {"model": "pocket", "temperature": 0, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": WORD}]}  # fmt: skip
    same = post(base, "chat/completions", chat).json()
    assert same["choices"][0]["message"]["content"] == message.content[0].text
    assert same["usage"]["prompt_tokens"] == message.usage.input_tokens
    reward = {"id": message.id, "reward": 1, "feedback": "right"}
    assert post(base, "feedback", reward).status_code == 200
    row = next(row for row in exchanges_of(db) if row.name == message.id)
    assert row.asked == chat["messages"] and row.reward == 1 and row.exposures[0]["shown"]
    assert row.messages[0]["content"].startswith("be brief\n") and "count twice" in row.messages[0]["content"]  # fmt: skip
    assert row.messages[-1]["content"] == message.content[0].text


def test_system_and_content_may_be_blocks(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**sdk(system="be brief"))
    block = {"type": "text", "text": WORD, "cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "be brief"}]
    blocks = claude.messages.create(**sdk(system=system) | {"messages": [{"role": "user", "content": [block]}]})  # fmt: skip
    assert (whole.content, whole.usage) == (blocks.content, blocks.usage)


def test_a_streamed_message_is_the_same_in_pieces(claude: anthropic.Anthropic, base: str) -> None:
    whole = claude.messages.create(**sdk())
    with claude.messages.stream(**sdk()) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 1 and "".join(texts) == whole.content[0].text
    assert final.content[0].text == whole.content[0].text
    assert (final.usage, final.stop_reason) == (whole.usage, whole.stop_reason)
    reply = post(base, "messages", ask(stream=True))
    names = [name for name, _ in events_of(reply.content)]
    assert re.fullmatch(
        "message_start ping content_block_start( content_block_delta)+ content_block_stop"
        " message_delta message_stop",
        " ".join(names),
    )
    assert reply.headers["content-type"].startswith("text/event-stream")
    post(base, "feedback", {"id": final.id, "reward": 0.5}).raise_for_status()


def test_why_a_message_ends(claude: anthropic.Anthropic) -> None:
    short = claude.messages.create(**sdk(max_tokens=1))
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 1)
    stopped = claude.messages.create(**sdk(stop_sequences=["never", ":"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", ":")
    assert stopped.content[0].text == "answer"
    nothing = claude.messages.create(**sdk(stop_sequences=["a"]))
    assert (nothing.content, nothing.stop_reason) == ([], "stop_sequence")
    with claude.messages.stream(**sdk(stop_sequences=["a"])) as stream:
        assert stream.get_final_message().content == []


def test_tools_are_called_and_their_results_are_read(
    claude: anthropic.Anthropic, base: str, pocket_model: LocalModel, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[str] = []
    render = pocket_model.chat.render
    monkeypatch.setattr(pocket_model.chat, "render", lambda *words: seen.append(render(*words)) or seen[-1])  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(pocket_model.chat, "decode", lambda _: f"I add. {CALL} {CALL}")
        message = claude.messages.create(**sdk(tools=[ADD]))
        with claude.messages.stream(**sdk(tools=[ADD], tool_choice={"type": "any"})) as stream:
            final = stream.get_final_message()
    for one in (message, final):
        text, *calls = one.content
        assert one.stop_reason == "tool_use" and text.text == "I add."
        assert [(call.name, call.input) for call in calls] == [("add", {"a": 1, "b": "é"})] * 2
        assert len({call.id for call in calls}) == 2
    assert all("add two numbers" in prompt for prompt in seen)
    row = exchanges_of(db)[-1]
    assert row.finish == "tool_calls" and len(row.messages[-1]["tool_calls"]) == 2
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": text} for call, text in zip(message.content[1:], ("3", [{"type": "text", "text": "four"}]), strict=True)]  # fmt: skip
    thought = {"type": "thinking", "thinking": "hidden", "signature": "s"}
    talk = [
        *ask()["messages"],
        {"role": "assistant", "content": [thought, *message.content]},
        {"role": "user", "content": [*results, {"type": "text", "text": "And now?"}]},
    ]
    claude.messages.create(**sdk(tools=[ADD]) | {"messages": talk})
    prompt = seen[-1]
    assert prompt.index("I add.") < prompt.index('"a": 1') < prompt.index("four")
    assert prompt.index("four") < prompt.index("And now?") and "hidden" not in prompt
    roles = [one["role"] for one in exchanges_of(db)[-1].asked]
    assert roles == ["user", "assistant", "tool", "tool", "user"]


def test_one_call_at_most_where_the_client_wants_no_more(
    claude: anthropic.Anthropic, codex: openai.OpenAI, pocket_model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(pocket_model.chat, "decode", lambda _: f"{CALL} {CALL}")
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(claude.messages.create(**sdk(tools=[ADD])).content) == 2
    assert len(claude.messages.create(**sdk(tools=[ADD], tool_choice=choice)).content) == 1
    response = codex.responses.create(**want(tools=[SUM], parallel_tool_calls=False))
    assert len(response.output) == 1 and response.parallel_tool_calls is False
    tools = [{"type": "function", "function": {"name": "add"}}]
    talk = [{"role": "user", "content": WORD}]
    for parallel, count in ((True, 2), (False, 1)):
        chat = codex.chat.completions.create(model="pocket", messages=talk, tools=tools, parallel_tool_calls=parallel)  # fmt: skip
        assert len(chat.choices[0].message.tool_calls) == count


def test_tools_that_are_not_offered(
    claude: anthropic.Anthropic, base: str, pocket_model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[Any] = []
    render = pocket_model.chat.render
    monkeypatch.setattr(pocket_model.chat, "render", lambda talk, tools=(): seen.append(tools) or render(talk, tools))  # fmt: skip
    sub = ADD | {"name": "sub"}
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 1}
    for choice, names in (
        ({"type": "auto"}, ["add", "sub"]),
        ({"type": "tool", "name": "sub"}, ["sub"]),
        ({"type": "none"}, []),
    ):
        claude.messages.create(**sdk(tools=[ADD, sub, search], tool_choice=choice, max_tokens=1))
        assert [tool["function"]["name"] for tool in seen[-1]] == names
    with pytest.raises(anthropic.BadRequestError, match="names no offered tool"):
        claude.messages.create(**sdk(tools=[search], tool_choice={"type": "tool", "name": "web_search"}))  # fmt: skip


def test_the_tokens_of_a_message_are_counted(claude: anthropic.Anthropic) -> None:
    fields = {key: value for key, value in ask(system="be brief").items() if key in ("model", "messages", "system")}  # fmt: skip
    count = claude.messages.count_tokens(**fields).input_tokens
    bare = claude.messages.create(**sdk(system="be brief"), extra_headers={"x-reflect-lessons": "off"})  # fmt: skip
    assert count == bare.usage.input_tokens
    assert claude.messages.count_tokens(**fields, tools=[ADD]).input_tokens > count


def test_the_models_are_listed_as_anthropic_does(claude: anthropic.Anthropic) -> None:
    (model,) = claude.models.list()
    assert (model.id, model.display_name, model.type) == ("pocket", "pocket", "model")
    assert model.created_at.year >= 2026 and claude.models.retrieve("pocket") == model


USER = {"role": "user", "content": "x"}
WRONG = [  # (change of the body, what the message names)
    ({"max_tokens": "60"}, "max_tokens"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"model": 3}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]}, USER]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": "{}"}]}, USER]}, "messages[0].content[0].input"),
    ({"messages": [USER, {"role": "assistant", "content": "The"}]}, "messages"),
    ({"system": 3}, "system"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"stream": "true"}, "stream"),
    ({"temperature": 1.5}, "temperature"),
    ({"top_k": 5}, "top_k"),
    ({"tools": {}}, "tools"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
    ({"tools": [3]}, "tools[0]"),
    ({"tools": [ADD], "tool_choice": "auto"}, "tool_choice"),
    ({"tools": [ADD], "tool_choice": {"type": "tool"}}, "tool_choice"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"reflect": {"lessons": "no"}}, "reflect.lessons"),
]  # fmt: skip


def is_anthropic_error(reply: httpx2.Response, kind: str) -> str:
    body = reply.json()
    assert body.keys() == {"type", "error"} and body["type"] == "error", body
    assert body["error"].keys() == {"type", "message"} and body["error"]["type"] == kind
    return str(body["error"]["message"])


@pytest.mark.parametrize(("change", "where"), WRONG, ids=str)
def test_a_wrong_message_is_an_error_in_the_form_of_anthropic(
    base: str, change: dict[str, Any], where: str
) -> None:
    body = {key: value for key, value in (ask() | change).items() if value is not None}
    reply = post(base, "messages", body)
    assert reply.status_code == 400
    assert f"'{where}'" in is_anthropic_error(reply, "invalid_request_error")


def test_other_errors_in_the_form_of_anthropic(base: str, claude: anthropic.Anthropic) -> None:
    reply = httpx2.post(f"{base}/messages", content=b"{")
    assert "could not parse" in is_anthropic_error(reply, "invalid_request_error")
    assert is_anthropic_error(httpx2.get(f"{base}/messages"), "invalid_request_error")
    assert is_anthropic_error(post(base, "messages/batches", {}), "not_found_error")
    with pytest.raises(anthropic.NotFoundError, match="'other' does not exist"):
        claude.messages.create(**sdk(model="other"))
    with pytest.raises(anthropic.BadRequestError, match="tokens"):
        claude.messages.create(**sdk("word " * 9000))
    large = httpx2.post(f"{base}/messages", content=b" " * (9 * 2**20))
    assert large.status_code == 413 and is_anthropic_error(large, "request_too_large")


def test_the_key_may_come_as_anthropic_sends_it(tiny: LocalModel, tmp_path: Path) -> None:
    with serving(tmp_path / "lessons.db", tiny, key=KEY) as base:
        reply = post(base, "messages", ask(), headers={"x-api-key": "wrong"})
        assert reply.status_code == 401 and is_anthropic_error(reply, "authentication_error")
        assert post(base, "messages", ask(), headers={"x-api-key": ""}).status_code == 401
        client = anthropic.Anthropic(base_url=base.removesuffix("/v1"), api_key=KEY)
        assert client.messages.create(**sdk(model="tiny", max_tokens=3)).usage.output_tokens
        client = anthropic.Anthropic(base_url=base.removesuffix("/v1"), auth_token=KEY, api_key=None)  # fmt: skip
        assert client.messages.create(**sdk(model="tiny", max_tokens=3)).usage.output_tokens


COUNTED = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}  # fmt: skip


def test_an_answer_may_be_json_by_a_schema(
    claude: anthropic.Anthropic, codex: openai.OpenAI
) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "schema": COUNTED}
    message = claude.messages.create(**sdk(output_config={"format": form}))
    strict = form | {"name": "count", "strict": True}
    response = codex.responses.create(**want(text={"format": strict}))
    with codex.responses.stream(**want(text={"format": strict})) as stream:
        final = stream.get_final_response()
    for text in (message.content[0].text, response.output_text, final.output_text):
        assert json.loads(text)["n"] in (1, 2, 3)
    anything = want(text={"format": {"type": "json_object"}}, max_output_tokens=4)
    assert codex.responses.create(**anything).output_text.lstrip().startswith("{")
    with pytest.raises(openai.BadRequestError) as e:
        codex.responses.create(**want(text={"format": strict}, tools=[SUM]))
    assert e.value.param == "text"


# -- messages in front of a server of the same protocol

MESSAGE = {
    "id": "msg_up1",
    "type": "message",
    "role": "assistant",
    "model": "claude-up",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "said "},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5},
}
DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


def message_events() -> list[dict[str, Any]]:
    start = MESSAGE | {"content": [], "stop_reason": None, "usage": MESSAGE["usage"] | {"output_tokens": 1}}  # fmt: skip
    rows: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for i, block in enumerate(MESSAGE["content"]):
        kind = block["type"]
        if kind == "tool_use":
            empty, delta = block | {"input": {}}, ("input_json_delta", "partial_json")
            text = json.dumps(block["input"])
        else:
            delta, text = DELTAS[kind], block[kind]
            empty = block | {kind: ""}
        rows.append({"type": "content_block_start", "index": i, "content_block": empty})
        for piece in (text[:2], text[2:]):
            rows.append({"type": "content_block_delta", "index": i, "delta": {"type": delta[0], delta[1]: piece}})  # fmt: skip
        rows.append({"type": "content_block_stop", "index": i})
    rows.append({"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 5}})  # fmt: skip
    return [*rows, {"type": "message_stop"}]


def as_events(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"event: {row['type']}\ndata: {json.dumps(row)}\n\n" for row in rows).encode()


class Upstream:
    """A server that answers with `whole` or `stream`, and keeps what it was sent."""

    def __init__(self, whole: bytes, stream: bytes) -> None:
        self.whole, self.stream, self.status = whole, stream, 200
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.app = Starlette(routes=[Route("/v1/{path:path}", self.any, methods=["GET", "POST"])])

    async def any(self, http: Request) -> Response:
        body = await http.body()
        path = http.url.path + (f"?{http.url.query}" if http.url.query else "")
        self.seen.append((path, dict(http.headers), body))
        if self.status != 200:
            return JSONResponse({"type": "error", "error": {"type": "x", "message": "no"}}, self.status)  # fmt: skip
        stream = b'"stream": true' in body or b'"stream":true' in body
        kind = "text/event-stream" if stream else "application/json"
        return Response(self.stream if stream else self.whole, media_type=kind)


@pytest.fixture
def claude_upstream() -> Iterator[tuple[Upstream, str]]:
    up = Upstream(json.dumps(MESSAGE).encode(), as_events(message_events()))
    with running(up.app) as url:
        yield up, url


def test_messages_pass_through_with_lessons(
    claude_upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = claude_upstream
    add_lesson("lessons.db")
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.191;"},
        {"type": "text", "text": "You are an agent."},
        {"type": "text", "text": "Rules", "cache_control": {"type": "ephemeral"}},
    ]
    image = {"type": "image", "source": {"type": "base64", "data": "AA=="}}
    talk = [{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}]
    body = {
        "model": "claude-x",
        "max_tokens": 9,
        "system": system,
        "messages": talk,
        "made_up": 1.50,
    }
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "b1"}
    with serving("lessons.db", settings=Settings(db="lessons.db", trials=False), upstream=url) as base:  # fmt: skip
        for stream in (False, True):
            fields = body | {"stream": stream, "reflect": {"conversation": "a"}}
            reply = httpx2.post(
                f"{base}/messages?beta=true", content=json.dumps(fields), headers=headers
            )
            assert reply.content == (up.stream if stream else up.whole)
            assert reply.headers["x-reflect-lessons"] == "1:1"
            path, sent_headers, sent = up.seen[-1]
            assert path == "/v1/messages?beta=true" and sent_headers["x-api-key"] == KEY
            assert sent_headers["anthropic-beta"] == "b1"
            got = json.loads(sent)
            *before, added = got.pop("system")
            assert before == system and added.keys() == {"type", "text"}
            assert "count twice" in added["text"] and not added["text"].startswith("\n")
            assert got == {key: value for key, value in (body | {"stream": stream}).items() if key != "system"}  # fmt: skip
            raw = json.dumps(body | {"stream": stream}).encode()
            at = raw.index(b'"ephemeral"}}') + len(b'"ephemeral"}}')
            assert sent.startswith(raw[:at]) and sent.endswith(raw[at:]), "no other byte changes"
            post(base, "feedback", {"id": "msg_up1", "reward": 1}).raise_for_status()
        post(base, "messages", body | {"reflect": {"lessons": False}})
        assert json.loads(up.seen[-1][2]) == body
        post(base, "messages/count_tokens", body)
        assert json.loads(up.seen[-1][2]) == body
        up.status = 529
        reply = post(base, "messages", body)
        assert reply.status_code == 529 and is_anthropic_error(reply, "x") == "no"
        bad = post(base, "messages", body | {"messages": "hi"})
        assert is_anthropic_error(bad, "invalid_request_error")
    for row in exchanges_of("lessons.db"):
        assert (row.name, row.model, row.finish) == ("msg_up1", "claude-up", "tool_calls")
        assert (row.prompt_tokens, row.completion_tokens, row.reward) == (7, 5, 1)
        answer = row.messages[-1]
        assert answer["content"] == "said so" and row.exposures[0]["shown"]
        assert answer["tool_calls"] == [{"id": "toolu_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]  # fmt: skip
        assert [one["content"] for one in row.asked] == ["You are an agent.\nRules", "hi\n[image]"]
    assert len(exchanges_of("lessons.db")) == 2
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, "L"),
        ({"system": None}, "L"),
        ({"system": ""}, "L"),
        ({"system": "S\u00e9"}, "S\u00e9\nL"),
        ({"system": []}, [{"type": "text", "text": "L"}]),
        ({"messages": [USER, {"role": "system", "content": "later"}, USER]}, "L"),
    ],
    ids=str,
)
def test_where_lessons_go_in_a_message(
    claude_upstream: tuple[Upstream, str], folder: Path, given: dict[str, Any], want: object
) -> None:
    up, url = claude_upstream
    add_lesson("lessons.db")
    body = {"model": "m", "messages": [USER], **given, "reflect": {}}
    with serving("lessons.db", settings=Settings(db="lessons.db", trials=False), upstream=url) as base:  # fmt: skip
        post(base, "messages", body).raise_for_status()
    sent = json.loads(up.seen[-1][2])
    block = re.compile(r"Lessons from practice.*\[end \w+\]", re.DOTALL)
    assert json.loads(block.sub("L", json.dumps(sent["system"], ensure_ascii=False))) == want
    assert sent["messages"] == body["messages"]


def test_a_session_of_claude_code_sees_the_same_lessons(
    claude_upstream: tuple[Upstream, str], folder: Path
) -> None:
    _, url = claude_upstream
    add_lesson("lessons.db")
    with Store("lessons.db").write() as s:
        for i in range(8):
            lessons.add(s, when="always", do=f"think of {i}", author="human", status="candidate", scope="traffic")  # fmt: skip
    user = '{"device_id":"d","session_id":"%s"}'
    old = "user_abc_account__session_%s"
    with serving("lessons.db", settings=Settings(db="lessons.db"), upstream=url) as base:

        def shown(form: str, session: str) -> str:
            body = ask() | {"metadata": {"user_id": form % session}}
            return post(base, "messages", body).headers["x-reflect-lessons"]

        for form in (user, old):
            drawn = [shown(form, f"5e5510{i:02}-aaaa-bbbb") for i in range(3)]
            assert drawn == [shown(form, f"5e5510{i:02}-aaaa-bbbb") for i in range(3)]
            assert len(set(drawn)) > 1, "sessions are drawn apart"
        names = [post(base, "messages", ask(), headers={"x-claude-code-session-id": "s1"}).headers["x-reflect-lessons"] for _ in range(2)]  # fmt: skip
        assert len(set(names)) == 1


def test_the_upstreams_key_goes_as_anthropic_reads_it(
    claude_upstream: tuple[Upstream, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, url = claude_upstream
    monkeypatch.setenv("REFLECT_UPSTREAM_KEY", KEY)
    with serving("lessons.db", upstream=url, key="own") as base:
        reply = post(base, "messages", ask(), headers={"x-api-key": "own"})
        assert reply.status_code == 200
        assert up.seen[-1][1]["x-api-key"] == KEY and "authorization" not in up.seen[-1][1]
        headers = {"authorization": "Bearer own"}
        httpx2.get(f"{base}/models", headers=headers | {"anthropic-version": "1"})
        assert up.seen[-1][1]["x-api-key"] == KEY
        post(base, "chat/completions", {"model": "m", "messages": [USER]}, headers=headers)
        assert up.seen[-1][1]["authorization"] == f"Bearer {KEY}"


def test_a_broken_stream_of_messages_is_not_recorded(
    claude_upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = claude_upstream
    rows = message_events()
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    with serving("lessons.db", upstream=url) as base:
        for part in (rows[:1], rows[:8], [*rows[:8], error], [rows[-1]], [{"type": "new"}]):
            up.stream = as_events(part)
            assert post(base, "messages", ask(stream=True)).content == up.stream
        assert exchanges_of("lessons.db") == []
        up.stream = as_events([{"type": "future", "index": []}, *rows[:-1]])  # ends cleanly
        assert post(base, "messages", ask(stream=True)).content == up.stream
    assert [row.finish for row in exchanges_of("lessons.db")] == ["tool_calls"]


# -- responses over the local model

SUM = {"type": "function", "name": "add", "description": "add two numbers", "parameters": {"type": "object"}}  # fmt: skip
PATCH = {"type": "custom", "name": "patch", "description": "change a file"}
PATCH_CALL = '<tool_call>{"name": "patch", "arguments": {"input": "*** Begin"}}</tool_call>'


@pytest.fixture
def codex(base: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base, api_key="none", max_retries=0)


def want(items: str | list[Any] = WORD, **fields: Any) -> dict[str, Any]:
    return {"model": "pocket", "input": items, "temperature": 0, **fields}


def test_a_response_has_lessons_is_stored_and_rewarded(
    base: str, codex: openai.OpenAI, db: Path
) -> None:
    raw = codex.responses.with_raw_response.create(**want(instructions="be brief"))
    response = raw.parse()
    assert response.output_text.startswith("answer:") and response.id.startswith("resp_")
    assert (response.status, response.error, response.object) == ("completed", None, "response")
    assert response.instructions == "be brief" and response.model == "pocket"
    assert raw.headers["x-reflect-lessons"] == "1:1"
    chat = {"model": "pocket", "temperature": 0, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": WORD}]}  # fmt: skip
    same = post(base, "chat/completions", chat).json()
    assert same["choices"][0]["message"]["content"] == response.output_text
    assert same["usage"]["total_tokens"] == response.usage.total_tokens
    reward = {"id": response.id, "reward": 0, "feedback": "wrong"}
    assert post(base, "feedback", reward).status_code == 200
    row = next(row for row in exchanges_of(db) if row.name == response.id)
    assert row.asked == chat["messages"] and row.reward == 0 and row.exposures[0]["shown"]
    assert row.messages[-1] == {"role": "assistant", "content": response.output_text}


def test_input_may_be_items(codex: openai.OpenAI) -> None:
    whole = codex.responses.create(**want(instructions="be brief"))
    part = {"type": "input_text", "text": WORD}
    for items in (
        [{"role": "developer", "content": "be brief"}, {"role": "user", "content": WORD}],
        [
            {"type": "message", "role": "system", "content": [part | {"text": "be brief"}]},
            {"type": "message", "role": "user", "content": [part]},
        ],
    ):
        same = codex.responses.create(**want(items))
        assert (same.output_text, same.usage) == (whole.output_text, whole.usage)
    again = [*items, *whole.output, {"role": "user", "content": "And now?"}]
    assert codex.responses.create(**want(again)).usage.input_tokens > whole.usage.input_tokens


def test_a_streamed_response_is_the_same_in_pieces(codex: openai.OpenAI, base: str) -> None:
    whole = codex.responses.create(**want())
    with codex.responses.stream(**want()) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(texts) > 2 and "".join(texts) == whole.output_text == final.output_text
    assert (final.usage, final.status) == (whole.usage, "completed")
    rows = events_of(post(base, "responses", want(stream=True)).content)
    assert re.fullmatch(
        "response.created response.in_progress response.output_item.added"
        " response.content_part.added( response.output_text.delta)+ response.output_text.done"
        " response.content_part.done response.output_item.done response.completed",
        " ".join(name for name, _ in rows),
    )
    assert [row["sequence_number"] for _, row in rows] == list(range(len(rows)))
    assert rows[-2][1]["item"] == rows[-1][1]["response"]["output"][0]
    post(base, "feedback", {"id": final.id, "reward": 0.5}).raise_for_status()


def test_a_response_that_is_cut_is_incomplete(codex: openai.OpenAI) -> None:
    short = codex.responses.create(**want(max_output_tokens=1))
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.output[0].status == "incomplete" and short.usage.output_tokens == 1
    events = list(codex.responses.create(**want(max_output_tokens=1), stream=True))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == short.output_text


def test_functions_are_called_and_their_outputs_are_read(
    codex: openai.OpenAI, pocket_model: LocalModel, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[str] = []
    render = pocket_model.chat.render
    monkeypatch.setattr(pocket_model.chat, "render", lambda *words: seen.append(render(*words)) or seen[-1])  # fmt: skip
    tools = [SUM, PATCH, {"type": "web_search"}]
    with monkeypatch.context() as patch:
        patch.setattr(pocket_model.chat, "decode", lambda _: f"I add. {CALL} {PATCH_CALL}")
        response = codex.responses.create(**want(tools=tools))
        with codex.responses.stream(**want(tools=tools, tool_choice="required")) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
    assert kinds.count("response.output_item.done") == 3
    assert "response.function_call_arguments.done" in kinds
    assert "response.custom_tool_call_input.done" in kinds
    for one in (response, final):
        text, call, custom = one.output
        assert text.content[0].text == "I add." and one.status == "completed"
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 1, "b": "é"})  # fmt: skip
        assert (custom.type, custom.name, custom.input) == ("custom_tool_call", "patch", "*** Begin")  # fmt: skip
        assert len({text.id, call.id, custom.id}) == 3 and call.call_id != custom.call_id
    assert all("change a file" in prompt and "web_search" not in prompt for prompt in seen)
    row = exchanges_of(db)[-1]
    assert row.finish == "tool_calls" and len(row.messages[-1]["tool_calls"]) == 2
    items = [
        {"role": "user", "content": WORD},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hidden"}]},
        *(item.model_dump(exclude_none=True) for item in response.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": "3"},
        {"type": "custom_tool_call_output", "call_id": custom.call_id, "output": [{"type": "input_text", "text": "four"}]},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    codex.responses.create(**want(items, tools=tools))
    prompt = seen[-1]
    assert prompt.index("I add.") < prompt.index('"a": 1') < prompt.index("*** Begin")
    assert prompt.index("*** Begin") < prompt.index("four") < prompt.index("And now?")
    assert "hidden" not in prompt
    asked = exchanges_of(db)[-1].asked
    assert [one["role"] for one in asked] == ["user", "assistant", "tool", "tool", "user"]
    assert len(asked[1]["tool_calls"]) == 2


WRONG_RESPONSES = [  # (change of the body, param)
    ({"input": None}, "input"),
    ({"input": 3}, "input"),
    ({"input": []}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": [], "id": "x"}]}, "input[0].type"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "b", "arguments": {}}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
    ({"instructions": 3}, "instructions"),
    ({"model": None}, "model"),
    ({"stream": 1}, "stream"),
    ({"max_output_tokens": "9"}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"tools": {}}, "tools"),
    ({"tools": [3]}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tools": [SUM], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tools": [SUM], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text"),
    ({"text": {"format": {"type": "xml"}}}, "text"),
    ({"input": "word " * 9000}, "input"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"reflect": {"taskset": 3}}, "reflect.taskset"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), WRONG_RESPONSES, ids=str)
def test_a_wrong_response_is_an_error_that_names_the_field(
    base: str, change: dict[str, Any], param: str
) -> None:
    body = {key: value for key, value in (want() | change).items() if value is not None}
    reply = post(base, "responses", body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param, error
    assert error.keys() == {"message", "type", "param", "code"}


def test_a_stored_response_is_refused_with_what_to_do(codex: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the whole conversation as 'input'") as e:
        codex.responses.create(**want(previous_response_id="resp_1"))
    assert e.value.code == "unsupported_value"
    with pytest.raises(openai.NotFoundError):
        codex.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="'other' does not exist"):
        codex.responses.create(**want() | {"model": "other"})


# -- responses in front of a server of the same protocol

OUTPUT = [
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": "said "}, {"type": "output_text", "text": "so"}]},
    {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "add", "arguments": '{"a": 1}'},
    {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_2", "name": "patch", "input": "p"},
]  # fmt: skip
RESPONSE = {
    "id": "resp_up1",
    "object": "response",
    "model": "gpt-up",
    "status": "completed",
    "error": None,
    "output": OUTPUT,
    "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
}


def response_events(output: list[Any]) -> list[dict[str, Any]]:
    start = RESPONSE | {"status": "in_progress", "output": [], "usage": None}
    rows: list[dict[str, Any]] = [{"type": "response.created", "response": start}]
    for i, item in enumerate(OUTPUT):
        rows.append({"type": "response.output_item.added", "output_index": i, "item": item})
        rows.append({"type": "response.output_text.delta", "output_index": i, "delta": "x"})
        rows.append({"type": "response.output_item.done", "output_index": i, "item": item})
    return [*rows, {"type": "response.completed", "response": RESPONSE | {"output": output}}]


@pytest.fixture
def codex_upstream() -> Iterator[tuple[Upstream, str]]:
    up = Upstream(json.dumps(RESPONSE).encode(), as_events(response_events(OUTPUT)))
    with running(up.app) as url:
        yield up, url


def test_responses_pass_through_with_lessons(
    codex_upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = codex_upstream
    add_lesson("lessons.db")
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "web_search_call", "id": "ws_1"},
    ]
    body = {"model": "gpt-x", "instructions": "be \u00e9", "input": items, "store": True, "previous_response_id": "resp_0", "made_up": 1.50}  # fmt: skip
    headers = {"authorization": f"Bearer {KEY}"}
    streams = [up.stream, as_events(response_events([]))]  # some servers do not repeat the items
    with serving("lessons.db", settings=Settings(db="lessons.db", trials=False), upstream=url) as base:  # fmt: skip
        for stream in (False, True, True):
            up.stream = streams[0] if stream and streams else up.stream
            fields = body | {"stream": stream, "reflect": {}}
            reply = httpx2.post(f"{base}/responses", content=json.dumps(fields), headers=headers)
            assert reply.content == (up.stream if stream else up.whole)
            sent = up.seen[-1][2]
            raw = json.dumps(body | {"stream": stream}).encode()
            at = raw.index(b'", "input"')
            assert sent.startswith(raw[:at]) and sent.endswith(raw[at:]), "no other byte changes"
            assert "count twice" in json.loads(sent)["instructions"]
            post(base, "feedback", {"id": "resp_up1", "reward": 1}).raise_for_status()
            streams = streams[1:] if stream else streams
        httpx2.get(f"{base}/responses/resp_up1")
        assert up.seen[-1][0] == "/v1/responses/resp_up1"
        bad = post(base, "responses", body | {"input": 3})
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "input"
    rows = exchanges_of("lessons.db")
    assert len(rows) == 3
    for row in rows:
        assert (row.name, row.model, row.finish) == ("resp_up1", "gpt-up", "tool_calls")
        assert (row.prompt_tokens, row.completion_tokens, row.reward) == (7, 5, 1)
        answer = row.messages[-1]
        assert answer["content"] == "said so" and row.exposures[0]["shown"]
        calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in answer["tool_calls"]]  # fmt: skip
        assert calls == [("call_1", "add", '{"a": 1}'), ("call_2", "patch", '{"input": "p"}')]
        assert [one["content"] for one in row.asked] == [
            "be \u00e9",
            "D",
            "hi",
            "[web_search_call]",
        ]


@pytest.mark.parametrize(
    ("given", "instructions", "items"),
    [
        ({"input": "x"}, "L", "x"),
        ({"input": [USER], "instructions": None}, "L", [USER]),
        ({"input": [USER], "instructions": ""}, "L", [USER]),
        ({"input": [{"role": "developer", "content": "D"}, USER]}, None, [{"role": "developer", "content": "D\nL"}, USER]),
        (
            {"input": [USER, {"role": "system", "content": [{"type": "input_text", "text": "D"}]}]},
            None,
            [USER, {"role": "system", "content": [{"type": "input_text", "text": "D"}, {"type": "input_text", "text": "L"}]}],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_where_lessons_go_in_a_response(
    codex_upstream: tuple[Upstream, str], folder: Path, given: dict[str, Any], instructions: object, items: object
) -> None:  # fmt: skip
    up, url = codex_upstream
    add_lesson("lessons.db")
    with serving("lessons.db", settings=Settings(db="lessons.db", trials=False), upstream=url) as base:  # fmt: skip
        post(base, "responses", {"model": "m", **given, "reflect": {}}).raise_for_status()
    sent = json.dumps(json.loads(up.seen[-1][2]))
    got = json.loads(re.sub(r"Lessons from practice.*?\[end \w+\]", "L", sent))
    assert got == {"model": "m", "input": items} | ({"instructions": instructions} if instructions else {})  # fmt: skip


def test_a_session_of_codex_sees_the_same_lessons(
    codex_upstream: tuple[Upstream, str], folder: Path
) -> None:
    _, url = codex_upstream
    with Store("lessons.db").write() as s:
        for i in range(8):
            lessons.add(s, when="always", do=f"think of {i}", author="human", status="candidate", scope="traffic")  # fmt: skip
    with serving("lessons.db", settings=Settings(db="lessons.db"), upstream=url) as base:
        for name in ("session_id", "session-id", "conversation_id"):
            drawn = [[post(base, "responses", want(), headers={name: f"s{i}"}).headers["x-reflect-lessons"] for _ in range(2)] for i in range(3)]  # fmt: skip
            assert all(one == two for one, two in drawn) and len({one for one, _ in drawn}) > 1


def test_a_broken_stream_of_responses_is_not_recorded(
    codex_upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = codex_upstream
    rows = response_events(OUTPUT)
    failed = {"type": "response.failed", "response": RESPONSE | {"status": "failed"}}
    broken = {"type": "error", "code": "x", "message": "no"}
    with serving("lessons.db", upstream=url) as base:
        for part in (rows[:1], rows[:-1], [*rows[:-1], failed], [broken], [{"type": []}]):
            up.stream = as_events(part)
            assert post(base, "responses", want(stream=True)).content == up.stream
        for status in ("queued", "in_progress", "failed", "cancelled"):
            up.whole = json.dumps(RESPONSE | {"status": status}).encode()
            assert post(base, "responses", want()).content == up.whole
        assert exchanges_of("lessons.db") == []
        up.whole = json.dumps(RESPONSE | {"status": "incomplete"}).encode()
        assert post(base, "responses", want()).content == up.whole
    assert [row.finish for row in exchanges_of("lessons.db")] == ["length"]
