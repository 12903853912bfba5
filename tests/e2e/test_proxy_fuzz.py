"""Random requests over raw sockets through the proxy, with fixed seeds: what reaches the upstream
is below its base, without the client's keys and otherwise unchanged; so is what comes back."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from serving import RawUpstream, send_raw, serving

from reflect.config import Settings
from reflect.store import Store, lessons

OWN, CLIENT, UPSTREAM = "sesame-own", "client-secret", "sk-upstream"
FIELDS = """id model choices index delta message content text type finish_reason usage tool_calls
    function name arguments error role""".split()
VALUES = [None, True, 0, 1, -1, 1.5, "x", "", 10**30, 2**63, "\ud83d", "é", [], {}, "[DONE]"]
PIECES = (
    """.. . / %2e %2f %5c \\ a %25 %252e ; %c0%ae %ef%bc%8e x %00 %3f %23 # ?q=.. %u002e""".split()
)
HEADERS = """Cookie X-Api-Key api-key Proxy-Authorization X-A X-Auth-Token x_api_key X-Copy Forwarded
    TE X-Forwarded-Host x-goog-api-key Keep-Alive Accept-Encoding""".split()
CREDENTIALS = (
    rb"\r\n(x-api-key|api-key|x_api_key|x-auth-token|x-goog-api-key|proxy-authorization|cookie):"
)
CONTENTS = ["x", "S", None, "", [], [{"type": "text", "text": "p"}], [{"type": "image_url"}]]


class Fuzzer:
    """Random parts of requests and answers."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self.draw.randrange(9 if depth < 3 else 6)
        if kind < 6:
            return self.draw.choice(VALUES)
        inner = range(self.draw.randrange(4))
        if kind < 8:
            return {self.draw.choice(FIELDS): self.value(depth + 1) for _ in inner}
        return [self.value(depth + 1) for _ in inner]

    def answer(self) -> bytes:
        chunks = []
        for _ in range(self.draw.randrange(5)):
            index = self.draw.choice([0, None, 1, "0", 0.0])
            reason = self.draw.choice([None, "stop", self.value()])
            row = {"index": index, "delta": self.value(), "finish_reason": reason}
            chunk = {"id": "a", "choices": [row]}
            chunks.append(chunk if self.draw.random() < 0.7 else self.value())
        data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
        data += self.draw.choice([b"", b"data: [DONE]\n\n"])
        return data.replace(b"\n", self.draw.choice([b"\n", b"\n", b"\r\n", b"\r"]))

    def request(self) -> dict[str, Any]:
        messages = []
        for _ in range(self.draw.randrange(1, 5)):
            role = self.draw.choice(["system", "user", "assistant", "developer", "tool", "user"])
            message = {"role": role, "content": self.draw.choice(CONTENTS), "k": self.value()}
            messages.append(message)
        body = {"model": "m", "messages": messages, "stream": True}
        body |= {name: self.value() for name in self.draw.sample(["u", "z", "temperature"], 2)}
        return body | self.draw.choice([{}, {"reflect": {}}])

    def path(self) -> str:
        if self.draw.random() < 0.6:
            return "/v1/chat/completions"
        return "/v1/" + "".join(self.draw.choices(PIECES, k=self.draw.randrange(1, 8)))

    def headers(self) -> list[str]:
        secrets = [CLIENT, OWN, "gzip, br", f"Bearer {OWN}"]
        names = self.draw.choices(HEADERS, k=self.draw.randrange(5))
        named = self.draw.choice(["x-a", "X-A , keep-alive", ", ,x-a"])
        rows = [f"{name}: {self.draw.choice(secrets)}" for name in names]
        return [f"Connection: {named}", *rows]


def dechunked(reply: bytes) -> bytes:
    head, _, rest = reply.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    parts = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(parts)


def check_request(seen: bytes, path: str, body: dict[str, Any]) -> None:
    """What reached the upstream."""
    head, _, sent = seen.partition(b"\r\n\r\n")
    target, low = head.split(b" ")[1], head.lower()
    assert target.startswith(b"/base/v1/")
    rest = target.removeprefix(b"/base/v1/").partition(b"?")[0]
    for _ in range(4):
        for part in re.split(rb"[/\\]", rest):
            assert re.split(rb"[;?#]", part)[0].strip() not in (b".", b".."), target
        rest = unquote_to_bytes(rest)
    assert OWN.encode() not in low and not re.search(CREDENTIALS, low), head
    assert b"\r\nx-a:" not in low and b"\r\nte:" not in low, head
    assert low.count(b"authorization:") == 1 and f"bearer {UPSTREAM}".encode() in low
    if path != "/v1/chat/completions":
        return
    got, want = json.loads(sent), {k: v for k, v in body.items() if k != "reflect"}
    assert b"count twice" in sent and list(got) == list(want)
    new, old = got.pop("messages"), want.pop("messages")
    assert got == want
    roles = [message["role"] in ("system", "developer") for message in old]
    at = roles.index(True) if True in roles else None
    del new[at or 0], old[len(old) if at is None else at : len(old) if at is None else at + 1]
    assert new == old


@pytest.mark.parametrize(
    ("seed", "count"), [(101, 100), pytest.param(7, 3000, marks=pytest.mark.slow)]
)
def test_random_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    monkeypatch.setenv("REFLECT_UPSTREAM_KEY", UPSTREAM)
    fuzzer, answer, db = Fuzzer(seed), b"", str(tmp_path / "lessons.db")
    with Store(db).write() as s:
        lessons.add(s, when="always", do="count twice", author="human", status="active",
                    pinned=True, scope="traffic")  # fmt: skip

    def reply(_: bytes) -> Iterable[bytes]:
        return [b"HTTP/1.1 200 OK\r\n\r\n", answer]

    with RawUpstream(reply) as upstream:
        settings = Settings(db=db, trials=False)
        url = f"{upstream.url}/base/v1"
        with serving(db, upstream=url, settings=settings, key=OWN) as base:
            for _ in range(count):
                upstream.seen.clear()
                answer, request, path = fuzzer.answer(), fuzzer.request(), fuzzer.path()
                body = json.dumps(request, indent=fuzzer.draw.choice([None, 1])).encode()
                lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
                lines += [f"Authorization: Bearer {OWN}", f"Content-Length: {len(body)}"]
                head = "\r\n".join([*lines, *fuzzer.headers(), "", ""])
                got = send_raw(base, head.encode("latin-1") + body)
                status = int(got.split()[1])
                assert status in (200, 400, 404), (path, body)
                assert len(upstream.seen) == (status == 200), path
                if status == 200:
                    check_request(upstream.seen[0], path, request)
                    assert dechunked(got) == answer
