"""Who may use the page, and what a browser may do with it.

Without a key the page answers this machine under a loopback name only. With a key a browser logs in
once and holds a cookie. Requests of other pages are refused (`reflect.local_access`). Every form
carries a token, and every answer a content security policy that allows no script but ours, no frame
and no other address.
"""

from __future__ import annotations

import hmac
import secrets
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse

from reflect.local_access import from_other_page, host_name, is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "reflect_session"
MOST_BYTES = 2**20  # of a form
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class FormRefused(Exception):
    """A form that may not be carried out: (status, sentence)."""


class Guard:
    """ASGI middleware: refuses foreign hosts and pages, asks for the key, sets the headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass the request on; see the module."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        if problem := self.access.refusal(scope["method"], scope["scheme"], headers):
            answer = PlainTextResponse(problem, 403)
            return await answer(scope, receive, guarded)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        public = path == "/login" or path.startswith("/static/")
        if not public and not self.access.logged_in(headers):
            where = RedirectResponse(f"{scope.get('root_path', '')}/login", 303)
            return await where(scope, receive, guarded)
        await self.app(scope, receive, guarded)


class Access:
    """The key, the session of those who gave it, and the token of the forms."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.token = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)

    def refusal(self, method: str, scheme: str, headers: Headers) -> str:
        """Why the request is refused; empty if it is allowed."""
        if not self.key and not is_loopback(host_name(headers.get("host", ""))):
            return "Without a key this page answers under 127.0.0.1 or localhost only.\n"
        if from_other_page(method, scheme, headers, key=bool(self.key), links=True):
            return "This page does not answer requests of other pages.\n"
        return ""

    def logged_in(self, headers: Headers) -> bool:
        """Whether no key is needed, or the cookie of a login was sent."""
        if not self.key:
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except Exception:  # http.cookies raises CookieError for what it cannot read
            return False
        return cookie is not None and _equal(cookie.value, self._session)

    def log_in(self, key: str, secure: bool) -> str | None:
        """The cookie for the right key, else None."""
        if not _equal(key, self.key):
            return None
        cookie = f"{COOKIE}={self._session}; HttpOnly; SameSite=Strict; Path=/"
        return f"{cookie}; Secure" if secure else cookie

    async def form(self, http: Request) -> dict[str, str]:
        """The fields of a form. FormRefused without the token, or if it is too large."""
        data = bytearray()
        async for part in http.stream():
            data += part
            if len(data) > MOST_BYTES:
                raise FormRefused(413, "The form is too large.")
        try:
            text = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=100)
        except ValueError as e:
            raise FormRefused(400, "The form cannot be read.") from e
        fields = {name: values[-1] for name, values in text.items()}
        if not _equal(fields.pop("token", ""), self.token):
            raise FormRefused(
                403, "The form is older than this server. Reload the page, then try again."
            )
        return fields


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
