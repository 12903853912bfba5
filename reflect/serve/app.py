"""The routes, and who may come in.

With a key every request but /health must bear it. Without one the server listens on loopback only,
and a web page in the user's browser is kept out: by its Origin, and by the Host that it was led to.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from reflect.errors import Conflict, ReflectError, UnknownName, UsageError
from reflect.serve.lesson_session import LessonSession
from reflect.serve.local_chat import LocalChat, api_error
from reflect.serve.proxy import Proxy
from reflect.serve.schema import AdapterFolder, AdapterName, ApiError, Feedback, parse, read

MOST_BYTES = 8 * 2**20  # of one request
Handler = Callable[[Request], Awaitable[Response]]


def build(
    chat: LocalChat | Proxy, desk: LessonSession, *, key: str = "", most_bytes: int = MOST_BYTES
) -> Starlette:
    """The application. `key`: "" for none."""
    local = isinstance(chat, LocalChat)

    async def body(http: Request) -> Any:
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > most_bytes:
                raise ApiError(
                    413, f"The request has more than {most_bytes} bytes.", code="request_too_large"
                )
            parts.append(part)
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError) as e:
            raise ApiError(400, f"We could not parse the JSON body of your request: {e}.") from e

    async def completions(http: Request) -> Response:
        return await chat.answer(http, parse(await body(http), http.headers, strict=local))

    async def feedback(http: Request) -> Response:
        given = read(Feedback, await body(http))
        await asyncio.to_thread(desk.reward, given.id, given.reward, given.feedback, given.choice)
        return JSONResponse({"id": given.id, "object": "feedback", "reward": given.reward})

    async def load(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        adapter = read(AdapterFolder, await body(http))
        await chat.load(adapter.lora_name, adapter.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.lora_name}' added successfully.")

    async def unload(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        name = read(AdapterName, await body(http)).lora_name
        await chat.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def health(http: Request) -> Response:
        return Response()

    routes = [
        Route("/health", health),
        Route("/v1/models", chat.models),
        Route("/v1/models/{model:path}", chat.models),
        Route("/v1/chat/completions", completions, methods=["POST"]),
        Route("/v1/feedback", feedback, methods=["POST"]),
    ]
    if isinstance(chat, Proxy):
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        routes.append(Route("/v1/{path:path}", chat.anything, methods=methods))
    else:
        routes.append(Route("/v1/load_lora_adapter", load, methods=["POST"]))
        routes.append(Route("/v1/unload_lora_adapter", unload, methods=["POST"]))
    handlers: dict[Any, Any] = {
        ApiError: refuse,
        ReflectError: refuse,
        HTTPException: unknown,
        ClientDisconnect: gone,
    }
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(AuthMiddleware, key=key)]
    )


# -- errors
# ------------------------------------------------------------------------------------------------------------


async def refuse(http: Request, e: Exception) -> Response:
    if isinstance(e, Conflict):
        e = ApiError(409, str(e), code="conflict")
    elif isinstance(e, UsageError) and http.url.path == "/v1/feedback":
        e = ApiError(
            404 if isinstance(e, UnknownName) else 400, str(e), param="id", code="not_found"
        )
    found = api_error(e)
    return JSONResponse(found.body, found.status, found.headers)


async def unknown(http: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    told = {404: "Unknown request URL", 405: "Not allowed to"}.get(e.status_code, e.detail)
    words = f"{told}: {http.method} {http.url.path}."
    found = ApiError(e.status_code, words, code="unknown_url" if e.status_code == 404 else None)
    return JSONResponse(found.body, e.status_code, e.headers)


async def gone(http: Request, e: Exception) -> Response:
    return Response(status_code=499)


# -- the door
# ----------------------------------------------------------------------------------------------------------


class AuthMiddleware:
    """Who may come in, before anything is read."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"] != "/health"
            and (e := self.closed(Request(scope)))
        ):
            return await JSONResponse(e.body, e.status, e.headers)(scope, receive, send)
        await self.app(scope, receive, send)

    def closed(self, http: Request) -> ApiError | None:
        """Why this request may not come in."""
        if self.key:
            kind, _, given = http.headers.get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key):
                return None
            told = "Incorrect API key provided." if given else "You didn't provide an API key."
            told += " Give it as 'Authorization: Bearer KEY'."
            return ApiError(
                401, told, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
            )
        origin = urlsplit(http.headers.get("origin", "")).hostname
        host = urlsplit(f"//{http.headers.get('host', '')}").hostname
        if ("origin" in http.headers and not loopback(origin)) or not loopback(host):
            told = "Without a key this server answers programs of its own machine only: start it with --key."
            return ApiError(403, told, code="forbidden", kind="permission_error")
        return None


def loopback(host: str | None) -> bool:
    """Is it this machine's own address or name?"""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return host is not None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
