"""The proxy over raw sockets: what passes is the same byte by byte, in both directions."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from serving import RawUpstream, post, send_raw, serving

from reflect.config import Settings
from reflect.serve import proxy
from reflect.store import Store, exchanges, lessons

DONE = b"data: [DONE]\n\n"
TALK = [{"role": "user", "content": "hi"}]
BODY = json.dumps({"model": "m", "messages": TALK, "stream": True}).encode()


@dataclass
class Script:
    """The next answer of the upstream: head, then parts of the body."""

    head: bytes = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    parts: list[bytes | None] = field(default_factory=list)

    def reply(self, request: bytes) -> Iterable[bytes | None]:
        yield self.head
        yield from self.parts


@dataclass
class Rig:
    base: str
    db: Path
    upstream: RawUpstream
    script: Script

    def chat(self, body: bytes = BODY, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of a chat request; the body is not decoded."""
        return self.request("POST", "/v1/chat/completions", body, **headers)

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        where = urlsplit(self.base)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {"content-length": str(len(body)), **named}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            rows = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, rows, reply.read()
        finally:
            connection.close()

    def recorded(self, name: str) -> bool:
        """True if the answer of this id can be rewarded."""
        status, *_ = self.request(
            "POST", "/v1/feedback", json.dumps({"id": name, "reward": 1}).encode()
        )
        assert status in (200, 404)
        return status == 200


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    script = Script()
    with RawUpstream(lambda request: script.reply(request)) as upstream:
        db = tmp_path_factory.mktemp("bytes") / "lessons.db"
        with serving(db, upstream=f"{upstream.url}/v1", settings=Settings(db=str(db))) as base:
            yield Rig(base, db, upstream, script)


@pytest.fixture(autouse=True)
def reset(rig: Rig) -> None:
    rig.script.head, rig.script.parts = Script().head, []
    rig.upstream.seen.clear()
    rig.upstream.left.clear()
    rig.upstream.silent.clear()


NAMES = iter(f"c-{i}" for i in range(10**6))


def stream(*choices: object, end: bytes = DONE, **fields: object) -> tuple[str, bytes]:
    """(id, bytes) of a stream with one chunk."""
    name = next(NAMES)
    chunk = {"id": name, "model": "m", "choices": list(choices), **fields}
    return name, b"data: " + json.dumps(chunk).encode() + b"\n\n" + end


def delta(content: object, index: object = 0, finish: object = "stop") -> dict[str, object]:
    return {"index": index, "delta": content, "finish_reason": finish}


# -- the bytes of an answer


