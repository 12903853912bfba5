"""Answers by the model of this process."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse

from reflect.errors import ReflectError, SchemaRefused
from reflect.models.base import Completion, Request
from reflect.serve.api import Served
from reflect.serve.api_errors import RETRY, api_error
from reflect.serve.engine import Busy, Engine, EngineJob, OnText
from reflect.serve.messages import anthropic_model
from reflect.serve.schema import ApiError, ChatRequest, TokensBody, usage
from reflect.serve.served_adapters import ClientAdapter, ServedAdapters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence
    from concurrent.futures import Future

    from starlette.requests import Request as HttpRequest
    from starlette.types import Receive, Scope, Send

    from reflect.models.generation import GenerationRow
    from reflect.serve.api import AnswerWriter, Api
    from reflect.serve.lesson_session import LessonSession, PreparedRequest
    from reflect.types import Json

Result = TypeVar("Result")


@dataclass(frozen=True)
class LocalRequest:
    """One request with what the model gets for it."""

    client: ChatRequest
    prepared: PreparedRequest
    sampling: Request
    adapter: str
    """The name of the adapter for the client; empty without adapter."""
    writer: AnswerWriter

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a reply."""
        return {
            "x-request-id": self.prepared.name,  # OpenAI's header
            "request-id": self.prepared.name,  # Anthropic's
            "x-reflect-lessons": self.prepared.lessons,
            "x-reflect-adapter": self.adapter,
        }


class LocalChat:
    """Answers and adapters, on one engine. `name` is the model's name for clients."""

    def __init__(self, engine: Engine, session: LessonSession) -> None:
        self.engine, self.session, self.model = engine, session, engine.model
        self.name = self.model.name.removeprefix("hf:").rstrip("/").split("/")[-1]
        self.names = {self.name, self.model.name, self.model.name.removeprefix("hf:")}
        self.fingerprint = self.model.fingerprint
        self.started = int(time.time())
        self.adapters = ServedAdapters(engine, session.settings, self.names)

    async def answer(self, http: HttpRequest, client: ChatRequest, api: Api) -> Response:
        """The whole answer, or a stream of it. The answers are stored before the client has read
        their end. A caller that is cancelled, because its client has left, ends the computation."""
        loaded = self._loaded_adapter(client.model)
        self._check_queue()
        prepared, sampling, rows = await _result(asyncio.to_thread(self._prepare, client))
        adapter = loaded.key if loaded else None
        if loaded:  # the answer is not the profile's, and is not stored as such
            prepared = replace(prepared, adapter=None)
        elif prepared.adapter:
            adapter = await _result(self.adapters.ensure_active(prepared.adapter))
        name = client.model if loaded else adapter or ""
        tokens, now = len(rows[0].prompt), int(time.time())
        served = Served(prepared.name, self.name, self.fingerprint, tokens, now)
        writer = api.writer(client, served)
        request = LocalRequest(client, prepared, replace(sampling, adapter=adapter), name, writer)
        if client.stream:
            return await self._stream(request, rows)
        job = self._submit(request, rows)
        try:
            completions = _limited(await _result(asyncio.wrap_future(job.done)), client)
        finally:
            job.cancel()
        await self._store(request, completions)
        return JSONResponse(writer.whole(completions), headers=request.headers)

    async def count(self, client: ChatRequest) -> int:
        """The tokens of a request without lessons. ApiError 404 for an unknown model."""
        self._loaded_adapter(client.model)

        def tokens() -> int:
            self.model.check_length(client.messages, client.tools)
            return len(self.model.encode(client.messages, tools=client.tools))

        return await _result(asyncio.to_thread(tokens))

    async def complete(self, given: TokensBody) -> Json:
        """The body of an answer to a prompt in token ids. ApiError 400, 404."""
        loaded = self._loaded_adapter(given.model)
        self._check_queue()
        seed = secrets.randbits(62) if given.seed is None else given.seed
        request = Request(
            messages=(),
            seeds=tuple((seed + i) % 2**63 for i in range(given.n)),
            max_tokens=given.max_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            stop=(given.stop,) if isinstance(given.stop, str) else tuple(given.stop or ()),
            adapter=loaded.key if loaded else None,
        )

        def rows() -> list[GenerationRow]:
            prompt = given.prompt
            ids = self.model.encode_text(prompt) if isinstance(prompt, str) else prompt
            if max(ids, default=0) >= self.model.vocabulary:
                message = f"Token ids are below {self.model.vocabulary}."
                raise ApiError(400, message, param="prompt", code="invalid_value")
            return self.model.rows_of(ids, request)

        job = self.engine.submit(request, None, await _result(asyncio.to_thread(rows)))
        try:
            completions = await _result(asyncio.wrap_future(job.done))
        finally:
            job.cancel()
        choices: list[Json] = [
            {"index": i, "text": x.text, "finish_reason": x.finish, "logprobs": None}
            | ({"token_ids": list(x.tokens)} if given.return_token_ids else {})
            for i, x in enumerate(completions)
        ]
        head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion"}
        head |= {"model": given.model}
        return head | {"created": int(time.time()), "choices": choices, "usage": usage(completions)}

    def _prepare(self, client: ChatRequest) -> tuple[PreparedRequest, Request, list[GenerationRow]]:
        """The request with its lessons, for the model without an adapter, and tokenised.
        ContextTooLong before long texts are searched or tokenised in full."""
        if client.response_format and (problem := self.model.grammars.problem):
            raise SchemaRefused(problem)
        if client.response_format and client.tools:
            raise SchemaRefused("A response_format together with tools is not supported.")
        self.model.check_length(client.messages, client.tools)
        prepared = self.session.open(client)
        sampling = self._sampling(client, prepared)
        return prepared, sampling, self.model.rows(sampling)

    def _sampling(self, client: ChatRequest, prepared: PreparedRequest) -> Request:
        digest = hashlib.sha256(prepared.name.encode()).digest()
        seed = int.from_bytes(digest[:8], "big") if client.seed is None else client.seed
        return Request(
            messages=prepared.messages,
            seeds=tuple((seed + i) % 2**63 for i in range(client.n)),
            max_tokens=client.max_tokens or self.model.context,
            temperature=client.temperature,
            top_p=client.top_p,
            stop=client.stop,
            adapter=None,
            tools=client.tools,
            response_format=client.response_format,
        )

    def _check_queue(self) -> None:
        try:
            self.engine.check_queue()
        except Busy as e:
            raise ApiError(
                503, str(e), code="overloaded", kind="server_error", headers=RETRY
            ) from e

    def _submit(
        self, request: LocalRequest, rows: Sequence[GenerationRow], on_text: OnText | None = None
    ) -> EngineJob:
        self._check_queue()
        return self.engine.submit(request.sampling, on_text, rows)

    async def _store(self, request: LocalRequest, completions: Sequence[Completion]) -> None:
        prepared = request.prepared
        name = self.name if prepared.adapter else request.adapter or self.name
        stored = self.session.close(prepared, completions, name, self.fingerprint)
        await asyncio.wrap_future(stored)

    async def _stream(self, request: LocalRequest, rows: Sequence[GenerationRow]) -> Response:
        parts = Parts()
        # With tools the text may turn out to be a call, so it is sent at the end only.
        job = self._submit(request, rows, None if request.client.tools else parts.put)
        job.done.add_done_callback(parts.end)
        try:
            first = await parts.take()  # a refused request gets a status, not a stream
            if parts.ended and (e := job.done.exception()) is not None:
                raise api_error(e)
        except BaseException:
            job.cancel()
            raise
        return JobStream(self._events(request, job, first, parts), request.headers, job)

    async def _events(
        self, request: LocalRequest, job: EngineJob, texts: dict[int, str], parts: Parts
    ) -> AsyncIterator[bytes]:
        """The server-sent events of a stream. `texts` are the first ones of `parts`."""
        writer = request.writer
        sent = [""] * request.client.n
        yield writer.begin()
        while True:
            for i, text in texts.items():
                text = _settled(text, request.sampling.stop, len(sent[i]))
                if len(text) > len(sent[i]) and text.startswith(sent[i]):
                    yield writer.text(i, text[len(sent[i]) :])
                    sent[i] = text
            if parts.ended:
                break
            texts = await parts.take()
        try:
            completions = _limited(await asyncio.wrap_future(job.done), request.client)
            await self._store(request, completions)
        except Exception as e:  # too late for a status
            yield writer.failed(api_error(e))
            return
        pairs = zip(completions, sent, strict=True)
        yield writer.end(completions, [one.text[len(text) :] for one, text in pairs])

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
        """`GET /v1/models`, and one model by name, in the form of the API that the client uses."""
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
        more: Json = {"object": "list"}
        if "anthropic-version" in http.headers:
            rows = [anthropic_model(row["id"], self.started) for row in rows]
            more = {"has_more": False, "first_id": rows[0]["id"], "last_id": rows[-1]["id"]}
        if wanted is None:
            return JSONResponse({"data": rows, **more})
        self._loaded_adapter(wanted)
        return JSONResponse(next((row for row in rows if row["id"] == wanted), rows[0]))


