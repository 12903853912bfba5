"""Clients that leave, stall or send too much: the server goes on, and each costs only itself."""

from __future__ import annotations

import asyncio
import concurrent.futures
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from serving import ask, post, running, serving
from sqlmodel import Session, select

from reflect.config import Settings
from reflect.errors import ReflectError, UnknownName
from reflect.models.local import LocalModel
from reflect.records import Exchange
from reflect.serve import client_limits, connection, lesson_session, server
from reflect.serve.app import build
from reflect.serve.engine import Engine
from reflect.serve.lesson_session import LessonSession
from reflect.serve.local_chat import LocalChat
from reflect.serve.schema import parse
from reflect.serve.worker import WorkerThread, resolve
from reflect.serve.writer import Writer
from reflect.store import Store, dialect, exchanges

TALK = [{"role": "user", "content": "w1"}]


class Served:
    """A model on a server of this process."""

    def __init__(self, model: LocalModel, folder: Path) -> None:
        self.db = folder / "lessons.db"
        self.store = Store(self.db)
        self.engine = Engine(model, 99)
        self.session = LessonSession(self.store, Settings(), count_tokens=model.count_tokens)
        self.app = build(LocalChat(self.engine, self.session), self.session)
        self.base = ""

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": "tiny", "messages": TALK, "max_tokens": 4, **fields}

    def ask(self, **fields: Any) -> httpx2.Response:
        return post(self.base, "chat/completions", self.body(**fields))

    def health(self) -> int:
        return httpx2.get(self.base.removesuffix("/v1") + "/health", timeout=10).status_code

    def connect(self, **fields: Any) -> socket.socket:
        """A connection on which a request is sent and nothing is read."""
        return connect(self.base, "/v1/chat/completions", json.dumps(self.body(**fields)).encode())


@pytest.fixture
def served(tiny: LocalModel, tmp_path: Path) -> Iterator[Served]:
    """A server whose model answers without an end, up to 4,000 tokens."""
    tiny.__dict__["ends"] = frozenset()
    tiny.context = 4000
    one = Served(tiny, tmp_path)
    with running(one.app) as one.base:
        yield one
    one.engine.close()
    one.session.stop()


