"""What one client can cost: the bytes and the seconds of its request body, and the work that was
begun for it, which ends when it leaves.

Every handler is called with a complete body, on every route and method. Not covered: the head of a
request and idle connections, see `connection`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from reflect.serve.api_errors import RETRY, reply
from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 8 * 2**20  # of one request body
MOST_BYTES_TOGETHER = 8 * MOST_BYTES  # of the bodies of all unanswered requests
BODY_SECONDS = 60.0  # for a whole body
CLOSE = {"connection": "close"}
PART_SECONDS = 10.0  # for the next part of a body


class ClientMiddleware:
    """Reads the body within the limits, then calls the application, and cancels it when the client
    has left."""

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BYTES) -> None:
        self.app, self.most_bytes = app, most_bytes
        self.together = 0  # bytes of the bodies of all unanswered requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        parts: list[bytes] = []
        try:
            if await self._read(scope, receive, parts):
                parts[:] = [b"".join(parts)]
                await self._call(scope, receive, send, parts[0])
        except ApiError as e:
            await reply(e, scope["path"])(scope, receive, send)
        finally:
            self.together -= sum(map(len, parts))

    async def _read(self, scope: Scope, receive: Receive, parts: list[bytes]) -> bool:
        """Read the body into `parts`. False when the client has left."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        size, more = 0, True
        if announced.isdigit() and int(announced[:20]) > self.most_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    async with asyncio.timeout(PART_SECONDS):
                        message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size > self.most_bytes:
                        raise self._too_large()
                    self.together += len(part)
                    parts.append(part)
                    if self.together > max(MOST_BYTES_TOGETHER, self.most_bytes):
                        problem = "The requests of all clients have too many bytes now. Try again."
                        wait = CLOSE | RETRY
                        kind = "server_error"
                        raise ApiError(503, problem, code="overloaded", kind=kind, headers=wait)
        except TimeoutError as e:
            problem = "The body of the request did not arrive in time."
            raise ApiError(408, problem, code="request_timeout", headers=CLOSE) from e
        return True

    def _too_large(self) -> ApiError:
        message = f"The request has more than {self.most_bytes} bytes."
        return ApiError(413, message, code="request_too_large")

    async def _call(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Call the application. It is cancelled when the client leaves."""
        task, left = asyncio.current_task(), asyncio.Event()
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.set()
            if task:
                task.cancel()

        # With this version a stream does not watch the client itself.
        scope = {**scope, "asgi": {**scope["asgi"], "spec_version": "2.4"}}
        watcher = asyncio.ensure_future(watch())
        try:
            await self.app(scope, received, send)
        except asyncio.CancelledError:
            if not left.is_set():
                raise
            if task:
                task.uncancel()
        finally:
            watcher.cancel()