def _limited(completions: list[Completion], client: ChatRequest) -> list[Completion]:
    """The answers, with one tool call each where the client wants no more."""
    if client.parallel:
        return completions
    return [replace(completion, calls=completion.calls[:1]) for completion in completions]


def _settled(text: str, stop: Sequence[str], start: int = 0) -> str:
    """The part that cannot change any more: without an incomplete letter, a possible beginning of
    a stop string, and all after a stop string. `start`: the length that was settled before."""
    if cuts := [at for s in stop if (at := text.find(s, max(0, start - len(s)))) >= 0]:
        return text[: min(cuts)]
    text = text.rstrip("\ufffd")
    for s in stop:
        keep = next((k for k in range(min(len(s), len(text)), 0, -1) if text.endswith(s[:k])), 0)
        text = text[: len(text) - keep]
    return text


class Parts:
    """The texts of a stream on their way from the engine's thread to the event loop. Of each answer
    only the newest text waits, so that a slow client does not fill the memory."""

    def __init__(self) -> None:
        self.ended = False
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()
        self._texts: dict[int, str] = {}

    def put(self, index: int, text: str) -> None:
        """Take the text of an answer. In the engine's thread."""
        self._texts[index] = text
        self._loop.call_soon_threadsafe(self._changed.set)

    def end(self, done: Future[list[Completion]]) -> None:
        """No text comes after this one. In any thread."""
        self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self.ended = True
        self._changed.set()

    async def take(self) -> dict[int, str]:
        """The texts that changed, after at least one did or the end came."""
        await self._changed.wait()
        self._changed.clear()
        return {index: self._texts.pop(index) for index in list(self._texts)}


class JobStream(StreamingResponse):
    """A stream of events. Its job is cancelled at the end, also if no event was sent."""

    def __init__(
        self, events: AsyncIterator[bytes], headers: dict[str, str], job: EngineJob
    ) -> None:
        headers = headers | {"cache-control": "no-cache"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.cancel()


async def _result(result: Awaitable[Result]) -> Result:
    """The result of the engine; its errors as ApiError."""
    try:
        return await result
    except ReflectError as e:
        raise api_error(e) from e
