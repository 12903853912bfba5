"""In front of another server: lessons go in, all else passes as it is. And the command, in a
process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from serving import ask, post, running, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from reflect.cli import run_command
from reflect.config import Settings
from reflect.models.local import LocalModel
from reflect.store import Store, doctor, exchanges, lessons

SENTINEL = "sk-sentinel-0123456789abcdef"


class Upstream:
    """A server that repeats what it was asked; `status` makes it fail, and `gate` holds its
    streams."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict, bytes]] = []
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        methods = ["GET", "POST"]
        routes = [
            Route("/v1/chat/completions", self.chat, methods=methods),
            Route("/v1/{path:path}", self.any, methods=methods),
        ]
        self.app = Starlette(routes=routes)

    async def chat(self, http: Request) -> Response:
        body = await http.body()
        self.seen.append((http.url.path, dict(http.headers), body))
        if self.status != 200:
            return JSONResponse({"detail": "as it is"}, self.status, {"retry-after": "7"})
        request = json.loads(body)
        fields = {"id": "chatcmpl-7", "model": "up-1"}
        if not request.get("stream"):
            message = {"role": "assistant", "content": "said", "tool_calls": None}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return JSONResponse(
                fields | {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
            )

        async def events() -> Iterator[bytes]:
            import asyncio

            for i, part in enumerate(("one ", "two")):
                yield (
                    b"data: "
                    + json.dumps(
                        fields | {"choices": [{"index": 0, "delta": {"content": part}}]}
                    ).encode()
                    + b"\n\n"
                )
                while i == 0 and not self.gate.is_set():
                    await asyncio.sleep(0.01)
            yield b": a comment\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def any(self, http: Request) -> Response:
        self.seen.append((http.url.path, dict(http.headers), await http.body()))
        return Response(b"pong", 418, media_type="text/x-pong")


@pytest.fixture
def upstream() -> Iterator[tuple[Upstream, str]]:
    one = Upstream()
    with running(one.app) as url:
        yield one, url


def test_lessons_go_in_and_the_rest_passes_as_it_is(
    upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = upstream
    with Store("lessons.db").write() as s:
        lessons.add(
            s,
            when="always",
            do="count twice",
            author="human",
            status="active",
            pinned=True,
            scope="traffic",
        )
    settings = Settings(db="lessons.db", trials=False)
    picture = {"type": "image_url", "image_url": {"url": "data:x"}}
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, picture]},
    ]
    body = {
        "model": "gpt-x",
        "messages": talk,
        "top_p": 0.3,
        "made_up": [1],
        "reflect": {"conversation": "a"},
    }
    with serving("lessons.db", settings=settings, upstream=url) as base:
        reply = post(
            base, "chat/completions", body, headers={"authorization": f"Bearer {SENTINEL}"}
        )
        assert (
            reply.json()["choices"][0]["message"]["content"] == "said"
            and reply.headers["x-reflect-lessons"] == "1:1"
        )
        _path, headers, sent = up.seen[-1]
        got = json.loads(sent)
        assert (
            got.keys() == body.keys() - {"reflect"}
            and got["top_p"] == 0.3
            and got["made_up"] == [1]
        )
        assert got["messages"][1] == talk[1], "what it cannot read it leaves"
        assert (
            got["messages"][0]["content"].startswith("be brief\n")
            and "count twice" in got["messages"][0]["content"]
        )
        assert headers["authorization"] == f"Bearer {SENTINEL}", (
            "the client's key is the upstream's"
        )
        post(base, "chat/completions", {**body, "reflect": {"lessons": False}})
        assert json.loads(up.seen[-1][2])["messages"] == talk
        other = httpx2.post(f"{base}/embeddings?a=1", content=b"ping")
        assert (other.status_code, other.text, other.headers["content-type"]) == (
            418,
            "pong",
            "text/x-pong; charset=utf-8",
        )
        assert post(base, "feedback", {"id": "chatcmpl-7", "reward": 1}).status_code == 200
        for bad in ({}, {"model": "m", "messages": "none"}):
            assert post(base, "chat/completions", bad).status_code == 400
    store = Store("lessons.db")
    with store.read() as s:
        (row,) = exchanges.waiting(s, "default")
        assert (row.model, row.messages[-1]["content"], row.reward) == ("up-1", "said", 1.0)
        assert row.asked[1]["content"] == "hi\n[image_url]" and row.exposures[0]["shown"]
    assert doctor.check(store) == []
    for file in folder.rglob("*"):
        assert not file.is_file() or SENTINEL.encode() not in file.read_bytes(), (
            f"a key lies in {file}"
        )


