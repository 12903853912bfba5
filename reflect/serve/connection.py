"""Connections of clients: how many there may be, and for how long they may be silent.

Not covered: the body of a request, see `client_limits`.
"""

from __future__ import annotations

import json
import resource
from contextlib import suppress
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

HEAD_SECONDS = 10.0  # for the head of a request, and to leave after a refused body
STALL_SECONDS = 60.0  # for a client that does not read what it is sent
END_SECONDS = 3.0  # for it to read the rest while the server stops
REFUSED_SECONDS = 1.0  # for a refused connection to read the refusal
MOST_REFUSED = 32  # refused connections that are still open
MOST_CONNECTIONS = 4096
FREE_CHUNKS = 4096  # chunks of a body that may be of any size
CHUNK_BYTES = 64  # of each further chunk, on average
UPSTREAM_CONNECTIONS = 256
OTHER_FILES = 96  # the database, the model, the event loop


class BoundedChunks(h11.Connection):
    """HTTP/1.1 with bodies in chunks that may not all be tiny: each chunk takes its time."""

    _chunks = _data = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event. RemoteProtocolError when a body has too many chunks."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._data += len(event.data)
            self._chunks += event.chunk_end
            if self._chunks > FREE_CHUNKS + self._data // CHUNK_BYTES:
                raise h11.RemoteProtocolError("The chunks of the body are too small")
        elif isinstance(event, h11.EndOfMessage):
            self._chunks = self._data = 0
        return event


class Connection(H11Protocol):
    """One connection. Over the limit, the one that has waited longest for a request is closed; if
    all have requests, the new one is refused with 503."""

    limit = MOST_CONNECTIONS
    idle: dict[Connection, None]  # without a complete request, oldest first
    refused: set[Connection]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        self.conn = BoundedChunks(h11.SERVER)
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limit:
            if not self.idle:
                return self._refuse()
            next(iter(self.idle))._evict()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._head_timer = _stop(self._head_timer)
        self._stall_timer = _stop(self._stall_timer)
        self.idle.pop(self, None)
        self.refused.discard(self)
        with suppress(h11.LocalProtocolError):
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read requests. Their timer starts with their first byte and ends with their head."""
        if self in self.refused:
            return
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._head_timer = _stop(self._head_timer)
            if not self.cycle.more_body:
                self.idle.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.idle[self] = None

    def pause_writing(self) -> None:
        """Start the timer for a client that does not read."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(STALL_SECONDS, self._abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stall_timer = _stop(self._stall_timer)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if the client does not read."""
        with suppress(h11.LocalProtocolError):
            super().timeout_keep_alive_handler()
        self.loop.call_later(END_SECONDS, self._abort)

    def shutdown(self) -> None:
        """Close the connection after its running request; at once if the request is incomplete."""
        if self.cycle is not None and self.cycle.more_body:
            return self._abort()
        with suppress(h11.LocalProtocolError):
            super().shutdown()
        if self.transport.is_closing() or self.flow.write_paused:
            self.loop.call_later(END_SECONDS, self._abort_stalled)

    def _wait_for_head(self) -> None:
        self.idle.setdefault(self)
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort)

    def _refuse(self) -> None:
        if len(self.refused) >= MOST_REFUSED:
            return self._abort()
        self.refused.add(self)
        error = {"message": "The server has too many connections.", "type": "server_error"}
        body = json.dumps({"error": error | {"param": None, "code": "overloaded"}}).encode()
        head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
        head += f"retry-after: 1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self.loop.call_later(REFUSED_SECONDS, self._abort)

    def _evict(self) -> None:
        del self.idle[self]
        self.connections.discard(self)  # it no longer counts
        self._abort()

    def _abort(self) -> None:
        self.transport.abort()

    def _abort_stalled(self) -> None:
        if self.transport.is_closing() or self.flow.write_paused:
            self._abort()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None


def limited(most: int) -> type[Connection]:
    """The protocol of one server that has at most so many connections."""
    fields = {"limit": most, "idle": {}, "refused": set()}
    return type("Connection", (Connection,), fields)


def raise_file_limit() -> int:
    """Raise this process's limit of open files to what the system allows. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return most if soft == resource.RLIM_INFINITY else soft


def connections_for(files: int, backlog: int, upstream: bool) -> int:
    """How many connections leave files for everything else. The system may hand over `backlog` of
    them before one can be closed."""
    free = files - OTHER_FILES - backlog - MOST_REFUSED
    if upstream:
        free -= min(UPSTREAM_CONNECTIONS, free // 2)
    return max(8, min(MOST_CONNECTIONS, free))


def quiet_accept() -> Callable[[asyncio.AbstractEventLoop, dict[str, object]], None]:
    """An exception handler for the event loop: of the errors that no connection can be accepted,
    one is printed."""
    printed = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        nonlocal printed
        if "socket.accept()" in str(context.get("message")):
            context = {"message": f"No connection can be accepted: {context.get('exception')}."}
            if printed:
                return
            printed = True
        loop.default_exception_handler(context)

    return handle
