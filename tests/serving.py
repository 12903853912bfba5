"""A server in a thread of the test's own process, on a free port of loopback."""

from __future__ import annotations

import asyncio
import socket as sockets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
