"""Start, announce and stop the server.

After SIGTERM or SIGINT the server accepts nothing new, finishes the running requests within
PATIENCE seconds, and the process ends as every command of reflect does. Incomplete requests do not
delay the end. If one of its threads ends by an error, the process ends with that error.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reflect.errors import ServeError, UsageError
from reflect.local_access import check_server

if TYPE_CHECKING:
    from collections.abc import Callable

    import uvicorn
    from starlette.applications import Starlette
    from starlette.types import ASGIApp

    from reflect.workspace.workspace import Workspace

PATIENCE = 30  # seconds for running requests
FAILED_PATIENCE = 3  # seconds for running requests after a thread has ended by an error
BACKLOG = 512
MODULES = ("starlette", "uvicorn", "httpx2")


@dataclass(frozen=True)
class ServeOptions:
    """The options of `reflect serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    key: str = ""
    upstream: str = ""
    """A URL with /v1; empty: serve the model of this process."""
    taskset: str = "traffic"
    trusted: bool = False
    queue: int = 256


def serve(
    ws: Workspace,
    options: ServeOptions,
    ready: Callable[[str], None],
    pages: Callable[[], ASGIApp] | None = None,
    mcp: Callable[[], ASGIApp] | None = None,
) -> None:
    """Serve until a signal comes. Calls `ready` with the base URL. `pages` makes an application
    with its own access control for the paths below PAGES, `mcp` one without for /mcp. ServeError,
    UsageError before the model is loaded."""
    check_server("reflect serve", options.host, options.key, *MODULES)
    from reflect.serve.auth import PAGES

    if options.upstream and not options.upstream.startswith(("http://", "https://")):
        raise UsageError(f"{options.upstream} is not a URL.", "Write --upstream https://HOST/v1.")
    listener = listen(options.host, options.port)
    with ExitStack() as stack:
        stack.callback(listener.close)
        app, close = assemble(ws, options)
        stack.callback(close)
        if pages:
            app.mount(PAGES, pages())
        if mcp:
            add_mcp(app, mcp())
        base = url(listener, options.host)
        proxy = bool(options.upstream)
        asyncio.run(server(app, lambda: ready(base), proxy=proxy).serve(sockets=[listener]))
        if failure := app.state.failure():
            raise ServeError(failure, "Start the server again; if this repeats, report it.")


def add_mcp(app: Starlette, mcp: ASGIApp) -> None:
    """Add the server of `reflect.mcp` at exactly /mcp."""
    from starlette.routing import Route

    app.router.routes.append(Route("/mcp", mcp))


def assemble(ws: Workspace, options: ServeOptions) -> tuple[Starlette, Callable[[], None]]:
    """(the application, a function that stops its threads)."""
    from reflect.serve.app import build
    from reflect.serve.lesson_session import LessonSession
    from reflect.serve.proxy import Proxy

    def session(context: int | None) -> LessonSession:
        return LessonSession(
            ws.store,
            ws.settings,
            count_tokens=ws.count_tokens,
            context=context,
            taskset=options.taskset,
            trusted=options.trusted,
        )

    if options.upstream:
        upstream = session(None)
        key = os.environ.get("REFLECT_UPSTREAM_KEY", "")
        proxy = Proxy(options.upstream, upstream, key=key, own_key=options.key)
        return build(proxy, upstream, key=options.key), upstream.stop
    from reflect.models.local import LocalModel
    from reflect.serve.engine import Engine
    from reflect.serve.local_chat import LocalChat

    if not isinstance(ws.model, LocalModel):
        message = f"{ws.settings.model} is not a model of this machine."
        raise UsageError(message, "Serve in front of its server: reflect serve --upstream URL")
    local = session(ws.model.context)
    engine = Engine(ws.model, options.queue)
    if not ws.settings.threads:
        engine.call(engine.model.use_one_thread_if_small)

    def close() -> None:
        engine.close()
        local.stop()

    return build(LocalChat(engine, local), local, key=options.key), close


def server(
    app: Starlette, ready: Callable[[], None], *, proxy: bool = False, files: int = 0
) -> uvicorn.Server:
    """A uvicorn server that calls `ready` when it listens, and ends when a thread of the
    application has ended by an error. It logs errors only: no request, no key. `files`: the limit
    of open files, 0 for that of the system."""
    import uvicorn

    from reflect.serve.connection import connections_for, limited, quiet_accept, raise_file_limit

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(quiet_accept())
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            if close := getattr(getattr(app, "state", None), "close", None):
                await close()

        async def on_tick(self, counter: int) -> bool:
            failure = getattr(getattr(app, "state", None), "failure", None)
            if failure is not None and failure():
                self.config.timeout_graceful_shutdown = FAILED_PATIENCE
                return True
            return await super().on_tick(counter)

    files = files or raise_file_limit()
    backlog = min(BACKLOG, files // 8)
    config = uvicorn.Config(
        app,
        http=limited(connections_for(files, backlog, proxy)),
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=PATIENCE,
        backlog=backlog,
    )
    return Announced(config)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. ServeError when the port cannot be used."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = addresses[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as e:
        why = getattr(e, "strerror", str(e))
        if getattr(e, "errno", 0) == errno.EADDRINUSE:
            why = "another program listens there"
        message = f"Port {port} of {host} cannot be used: {why}."
        hint = "Use another one: reflect serve --port 8001, or --port 0 for any."
        raise ServeError(message, hint) from e


def url(listener: socket.socket, host: str) -> str:
    """The base URL of a bound socket."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}/v1"