CHOICES = {
    "index null": [delta({"content": "x"}, None)],
    "parts": [delta({"content": [{"type": "text", "text": "x"}]})],
    "a string": [delta("x")],
    "arguments as an object": [
        delta({"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]})
    ],
    "calls null and 0": [
        delta({"tool_calls": [{"index": None, "id": "a", "function": {"name": "f"}}, {"index": 0}]})
    ],
    "no reason": [delta({"content": "x"}, finish=None)],
    "all null": [delta({"content": None, "tool_calls": None, "role": None}, None, None)],
}
SILENT = {
    "choices: x": ["x"],
    "choices 5": 5,
    "index null and 0": [delta({"content": "x"}, None), delta({"content": "y"})],
    "a number": [delta(7)],
    "none": [],
}


def test_unusual_streams_pass_untouched_and_are_recorded(rig: Rig) -> None:
    for label, choices in CHOICES.items():
        name, data = stream(*choices)
        rig.script.parts = [data]
        assert rig.chat()[2] == data, label
        assert rig.recorded(name), label


def test_unreadable_streams_pass_untouched(rig: Rig) -> None:
    for label, choices in SILENT.items():
        name, data = stream(*(choices if isinstance(choices, list) else []))
        data = data if isinstance(choices, list) else data.replace(b"[]", b"5")
        rig.script.parts = [data]
        assert rig.chat()[2] == data, label
        assert not rig.recorded(name), label


def test_line_ends_borders_and_ends(rig: Rig) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        for tail in (b"", DONE, b"data: [DONE]", b": bye\n\n"):
            name, data = stream(delta({"content": "x"}), end=tail)
            data = b"\xef\xbb\xbf: hi\n\nevent: a\nid\n" + data
            data = data.replace(b"\n", end)
            rig.script.parts = [data[:9], data[9:40], data[40:41], data[41:]]
            assert rig.chat()[2] == data
            assert rig.recorded(name), (end, tail)
    name, data = stream(delta({"content": "x"}, finish=None), end=b"")
    rig.script.parts = [data]
    assert rig.chat()[2] == data and not rig.recorded(name), "no reason and no [DONE]: cut off"


def test_random_bytes_pass_untouched(rig: Rig) -> None:
    draw = random.Random(23)
    name, good = stream(delta({"content": "x"}))
    for i in range(40):
        data = bytearray(good * draw.randrange(1, 4))
        for _ in range(draw.randrange(12)):
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(4)] = draw.choice(
                [
                    b"\r",
                    b"\n",
                    b"\x00",
                    b"\xff",
                    b"data:",
                    b"null",
                    b"[" * 2000,
                    b'"',
                    b"{}",
                    b"\n\n",
                ]
            )
        sent = bytes(data)
        cuts = sorted(draw.randrange(len(sent)) for _ in range(draw.randrange(4)))
        rig.script.parts = [
            sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True) if a < b
        ]
        assert rig.chat()[2] == sent, i
    rig.script.parts = [good]
    assert rig.chat()[2] == good and rig.recorded(name)


def packed(encoding: str, data: bytes) -> bytes:
    if encoding == "gzip":
        return gzip.compress(data)
    # Nothing here can unpack br and zstd: any bytes do.
    return zlib.compress(data) if encoding == "deflate" else encoding.encode() + b"\x00\xff" + data


def test_an_encoding_passes_with_its_header(rig: Rig) -> None:
    for encoding in ("gzip", "deflate", "br", "zstd", "x-own", "gzip, br"):
        for status in (200, 400, 404, 500):
            for path in ("/v1/chat/completions", "/v1/embeddings"):
                name, data = stream(delta({"content": "x"}))
                data = packed(encoding, data)
                rig.script.head = (
                    f"HTTP/1.1 {status} X\r\ncontent-encoding: {encoding}\r\n\r\n".encode()
                )
                rig.script.parts = [data]
                offer = "gzip, deflate, br, zstd"
                got, headers, content = rig.request("POST", path, BODY, Accept_Encoding=offer)
                assert (got, headers["content-encoding"], content) == (status, encoding, data)
                asked = rig.upstream.seen[-1].lower()
                chat = path.endswith("completions")
                assert (b"accept-encoding: identity\r\n" in asked) == chat
                assert (b"accept-encoding: gzip, deflate, br, zstd" in asked) != chat
                readable = chat and status == 200 and encoding in ("gzip", "deflate")
                assert rig.recorded(name) == readable


def test_a_whole_answer_passes_untouched_with_its_length(rig: Rig) -> None:
    name = next(NAMES)
    message = {
        "content": [{"type": "text", "text": "x"}],
        "tool_calls": [{"function": {"arguments": {}}}],
    }
    answer = {"id": name, "choices": [{"index": None, "message": message}]}
    data = b"\n" + json.dumps(answer, indent=3).encode() + b" "
    head = b"HTTP/1.1 200 OK\r\nx-a: 1\r\nx-a: 2\r\ncontent-type: application/json\r\n"
    for length in (f"content-length: {len(data)}\r\n", ""):
        rig.script.head = head + length.encode() + b"\r\n"
        rig.script.parts = [data]
        status, headers, content = rig.chat()
        assert (status, content, headers["content-type"]) == (200, data, "application/json")
        assert headers.get("content-length") == (str(len(data)) if length else None)
        assert rig.recorded(name)
    for status in (204, 304):
        rig.script.head, rig.script.parts = f"HTTP/1.1 {status} X\r\n\r\n".encode(), []
        assert rig.request("GET", "/v1/x")[0] == status
    rig.script.head = b"HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n"
    assert rig.request("HEAD", "/v1/x")[1]["content-length"] == "77"


