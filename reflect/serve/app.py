"""The routes and their errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from reflect.errors import Conflict, ReflectError, UnknownName, UsageError
from reflect.serve.auth import AuthMiddleware
from reflect.serve.local_chat import LocalChat, api_error
from reflect.serve.proxy import Proxy
from reflect.serve.schema import AdapterFolder, AdapterName, ApiError, Feedback, parse, read

if TYPE_CHECKING:
    from reflect.serve.lesson_session import LessonSession
    from reflect.types import Json

MOST_BYTES = 8 * 2**20  # of one request
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
Handler = Callable[[Request], Awaitable[Response]]


def build(
    chat: LocalChat | Proxy,
    session: LessonSession,
    *,
    key: str = "",
    most_bytes: int = MOST_BYTES,
) -> Starlette:
    """The application. An empty `key` means no authentication."""
    local = isinstance(chat, LocalChat)

    async def body(http: Request) -> Json:
        parts, size = [], 0
        async for part in http.stream():
            size += len(part)
            if size > most_bytes:
                message = f"The request has more than {most_bytes} bytes."
                raise ApiError(413, message, code="request_too_large")
            parts.append(part)
        http.state.body = b"".join(parts)  # the proxy passes on these bytes
        try:
            content: Json = json.loads(http.state.body)
        except (ValueError, RecursionError) as e:
            raise ApiError(400, f"We could not parse the JSON body of your request: {e}.") from e
        return content

    async def completions(http: Request) -> Response:
        return await chat.answer(http, parse(await body(http), http.headers, strict=local))

    async def feedback(http: Request) -> Response:
        given = read(Feedback, await body(http))
        reward = given.id, given.reward, given.feedback, given.choice
        await asyncio.to_thread(session.reward, *reward)
        return JSONResponse({"id": given.id, "object": "feedback", "reward": given.reward})

    async def load(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        adapter = read(AdapterFolder, await body(http))
        await chat.adapters.load(adapter.lora_name, adapter.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.lora_name}' added successfully.")

    async def unload(http: Request) -> Response:
        assert isinstance(chat, LocalChat)
        name = read(AdapterName, await body(http)).lora_name
        await chat.adapters.unload(name)
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
        routes.append(Route("/v1/{path:path}", chat.anything, methods=METHODS))
    else:
        routes.append(Route("/v1/load_lora_adapter", load, methods=["POST"]))
        routes.append(Route("/v1/unload_lora_adapter", unload, methods=["POST"]))
    handlers: dict[Any, Any] = {
        ApiError: refuse,
        ReflectError: refuse,
        HTTPException: unknown_url,
        ClientDisconnect: disconnected,
    }
    middleware = [Middleware(AuthMiddleware, key=key)]
    return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)


def _reply(e: ApiError) -> Response:
    return JSONResponse(e.body, e.status, e.headers)


async def refuse(http: Request, e: Exception) -> Response:
    """The reply to an error."""
    if isinstance(e, Conflict):
        e = ApiError(409, str(e), code="conflict")
    elif isinstance(e, UsageError) and http.url.path == "/v1/feedback":
        status = 404 if isinstance(e, UnknownName) else 400
        e = ApiError(status, str(e), param="id", code="not_found")
    return _reply(api_error(e))


async def unknown_url(http: Request, e: Exception) -> Response:
    """The reply to an unknown path or method."""
    assert isinstance(e, HTTPException)
    problem = {404: "Unknown request URL", 405: "Not allowed to"}.get(e.status_code, e.detail)
    message = f"{problem}: {http.method} {http.url.path}."
    code = "unknown_url" if e.status_code == 404 else None
    return _reply(ApiError(e.status_code, message, code=code, headers=e.headers))


async def disconnected(http: Request, e: Exception) -> Response:
    """The reply to nobody: the client has left."""
    return Response(status_code=499)
