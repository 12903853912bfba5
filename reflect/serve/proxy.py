"""Lessons in front of another server: they are added to its requests and the exchanges are stored;
everything else passes unchanged.

The bytes of an answer go to the client as they come, with the encoding that they have; a reader
works on a copy (`answer_reader`). What cannot be read or stored is not recorded, and the client
gets it all the same. An upstream error keeps its status and its body. `upstream` says which paths
and headers pass. Keys are neither stored nor logged.

Not covered: the profile's adapter, which the upstream server must hold: name it as the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import httpx2

from reflect.serve.api_errors import is_messages
from reflect.serve.relay import Relay
from reflect.serve.schema import ApiError, ChatRequest
from reflect.serve.upstream import base_url, reply_headers, request_headers, target

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from reflect.serve.answer_reader import AnswerReader
    from reflect.serve.api import Api
    from reflect.serve.lesson_session import LessonSession, PreparedRequest

BROKEN = (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
STALE_SECONDS = 1.0
"""A request fails within this time if the upstream closes the idle connection that it was sent on.
Then it is sent once more; one that fails later may have been answered, and is not."""
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
WHOLE = 2**20  # bytes; a shorter answer of known length is sent when all of it has come
INLINE = 2**14  # bytes; more are read in another thread
STORE_SECONDS = 5  # the end of an answer waits at most so long for the database
WARN_SECONDS = 60  # between two warnings


class Proxy:
    """`url` ends in the upstream's /v1. `key` is the upstream's; without one the client's key goes
    upstream, unless it is this server's (`own_key`). UsageError for a bad `url`."""

    def __init__(
        self, url: str, session: LessonSession, *, key: str = "", own_key: str = ""
    ) -> None:
        self.url, self.session = url.rstrip("/"), session
        self.key, self.own_key = key, own_key
        self._base = base_url(self.url)
        self._client = httpx2.AsyncClient(
            timeout=TIMEOUT,
            limits=httpx2.Limits(max_connections=256),
            # The answer to one client sets no cookie for the requests of others.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
        self._last_warning = -float(WARN_SECONDS)

    async def answer(self, http: HttpRequest, request: ChatRequest, api: Api) -> Response:
        """Forward a request with lessons added. `http.state.body` has its bytes."""
        prepared, body = await asyncio.to_thread(self._prepare, request, http.state.body, api)
        reply = await self._send(http, body, plain=True)
        if prepared is None or reply.status_code != 200:
            return await self._reply(reply, _relay(reply))
        reader = api.reader(reply.headers.get("content-encoding", ""))
        record = prepared.record
        parts = self._observe(reply, reader, prepared, request) if record else _relay(reply)
        headers = {"x-reflect-id": prepared.name, "x-reflect-lessons": prepared.lessons}
        return await self._reply(reply, parts, headers)

    async def anything(self, http: HttpRequest) -> Response:
        """Forward every other path of the API."""
        reply = await self._send(http, await http.body())
        return await self._reply(reply, _relay(reply))

    async def close(self) -> None:
        """Close the connections to the upstream server."""
        await self._client.aclose()

    async def models(self, http: HttpRequest) -> Response:
        """`GET /v1/models` of the upstream server."""
        return await self.anything(http)

    # -- the request

    def _prepare(
        self, request: ChatRequest, body: bytes, api: Api
    ) -> tuple[PreparedRequest | None, bytes]:
        """The chosen lessons, None where the database fails; and the bytes for the upstream."""
        try:
            prepared = self.session.open(request)
        except Exception as e:
            self._warn("Lessons cannot be read", e)
            return None, api.rewrite(body, "", "")
        if not prepared.lessons:
            return prepared, api.rewrite(body, "", "")
        roles = [message["role"] for message in request.messages]
        at = roles.index("system") if "system" in roles else None
        system = "" if at is None else request.messages[at]["content"]
        return prepared, api.rewrite(body, system, prepared.messages[at or 0]["content"])

    async def _send(
        self, http: HttpRequest, body: bytes, *, plain: bool = False
    ) -> httpx2.Response:
        """The upstream's answer, without its body. `plain`: ask for no encoding."""
        path = target(http.scope, self._base)
        anthropic = is_messages(http.url.path) or "anthropic-version" in http.headers
        header = "x-api-key" if anthropic else "authorization"
        headers = request_headers(http.headers.raw, self.key, self.own_key, header)
        if plain:
            headers = [row for row in headers if row[0] != b"accept-encoding"]
            headers.append((b"accept-encoding", b"identity"))
        url = self._base.copy_with(raw_path=path)
        request = httpx2.Request(
            http.method, url, headers=headers, content=body, extensions={"target": path}
        )
        began = time.monotonic()
        for last in (False, True):
            try:
                reply = await self._client.send(request, stream=True, follow_redirects=False)
                break
            except httpx2.HTTPError as e:
                stale = isinstance(e, BROKEN) and time.monotonic() - began < STALE_SECONDS
                if last or not stale:
                    problem = f"{self.url} cannot be reached: {type(e).__name__}"
                    raise _bad_gateway(problem) from e
        if not 200 <= reply.status_code <= 599:
            await reply.aclose()
            raise _bad_gateway(f"has answered with the status {reply.status_code}")
        return reply

    # -- the answer

    async def _reply(
        self,
        reply: httpx2.Response,
        parts: AsyncGenerator[bytes],
        added: Mapping[str, str] | None = None,
    ) -> Response:
        """The answer for the client. A short one is read first: if the upstream breaks off, the
        client gets a status."""
        headers = reply_headers(reply.headers.raw, self.key)
        headers += [(name.encode(), value.encode()) for name, value in (added or {}).items()]
        try:
            if (_length(reply) or WHOLE + 1) <= WHOLE:
                parts = _again(await _all(parts))
        except BaseException as e:
            await reply.aclose()
            if isinstance(e, httpx2.HTTPError):
                raise _bad_gateway(f"closed the connection: {type(e).__name__}") from e
            raise
        return Relay(reply, headers, parts)

    async def _observe(
        self,
        reply: httpx2.Response,
        reader: AnswerReader,
        prepared: PreparedRequest,
        request: ChatRequest,
    ) -> AsyncGenerator[bytes]:
        """The bytes of the answer. The exchange is stored before the client can have read the
        end."""
        length, size, stored = _length(reply), 0, False
        async for part in reply.aiter_raw():
            size += len(part)
            if not stored:
                if len(part) <= INLINE and not reader.encoded:
                    reader.feed(part)
                else:
                    await asyncio.to_thread(reader.feed, part)
                if reader.complete or size == length:
                    stored = True
                    await self._store(reader, prepared, request, small=size <= INLINE)
            yield part
        if not stored:
            await self._store(reader, prepared, request, small=size <= INLINE)

    async def _store(
        self, reader: AnswerReader, prepared: PreparedRequest, request: ChatRequest, *, small: bool
    ) -> None:
        """Record the exchange. Never raises: an answer that is not recorded is passed on."""
        try:
            read = reader.completions
            done = read() if small else await asyncio.to_thread(read)
            if not done:
                return
            model = reader.model or request.model
            fingerprint = hashlib.sha256(f"upstream/{self.url}/{model}".encode()).hexdigest()
            closing = self.session.close(prepared, done, model, fingerprint, reader.id)
            stored = asyncio.wrap_future(closing)
            stored.add_done_callback(self._stored)
            await asyncio.wait({stored}, timeout=STORE_SECONDS)
        except Exception as e:
            self._warn("An exchange is not recorded", e)

    def _stored(self, stored: asyncio.Future[None]) -> None:
        if not stored.cancelled() and (e := stored.exception()):
            self._warn("An exchange is not recorded", e)

    def _warn(self, problem: str, e: BaseException) -> None:
        now = time.monotonic()
        if now - self._last_warning >= WARN_SECONDS:
            self._last_warning = now
            logging.getLogger(__name__).error("%s: %s: %s", problem, type(e).__name__, e)


async def _relay(reply: httpx2.Response) -> AsyncGenerator[bytes]:
    """The bytes of the body as they come."""
    async for part in reply.aiter_raw():
        yield part


async def _all(parts: AsyncGenerator[bytes]) -> bytes:
    return b"".join([part async for part in parts])


async def _again(content: bytes) -> AsyncGenerator[bytes]:
    yield content


def _length(reply: httpx2.Response) -> int | None:
    """The length of the body, None where the upstream has not declared it."""
    length = reply.headers.get("content-length", "")
    known = length.isdecimal() and "transfer-encoding" not in reply.headers
    return int(length) if known else None


def _bad_gateway(problem: str) -> ApiError:
    message = f"The upstream server {problem}."
    return ApiError(502, message, code="upstream_unreachable", kind="server_error")