def test_a_connection_that_the_upstream_has_just_closed_is_tried_once_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = stream(delta({"content": "x"}))
    replies: list[list[bytes]] = [[], [Script().head, data]]
    monkeypatch.setattr(rig.script, "reply", lambda request: replies.pop(0))
    status, _, content = rig.chat()
    assert (status, content) == (200, data) and rig.recorded(name)
    assert len(rig.upstream.seen) == 2 and rig.upstream.seen[0] == rig.upstream.seen[1]

    def late(request: bytes) -> Iterator[bytes]:
        time.sleep(1.2)
        yield b""

    rig.upstream.seen.clear()
    monkeypatch.setattr(rig.script, "reply", late)
    assert rig.chat()[0] == 502
    assert len(rig.upstream.seen) == 1, "it may have been answered: it is not sent again"


def test_an_answer_that_breaks_off_is_seen_to_break_off(rig: Rig) -> None:
    name, data = stream(delta({"content": "x"}))
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    rig.script.head, rig.script.parts = chunked, [b"%x\r\n" % len(data) + data + b"\r\n5\r\nab"]
    with pytest.raises(http.client.IncompleteRead):
        rig.chat()
    rig.script.head = b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n"
    rig.script.parts = [data[:20]]
    status, _, content = rig.chat()
    assert status == 502 and json.loads(content)["error"]["code"] == "upstream_unreachable"
    rig.script.head = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n"
    with pytest.raises(http.client.IncompleteRead):
        rig.chat()
    for head in (
        b"",
        b"HTTP/1.1 999 X\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
    ):
        rig.script.head = head
        assert rig.chat()[0] == 502
    rig.script.head, rig.script.parts = Script().head, [data]
    assert rig.chat()[2] == data and rig.recorded(name)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
def test_a_client_that_leaves_ends_the_upstreams_work(rig: Rig, path: str) -> None:
    """It leaves before the head, before the body, in a stream, in a short answer."""
    short = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"
    for head, parts in ((b"", []), (Script().head, []), (Script().head, [b"a"]), (short, [b"a"])):
        rig.upstream.left.clear()
        rig.upstream.silent.clear()
        rig.script.head, rig.script.parts = head, [*parts, None]
        where = urlsplit(rig.base)
        with socket.create_connection((where.hostname, where.port)) as one:
            lines = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n"
            )
            one.sendall(lines.encode() + BODY)
            assert rig.upstream.silent.wait(10)
        start = time.monotonic()
        assert rig.upstream.left.wait(5), (head, parts)
        assert time.monotonic() - start < 1


