"""A server in a thread of the test's own process, on a free port of loopback."""

from __future__ import annotations

import asyncio
import socket as sockets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from reflect.config import Settings
from reflect.models.local import LocalModel
from reflect.serve import server
from reflect.serve.server import ServeOptions, assemble, listen, url
from reflect.workspace.workspace import Workspace


@contextmanager
def serving(
    db: Path | str, model: LocalModel | None = None, settings: Settings | None = None, **words: Any
) -> Iterator[str]:
    """The base URL, with /v1. `words`: as in `Words`."""
    ws = Workspace(settings or Settings(db=str(db)))
    if model is not None:
        ws.context.model = model
    app, close = assemble(ws, ServeOptions(**words))
    with running(app) as base:
        yield base
    close()
    if model is not None:
        model.use(None)


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Any application, served."""
    ready = threading.Event()
    one = server.server(app, ready.set)
    socket = listen("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(one.serve(sockets=[socket])), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield url(socket, "127.0.0.1")
    finally:
        one.should_exit = True
        thread.join(30)
        socket.close()


def post(base: str, path: str, data: Any, **words: Any) -> httpx2.Response:
    return httpx2.post(f"{base}/{path}", json=data, timeout=60, **words)


def ask(text: str, **words: Any) -> dict[str, Any]:
    """The body of a chat completion request."""
    return {"model": "pocket", "messages": [{"role": "user", "content": text}], **words}


def send_raw(base: str, data: bytes, seconds: float = 20) -> bytes:
    """What the server answers to these bytes until it closes the connection."""
    where = urlsplit(base)
    with sockets.create_connection((where.hostname, where.port), timeout=seconds) as one:
        one.sendall(data)
        parts = []
        while part := one.recv(65536):
            parts.append(part)
        return b"".join(parts)


class RawUpstream:
    """A server that answers each request with the bytes of `reply`, in the given parts, and closes
    the connection. None among the parts: it is silent until the client leaves. `seen`: the
    requests, byte by byte."""

    def __init__(self, reply: Callable[[bytes], Iterable[bytes | None]]) -> None:
        self.reply = reply
        self.seen: list[bytes] = []
        self.left = threading.Event()
        """A client has left during the silence."""
        self.silent = threading.Event()
        self.listener = sockets.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> RawUpstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def _serve(self, one: sockets.socket) -> None:
        with one:
            data = b""
            while b"\r\n\r\n" not in data:
                if not (part := one.recv(65536)):
                    return
                data += part
            head, _, body = data.partition(b"\r\n\r\n")
            sizes = [
                x.split(b":")[1]
                for x in head.lower().split(b"\r\n")
                if x[:15] == b"content-length:"
            ]
            while len(body) < int(sizes[0] if sizes else 0):
                body += one.recv(65536)
            request = head + b"\r\n\r\n" + body
            self.seen.append(request)
            with suppress(OSError):
                for part in self.reply(request):
                    if part is not None:
                        one.sendall(part)
                        continue
                    self.silent.set()
                    with suppress(OSError):
                        one.recv(1)
                    return self.left.set()
                one.shutdown(sockets.SHUT_WR)
                while one.recv(65536):
                    pass
