"""OpenAI's chat completions API: `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.serve.answer_reader import AnswerReader
from reflect.serve.raw_request import rewrite
from reflect.serve.schema import choice, delta, event, parse, usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Completion
    from reflect.serve.api import Served
    from reflect.serve.schema import ApiError, ChatRequest
    from reflect.types import Json


class ChatApi:
    """The form of chat completions."""

    def parse(self, raw: object, headers: Mapping[str, str], *, strict: bool) -> ChatRequest:
        """The request of a body. ApiError 400."""
        return parse(raw, headers, strict=strict)

    def rewrite(self, body: bytes, system: str, extended: str) -> bytes:
        """The body for an upstream server, with lessons."""
        return rewrite(body, system, extended)

    def reader(self, encoding: str) -> AnswerReader:
        """The reader of an upstream's answer."""
        return AnswerReader(encoding)

    def writer(self, request: ChatRequest, served: Served) -> ChatWriter:
        """The writer of an answer."""
        return ChatWriter(request, served)


class ChatWriter:
    """Writes an answer as a chat completion, or as its chunks."""

    def __init__(self, request: ChatRequest, served: Served) -> None:
        self.request = request
        self._head: Json = {
            "id": served.id,
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": served.created,
            "model": served.model,
            "system_fingerprint": f"fp_{served.fingerprint[:12]}",
        }
        self._head |= {"usage": None} if request.stream and request.usage else {}

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The body of the answer."""
        choices = [choice(i, completion) for i, completion in enumerate(completions)]
        return self._head | {"choices": choices, "usage": usage(completions)}

    def begin(self) -> bytes:
        """The role of each answer."""
        start: Json = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(i, start) for i in range(self.request.n))

    def text(self, index: int, text: str) -> bytes:
        """The next piece of an answer."""
        return self._chunk(index, {"content": text})

    def end(self, completions: Sequence[Completion], rest: Sequence[str]) -> bytes:
        """The rest of each answer, its calls and its finish, then the usage if requested."""
        parts: list[bytes] = []
        for i, completion in enumerate(completions):
            if rest[i]:
                parts.append(self._chunk(i, {"content": rest[i]}))
            if completion.calls:
                calls = [{"index": at, **call} for at, call in enumerate(completion.calls)]
                parts.append(self._chunk(i, {"tool_calls": calls}))
            parts.append(self._chunk(i, {}, completion.finish))
        if self.request.usage:
            parts.append(event(self._head | {"choices": [], "usage": usage(completions)}))
        return b"".join([*parts, event(b"[DONE]")])

    def failed(self, e: ApiError) -> bytes:
        """The error as an event."""
        return event(e.body)

    def _chunk(self, index: int, content: Json, finish: str | None = None) -> bytes:
        return event(self._head | {"choices": [delta(index, content, finish)]})
