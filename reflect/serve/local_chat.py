"""Chat completions by the model of this process."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from reflect.adapters import activation
from reflect.errors import AdapterError, ContextTooLong, ReflectError, UnknownName
from reflect.models.base import Completion, Request
from reflect.records import Adapter
from reflect.serve.engine import Busy, Engine, EngineJob
from reflect.serve.lesson_session import LessonSession, PreparedRequest
from reflect.serve.schema import ApiError, ChatRequest, choice, delta, event, usage

RETRY_SECONDS = 1


class LocalChat:
    """`POST /v1/chat/completions` and the adapters, on one engine. `name`: what clients call the
    model."""

    def __init__(self, engine: Engine, desk: LessonSession) -> None:
        self.engine, self.desk, self.model = engine, desk, engine.model
        self.name = self.model.name.removeprefix("hf:").rstrip("/").split("/")[-1]
        self.names = {self.name, self.model.name, self.model.name.removeprefix("hf:")}
        self.fingerprint = self.model.fingerprint
        self.began = int(time.time())
        self.named: dict[str, str] = {}  # adapters that a client has loaded -> their folders
        self.followed: list[
            str
        ] = []  # adapters of the profile that were active since the start, oldest first

    # ---- one request

    async def answer(self, http: HttpRequest, ask: ChatRequest) -> Response:
        """The whole answer, or a stream of it. The answers are on the disk before the client has
        read their end."""
        named = self._named(ask.model)
        shown = await asyncio.to_thread(self.desk.open, ask)
        adapter = named or (await self._follow(shown.adapter) if shown.adapter else None)
        request = self._request(ask, shown, adapter)
        headers = {
            "x-request-id": shown.name,
            "x-reflect-lessons": shown.lessons,
            "x-reflect-adapter": adapter or "",
        }
        if ask.stream:
            return await self._stream(ask, shown, request, headers)
        job = self._submit(request)
        try:
            done = await self._wait(http, job)
            await self._close(shown, done, adapter)
        except BaseException:
            job.cancel()
            raise
        body = self._body(shown, "chat.completion")
        body |= {"choices": [choice(i, one) for i, one in enumerate(done)], "usage": usage(done)}
        return JSONResponse(body, headers=headers)

    def _request(self, ask: ChatRequest, shown: PreparedRequest, adapter: str | None) -> Request:
        digest = hashlib.sha256(shown.name.encode()).digest()
        seed = int.from_bytes(digest[:8], "big") if ask.seed is None else ask.seed
        return Request(
            messages=shown.messages,
            seeds=tuple((seed + i) % 2**63 for i in range(ask.n)),
            max_tokens=ask.max_tokens or self.model.context,
            temperature=ask.temperature,
            stop=ask.stop,
            adapter=adapter,
            tools=ask.tools,
        )

    def _submit(self, request: Request, tell: Any = None) -> EngineJob:
        try:
            return self.engine.submit(request, tell)
        except Busy as e:
            wait = {"retry-after": str(RETRY_SECONDS)}
            raise ApiError(503, str(e), code="overloaded", kind="server_error", headers=wait) from e

    async def _wait(self, http: HttpRequest, job: EngineJob) -> list[Completion]:
        """The result; a client that goes away stops being computed."""
        result: asyncio.Future[Any] = asyncio.wrap_future(job.done)
        leaves: asyncio.Future[Any] = asyncio.ensure_future(_left(http))
        try:
            await asyncio.wait({result, leaves}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                result.cancel()
                raise ApiError(499, "The client has gone away.", kind="server_error")
            return await _told(result)
        finally:
            leaves.cancel()

    async def _close(
        self, shown: PreparedRequest, done: Sequence[Completion], adapter: str | None
    ) -> None:
        name = self.name if adapter is None or shown.adapter else adapter
        await asyncio.wrap_future(self.desk.close(shown, done, name, self.fingerprint))

    def _body(self, shown: PreparedRequest, kind: str) -> dict[str, Any]:
        words: dict[str, Any] = {
            "id": shown.name,
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
        }
        return words | {"system_fingerprint": f"fp_{self.fingerprint[:12]}"}

    # ---- streams

    async def _stream(
        self, ask: ChatRequest, shown: PreparedRequest, request: Request, headers: dict[str, str]
    ) -> Response:
        loop, parts = asyncio.get_running_loop(), asyncio.Queue[tuple[int, str] | None]()

        def tell(index: int, text: str) -> None:  # in the engine's thread
            loop.call_soon_threadsafe(parts.put_nowait, (index, text))

        # What may turn out to be a tool call is no text: it is held back until it is known.
        job = self._submit(request, None if ask.tools else tell)
        job.done.add_done_callback(lambda _: loop.call_soon_threadsafe(parts.put_nowait, None))
        first = await parts.get()  # a request that is refused gets a status, and no stream
        if first is None and (why := job.done.exception()) is not None:
            raise api_error(why)
        events = self._events(ask, shown, request, job, first, parts)
        headers |= {"cache-control": "no-cache"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _events(
        self,
        ask: ChatRequest,
        shown: PreparedRequest,
        request: Request,
        job: EngineJob,
        first: Any,
        parts: asyncio.Queue[Any],
    ) -> AsyncIterator[bytes]:
        body = self._body(shown, "chat.completion.chunk") | ({"usage": None} if ask.usage else {})
        sent = [""] * ask.n
        try:
            for i in range(ask.n):
                yield event(body | {"choices": [delta(i, {"role": "assistant", "content": ""})]})
            part = first
            while part is not None:
                index, text = part
                text = _settled(text, request.stop)
                if len(text) > len(sent[index]) and text.startswith(sent[index]):
                    yield event(
                        body | {"choices": [delta(index, {"content": text[len(sent[index]) :]})]}
                    )
                    sent[index] = text
                part = await parts.get()
            try:
                done = await _told(asyncio.wrap_future(job.done))
                await self._close(shown, done, request.adapter)
            except ApiError as e:  # too late for a status
                yield event(e.body)
                return
            for i, one in enumerate(done):
                if rest := one.text[len(sent[i]) :]:
                    yield event(body | {"choices": [delta(i, {"content": rest})]})
                if one.calls:
                    calls = [{"index": at, **call} for at, call in enumerate(one.calls)]
                    yield event(body | {"choices": [delta(i, {"tool_calls": calls})]})
                yield event(body | {"choices": [delta(i, {}, one.finish)]})
            if ask.usage:
                yield event(body | {"choices": [], "usage": usage(done)})
            yield event(b"[DONE]")
        finally:  # read to the end, or the client has gone away
            job.cancel()

    # ---- adapters

    def _named(self, model: str) -> str | None:
        """The adapter that a client names, None for the model itself. ApiError 404."""
        if model in self.named:
            return model
        if model in self.names:
            return None
        known = ", ".join([self.name, *self.named])
        raise ApiError(
            404,
            f"The model '{model}' does not exist. There are: {known}.",
            param="model",
            code="model_not_found",
        )

    async def _follow(self, adapter: Adapter) -> str:
        """The profile's adapter, read in when it is new; the one before the last is dropped once
        nobody uses it."""

        def ensure() -> None:  # in the engine's thread
            if adapter.name not in self.model.adapters:
                activation.load(self.model, adapter, self.desk.settings)
            self.followed = [name for name in self.followed if name != adapter.name] + [
                adapter.name
            ]
            for old in self.followed[:-2]:
                if old not in self.named and not self.engine.uses(old):
                    self.model.drop_adapter(old)
                    self.followed.remove(old)

        if not self.followed or self.followed[-1] != adapter.name:
            await _told(asyncio.wrap_future(self.engine.call(ensure)))
        return adapter.name

    async def load(self, name: str, path: str) -> None:
        """A PEFT folder under a name of its own. ApiError 400 when the name is taken or the folder
        is none."""
        if name in self.named or name in self.names:
            raise ApiError(
                400, f"The lora adapter '{name}' has already been loaded.", param="lora_name"
            )
        if not (Path(path) / "adapter_config.json").is_file():
            raise ApiError(
                404, f"There is no adapter in {path}.", param="lora_path", code="not_found"
            )

        def load() -> None:
            if name not in self.model.adapters:
                self.model.load_adapter(name, path)

        await _told(asyncio.wrap_future(self.engine.call(load)))
        self.named[name] = path

    async def unload(self, name: str) -> None:
        """ApiError 404 for a name that was not loaded; requests under way with it are answered
        first."""
        if self.named.pop(name, None) is None:
            raise ApiError(
                404,
                f"The lora adapter '{name}' cannot be found.",
                param="lora_name",
                code="not_found",
            )
        while name not in self.followed and not await asyncio.wrap_future(
            self.engine.call(lambda: self._drop(name))
        ):
            await asyncio.sleep(0.05)

    def _drop(self, name: str) -> bool:
        if used := self.engine.uses(name):
            return not used
        self.model.drop_adapter(name)
        return True

    async def models(self, http: HttpRequest) -> Response:
        card = {
            "object": "model",
            "created": self.began,
            "owned_by": "reflect",
            "max_model_len": self.model.context,
        }
        rows = [
            {
                "id": self.name,
                **card,
                "root": self.model.name,
                "parent": None,
                "fingerprint": self.fingerprint,
            }
        ]
        rows += [
            {"id": name, **card, "root": path, "parent": self.name}
            for name, path in self.named.items()
        ]
        wanted = http.path_params.get("model")
        if wanted is None:
            return JSONResponse({"object": "list", "data": rows})
        self._named(wanted)
        return JSONResponse(next((row for row in rows if row["id"] == wanted), rows[0]))

    async def close(self) -> None:
        await asyncio.to_thread(self.engine.close)


def _settled(text: str, stop: Sequence[str]) -> str:
    """What will not change any more: no half of a letter, no beginning of a stop string, nothing
    after one."""
    cuts = [at for s in stop if (at := text.find(s)) >= 0]
    if cuts:
        return text[: min(cuts)]
    text = text.rstrip("\ufffd")
    for s in stop:
        keep = next((k for k in range(min(len(s), len(text)), 0, -1) if text.endswith(s[:k])), 0)
        text = text[: len(text) - keep]
    return text


async def _left(http: HttpRequest) -> None:
    """Returns when the client has hung up."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _told(result: Any) -> Any:
    """The result of the engine, its errors as the API words them."""
    try:
        return await result
    except ReflectError as e:
        raise api_error(e) from e


def api_error(e: BaseException) -> ApiError:
    if isinstance(e, ApiError):
        return e
    if isinstance(e, UnknownName):
        return ApiError(404, str(e), param="model", code="model_not_found")
    if isinstance(e, AdapterError):
        return ApiError(400, str(e), code="adapter_error")
    if isinstance(e, ContextTooLong):
        return ApiError(400, str(e), param="messages", code="context_length_exceeded")
    told = str(e) if isinstance(e, ReflectError) else f"{type(e).__name__}: {e}"
    return ApiError(500, told, code="internal_error", kind="server_error")
