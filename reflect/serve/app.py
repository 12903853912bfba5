"""The routes and their errors."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import reflect
from reflect.errors import Conflict, ReflectError, UnknownName, UsageError
from reflect.serve.api_errors import api_error, reply
from reflect.serve.auth import AuthMiddleware
from reflect.serve.chat_api import ChatApi
from reflect.serve.client_limits import MOST_BYTES, ClientMiddleware
from reflect.serve.messages import MessagesApi
from reflect.serve.openapi import document
from reflect.serve.proxy import Proxy
from reflect.serve.responses import ResponsesApi
from reflect.serve.schema import (
    AdapterFolder,
    AdapterName,
    ApiError,
    Feedback,
    TokensBody,
    load_json,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.requests import Request

    from reflect.serve.api import Api
    from reflect.serve.lesson_session import LessonSession
    from reflect.serve.local_chat import LocalChat

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
INLINE_BYTES = 2**16  # of a body that is parsed in the event loop
Result = TypeVar("Result")


class JsonBody:
    """Reads the JSON bodies of requests. Large ones are read one at a time and in another thread:
    the objects of a body can take fifty times its bytes, and checking them takes seconds."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(1)

    async def read(self, http: Request, use: Callable[[object], Result]) -> Result:
        """What `use` makes of the body. `http.state.body` gets its bytes. ApiError 400."""
        http.state.body = content = await http.body()
        if len(content) <= INLINE_BYTES:
            return use(load_json(content))
        async with self._large:
            return await asyncio.to_thread(lambda: use(load_json(content)))


def build(
    chat: LocalChat | Proxy,
    session: LessonSession,
    *,
    key: str = "",
    most_bytes: int = MOST_BYTES,
) -> Starlette:
    """The application. An empty `key` means no authentication."""
    local = not isinstance(chat, Proxy)
    body = JsonBody()

    async def answer(api: Api, http: Request) -> Response:
        request = await body.read(http, lambda raw: api.parse(raw, http.headers, strict=local))
        return await chat.answer(http, request, api)

    async def feedback(http: Request) -> Response:
        given = await body.read(http, partial(read, Feedback))
        reward = given.id, given.reward, given.feedback, given.choice
        await asyncio.wrap_future(session.reward(*reward))
        return JSONResponse({"id": given.id, "object": "feedback", "reward": given.reward})

    def failure() -> str:
        engine = "" if isinstance(chat, Proxy) else chat.engine.failure
        return session.writer.failure or engine

    async def health(http: Request) -> Response:
        if problem := failure():
            raise ApiError(503, problem, code="unhealthy", kind="server_error")
        return Response()

    async def openapi(http: Request) -> Response:
        return JSONResponse(document(reflect.__version__, local=local, key=bool(key)))

    routes = [
        Route("/health", health),
        Route("/openapi.json", openapi),
        Route("/v1/models", chat.models),
        Route("/v1/models/{model:path}", chat.models),
        Route("/v1/chat/completions", partial(answer, ChatApi()), methods=["POST"]),
        Route("/v1/responses", partial(answer, ResponsesApi()), methods=["POST"]),
        Route("/v1/messages", partial(answer, MessagesApi()), methods=["POST"]),
        Route("/v1/feedback", feedback, methods=["POST"]),
    ]
    if isinstance(chat, Proxy):
        routes.append(Route("/v1/{path:path}", chat.anything, methods=METHODS))
    else:
        routes += [count_route(chat, body), tokens_route(chat, body)]
        routes += adapter_routes(chat, body)
    handlers: dict[Any, Any] = {
        ApiError: refuse,
        ReflectError: refuse,
        HTTPException: unknown_url,
    }
    middleware = [
        Middleware(AuthMiddleware, key=key),
        Middleware(ClientMiddleware, most_bytes=most_bytes),
    ]
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)
    app.state.failure = failure
    if isinstance(chat, Proxy):
        app.state.close = chat.close
    return app


def count_route(chat: LocalChat, body: JsonBody) -> Route:
    """`POST /v1/messages/count_tokens`: the tokens of a request, without lessons."""

    async def count(http: Request) -> Response:
        request = await body.read(http, lambda raw: MessagesApi().parse_count(raw, http.headers))
        return JSONResponse({"input_tokens": await chat.count(request)})

    return Route("/v1/messages/count_tokens", count, methods=["POST"])


def tokens_route(chat: LocalChat, body: JsonBody) -> Route:
    """`POST /v1/completions`: continue a prompt in token ids, for programs that sample by this
    server (`reflect sleep --sampler`)."""

    async def complete(http: Request) -> Response:
        return JSONResponse(await chat.complete(await body.read(http, partial(read, TokensBody))))

    return Route("/v1/completions", complete, methods=["POST"])


def adapter_routes(chat: LocalChat, body: JsonBody) -> list[Route]:
    """The routes that load and unload adapters, as in vLLM. What is begun is completed, also if the
    client leaves."""
    tasks: set[asyncio.Future[None]] = set()

    def ended(task: asyncio.Future[None]) -> None:
        tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the client may not be there to get it

    async def complete(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        tasks.add(task)
        task.add_done_callback(ended)
        await asyncio.shield(task)

    async def load(http: Request) -> Response:
        adapter = await body.read(http, partial(read, AdapterFolder))
        await complete(chat.adapters.load(adapter.lora_name, adapter.lora_path))
        return PlainTextResponse(f"Success: LoRA adapter '{adapter.lora_name}' added successfully.")

    async def unload(http: Request) -> Response:
        name = (await body.read(http, partial(read, AdapterName))).lora_name
        await complete(chat.adapters.unload(name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return [
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
    ]


async def refuse(http: Request, e: Exception) -> Response:
    """The reply to an error."""
    if isinstance(e, Conflict):
        e = ApiError(409, str(e), code="conflict")
    elif isinstance(e, UsageError) and http.url.path == "/v1/feedback":
        status = 404 if isinstance(e, UnknownName) else 400
        e = ApiError(status, str(e), param="id", code="not_found")
    return reply(api_error(e), http.url.path)


async def unknown_url(http: Request, e: Exception) -> Response:
    """The reply to an unknown path or method."""
    assert isinstance(e, HTTPException)
    problem = {404: "Unknown request URL", 405: "Not allowed to"}.get(e.status_code, e.detail)
    message = f"{problem}: {http.method} {http.url.path}."
    code = "unknown_url" if e.status_code == 404 else None
    error = ApiError(e.status_code, message, code=code, headers=e.headers)
    return reply(error, http.url.path)
