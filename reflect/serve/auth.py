"""Who may use the server: clients with the key, or programs of this machine.

With a key every request except /health must carry it. Without one the server answers programs of
this machine only, and no web page: `reflect.local_access` tells them apart.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from starlette.requests import Request

from reflect.local_access import from_other_page, host_name, is_loopback
from reflect.serve.api_errors import reply
from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = "/ui"
"""The pages of `reflect.web` below it control access themselves."""


class AuthMiddleware:
    """Refuses a request without permission before its body is read."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        path = scope.get("path", "")
        own = path == "/health" or path == PAGES or path.startswith(f"{PAGES}/")
        protected = scope["type"] == "http" and not own
        if protected and (e := self.refusal(Request(scope))):
            return await reply(e, path)(scope, receive, send)
        await self.app(scope, receive, send)

    def refusal(self, http: Request) -> ApiError | None:
        """The error of a request without permission, None for the others."""
        host = http.headers.get("host", "")
        name = host_name(host)
        if host and name is None:
            return ApiError(400, "The header 'Host' is not a host name.", param="Host")
        if self.key:
            kind, _, key = http.headers.get("authorization", "").partition(" ")
            keys = [key] if kind.lower() == "bearer" else []
            keys += http.headers.getlist("x-api-key")  # Anthropic's header
            if any(hmac.compare_digest(one.strip().encode(), self.key) for one in keys):
                return None
            key = key or "".join(keys)
            problem = "Incorrect API key provided." if key else "You didn't provide an API key."
            message = f"{problem} Give it as 'Authorization: Bearer KEY'."
            headers = {"www-authenticate": "Bearer"}
            return ApiError(401, message, code="invalid_api_key", headers=headers)
        if not is_loopback(name):
            problem = f"The header 'Host' names another machine ({host[:80]})."
        elif from_other_page(
            http.method, http.scope["scheme"], http.headers, key=False, links=False
        ):
            problem = "This request comes from a web page."
        else:
            return None
        message = "Without a key this server answers programs of its own machine only. "
        message += f"{problem} Start the server with --key."
        return ApiError(403, message, code="forbidden", kind="permission_error")
