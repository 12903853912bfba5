"""Chat completions by the model of this process."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse

from reflect.errors import AdapterError, ContextTooLong, ReflectError, UnknownName
from reflect.models.base import Completion, Request
from reflect.serve.engine import Busy, Engine, EngineJob, OnText
from reflect.serve.schema import ApiError, ChatRequest, choice, delta, event, usage
from reflect.serve.served_adapters import ClientAdapter, ServedAdapters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from starlette.requests import Request as HttpRequest

    from reflect.serve.lesson_session import LessonSession, PreparedRequest
    from reflect.types import Json

RETRY_SECONDS = 1
Result = TypeVar("Result")
Part = tuple[int, str]
"""(index of the answer, its text so far)."""


@dataclass(frozen=True)
class LocalRequest:
    """One request with what the model gets for it."""

    client: ChatRequest
    prepared: PreparedRequest
    sampling: Request
    adapter: str
    """The name of the adapter for the client; empty without adapter."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a reply."""
        return {
            "x-request-id": self.prepared.name,
            "x-reflect-lessons": self.prepared.lessons,
            "x-reflect-adapter": self.adapter,
        }


class LocalChat:
    """`POST /v1/chat/completions` and the adapters, on one engine. `name` is the model's name for
    clients."""

    def __init__(self, engine: Engine, session: LessonSession) -> None:
        self.engine, self.session, self.model = engine, session, engine.model
        self.name = self.model.name.removeprefix("hf:").rstrip("/").split("/")[-1]
        self.names = {self.name, self.model.name, self.model.name.removeprefix("hf:")}
        self.fingerprint = self.model.fingerprint
        self.started = int(time.time())
        self.adapters = ServedAdapters(engine, session.settings, self.names)

    async def answer(self, http: HttpRequest, client: ChatRequest) -> Response:
        """The whole answer, or a stream of it. The answers are stored before the client has read
        their end."""
        loaded = self._loaded_adapter(client.model)
        prepared = await asyncio.to_thread(self.session.open, client)
        adapter = loaded.key if loaded else None
        if loaded:  # the answer is not the profile's, and is not stored as such
            prepared = replace(prepared, adapter=None)
        elif prepared.adapter:
            adapter = await _result(self.adapters.ensure_active(prepared.adapter))
        name = client.model if loaded else adapter or ""
        request = LocalRequest(client, prepared, self._sampling(client, prepared, adapter), name)
        if client.stream:
            return await self._stream(request)
        job = self._submit(request.sampling)
        try:
            completions = await self._wait(http, job)
            await self._store(request, completions)
        except BaseException:
            job.cancel()
            raise
        body = self._body(prepared, "chat.completion")
        body["choices"] = [choice(i, completion) for i, completion in enumerate(completions)]
        return JSONResponse(body | {"usage": usage(completions)}, headers=request.headers)

    def _sampling(
        self, client: ChatRequest, prepared: PreparedRequest, adapter: str | None
    ) -> Request:
        digest = hashlib.sha256(prepared.name.encode()).digest()
        seed = int.from_bytes(digest[:8], "big") if client.seed is None else client.seed
        return Request(
            messages=prepared.messages,
            seeds=tuple((seed + i) % 2**63 for i in range(client.n)),
            max_tokens=client.max_tokens or self.model.context,
            temperature=client.temperature,
            stop=client.stop,
            adapter=adapter,
            tools=client.tools,
        )

    def _submit(self, request: Request, on_text: OnText | None = None) -> EngineJob:
        try:
            return self.engine.submit(request, on_text)
        except Busy as e:
            wait = {"retry-after": str(RETRY_SECONDS)}
            raise ApiError(503, str(e), code="overloaded", kind="server_error", headers=wait) from e

    async def _wait(self, http: HttpRequest, job: EngineJob) -> list[Completion]:
        """The completions. A client that disconnects ends the computation."""
        result = asyncio.wrap_future(job.done)
        disconnect = asyncio.ensure_future(_disconnected(http))
        waits: set[asyncio.Future[Any]] = {result, disconnect}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                result.cancel()
                raise ApiError(499, "The client has disconnected.", kind="server_error")
            return await _result(result)
        finally:
            disconnect.cancel()

    async def _store(self, request: LocalRequest, completions: Sequence[Completion]) -> None:
        prepared = request.prepared
        name = self.name if prepared.adapter else request.adapter or self.name
        stored = self.session.close(prepared, completions, name, self.fingerprint)
        await asyncio.wrap_future(stored)

    def _body(self, prepared: PreparedRequest, kind: str) -> Json:
        return {
            "id": prepared.name,
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
            "system_fingerprint": f"fp_{self.fingerprint[:12]}",
        }

    async def _stream(self, request: LocalRequest) -> Response:
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[Part | None]()

        def on_text(index: int, text: str) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(parts.put_nowait, (index, text))

        # With tools the text may turn out to be a call, so it is sent at the end only.
        job = self._submit(request.sampling, None if request.client.tools else on_text)
        job.done.add_done_callback(lambda _: loop.call_soon_threadsafe(parts.put_nowait, None))
        first = await parts.get()  # a refused request gets a status, not a stream
        if first is None and (e := job.done.exception()) is not None:
            raise api_error(e)
        headers = request.headers | {"cache-control": "no-cache"}
        events = self._events(request, job, first, parts)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(
        self,
        request: LocalRequest,
        job: EngineJob,
        part: Part | None,
        parts: asyncio.Queue[Part | None],
    ) -> AsyncIterator[bytes]:
        """The server-sent events of a stream. `part` is the first one of `parts`."""
        client = request.client
        body = self._body(request.prepared, "chat.completion.chunk")
        body |= {"usage": None} if client.usage else {}

        def chunk(index: int, content: Json, finish: str | None = None) -> bytes:
            return event(body | {"choices": [delta(index, content, finish)]})

        sent = [""] * client.n
        try:
            for i in range(client.n):
                yield chunk(i, {"role": "assistant", "content": ""})
            while part is not None:
                i, text = part
                text = _settled(text, request.sampling.stop)
                if len(text) > len(sent[i]) and text.startswith(sent[i]):
                    yield chunk(i, {"content": text[len(sent[i]) :]})
                    sent[i] = text
                part = await parts.get()
            try:
                completions = await _result(asyncio.wrap_future(job.done))
                await self._store(request, completions)
            except ApiError as e:  # too late for a status
                yield event(e.body)
                return
            for i, completion in enumerate(completions):
                if rest := completion.text[len(sent[i]) :]:
                    yield chunk(i, {"content": rest})
                if completion.calls:
                    calls = [{"index": at, **call} for at, call in enumerate(completion.calls)]
                    yield chunk(i, {"tool_calls": calls})
                yield chunk(i, {}, completion.finish)
            if client.usage:
                yield event(body | {"choices": [], "usage": usage(completions)})
            yield event(b"[DONE]")
        finally:  # at the end, or when the client has disconnected
            job.cancel()

    def _loaded_adapter(self, model: str) -> ClientAdapter | None:
        """The adapter that a client names, None for the model itself. ApiError 404."""
        loaded = self.adapters.loaded
        if model in loaded:
            return loaded[model]
        if model in self.names:
            return None
        known = ", ".join([self.name, *loaded])
        message = f"The model '{model}' does not exist. There are: {known}."
        raise ApiError(404, message, param="model", code="model_not_found")

    async def models(self, http: HttpRequest) -> Response:
        """`GET /v1/models`, and one model by name."""
        card = {
            "object": "model",
            "created": self.started,
            "owned_by": "reflect",
            "max_model_len": self.model.context,
        }
        base = {"root": self.model.name, "parent": None, "fingerprint": self.fingerprint}
        rows: list[Json] = [{"id": self.name, **card, **base}]
        for name, adapter in self.adapters.loaded.items():
            rows.append({"id": name, **card, "root": adapter.path, "parent": self.name})
        wanted = http.path_params.get("model")
        if wanted is None:
            return JSONResponse({"object": "list", "data": rows})
        self._loaded_adapter(wanted)
        return JSONResponse(next((row for row in rows if row["id"] == wanted), rows[0]))


