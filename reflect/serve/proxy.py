"""Lessons in front of another server: they are added to its requests and the exchanges are stored;
everything else passes unchanged.

A stream passes while it arrives; an upstream error keeps its status and its body. The client's own
Authorization header goes upstream, unless the environment has a key for that
(REFLECT_UPSTREAM_KEY), or the client's key is the key of this server. Keys are neither stored nor
logged.

Not covered: the profile's adapter, which the upstream server must hold: name it as the model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING, Literal

import httpx2
from starlette.responses import Response, StreamingResponse

from reflect.models.base import Completion
from reflect.serve.schema import ApiError, ChatRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request as HttpRequest

    from reflect.serve.lesson_session import LessonSession, PreparedRequest
    from reflect.tasksets.task import Message
    from reflect.types import Json

HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}
HOP |= {"host", "content-length"}
OURS = {"authorization", "x-reflect-lessons", "x-reflect-taskset", "x-reflect-conversation"}
DECODED = {"content-encoding", "date", "server"}  # the client library decodes the body
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)


class Proxy:
    """`url` ends in the upstream's /v1. `key` is the upstream's; without one the client's key goes
    upstream, unless it is this server's (`own_key`)."""

    def __init__(
        self, url: str, session: LessonSession, *, key: str = "", own_key: str = ""
    ) -> None:
        self.url, self.session = url.rstrip("/"), session
        self.key, self.own_key = key, own_key
        self.client = httpx2.AsyncClient(timeout=TIMEOUT, limits=httpx2.Limits(max_connections=256))

    async def answer(self, http: HttpRequest, request: ChatRequest) -> Response:
        """`POST /v1/chat/completions`, with lessons added."""
        prepared = await asyncio.to_thread(self.session.open, request)
        body = {name: value for name, value in request.raw.items() if name != "reflect"}
        if prepared.lessons:
            body["messages"] = _with_system(request.raw["messages"], prepared.messages)
        reply = await self._send(http, "chat/completions", json.dumps(body).encode())
        if reply.status_code != 200:
            return await _forward(reply)
        headers = _headers(reply)
        headers |= {"x-reflect-id": prepared.name, "x-reflect-lessons": prepared.lessons}
        if request.stream:
            return StreamingResponse(self._relay(reply, prepared, request), 200, headers)
        content = await _content(reply)
        await self._store(prepared, request, _json_object(content))
        return Response(content, 200, headers)

    async def anything(self, http: HttpRequest) -> Response:
        """Forward every other path of the API."""
        return await _forward(await self._send(http, http.path_params["path"], await http.body()))

    async def models(self, http: HttpRequest) -> Response:
        """`GET /v1/models` of the upstream server."""
        path = "models" + (f"/{http.path_params['model']}" if "model" in http.path_params else "")
        return await _forward(await self._send(http, path, b""))

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
            raise _unreachable(f"{self.url} cannot be reached", e) from e

    async def _relay(
        self, reply: httpx2.Response, prepared: PreparedRequest, request: ChatRequest
    ) -> AsyncIterator[bytes]:
        """The stream, unchanged. The exchange is stored before its last bytes are sent."""
        stream, tail, stored = Stream(), b"", False
        try:
            async for part in reply.aiter_bytes():
                *lines, tail = (tail + part).split(b"\n")
                for line in lines:
                    stream.read(line)
                if stream.ended and not stored:
                    stored = True
                    await self._store(prepared, request, stream.answer())
                yield part
        finally:
            await reply.aclose()

    async def _store(self, prepared: PreparedRequest, request: ChatRequest, answer: Json) -> None:
        done = completions(answer)
        if not done:
            return  # an unreadable answer teaches nothing; the client gets it unchanged
        model = str(answer.get("model") or request.model)
        name = answer["id"] if isinstance(answer.get("id"), str) else prepared.name
        fingerprint = hashlib.sha256(f"upstream/{self.url}/{model}".encode()).hexdigest()
        await asyncio.wrap_future(self.session.close(prepared, done, model, fingerprint, name))


class Stream:
    """Joins the chunks of a stream to one answer."""

    def __init__(self) -> None:
        self.fields: Json = {}
        self.choices: dict[int, Json] = {}
        self.ended = False

    def read(self, line: bytes) -> None:
        """Take one line of the stream."""
        data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        self.ended = self.ended or data == b"[DONE]"
        chunk = _json_object(data)
        self.fields |= {name: chunk[name] for name in ("id", "model", "usage") if chunk.get(name)}
        for part in chunk.get("choices") or ():
            empty: Json = {"content": "", "finish": "stop", "calls": {}}
            choice = self.choices.setdefault(int(part.get("index", 0)), empty)
            delta = part.get("delta") or {}
            choice["content"] += delta.get("content") or ""
            choice["finish"] = part.get("finish_reason") or choice["finish"]
            for piece in delta.get("tool_calls") or ():
                nothing = {"id": "", "name": "", "arguments": ""}
                call = choice["calls"].setdefault(piece.get("index", 0), nothing)
                call["id"] = piece.get("id") or call["id"]
                for name in ("name", "arguments"):
                    call[name] += (piece.get("function") or {}).get(name) or ""

    def answer(self) -> Json:
        """The same answer as a reply without streaming."""
        rows = []
        for index, choice in sorted(self.choices.items()):
            calls = []
            for _, call in sorted(choice["calls"].items()):
                function = {"name": call["name"], "arguments": call["arguments"]}
                calls.append({"id": call["id"], "type": "function", "function": function})
            message = {"content": choice["content"], "tool_calls": calls}
            rows.append({"index": index, "message": message, "finish_reason": choice["finish"]})
        return self.fields | {"choices": rows}


def completions(answer: Json) -> list[Completion]:
    """The answers in an upstream's reply; [] when it cannot be read."""
    try:
        rows = sorted(answer["choices"], key=lambda row: row.get("index", 0))
        tokens = answer.get("usage") or {}
        return [
            Completion(
                text=row["message"].get("content") or "",
                prompt_tokens=int(tokens.get("prompt_tokens") or 0),
                completion_tokens=int(tokens.get("completion_tokens") or 0) // len(rows),
                finish=FINISH.get(str(row.get("finish_reason")), "stop"),
                seed=0,
                calls=tuple(row["message"].get("tool_calls") or ()),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


FINISH: dict[str, Literal["length", "tool_calls"]] = {
    "length": "length",
    "tool_calls": "tool_calls",
}


def _with_system(raw: Sequence[Message], prepared: Sequence[Message]) -> list[Message]:
    """The client's messages, unchanged, after the system message with the lessons."""
    rest = [message for message in raw if message.get("role") not in ("system", "developer")]
    return [prepared[0], *rest]


def _headers(reply: httpx2.Response) -> dict[str, str]:
    return {k: v for k, v in reply.headers.items() if k.lower() not in HOP | DECODED}


async def _content(reply: httpx2.Response) -> bytes:
    try:
        return await reply.aread()
    except httpx2.HTTPError as e:
        raise _unreachable("closed the connection", e) from e
    finally:
        await reply.aclose()


async def _forward(reply: httpx2.Response) -> Response:
    return Response(await _content(reply), reply.status_code, _headers(reply))


def _unreachable(problem: str, e: Exception) -> ApiError:
    message = f"The upstream server {problem}: {type(e).__name__}."
    return ApiError(502, message, code="upstream_unreachable", kind="server_error")


def _json_object(data: bytes) -> Json:
    """The JSON object in `data`; {} for anything else."""
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