def test_a_locked_database_delays_no_answer_for_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "STORE_SECONDS", 0.2)
    name, data = stream(delta({"content": "x"}))
    rig.script.parts = [data]
    other = sqlite3.connect(rig.db, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    assert rig.chat()[2] == data and time.monotonic() - start < 3
    other.execute("COMMIT")
    other.close()
    while not rig.recorded(name):  # it is stored as soon as the database is free
        assert time.monotonic() - start < 20
        time.sleep(0.05)


def test_a_broken_database_stops_no_answer(tmp_path: Path) -> None:
    _, data = stream(delta({"content": "x"}))
    with RawUpstream(lambda _: [Script().head, data]) as upstream:
        db = tmp_path / "lessons.db"
        with serving(db, upstream=f"{upstream.url}/v1", settings=Settings(db=str(db))) as base:
            one = Rig(base, db, upstream, Script())
            with sqlite3.connect(db) as other:
                other.execute("DROP TABLE exchange")
            assert one.chat()[2] == data
            with sqlite3.connect(db) as other:
                other.execute("ALTER TABLE lesson RENAME TO lost")
            body = b'{"reflect":{}, ' + BODY[1:]
            assert one.chat(body)[2] == data
            assert upstream.seen[-1].endswith(b"\r\n\r\n" + BODY), "without lessons, unchanged"


# -- the bytes of a request


def test_a_request_passes_byte_by_byte(rig: Rig) -> None:
    body = b"""
{ "messages": [ {"role":"system","content":"S1"}, {"role":"user","content":[{"type":"text","text":"h\\u00e9",
  "cache_control":{"type":"ephemeral"}}],"name":"n"}, {"role":"developer","content":"S2"},
  {"content":"S3","role":"system"}], "model":"m", "temperature": 1.0, "seed": 12345678901234567890123, "x": 1E2,
  "m": -0.0 , "unknown" : {"b":1,"a":[ ]} }"""
    for sent in (body, body.rstrip().removesuffix(b"}") + b', "reflect" : {"lessons": false}}'):
        rig.chat(sent, Content_Type="application/json", X_Custom="a")
        head, _, got = rig.upstream.seen[-1].partition(b"\r\n\r\n")
        assert got.rstrip(b" }") == body.rstrip(b" }") and json.loads(got) == json.loads(body)
        assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"x-custom: a" in head.lower()


def test_lessons_extend_the_first_system_message_only(tmp_path: Path) -> None:
    db = tmp_path / "lessons.db"
    with Store(db).write() as s:
        lessons.add(s, when="always", do="count twice", author="human", status="active",
                    pinned=True, scope="traffic")  # fmt: skip
    talk = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "S1", "cache_control": {"type": "ephemeral"}}],
        },
        {"role": "user", "content": "q", "name": "n"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "x": 1}]},
        {"role": "system", "content": "S2"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
    ]
    answer = (
        b'{"id":"a-1","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}'
    )
    with RawUpstream(lambda _: [b"HTTP/1.1 200 OK\r\n\r\n", answer]) as upstream:
        settings = Settings(db=str(db), trials=False)
        with serving(db, upstream=f"{upstream.url}/v1", settings=settings) as base:
            for start in (0, 1):
                body = {"model": "m", "messages": talk[start:], "n": 1}
                reply = post(base, "chat/completions", body)
                assert reply.content == answer and reply.headers["x-reflect-lessons"] == "1:1"
                got = json.loads(upstream.seen[-1].partition(b"\r\n\r\n")[2])
                new, at = got.pop("messages"), 0 if start == 0 else 2
                assert got == {"model": "m", "n": 1}
                assert new[:at] + new[at + 1 :] == talk[start:][:at] + talk[start:][at + 1 :]
                extended = new[at]["content"]
                if start == 0:
                    assert new[0]["role"] == "developer" and extended[:-1] == talk[0]["content"]
                    extended = "S1\n" + extended[-1]["text"]
                assert extended.startswith("S1\nLessons" if start == 0 else "S2\nLessons")
                assert "count twice" in extended
            assert post(base, "feedback", {"id": "a-1", "reward": 1}).status_code == 200
    with Store(db).read() as s:
        (row,) = exchanges.waiting(s, "default")
        assert [m["role"] for m in row.messages] == [
            "user",
            "assistant",
            "system",
            "user",
            "assistant",
        ]
        assert row.messages[2]["content"] == extended, "the record is what was sent"


# -- paths, headers, keys


def targets(rig: Rig) -> list[bytes]:
    return [request.split(b" ", 2)[1] for request in rig.upstream.seen]