def connect(base: str, path: str, body: bytes, head: str = "") -> socket.socket:
    where = urlsplit(base)
    one = socket.create_connection((where.hostname, where.port), timeout=20)
    length = head or f"content-length: {len(body)}"
    one.sendall(f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n".encode() + body)
    return one


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def count(store: Store) -> int:
    with store.read() as s:
        return len(s.exec(select(Exchange.id)).all())


# -- waiters and workers


def test_a_cancelled_waiter_is_skipped() -> None:
    for outcome in (1, ValueError("no")):
        waiter: concurrent.futures.Future[int] = concurrent.futures.Future()
        waiter.cancel()
        resolve(waiter, outcome)
        settled: concurrent.futures.Future[int] = concurrent.futures.Future()
        resolve(settled, 5)
        resolve(settled, outcome)
        assert waiter.cancelled() and settled.result() == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_exchange_waits_to_be_stored(
    served: Served, stream: bool
) -> None:
    with closing(sqlite3.connect(served.db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for i in range(3):
            one = served.connect(stream=stream)
            wait_until(partial(lambda steps: served.engine.steps >= steps, 4 * i + 4))
            time.sleep(0.05)
            one.close()
        time.sleep(0.05)
        other.execute("COMMIT")
    assert served.ask().status_code == 200 and served.health() == 200
    assert count(served.store) == 4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream": True},
        {"stream": True, "tools": [{"type": "function", "function": {"name": "add"}}]},
        {"tools": [{"type": "function", "function": {"name": "add"}}], "n": 3},
        {"stream": True, "n": 3},
    ],
    ids=str,
)
def test_a_client_that_has_left_is_not_computed(served: Served, fields: dict[str, Any]) -> None:
    with served.connect(max_tokens=3900, **fields):
        wait_until(lambda: served.engine.steps > 2)
    wait_until(lambda: not served.engine._jobs, 5)
    steps = served.engine.steps
    assert served.ask().status_code == 200
    assert steps < 2000 and served.engine.steps <= steps + 8


def test_clients_that_have_left_take_no_place_in_the_queue(served: Served) -> None:
    served.engine.queue = 2
    hold = threading.Event()
    served.engine.call(hold.wait)
    left = [served.connect(stream=i % 2 == 0) for i in range(2)]
    wait_until(lambda: len(served.engine._submitted) == 2)
    assert served.ask().status_code == 503
    for one in left:
        one.close()
    wait_until(lambda: all(job.cancelled for job in list(served.engine._submitted)))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answer = pool.submit(served.ask)
        wait_until(lambda: len(served.engine._submitted) == 3)
        hold.set()
        assert answer.result().status_code == 200


def test_a_model_without_a_continuous_batch_stops_for_a_client_that_has_left(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.engine.model, "continuous_batch", lambda: None)
    neighbours: list[int] = []
    threads = [
        threading.Thread(target=lambda: neighbours.append(served.ask(max_tokens=40).status_code))
        for _ in range(2)
    ]
    hold = threading.Event()
    served.engine.call(hold.wait)
    with served.connect(max_tokens=3900):
        for thread in threads:
            thread.start()
        wait_until(lambda: len(served.engine._submitted) == 3)
        hold.set()
        wait_until(lambda: not served.engine._submitted)
        time.sleep(0.05)
    start = time.monotonic()
    for thread in threads:
        thread.join()
    assert neighbours == [200, 200] and time.monotonic() - start < 5


def test_a_call_whose_waiter_is_cancelled_is_skipped(tiny: LocalModel) -> None:
    engine = Engine(tiny, 9)
    hold, ran = threading.Event(), []
    engine.call(hold.wait)
    engine.call(lambda: ran.append(1)).cancel()
    running = engine.call(lambda: (time.sleep(0.2), ran.append(2)))
    hold.set()
    time.sleep(0.1)
    running.cancel()  # while it runs
    assert engine.call(lambda: 3).result(10) == 3 and ran == [2]
    engine.close()
    with pytest.raises(ReflectError, match="has stopped"):
        engine.call(lambda: 4).result(10)
    with pytest.raises(ReflectError, match="stopping"):
        engine.submit(request_of(tiny))


def request_of(model: LocalModel) -> Any:
    from reflect.models.base import Request

    return Request(TALK, (1,), 3)


def test_an_error_of_one_request_stays_with_it(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that fails, an answer that cannot be read, an adapter that cannot be used."""
    engine = Engine(tiny, 9)

    def fail(*_: object) -> Any:
        raise RuntimeError("no")

    completion = tiny.completion
    bad = request_of(tiny)
    monkeypatch.setattr(tiny, "completion", lambda row, r: fail() if r.stop else completion(row, r))
    from dataclasses import replace

    hold = threading.Event()
    engine.call(hold.wait)
    jobs = [
        engine.submit(bad, fail),
        engine.submit(replace(bad, stop=("x",))),
        engine.submit(bad),
        engine.submit(bad, lambda *_: None),
    ]
    hold.set()
    assert [len(job.done.result(20)) for job in jobs[2:]] == [1, 1]
    for job in jobs[:2]:
        with pytest.raises(ReflectError, match="The model failed: no"):
            job.done.result(20)
    monkeypatch.setattr(tiny, "use", lambda name: fail() if name else None)
    monkeypatch.setattr(tiny, "known_adapter", lambda name: None)
    with pytest.raises(ReflectError, match="The model failed: no"):
        engine.submit(replace(bad, adapter="broken")).done.result(20)
    assert engine.submit(bad).done.result(20)
    engine.close()


@pytest.mark.parametrize("broken", ["engine", "exchanges"])
def test_a_worker_that_ends_by_an_error_ends_the_server(
    served: Served, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object) -> Any:
        raise SystemExit("worse than an error")

    monkeypatch.setattr(server, "FAILED_PATIENCE", 20)
    if broken == "engine":
        monkeypatch.setattr(served.engine, "_needed_adapters", fail)
    else:
        monkeypatch.setattr(exchanges, "save", fail)
    with served.connect() as waiting:
        reply = http.client.HTTPResponse(waiting)
        reply.begin()
        assert reply.status in (500, 503) and b"ended with SystemExit" in reply.read()
    problem = served.app.state.failure()
    assert problem.startswith(f"The thread '{broken}' ended with SystemExit: worse")
    with pytest.raises((httpx2.HTTPError, AssertionError)):  # it answers 503, then it is gone
        while True:
            assert served.health() == 503
            time.sleep(0.05)


def test_health_tells_of_a_dead_worker(tmp_path: Path) -> None:
    failed: list[BaseException] = []
    worker = WorkerThread("w", lambda: [][1], failed.append)
    worker.join(10)
    assert worker.failure == "The thread 'w' ended with IndexError: list index out of range."
    assert str(failed[0]).startswith(worker.failure)


def test_the_process_of_a_dead_worker_ends_with_one_sentence(tmp_path: Path) -> None:
    code = (
        "from reflect.serve.writer import Writer\n"
        "Writer._write = lambda self, batch: 1 / 0\n"
        "from reflect.cli import main\n"
        "main(['serve', '--port', '0', '--upstream', 'http://127.0.0.1:9/v1'])\n"
    )
    with start(tmp_path, [sys.executable, "-c", code]) as process:
        base = process.stdout.readline().strip()
        reply = post(base, "feedback", {"id": "a", "reward": 1})
        assert reply.status_code == 500 and "ZeroDivisionError" in reply.text
        assert process.wait(30) == 1
        lines = [line for line in process.stderr.read().splitlines() if "Serving" not in line]
    problem = "The thread 'exchanges' ended with ZeroDivisionError: division by zero."
    assert lines[0] == f"Error: {problem}" and len(lines) == 2


def start(folder: Path, command: list[str], **options: Any) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if not name.startswith("REFLECT_")}
    env |= {"REFLECT_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=env, cwd=folder, stdout=pipe, stderr=pipe, text=True, **options
    )


# -- the writer


def row(name: str, **fields: Any) -> Exchange:
    defaults = {"taskset": "t", "asked": TALK, "messages": TALK, "model": "m"}
    return Exchange(**{**defaults, "name": name, "model_fingerprint": "f", **fields})


def test_one_bad_row_fails_alone(store: Store) -> None:
    writer, hold = Writer(store), threading.Event()

    def wait(s: Session) -> None:
        hold.wait(10)

    def save(**fields: Any) -> Any:
        return writer.submit(lambda s: exchanges.save(s, [row(**fields)]))

    writer.submit(wait)
    time.sleep(0.05)
    good = [save(name=f"good-{i}") for i in range(5)]
    bad = [
        save(name="no model", model=None),
        save(name="no adapter", adapter_id=9),
        save(name="no JSON", asked=[{1, 2}]),
        writer.submit(lambda s: 1 / 0),
    ]
    unknown = writer.submit(lambda s: exchanges.reward(s, "never given", 1.0))
    good += [save(name=f"good-{i}") for i in range(5, 9)]
    reward = writer.submit(lambda s: exchanges.reward(s, "good-3", 0.5))
    hold.set()
    assert all(waiter.exception(20) is None for waiter in [*good, reward])
    assert all(waiter.exception(20) is not None for waiter in bad)
    with pytest.raises(UnknownName):
        unknown.result(20)
    with store.read() as s:
        rows = {one.name: one.reward for one in s.exec(select(Exchange))}
    assert sorted(rows) == [f"good-{i}" for i in range(9)] and rows["good-3"] == 0.5
    writer.stop()
    assert "stopping" in str(save(name="late").exception(1))


TEXTS = {
    "half \ud83d": "half \ufffd",
    "\udc00 low": "\ufffd low",
    "pair \ud83d\ude00": "pair \U0001f600",
    "twice \ud83d\ud83d\ude00 \udfff": "twice \ufffd\U0001f600 \ufffd",
    "plain é 中 \U0001f600": "plain é 中 \U0001f600",
    "a\x01b": "a\x01b",
}


@pytest.mark.parametrize("text", [*TEXTS, "nul \0 in it"], ids=ascii)
def test_text_that_no_database_can_hold_is_repaired(store: Store, text: str) -> None:
    right = TEXTS.get(text, text)
    message = [{"role": "assistant", "content": text, text: [text, {"x": text}]}]
    with store.write() as s:
        exchanges.save(s, [row(text, messages=message, asked=message, model=text)])
        exchanges.save(s, [row("neighbour")])
    with store.write() as s:
        exchanges.reward(s, text, 1.0, feedback=text)
    with store.read() as s:
        one = exchanges.waiting(s, "default")[0]
        assert one.messages == [
            {"role": "assistant", "content": right, right: [right, {"x": right}]}
        ]
        if "\0" in text and store.path is None:
            right = right.replace("\0", "\ufffd")
        assert (one.name, one.model, one.feedback) == (right, right, right)


def test_a_database_that_is_locked_for_long_is_one_503(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialect, "LOCK_SECONDS", 0.3)
    exchange = served.ask().json()["id"]
    feedback = {"id": exchange, "reward": 1}
    with closing(sqlite3.connect(served.db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(served.ask, stream=i % 2 == 0) for i in range(8)]
            sent = [pool.submit(post, served.base, "feedback", feedback) for _ in range(8)]
            assert served.health() == 200
            start = time.monotonic()
            for i, reply in enumerate(futures):
                if i % 2:
                    assert reply.result().json()["error"]["code"] == "database_unavailable"
                    assert reply.result().headers["retry-after"] == "1"
                else:
                    last = reply.result().text.strip().splitlines()[-1]
                    assert "database_unavailable" in last and "has been writing" in last
            assert {reply.result().status_code for reply in sent} == {503}
            assert time.monotonic() - start < 10
        other.execute("COMMIT")
    assert post(served.base, "feedback", feedback).status_code == 200
    assert served.ask().status_code == 200


# -- bounds


@pytest.mark.parametrize("way", ["length", "chunked"])
@pytest.mark.parametrize("path", ["chat/completions", "feedback", "embeddings", "models"])
@pytest.mark.parametrize("upstream", [False, True], ids=["local", "proxy"])
def test_no_route_reads_a_body_without_a_bound(
    served: Served, folder: Path, upstream: bool, path: str, way: str
) -> None:
    def send(base: str) -> None:
        chunk = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        head = "transfer-encoding: chunked" if way == "chunked" else "content-length: 999999999"
        with connect(base, f"/v1/{path}", b"", head) as one:
            reply = http.client.HTTPResponse(one)
            for _ in range(0 if way == "length" else 200):
                one.sendall(chunk)
            reply.begin()
            assert (reply.status, json.loads(reply.read())["error"]["code"]) == (
                413,
                "request_too_large",
            )

    if not upstream:
        return send(served.base)
    with serving("other.db", upstream=served.base) as base:
        send(base)


def test_bodies_of_all_clients_have_a_bound(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_limits, "MOST_BYTES_TOGETHER", 2**20)
    monkeypatch.setattr(client_limits, "PART_SECONDS", 2.0)
    most = 8 * 2**20
    with connect(served.base, "/v1/x", b"x" * 2**19, f"content-length: {most}"):
        time.sleep(0.1)
        assert served.ask().status_code == 200
    with connect(served.base, "/v1/x", b"x" * (most - 10), f"content-length: {most}"):
        time.sleep(0.2)
        reply = served.ask()
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    wait_until(lambda: served.ask().status_code == 200)


def test_a_text_that_is_far_too_long_is_refused_unread(
    pocket_model: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    inner = type(pocket_model.tokenizer).__call__
    monkeypatch.setattr(
        type(pocket_model.tokenizer),
        "__call__",
        lambda self, text, **words: (lengths.append(len(text)), inner(self, text, **words))[1],
    )
    parts = [{"type": "text", "text": "strawberry " * 1000}] * 200
    tool = {"type": "function", "function": {"name": "f", "description": "y" * 3_000_000}}
    with serving(tmp_path / "lessons.db", pocket_model) as base:
        for fields in (
            {"messages": [{"role": "user", "content": "strawberry " * 450_000}]},
            {"messages": [{"role": "user", "content": "x" * 5_000_000}], "stream": True},
            {"messages": [{"role": "user", "content": " " * 5_000_000}]},
            {"messages": [{"role": "user", "content": parts}]},
            {"messages": [{"role": "user", "content": "a"}] * 90_000},
            {"tools": [tool]},
        ):
            lengths.clear()
            reply = post(base, "chat/completions", ask("hi") | fields)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (
                400,
                "context_length_exceeded",
                "messages",
            )
            assert "1024 tokens" in error["message"] and sum(lengths) < 100_000


def test_a_long_text_is_tokenised_only_until_it_is_too_long(tiny: LocalModel) -> None:
    tiny.__dict__["_longest_token"] = 128
    tiny.context = 20_000
    sizes: list[int] = []
    inner = tiny.count_tokens
    tiny.__dict__["count_tokens"] = lambda text: (sizes.append(len(text)), inner(text))[1]
    tiny.check_length([{"role": "user", "content": "w1 " * 19_000}])
    with pytest.raises(ReflectError, match=r"24000.. characters"):
        tiny.check_length([{"role": "user", "content": "w1 " * 800_000}])
    assert sum(sizes) < 150_000
    thought = {"role": "assistant", "content": "<think>" + "w1 " * 300_000}
    tiny.check_length([thought, {"role": "user", "content": "w1"}])


def test_lessons_are_searched_for_the_end_of_a_long_conversation(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    monkeypatch.setattr(
        lesson_session,
        "select_lessons",
        lambda *words, state, **fields: searched.append(state) or [],
    )
    session = LessonSession(sqlite_store, Settings(), count_tokens=len)
    for text in ("short", "a" * 2**16 + "end"):
        session.open(parse({"model": "m", "messages": [{"role": "user", "content": text}]}, {}))
    assert searched == ["", "a" * (2**16 - 3) + "end"]
    session.stop()


def test_incomplete_requests_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(client_limits, "PART_SECONDS", 0.4)
    monkeypatch.setattr(client_limits, "BODY_SECONDS", 1.0)
    where = urlsplit(served.base)
    post_head = b"POST /v1/feedback HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n"
    complete = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    for first, drip in (
        (b"", b""),
        (b"GET /health HT", b""),
        (b"GET /health HTTP/1.1\r\nx: ", b"y"),
        (post_head, b""),
        (post_head, b"z"),
        (complete + b"GET /hea", b"l"),
        (b"POST /v1/x HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 99\r\n\r\n", b"1"),
    ):
        with socket.create_connection((where.hostname, where.port), timeout=5) as one:
            start, read = time.monotonic(), b""
            one.sendall(first)
            one.settimeout(0.1)
            while time.monotonic() - start < 4:
                try:
                    if drip:
                        one.send(drip)
                    if not (part := one.recv(9999)):
                        break
                    read += part
                except TimeoutError:
                    continue
                except OSError:
                    break
            assert time.monotonic() - start < 3, first
            if first == post_head:
                assert read.startswith(b"HTTP/1.1 408") and b"request_timeout" in read


def test_a_body_of_tiny_chunks_is_refused(served: Served) -> None:
    body = json.dumps(served.body()).encode()
    for size, padding, status in ((1, 2000, 200), (1, 9000, 400), (100, 900_000, 200)):
        content = body + b" " * padding
        parts = [content[at : at + size] for at in range(0, len(content), size)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        head = "transfer-encoding: chunked"
        path = "/v1/chat/completions"
        with connect(served.base, path, chunks + b"0\r\n\r\n", head) as one:
            reply = http.client.HTTPResponse(one)
            reply.begin()
            assert reply.status == status


def test_a_client_that_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.2)
    ended = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                part = {"type": "http.response.body", "body": b"x" * 2**16, "more_body": True}
                await send(part)
                await asyncio.sleep(0)
        finally:
            ended.set()

    with running(client_limits.ClientMiddleware(endless)) as base:
        with connect(base, "/", b""):
            assert ended.wait(10)
        with connect(base, "/", b"") as reading:
            ended.clear()
            for _ in range(20):  # a slow client that reads is not left
                reading.recv(2**20)
                time.sleep(0.02)
            assert not ended.is_set()
        assert ended.wait(10)


@pytest.mark.parametrize("limit", [1, 12])
def test_more_connections_than_allowed(tiny: LocalModel, tmp_path: Path, limit: int) -> None:
    """Idle ones are closed for new ones; if all have requests, new ones get 503."""
    one = Served(tiny, tmp_path)
    tiny.__dict__["ends"] = frozenset()
    files = connection.OTHER_FILES + connection.MOST_REFUSED + 8
    hold = threading.Event()
    ready = threading.Event()
    uvicorn = server.server(one.app, ready.set, files=files)
    uvicorn.config.http.limit = limit
    listener = server.listen("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(uvicorn.serve(sockets=[listener])))
    thread.start()
    ready.wait(10)
    one.base = server.url(listener, "127.0.0.1")
    where = urlsplit(one.base)
    address = (where.hostname, where.port)
    idle = [socket.create_connection(address, timeout=10) for _ in range(3 * limit + 20)]
    assert one.health() == 200 and one.ask().status_code == 200
    wait_until(lambda: len(uvicorn.server_state.connections) <= limit)
    one.engine.call(hold.wait)
    busy = [one.connect() for _ in range(limit)]
    wait_until(lambda: len(one.engine._submitted) == limit)
    reply = one.ask()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "overloaded")
    hold.set()
    for client in busy:
        reply = http.client.HTTPResponse(client)
        reply.begin()
        assert reply.status == 200
    for client in [*idle, *busy]:
        client.close()
    assert one.health() == 200
    uvicorn.should_exit = True
    thread.join(20)
    one.engine.close()
    one.session.stop()


def test_connections_leave_files_for_everything_else() -> None:
    for files in (256, 1024, 4096, 65536):
        for upstream in (False, True):
            backlog = min(512, files // 8)
            most = connection.connections_for(files, backlog, upstream)
            assert 8 <= most <= connection.MOST_CONNECTIONS
            both = most + (min(most, connection.UPSTREAM_CONNECTIONS) if upstream else 0)
            assert both + backlog + connection.MOST_REFUSED + 90 <= files


def test_errors_of_accept_are_printed_once() -> None:
    printed: list[dict] = []

    class Loop:
        def default_exception_handler(self, context: dict) -> None:
            printed.append(context)

    handle = connection.quiet_accept()
    for _ in range(999):
        handle(Loop(), {"message": "socket.accept() out of system resource", "exception": 24})
    handle(Loop(), {"message": "other"})
    assert len(printed) == 2 and "can be accepted: 24" in printed[0]["message"]


def test_sigterm_with_incomplete_clients_and_few_files(tmp_path: Path) -> None:
    """1,100 connections at 1,024 files, half-sent heads and bodies: it answers, and it ends."""
    import resource

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    mine, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 3000:
        pytest.skip("this process may not open enough connections itself")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(mine, 3000), hard))
    clients: list[socket.socket] = []
    command = [sys.executable, "-m", "reflect", "serve", "--port", "0"]
    command += ["--upstream", "http://127.0.0.1:9/v1"]
    with start(tmp_path, command, preexec_fn=few_files) as process:
        base = process.stdout.readline().strip()
        where = urlsplit(base)
        for i in range(1100):
            client = socket.create_connection((where.hostname, where.port), timeout=10)
            clients.append(client)
            head = b"POST /v1/feedback HTTP/1.1\r\nhost: localhost\r\n"
            client.send((b"", head, head + b"content-length: 99\r\n\r\n{")[i % 3])
        health = base.removesuffix("/v1") + "/health"
        assert httpx2.get(health, timeout=20).status_code == 200
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143 and time.monotonic() - begin < 8
        assert len(process.stderr.read()) < 2000
    for client in clients:
        client.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (mine, hard))
