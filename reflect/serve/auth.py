"""Who may use the server: clients with the key, or programs of this machine.

With a key every request except /health must carry it. Without one the server answers programs of
this machine only. A web page in a browser is no such program: it is recognised by the headers that
a page cannot change. `Host` must name this machine (no other name that resolves to it), `Origin`
must be exactly that of this server, and `Sec-Fetch-Site` must not name another site; a browser
sends the last one also with a GET without Origin, such as that of an image.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse

from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PAGES = "/ui"
"""The pages of `reflect.web` below it control access themselves."""
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")


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
            return await JSONResponse(e.body, e.status, e.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def refusal(self, http: Request) -> ApiError | None:
        """The error of a request without permission, None for the others."""
        host = http.headers.get("host", "")
        if host and not HOST.fullmatch(host):
            return ApiError(400, "The header 'Host' is not a host name.", param="Host")
        if self.key:
            kind, _, key = http.headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self.key):
                return None
            problem = "Incorrect API key provided." if key else "You didn't provide an API key."
            message = f"{problem} Give it as 'Authorization: Bearer KEY'."
            headers = {"www-authenticate": "Bearer"}
            return ApiError(401, message, code="invalid_api_key", headers=headers)
        if not loopback(_name(host)):
            problem = f"The header 'Host' names another machine ({host[:80]})."
        elif _from_other_page(http):
            problem = "This request comes from a web page."
        else:
            return None
        message = "Without a key this server answers programs of its own machine only. "
        message += f"{problem} Start the server with --key."
        return ApiError(403, message, code="forbidden", kind="permission_error")


def _from_other_page(http: Request) -> bool:
    """True for a request that a browser sends for a page of another origin."""
    own = f"{http.scope['scheme']}://{http.headers.get('host', '')}".lower()
    if any(origin.lower() != own for origin in http.headers.getlist("origin")):
        return True
    sites = {site.strip() for site in ",".join(http.headers.getlist("sec-fetch-site")).split(",")}
    if sites == {""}:
        # Some programs send a mode: fetch() of Node.js sends "cors". Only browsers send the others.
        mode, dest = http.headers.get("sec-fetch-mode"), http.headers.get("sec-fetch-dest")
        return mode not in (None, "cors") or dest not in (None, "empty")
    return not sites <= {"same-origin", "none"}


def _name(host: str) -> str:
    """The host without its port and brackets."""
    match = HOST.fullmatch(host)
    return match[1].strip("[]").lower() if match else ""


def loopback(host: str) -> bool:
    """True for an address of this machine, and for the name `localhost`. Names below it
    (*.localhost) are refused: a page may have one."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
