"""What differs between the APIs of the server: the form of requests, answers and errors.

The chat completions API (`chat_api`), Anthropic's messages (`messages`) and OpenAI's responses
(`responses`) share everything else: lessons, the model, the upstream server, the records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Completion
    from reflect.serve.answer_reader import AnswerReader
    from reflect.serve.schema import ApiError, ChatRequest
    from reflect.types import Json


@dataclass(frozen=True)
class Served:
    """What an answer says about itself. `created`: in seconds since 1970."""

    id: str
    model: str
    fingerprint: str
    prompt_tokens: int
    created: int


class AnswerWriter(Protocol):
    """Writes one answer: `whole`; or as server-sent events `begin`, any number of `text`, then
    `end` or `failed`."""

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The body of the answer."""
        ...

    def begin(self) -> bytes:
        """The events before the first text."""
        ...

    def text(self, index: int, text: str) -> bytes:
        """The events of the next piece of an answer's text."""
        ...

    def end(self, completions: Sequence[Completion], rest: Sequence[str]) -> bytes:
        """The last events. `rest`: of each answer, the text that was not sent."""
        ...

    def failed(self, e: ApiError) -> bytes:
        """The events of an error after the begin."""
        ...


class Api(Protocol):
    """One API."""

    def parse(self, raw: object, headers: Mapping[str, str], *, strict: bool) -> ChatRequest:
        """The request of a body. `strict`: for the model of this process; otherwise only what
        lessons depend on is read. ApiError 400."""
        ...

    def rewrite(self, body: bytes, system: str, extended: str) -> bytes:
        """The body for an upstream server: `extended`, the system text with lessons, in place of
        `system`; "" to add none."""
        ...

    def reader(self, encoding: str) -> AnswerReader:
        """The reader of an upstream's answer. `encoding`: its Content-Encoding."""
        ...

    def writer(self, request: ChatRequest, served: Served) -> AnswerWriter:
        """The writer of an answer by the model of this process."""
        ...
