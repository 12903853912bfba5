"""Start, announce and stop the server.

SIGTERM and SIGINT: nothing new is accepted, what runs is finished (for PATIENCE seconds at most),
then the process ends as every command of reflect does.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from reflect.errors import ServeError, UsageError
from reflect.workspace.workspace import Workspace

PATIENCE = 30  # seconds for what runs
BACKLOG = 512
MODULES = ("starlette", "uvicorn", "httpx2")


@dataclass(frozen=True)
class ServeOptions:
    """What `reflect serve` was told. `upstream`: a URL with /v1, or "" for the model of this
    process."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    key: str = ""
    upstream: str = ""
    taskset: str = "traffic"
    trusted: bool = False
    queue: int = 256


def serve(ws: Workspace, words: ServeOptions, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes. `ready` is told the base URL. ServeError, UsageError before
    anything is loaded."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        told = f"reflect serve needs {', '.join(missing)}."
        raise UsageError(told, "Install what it needs: pip install 'second-nature[serve]'")
    from reflect.serve.app import loopback

    if not words.key and not loopback(words.host):
        told = f"On {words.host} others can reach this server, so it needs a key."
        raise UsageError(
            told, "Set REFLECT_SERVE_KEY, or say --key KEY; or stay on --host 127.0.0.1."
        )
    if words.upstream and not words.upstream.startswith(("http://", "https://")):
        raise UsageError(f"{words.upstream} is no URL.", "Write --upstream https://HOST/v1.")
    listener = listen(words.host, words.port)
    with ExitStack() as stack:
        stack.callback(listener.close)
        app, close = assemble(ws, words)
        stack.callback(close)
        asyncio.run(server(app, lambda: ready(url(listener, words.host))).serve(sockets=[listener]))


def assemble(ws: Workspace, words: ServeOptions) -> tuple[Any, Callable[[], None]]:
    """(the application, what ends it)."""
    from reflect.serve.app import build
    from reflect.serve.engine import Engine
    from reflect.serve.lesson_session import LessonSession
    from reflect.serve.local_chat import LocalChat
    from reflect.serve.proxy import Proxy

    options: dict[str, Any] = {
        "taskset": words.taskset,
        "trusted": words.trusted,
        "count_tokens": ws.count_tokens,
    }
    if words.upstream:
        desk = LessonSession(ws.store, ws.settings, **options)
        key = os.environ.get("REFLECT_UPSTREAM_KEY", "")
        proxy = Proxy(words.upstream, desk, key=key, own_key=bool(words.key))
        return build(proxy, desk, key=words.key), desk.stop
    from reflect.models.local import LocalModel

    if not isinstance(ws.model, LocalModel):
        told = f"{ws.settings.model} is not a model of this machine."
        raise UsageError(told, "Serve in front of its server: reflect serve --upstream URL")
    desk = LessonSession(ws.store, ws.settings, context=ws.model.context, **options)
    engine = Engine(ws.model, words.queue)
    if not ws.settings.threads:
        engine.call(engine.model.settle)

    def close() -> None:
        engine.close()
        desk.stop()

    return build(LocalChat(engine, desk), desk, key=words.key), close


def server(app: Any, ready: Callable[[], None]) -> Any:
    """A uvicorn server that says when it listens, and logs errors only: no request, no key."""
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app,
        lifespan="off",
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=PATIENCE,
        backlog=BACKLOG,
    )
    return Announced(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. ServeError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(address)
        except OSError:
            made.close()
            raise
        return made
    except (OSError, OverflowError) as e:
        why = (
            "another program listens there"
            if getattr(e, "errno", 0) in (98, 48)
            else getattr(e, "strerror", str(e))
        )
        told = f"Port {port} of {host} cannot be used: {why}."
        raise ServeError(
            told, "Take another one: reflect serve --port 8001, or --port 0 for any."
        ) from e


def url(listener: socket.socket, host: str) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"