def test_a_path_stays_below_the_base(rig: Rig) -> None:
    rig.script.head = b"HTTP/1.1 200 OK\r\n\r\n"
    outside = """/v1/../admin /v1/..%2f..%2fadmin /v1/%2e%2e/admin /v1/%252e%252e/admin /v1/..%5cadmin /v1/..\\admin
        /v1/..;/admin /v1/..%3b/admin /v1/%c0%ae%c0%ae/admin /v1/a%2f..%2f..%2fadmin /v1/models/../../admin
        /v1/models/%2e%2e%2f%2e%2e%2fadmin /v1//evil.example /v1/a#b /%76%31/admin /v1%2fadmin /v1/%00
        /v1/chat/../admin /v1/chat%2f..%2fcompletions /v1/.. /v1/%2e /v1/%zz /v1/a?b#c"""
    for path in outside.split():
        for method in ("GET", "POST"):
            lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            reply = send_raw(rig.base, f"{lines}Content-Length: 0\r\n\r\n".encode("latin-1"))
            assert reply.split()[1] in (b"400", b"404"), path
    for path in (
        "http://evil.example/v1/x",
        "//evil.example/v1/x",
        "evil.example:80",
        "*",
        "/",
        "/admin",
    ):
        lines = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert send_raw(rig.base, lines.encode()).split()[1] in (b"400", b"404"), path
    assert targets(rig) == []
    inside = """/v1/models /v1/models/org%2Fname /v1/a%3Fb%23c%2fd /v1/a?b=c&d=%2e%2e/ /v1/x/%7Ea /v1/files/a%20b
        /v1/a;b=1 /v1/{x}|"y /v1/models/%2Fdata%2Fm /v1/"""
    for path in inside.split():
        send_raw(
            rig.base,
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
        )
    assert targets(rig) == inside.encode().split()


def test_headers_of_one_side_do_not_reach_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = b"""HTTP/1.1 200 OK
set-cookie: session=secret; Path=/
authorization: Bearer sk-up
connection: close, x-private
x-private: 1
keep-alive: 5
access-control-allow-origin: *
x-echo: Bearer sk-up
x-public: 2

{}""".replace(b"\n", b"\r\n")
    sent = {
        "authorization": "Bearer sesame", "x-api-key": "client", "api-key": "client", "cookie": "a=b",
        "proxy-authorization": "Basic x", "connection": "keep-alive, x-private", "x-private": "1",
        "x-forwarded-for": "1.2.3.4", "x-copy": "sesame", "x-public": "2",
    }  # fmt: skip
    for key in ("", "sk-up"):
        monkeypatch.setenv("REFLECT_UPSTREAM_KEY", key)
        with RawUpstream(lambda _: [answer]) as upstream:
            db = tmp_path / f"lessons{key}.db"
            with serving(db, upstream=f"{upstream.url}/v1", key="sesame") as base:
                rig = Rig(base, db, upstream, Script())
                for path in ("/v1/chat/completions", "/v1/models", "/v1/x"):
                    method = "GET" if path.endswith("models") else "POST"
                    status, headers, _ = rig.request(method, path, BODY, **sent)
                    assert status == 200 and headers["x-public"] == "2"
                    hidden = (
                        "set-cookie authorization x-private keep-alive access-control-allow-origin"
                    )
                    assert ("x-echo" in headers) == (not key)
                    assert not set(hidden.split()) & set(headers)
                    head = upstream.seen[-1].partition(b"\r\n\r\n")[0].lower()
                    assert b"x-public: 2" in head and head.count(b"\r\nhost: ") == 1
                    for name in (
                        "cookie",
                        "proxy-authorization",
                        "x-private",
                        "x-forwarded-for",
                        "x-copy",
                    ):
                        assert f"\r\n{name}:".encode() not in head, name
                    assert b"sesame" not in head and b"session=secret" not in head
                    assert (b"authorization: bearer sk-up" in head) == bool(key)
                    assert (
                        (b"x-api-key: client" in head)
                        == (not key)
                        == (b"\r\napi-key: client" in head)
                    )


def test_a_redirect_is_not_followed(rig: Rig) -> None:
    with RawUpstream(lambda _: [b"HTTP/1.1 200 OK\r\n\r\n"]) as other:
        for status in (301, 302, 303, 307, 308):
            head = f"HTTP/1.1 {status} X\r\nlocation: {other.url}/v1/x\r\ncontent-length: 0\r\n\r\n"
            rig.script.head = head.encode()
            for method, path in (("GET", "/v1/x"), ("POST", "/v1/chat/completions")):
                got, headers, _ = rig.request(method, path, BODY)
                assert (got, headers["location"]) == (status, f"{other.url}/v1/x")
        assert other.seen == []
