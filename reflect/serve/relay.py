"""Passes the bytes of an upstream's answer on to the client as they come.

When the client leaves, `client_limits` cancels the request, which closes the upstream's connection.
When the upstream breaks off, so does the answer to the client, which can see that it is incomplete.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx2
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from reflect.serve.upstream import Headers

TURN = 16  # parts between two turns of other requests: one read can hold thousands of parts


class Relay(Response):
    """An answer whose body is `parts`. At its end `reply`, where they come from, is closed."""

    def __init__(
        self, reply: httpx2.Response, headers: Headers, parts: AsyncGenerator[bytes]
    ) -> None:
        self.status_code, self.raw_headers, self.background = reply.status_code, headers, None
        self.reply, self.parts = reply, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer until its end, or until the upstream breaks off."""
        try:
            with suppress(httpx2.HTTPError):
                await self._send(send)
        finally:
            await self.parts.aclose()
            await self.reply.aclose()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        count = 0
        async for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            if (count := count + 1) % TURN == 0:
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