def _settled(text: str, stop: Sequence[str]) -> str:
    """The part that cannot change any more: without an incomplete letter, a possible beginning of
    a stop string, and all after a stop string."""
    if cuts := [at for s in stop if (at := text.find(s)) >= 0]:
        return text[: min(cuts)]
    text = text.rstrip("\ufffd")
    for s in stop:
        keep = next((k for k in range(min(len(s), len(text)), 0, -1) if text.endswith(s[:k])), 0)
        text = text[: len(text) - keep]
    return text


async def _disconnected(http: HttpRequest) -> None:
    """Returns when the client has disconnected."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _result(result: Awaitable[Result]) -> Result:
    """The result of the engine; its errors as ApiError."""
    try:
        return await result
    except ReflectError as e:
        raise api_error(e) from e


def api_error(e: BaseException) -> ApiError:
    """The status and code of an error."""
    if isinstance(e, ApiError):
        return e
    if isinstance(e, UnknownName):
        return ApiError(404, str(e), param="model", code="model_not_found")
    if isinstance(e, AdapterError):
        return ApiError(400, str(e), code="adapter_error")
    if isinstance(e, ContextTooLong):
        return ApiError(400, str(e), param="messages", code="context_length_exceeded")
    message = str(e) if isinstance(e, ReflectError) else f"{type(e).__name__}: {e}"
    return ApiError(500, message, code="internal_error", kind="server_error")