def test_a_stream_passes_through_while_it_comes(
    upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = upstream
    up.gate.clear()
    with serving("lessons.db", upstream=url) as base:
        client = openai.OpenAI(base_url=base, api_key="any", max_retries=0)
        stream = client.chat.completions.create(
            model="m", messages=ask("hi")["messages"], stream=True
        )  # type: ignore[call-overload]
        first = next(stream)
        assert first.choices[0].delta.content == "one " and not up.gate.is_set()
        up.gate.set()
        assert [chunk.choices[0].delta.content for chunk in stream] == ["two"]
        assert post(base, "feedback", {"id": first.id, "reward": 0.25}).status_code == 200
    with Store("lessons.db").read() as s:
        assert [row.messages[-1]["content"] for row in exchanges.waiting(s, "default")] == [
            "one two"
        ]


def test_upstream_errors_are_passed_on_unwrapped(
    upstream: tuple[Upstream, str], folder: Path
) -> None:
    up, url = upstream
    with serving("lessons.db", upstream=url) as base:
        for up.status in (400, 401, 404, 429, 500, 503):
            for stream in (False, True):
                up.seen.clear()
                reply = post(base, "chat/completions", ask("hi", stream=stream))
                assert (reply.status_code, reply.json()) == (up.status, {"detail": "as it is"})
                assert reply.headers["retry-after"] == "7"
                assert len(up.seen) == 1, "who retries is the client's to say"


def test_keys_of_the_two_sides(
    upstream: tuple[Upstream, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, url = upstream
    mine = {"authorization": "Bearer sesame"}
    with serving("lessons.db", upstream=url, key="sesame") as base:
        assert post(base, "chat/completions", ask("hi"), headers=mine).status_code == 200
        assert "authorization" not in up.seen[-1][1], "the key of this server is not for others"
    monkeypatch.setenv("REFLECT_UPSTREAM_KEY", SENTINEL)
    with serving("lessons.db", upstream=url, key="sesame") as base:
        post(base, "chat/completions", ask("hi"), headers=mine)
        assert up.seen[-1][1]["authorization"] == f"Bearer {SENTINEL}"


def test_an_upstream_that_is_not_there(folder: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        with serving("lessons.db", upstream=f"http://127.0.0.1:{s.getsockname()[1]}/v1") as base:
            reply = post(base, "chat/completions", ask("hi"))
            assert (
                reply.status_code == 502 and reply.json()["error"]["code"] == "upstream_unreachable"
            )


# -- the command
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "needs a key"),
        (["--upstream", "example.org"], 2, "is not a URL"),
        (["--host", "no.such.host.invalid", "--key", "k"], 1, "cannot be used"),
    ],
)
def test_what_it_refuses_to_start_with(
    words: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["serve", "--port", "0", *words]) == code
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_one_clear_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        assert run_command(["serve", "--port", str(port)]) == 1
    out, err = capsys.readouterr()
    assert (
        f"Port {port} of 127.0.0.1 cannot be used: another program listens there" in err and not out
    )
    assert len(err.strip().splitlines()) == 2


@pytest.fixture(scope="module")
def process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """The command itself: (process, base URL, its folder)."""
    folder = tmp_path_factory.mktemp("served")
    env = {name: value for name, value in os.environ.items() if not name.startswith("REFLECT_")}
    env |= {"REFLECT_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "reflect", "serve", "--port", "0"]
    with subprocess.Popen(
        command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout
        yield one, one.stdout.readline().strip(), folder
        one.kill()


def test_a_run_through_the_server_is_the_run_at_home(
    process: tuple[subprocess.Popen, str, Path], pocket: LocalModel, folder: Path
) -> None:
    """The same lessons and the same rewards, attempt by attempt, for the same seeds. The pocket
    model reflects in both, because a server does not say that its model has a wording of its own.
    """
    pytest.importorskip(
        "reflect.models.remote", reason="models behind an API are not in this build"
    )
    _, base, _ = process
    fields = ["letters", "-n", "8", "-k", "4", "--seed", "3"]
    assert run_command(["run", *fields, "--db", "home.db"]) == 0
    server = ["--model", "openai:pocket", "--base-url", base, "--reflector", "pocket"]
    assert run_command(["run", *fields, "--db", "away.db", *server]) == 0
    home, away = (_rows(name) for name in ("home.db", "away.db"))
    assert home == away and home[0]


def test_it_finishes_what_runs_and_then_ends(process: tuple[subprocess.Popen, str, Path]) -> None:
    one, base, home = process
    with Store(home / "lessons.db").read() as s:
        before = exchanges.count(s, "default")
    found: list[httpx2.Response] = []
    body = ask("How many r are in strawberry?", n=60, max_tokens=200, seed=1)
    thread = threading.Thread(target=lambda: found.append(post(base, "chat/completions", body)))
    thread.start()
    time.sleep(0.3)
    one.send_signal(signal.SIGTERM)
    thread.join()
    assert found[0].status_code == 200 and len(found[0].json()["choices"]) == 60
    assert one.wait(30) == 143
    with pytest.raises(httpx2.ConnectError):
        post(base, "chat/completions", body)
    with Store(home / "lessons.db").read() as s:
        assert exchanges.count(s, "default") == before + 60


def _rows(name: str) -> tuple[list, list]:
    from reflect.store import runs

    with Store(name).read() as s:
        rows = [
            (row.task_key, row.index, row.seed, row.reward, row.messages)
            for row in runs.rollouts(s, 1)
        ]
        return [(x.when, x.do, x.status) for x in lessons.listing(s)], sorted(
            rows, key=lambda row: row[:2]
        )
