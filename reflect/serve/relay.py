"""Passes the bytes of an upstream's answer on to the client as they come.

When the client leaves, the upstream's connection is closed at once. When the upstream breaks off,
so does the answer to the client, which then sees that it is not complete.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import httpx2
from starlette.requests import ClientDisconnect
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from starlette.types import Receive, Scope, Send

    from reflect.serve.upstream import Headers

Result = TypeVar("Result")


class RelayedResponse(Response):
    """An answer whose body is `parts`. At its end `reply`, where they come from, is closed."""

    def __init__(
        self, reply: httpx2.Response, headers: Headers, parts: AsyncGenerator[bytes]
    ) -> None:
        self.status_code, self.raw_headers, self.background = reply.status_code, headers, None
        self.reply, self.parts = reply, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer until its end, or until the client or the upstream leaves."""
        try:
            with suppress(ClientDisconnect, httpx2.HTTPError):
                await until_disconnect(receive, self._send(send))
        finally:
            await self.parts.aclose()
            await self.reply.aclose()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async for part in self.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_disconnect(receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The result of `work`. ClientDisconnect, and the end of the work, when the client leaves
    first. The body of the request must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
