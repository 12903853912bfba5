"""The server over HTTP: each POST is answered by itself, as JSON, so that no stream delays the end
of `reflect serve` and no session is kept.

Not covered: access control, which the server around it has (key, Host, Origin).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer
    from starlette.types import Receive, Scope, Send


class HttpServer:
    """The ASGI application. It starts with its first request, in the event loop of that."""

    def __init__(self, server: MCPServer[Any]) -> None:
        security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        server.streamable_http_app(
            json_response=True, stateless_http=True, transport_security=security
        )
        self._manager = server.session_manager
        self._running: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] != "POST":
            error = {"message": "This path takes POST only.", "type": "invalid_request_error"}
            refusal = JSONResponse({"error": error}, 405, {"allow": "POST"})
            return await refusal(scope, receive, send)
        self._running = self._running or asyncio.create_task(self._run())
        await self._ready.wait()
        await self._manager.handle_request(scope, receive, send)

    async def _run(self) -> None:
        """Keep the tasks of requests until the event loop ends."""
        async with self._manager.run():
            self._ready.set()
            await asyncio.Event().wait()
