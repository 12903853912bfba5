"""`reflect serve` as the official client and plain HTTP see it, and the batch that requests join."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
import torch
from conftest import save_tiny
from serving import ask, post, running, serving

from reflect.config import Settings
from reflect.errors import ModelError
from reflect.models import load_model
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.models.running import Running
from reflect.models.sampling import Row
from reflect.serve.app import build
from reflect.serve.desk import Desk
from reflect.serve.engine import GATHER, Busy, Engine, Job
from reflect.serve.local import LocalChat, _settled
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


# -- the batch ---------------------------------------------------------------------------------------------------------


def test_rows_that_join_and_leave_say_what_they_say_alone(tiny: LocalModel) -> None:
    asked = [
        Request([{"role": "user", "content": " ".join(["w7"] * (1 + i % 5) + [f"w{i}"])}], (i,), 4 + i % 20, i % 3 / 2)
        for i in range(24)
    ]
    want = [tiny.sample([request])[0][0] for request in asked]
    batch = tiny.running()
    assert batch is not None
    rows = [tiny.rows(request)[0] for request in asked]
    waiting, done = list(rows), 0
    while waiting or batch.rows:
        some, waiting = waiting[: 1 + done % 3], waiting[1 + done % 3 :]
        batch.join(some)
        done += len(batch.step())
    assert done == len(rows)
    assert [tiny.completion(row, request) for row, request in zip(rows, asked, strict=True)] == want


def test_what_a_running_row_has_read_is_not_read_again(tiny: LocalModel) -> None:
    lessons = " ".join(f"w{i}" for i in range(2, 40))
    asked = [
        Request([{"role": "system", "content": lessons}, {"role": "user", "content": f"w{i} " * i}], (i,), 20)
        for i in (1, 1, 5, 2)
    ]
    want = [tiny.sample([request])[0][0] for request in asked]
    batch = tiny.running()
    rows = [tiny.rows(request)[0] for request in asked]
    read: list[int] = []
    inner = tiny.network.forward
    tiny.network.forward = lambda **words: (read.append(words["input_ids"].numel()), inner(**words))[1]
    for row in rows:
        batch.join([row])
        batch.step()
    while batch.rows:
        batch.step()
    tiny.network.forward = inner
    assert [tiny.completion(row, request) for row, request in zip(rows, asked, strict=True)] == want
    assert read[0] == len(rows[0].prompt) and max(read[1:]) < 12


def test_a_row_that_is_dropped_leaves_the_others_alone(tiny: LocalModel) -> None:
    requests = [Request([{"role": "user", "content": f"w{i}"}], (i,), 12) for i in range(6)]
    want = [tiny.sample([request])[0][0].tokens for request in requests]
    batch = tiny.running()
    rows = [tiny.rows(request)[0] for request in requests]
    batch.join(rows)
    batch.step()
    for gone in (rows[0], rows[4], rows[5]):
        batch.drop(gone)
    while batch.rows:
        batch.step()
    assert [tuple(rows[i].tokens) for i in (1, 2, 3)] == [want[i] for i in (1, 2, 3)]
    batch.join([Row(rows[0].prompt, 0, 12)])
    batch.drop(batch.rows[0])
    assert batch.step() == []


def test_adapters_take_turns_and_a_broken_one_fails_alone(tiny: LocalModel) -> None:
    for name, value in (("a", 0.3), ("bad", float("nan"))):
        tiny.new_adapter(name, seed=1)
        for parameter in tiny.adapter_parameters(name):
            parameter.data.normal_(std=0.3) if value == value else parameter.data.fill_(value)
    talk = [{"role": "user", "content": "w1 w2"}]
    asked = [Request(talk, (i,), 30, adapter=name) for i in range(4) for name in (None, "a")]
    want = tiny.sample(asked)
    engine = Engine(tiny, queue=100)
    jobs = [engine.submit(request) for request in asked]
    broken = engine.submit(Request(talk, (1,), 30, adapter="bad"))
    gone = engine.submit(Request(talk, (1,), 30, adapter="never loaded"))
    assert [job.done.result(60) for job in jobs] == want
    with pytest.raises(Exception, match="not a number"):
        broken.done.result(60)
    with pytest.raises(Exception, match="No adapter 'never loaded'"):
        gone.done.result(60)
    assert engine.submit(asked[0]).done.result(60) == want[0], "the engine goes on"
    engine.close()


def test_a_model_that_no_row_can_join_answers_batch_after_batch(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny(tmp_path / "m")
    MistralForCausalLM(
        MistralConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, sliding_window=6, eos_token_id=2, pad_token_id=0)
    ).save_pretrained(folder)  # fmt: skip
    model = load_model(str(folder))
    assert model.running() is None
    engine = Engine(model, queue=100)
    asked = [Request([{"role": "user", "content": f"w{i}"}], (i, i + 1), 9) for i in range(5)]
    jobs = [engine.submit(request) for request in asked]
    assert [job.done.result(60) for job in jobs] == model.sample(asked)
    engine.close()


def test_a_full_queue_and_a_job_that_nobody_waits_for(tiny: LocalModel) -> None:
    tiny.__dict__["ends"] = frozenset()
    engine = Engine(tiny, queue=2)
    hold = threading.Event()
    engine.call(hold.wait)
    long = Request([{"role": "user", "content": "w1"}], (1,), 100)
    time.sleep(0.05)
    jobs = [engine.submit(long), engine.submit(long)]
    with pytest.raises(Busy):
        engine.submit(long)
    jobs[0].cancel()
    hold.set()
    jobs[1].done.result(60)
    assert not jobs[0].done.done() and engine.steps <= 101, "what nobody waits for is not computed"
    engine.close()


def test_newcomers_are_read_together_and_none_is_forgotten(tiny: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.__dict__["ends"] = frozenset()
    read: list[int] = []
    inner = Running.join
    monkeypatch.setattr(Running, "join", lambda batch, rows: (read.append(len(rows)), inner(batch, rows))[1])
    engine = Engine(tiny, queue=100)
    asked = [Request([{"role": "user", "content": f"w{i}"}], (i,), 6) for i in range(2 * GATHER)]
    jobs: list[Job] = []

    def tell(index: int, text: str) -> None:  # one comes at each step of the first
        if len(jobs) < len(asked):
            jobs.append(engine.submit(asked[len(jobs)]))

    engine.submit(Request([{"role": "user", "content": "w9"}], (1,), 30), tell).done.result(60)
    done = [job.done.result(60) for job in jobs]
    engine.close()
    assert [n for n in read if n] == [1, GATHER, GATHER]
    assert done == tiny.sample(asked)


def test_answers_that_outgrow_the_memory_begin_again_later(tiny: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.__dict__["ends"] = frozenset()
    asked = [Request([{"role": "user", "content": "w1 " * (i + 1)}], (i, i + 9), 70) for i in range(4)]
    want = tiny.sample(asked)
    most, held = 200, []
    monkeypatch.setattr(tiny, "cache_tokens", lambda: most)
    monkeypatch.setattr("reflect.serve.engine.ALLOW", 2)
    step = Running.step
    monkeypatch.setattr(Running, "step", lambda one: (held.append((len(one.rows), one.tokens())), step(one))[1])
    engine = Engine(tiny, queue=100)
    jobs = [engine.submit(request) for request in asked]
    assert [job.done.result(60) for job in jobs] == want
    engine.close()
    assert max(tokens for rows, tokens in held if rows > 1) <= most, "a step of many is never more than fits"
    assert max(rows for rows, _ in held) > 4, "all were let in while they were short"
    assert held[-1][0] < 4


def test_too_little_memory_halves_the_running_batch(tiny: LocalModel) -> None:
    tiny.__dict__["ends"] = frozenset()
    asked = [Request([{"role": "user", "content": f"w{i}"}], (i,), 40) for i in range(8)]
    want = tiny.sample(asked)
    inner, fits = tiny.network.forward, 3

    def forward(**words: Any) -> Any:
        if words["input_ids"].shape[0] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(**words)

    tiny.network.forward = forward
    engine = Engine(tiny, queue=100)
    told: list[str] = []
    jobs = [engine.submit(request, lambda _, text: told.append(text)) for request in asked]
    assert [job.done.result(60) for job in jobs] == want
    fits = 0
    with pytest.raises(ModelError, match="too little memory for one answer"):
        engine.submit(asked[0]).done.result(60)
    tiny.network.forward = inner
    assert engine.submit(asked[0]).done.result(60) == want[0], "the engine goes on"
    engine.close()
    assert told


def test_a_light_network_serves_on_one_thread(tiny: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr("reflect.models.local.LIGHT_BYTES", 10)
        tiny.settle()
        assert torch.get_num_threads() == 2, "a larger one keeps what it has"
        monkeypatch.undo()
        tiny.settle()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


# -- the API, by the official client -----------------------------------------------------------------------------------


def test_the_same_seeds_give_the_same_texts_as_the_local_model(client: openai.OpenAI, model: LocalModel) -> None:
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
    words = {"model": "pocket", "messages": ask(WORD)["messages"], "seed": 1, "temperature": 0}
    free = client.chat.completions.create(**words).choices[0]
    assert free.message.content.startswith("answer:") and free.finish_reason == "stop"
    for stop in (":", [":", "never"]):
        held = client.chat.completions.create(**words, stop=stop).choices[0]
        assert (held.message.content, held.finish_reason) == ("answer", "stop")
    for limit in ({"max_tokens": 1}, {"max_completion_tokens": 1}, {"max_tokens": 50, "max_completion_tokens": 1}):
        short = client.chat.completions.create(**words, **limit)
        assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI) -> None:
    words = {"model": "pocket", "messages": ask("Apply zubi to the list 3 1 2.")["messages"], "seed": 5, "n": 2}
    whole = client.chat.completions.create(**words, stop="answer")
    chunks = list(
        client.chat.completions.create(**words, stop="answer", stream=True, stream_options={"include_usage": True})
    )
    for i in range(2):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == i]
        assert "".join(c.delta.content or "" for c in mine) == whole.choices[i].message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [whole.choices[i].finish_reason]
        assert mine[0].delta.role == "assistant" and len(mine) > 3, "it comes as it is made"
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("text", "stop", "settled"),
    [("a b", (), "a b"), ("a \ufffd", (), "a "), ("one END two", ("END",), "one "), ("one EN", ("END", "x"), "one ")],
)
def test_what_is_sent_of_a_stream_never_has_to_be_taken_back(text: str, stop: tuple[str, ...], settled: str) -> None:
    assert _settled(text, stop) == settled


def test_models_are_listed_with_their_length(client: openai.OpenAI, model: LocalModel) -> None:
    listed = client.models.list().data
    assert [row.id for row in listed] == ["pocket"]
    assert client.models.retrieve("pocket").model_extra["max_model_len"] == model.context
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_tools_are_offered_to_the_model(client: openai.OpenAI) -> None:
    """The pocket model calls none: what is proven here is that a request with tools is answered, whole and streamed."""
    function = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    words = {"model": "pocket", "messages": ask(WORD)["messages"], "temperature": 0}
    plain = client.chat.completions.create(**words, tools=tools, tool_choice="none").choices[0]
    assert plain.message.content == client.chat.completions.create(**words).choices[0].message.content
    told = client.chat.completions.create(**words, tools=tools, tool_choice="auto").choices[0]
    assert told.finish_reason in ("stop", "tool_calls", "length")
    chunks = client.chat.completions.create(**words, tools=tools, stream=True)
    assert [c.choices[0].finish_reason for c in chunks][-1] == told.finish_reason


# -- errors, as the API words them -------------------------------------------------------------------------------------

BAD = [
    ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"messages": []}, 400, "messages", None),
    ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
     "messages[0].content", "unsupported_value"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "invalid_type"),
    ({"messages": [{"role": "user", "content": "strawberry " * 2000}]}, 400, "messages", "context_length_exceeded"),
    ({"n": 0}, 400, "n", "invalid_value"),
    ({"n": "two"}, 400, "n", "invalid_type"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"temperature": 3}, 400, "temperature", "invalid_value"),
    ({"seed": 2**64}, 400, "seed", "invalid_value"),
    ({"stop": list("abcde")}, 400, "stop", "invalid_value"),
    ({"top_p": 0.5}, 400, "top_p", "unsupported_value"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),
    ({"tools": [{"type": "function"}]}, 400, "tools", None),
]  # fmt: skip


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


def test_a_web_page_is_kept_out(base: str) -> None:
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
        assert post(base, "chat/completions", ask(WORD), headers=headers).status_code == 403
    assert post(base, "chat/completions", ask(WORD), headers={"origin": "http://localhost:3000"}).status_code == 200


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
            threading.Thread(target=lambda: found.append(post(base, "chat/completions", body))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [reply for reply in found if reply.status_code == 503]
    assert refused and len(refused) < 6 and {reply.status_code for reply in found} == {200, 503}
    assert refused[0].headers["retry-after"] == "1" and refused[0].json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_being_computed(tiny: LocalModel, tmp_path: Path, stream: bool) -> None:
    tiny.__dict__["ends"] = frozenset()
    tiny.context = 4000
    body = {"model": "tiny", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 3900, "stream": stream}
    engine, desk = Engine(tiny, 9), Desk(Store(tmp_path / "lessons.db"), Settings(), count_tokens=tiny.count_tokens)
    with running(build(LocalChat(engine, desk), desk)) as base:
        where = urlsplit(base)
        connection = http.client.HTTPConnection(where.hostname, where.port)
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        while not engine.steps:
            time.sleep(0.01)
        connection.close()
        assert post(base, "chat/completions", {**body, "max_tokens": 2, "stream": False}).status_code == 200
        time.sleep(0.2)
        steps = engine.steps
        time.sleep(0.2)
        assert engine.steps == steps < 3900
    engine.close()
    desk.stop()
