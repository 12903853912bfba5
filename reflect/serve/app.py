"""The routes, and who may come in.

With a key every request but /health must bear it. Without one the server listens on loopback only,
and a web page in the user's browser is kept out: by its Origin, and by the Host that it was led to.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
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
from reflect.serve.schema import ApiError, parse

MOST_BYTES = 8 * 2**20  # of one request
MOST_FEEDBACK = 10_000  # characters
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
        told = read_feedback(await body(http))
        await asyncio.to_thread(desk.reward, *told)
        return JSONResponse({"id": told[0], "object": "feedback", "reward": told[1]})

    async def load(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        name, path = _texts(await body(http), "lora_name", "lora_path")
        await chat.load(name, path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        (name,) = _texts(await body(http), "lora_name")
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


def read_feedback(raw: Any) -> tuple[str, float, str, int | None]:
    """(id, reward, feedback, choice) of a body. ApiError 400."""
    (name,) = _texts(raw, "id")
    reward, text, choice = raw.get("reward"), raw.get("feedback", ""), raw.get("choice")
    if (
        isinstance(reward, bool)
        or not isinstance(reward, int | float)
        or not 0 <= reward <= 1
        or math.isnan(reward)
    ):
        raise ApiError(
            400, "'reward' must be a number between 0 and 1.", param="reward", code="invalid_value"
        )
    if not isinstance(text, str) or len(text) > MOST_FEEDBACK:
        raise ApiError(
            400,
            f"'feedback' must be a text of at most {MOST_FEEDBACK} characters.",
            param="feedback",
        )
    if choice is not None and (
        isinstance(choice, bool) or not isinstance(choice, int) or choice < 0
    ):
        raise ApiError(400, "'choice' must be the index of an answer.", param="choice")
    return name, float(reward), text, choice


def _texts(raw: Any, *names: str) -> list[str]:
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    for name in names:
        if not isinstance(raw.get(name), str) or not raw[name]:
            raise ApiError(400, f"'{name}' must be a text.", param=name)
    return [raw[name] for name in names]


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
