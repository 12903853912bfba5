"""The same in front of another server: lessons go in, the exchange is written down, all else passes
as it is.

A stream passes through while it comes; an upstream error keeps its status and its body. The
client's own Authorization goes upstream, unless there is a key for that in the environment
(REFLECT_UPSTREAM_KEY), or the client's is the key of this server. Keys are neither stored nor
logged.

Not covered: the profile's adapter, which is the upstream server's to hold: name it as the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from reflect.models.base import Completion
from reflect.serve.lesson_session import LessonSession, PreparedRequest
from reflect.serve.schema import ApiError, ChatRequest
from reflect.tasksets.task import Message

HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "te",
    "trailer",
    "host",
    "content-length",
}
OURS = {"authorization", "x-reflect-lessons", "x-reflect-taskset", "x-reflect-conversation"}
DECODED = {"content-encoding", "date", "server"}  # the body is unpacked on the way
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)


class Proxy:
    """`url` has the upstream's /v1 in it. `key`: for the upstream; "" passes the client's on,
    unless that is ours."""

    def __init__(
        self, url: str, desk: LessonSession, *, key: str = "", own_key: bool = False
    ) -> None:
        self.url, self.desk, self.key, self.own_key = url.rstrip("/"), desk, key, own_key
        self.client = httpx2.AsyncClient(timeout=TIMEOUT, limits=httpx2.Limits(max_connections=256))

    async def answer(self, http: HttpRequest, ask: ChatRequest) -> Response:
        shown = await asyncio.to_thread(self.desk.open, ask)
        body = {name: value for name, value in ask.raw.items() if name != "reflect"}
        if shown.lessons:
            body["messages"] = _with_system(ask.raw["messages"], shown.messages)
        headers = {"x-reflect-id": shown.name, "x-reflect-lessons": shown.lessons}
        reply = await self._send(http, "chat/completions", json.dumps(body).encode())
        if reply.status_code != 200:
            return await _passed(reply)
        if ask.stream:
            stream = self._relay(reply, shown, ask)
            return StreamingResponse(stream, 200, {**_headers(reply), **headers})
        content = await _read(reply)
        await self._close(shown, ask, _whole(content))
        return Response(content, 200, {**_headers(reply), **headers})

    async def anything(self, http: HttpRequest) -> Response:
        """Every other path of the API, as it is."""
        return await _passed(await self._send(http, http.path_params["path"], await http.body()))

    async def _send(self, http: HttpRequest, path: str, body: bytes) -> httpx2.Response:
        headers = {k: v for k, v in http.headers.items() if k not in HOP | OURS}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        elif not self.own_key and "authorization" in http.headers:
            headers["authorization"] = http.headers["authorization"]
        url = f"{self.url}/{path}" + (f"?{http.url.query}" if http.url.query else "")
        request = self.client.build_request(http.method, url, headers=headers, content=body)
        try:
            return await self.client.send(request, stream=True)
        except httpx2.HTTPError as e:
            told = f"The upstream server {self.url} cannot be reached: {type(e).__name__}."
            raise ApiError(502, told, code="upstream_unreachable", kind="server_error") from e

    async def _relay(
        self, reply: httpx2.Response, shown: PreparedRequest, ask: ChatRequest
    ) -> AsyncIterator[bytes]:
        """The stream as it comes, byte by byte; it is read along, and its end waits until it is
        written down."""
        seen, tail = Stream(), b""
        try:
            async for part in reply.aiter_bytes():
                *lines, tail = (tail + part).split(b"\n")
                for line in lines:
                    seen.read(line)
                if seen.ended and not seen.closed:
                    seen.closed = True
                    await self._close(shown, ask, seen.answer())
                yield part
        finally:
            await reply.aclose()

    async def _close(
        self, shown: PreparedRequest, ask: ChatRequest, answer: dict[str, Any] | None
    ) -> None:
        done = completions(answer)
        if not done:
            return  # what cannot be read is not learned from; the client has it all the same
        model = str((answer or {}).get("model") or ask.model)
        named = answer["id"] if answer and isinstance(answer.get("id"), str) else shown.name
        fingerprint = hashlib.sha256(f"upstream/{self.url}/{model}".encode()).hexdigest()
        written = self.desk.close(shown, done, model, fingerprint, also=named)
        await asyncio.wrap_future(written)

    async def models(self, http: HttpRequest) -> Response:
        path = "models" + (f"/{http.path_params['model']}" if "model" in http.path_params else "")
        return await _passed(await self._send(http, path, b""))

    async def close(self) -> None:
        await self.client.aclose()


class Stream:
    """The chunks of a stream put together again."""

    def __init__(self) -> None:
        self.words: dict[str, Any] = {}
        self.choices: dict[int, dict[str, Any]] = {}
        self.ended = self.closed = False

    def read(self, line: bytes) -> None:
        data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            self.ended = True
        chunk = _json(data) if data else None
        if not isinstance(chunk, dict):
            return
        self.words |= {name: chunk[name] for name in ("id", "model", "usage") if chunk.get(name)}
        for part in chunk.get("choices") or ():
            one = self.choices.setdefault(
                int(part.get("index", 0)), {"content": "", "finish": "stop", "calls": {}}
            )
            said = part.get("delta") or {}
            one["content"] += said.get("content") or ""
            one["finish"] = part.get("finish_reason") or one["finish"]
            for call in said.get("tool_calls") or ():
                held = one["calls"].setdefault(
                    call.get("index", 0), {"id": "", "name": "", "arguments": ""}
                )
                held["id"] = call.get("id") or held["id"]
                for name in ("name", "arguments"):
                    held[name] += (call.get("function") or {}).get(name) or ""

    def answer(self) -> dict[str, Any]:
        """As one answer that came whole."""
        rows = []
        for index, one in sorted(self.choices.items()):
            calls = [
                {
                    "id": c["id"],
                    "type": "function",
                    "function": {"name": c["name"], "arguments": c["arguments"]},
                }
                for _, c in sorted(one["calls"].items())
            ]
            message = {"content": one["content"], "tool_calls": calls}
            rows.append({"index": index, "message": message, "finish_reason": one["finish"]})
        return self.words | {"choices": rows}


def completions(answer: dict[str, Any] | None) -> list[Completion]:
    """The answers in an upstream's reply; [] when it cannot be read."""
    try:
        rows = sorted((answer or {})["choices"], key=lambda row: row.get("index", 0))
        used = (answer or {}).get("usage") or {}
        return [
            Completion(
                text=row["message"].get("content") or "",
                prompt_tokens=int(used.get("prompt_tokens") or 0),
                completion_tokens=int(used.get("completion_tokens") or 0) // len(rows),
                finish=row["finish_reason"]
                if row.get("finish_reason") in ("length", "tool_calls")
                else "stop",
                seed=0,
                calls=tuple(row["message"].get("tool_calls") or ()),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _with_system(raw: Sequence[Message], shown: Sequence[Message]) -> list[Message]:
    """The client's messages, whatever is in them, under the system message that has the lessons."""
    return [
        shown[0],
        *(message for message in raw if message.get("role") not in ("system", "developer")),
    ]


def _headers(reply: httpx2.Response) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k.lower() not in HOP | DECODED}


async def _read(reply: httpx2.Response) -> bytes:
    try:
        return await reply.aread()
    except httpx2.HTTPError as e:
        told = f"The upstream server broke off: {type(e).__name__}."
        raise ApiError(502, told, code="upstream_unreachable", kind="server_error") from e
    finally:
        await reply.aclose()


async def _passed(reply: httpx2.Response) -> Response:
    return Response(await _read(reply), reply.status_code, _headers(reply))


def _whole(content: bytes) -> dict[str, Any] | None:
    found = _json(content)
    return found if isinstance(found, dict) else None


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None
