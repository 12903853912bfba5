"""Anthropic's messages API: `POST /v1/messages`.

Over the local model: text, tools that the client runs, tool calls and results. Thoughts of earlier
answers are left out of the prompt; `thinking` and other fields that only set how much effort an
answer costs change nothing. Tools that Anthropic runs itself are not offered to the model.

Not covered: an answer that continues a given one (a last message with the role assistant).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from reflect.serve.answer_reader import (
    AnswerReader,
    Choice,
    count,
    fields_of,
    objects,
    string,
    word,
)
from reflect.serve.api_errors import anthropic_body
from reflect.serve.raw_request import rewrite_messages
from reflect.serve.schema import (
    AnyBody,
    ApiError,
    ChatRequest,
    Name,
    StrictModel,
    named_event,
    offered,
    part_text,
    read,
    request_of,
)
from reflect.types import Json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Completion
    from reflect.serve.api import Served
    from reflect.tasksets.task import Message

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
FINISHES = {reason: finish for finish, reason in STOP_REASONS.items()}
THOUGHTS = ("thinking", "redacted_thinking")
SESSION = re.compile(r"session(?:_id)?[\"_: ]+([0-9a-zA-Z-]{8,64})")


class TextBlock(StrictModel):
    """A text."""

    type: Literal["text"]
    text: str


class Thought(StrictModel):
    """What the model thought before an earlier answer."""

    type: Literal["thinking", "redacted_thinking"]


class ToolUse(StrictModel):
    """A tool call of an earlier answer."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: Json


class ToolResult(StrictModel):
    """What a tool has returned."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Block = Annotated[TextBlock | Thought | ToolUse | ToolResult, Field(discriminator="type")]


class AnthropicMessage(StrictModel):
    """One message. Calls are of the assistant, results of the user."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @model_validator(mode="after")
    def _roles(self) -> AnthropicMessage:
        wrong = {"assistant": ToolResult, "user": ToolUse}.get(self.role, ToolUse | ToolResult)
        if any(isinstance(block, wrong) for block in self.content):
            problem = "A tool_use belongs to the assistant, a tool_result to the user"
            raise PydanticCustomError("value_error", problem, {"field": "content"})
        return self


class ClientTool(StrictModel):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: Json


class ProviderTool(StrictModel):
    """A tool with a type of its own; it is not offered to the model."""

    model_config = ConfigDict(extra="allow")
    type: str
    name: str | None = None


def _tool_kind(tool: object) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return "client" if kind in (None, "custom") or not isinstance(kind, str) else "provider"


AnthropicTool = Annotated[
    Annotated[ClientTool, Tag("client")] | Annotated[ProviderTool, Tag("provider")],
    Discriminator(_tool_kind),
]


class AnthropicChoice(StrictModel):
    """Which tools the model may call. `any` and `tool` force no call."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> AnthropicChoice:
        if (self.type == "tool") != (self.name is not None):
            problem = "It must name a tool with the type 'tool', and only then"
            raise PydanticCustomError("value_error", problem)
        return self


class OutputFormat(StrictModel):
    """JSON by a schema."""

    type: Literal["json_schema"]
    form: Json = Field(alias="schema")


class OutputConfig(StrictModel):
    """How the answer is written."""

    format: OutputFormat | None = None


class RelayedMessages(AnyBody):
    """The fields that lessons depend on; no other field of an upstream request is read."""

    messages: Annotated[list[Json], Field(min_length=1)]
    system: str | list[Json] | None = None


class CountedMessages(AnyBody):
    """The body of `POST /v1/messages/count_tokens`."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None


class LocalMessages(CountedMessages):
    """The body of `POST /v1/messages`: the fields and values that the model of this process
    supports. Unknown fields are ignored."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)]
    stop_sequences: Annotated[list[Name], Field(max_length=64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: None = None
    container: None = None
    mcp_servers: Annotated[list[Json], Field(max_length=0)] | None = None
    output_format: OutputFormat | None = None
    """As `output_config.format`, of older clients."""
    output_config: OutputConfig | None = None


LocalMessages.unsupported = frozenset(("top_k", "container", "mcp_servers"))


class MessagesApi:
    """The form of Anthropic's messages."""

    def parse(self, raw: object, headers: Mapping[str, str], *, strict: bool) -> ChatRequest:
        """The request of a body. ApiError 400."""
        body = read(LocalMessages if strict else RelayedMessages, raw)
        assert isinstance(raw, dict)
        request = request_of(body, raw, headers, _messages(raw))
        session = request.conversation or _session(raw, headers)
        request = replace(request, prefix="msg_", conversation=session)
        if not isinstance(body, LocalMessages):
            return request
        if raw["messages"][-1]["role"] == "assistant":
            message = "'messages': The last one must not be of the assistant: this server does not "
            raise ApiError(400, f"{message}continue a given answer.", param="messages")
        return replace(
            request,
            stop=tuple(body.stop_sequences or ()),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            max_tokens=body.max_tokens,
            tools=_offered(raw.get("tools") or [], body.tool_choice),
            response_format=_form(body),
            parallel=not (body.tool_choice and body.tool_choice.disable_parallel_tool_use),
        )

    def parse_count(self, raw: object, headers: Mapping[str, str]) -> ChatRequest:
        """The request whose tokens are to be counted. ApiError 400."""
        body = read(CountedMessages, raw)
        assert isinstance(raw, dict)
        tools = _offered(raw.get("tools") or [], body.tool_choice)
        return replace(request_of(body, raw, headers, _messages(raw)), tools=tools)

    def rewrite(self, body: bytes, system: str, extended: str) -> bytes:
        """The body for an upstream server, with lessons."""
        return rewrite_messages(body, system, extended)

    def reader(self, encoding: str) -> AnswerReader:
        """The reader of an upstream's answer."""
        return MessagesReader(encoding)

    def writer(self, request: ChatRequest, served: Served) -> MessagesWriter:
        """The writer of an answer."""
        return MessagesWriter(served)


# -- the request


def _messages(raw: Json) -> list[Message]:
    """The conversation in the form of chat completions. ApiError 400."""
    system = raw.get("system")
    if isinstance(system, list):
        system = [part for part in system if not _is_billing(part)]
    system = _text(system)
    rows: list[Message] = []
    for i, message in enumerate(raw["messages"]):
        role, content = message.get("role"), message.get("content")
        wrong = "role" if not isinstance(role, str) else "content"
        if wrong == "role" or not isinstance(content, str | list):
            where = f"messages[{i}].{wrong}"
            problem = f"'{where}' must be a text{' or a list' * (wrong == 'content')}."
            raise ApiError(400, problem, param=where, code="invalid_type")
        rows += _rows(str(role), content)
    if system or any(row["role"] == "system" for row in rows):  # lessons go to the first one
        rows.insert(0, {"role": "system", "content": system})
    return rows


def _is_billing(part: object) -> bool:
    """True for a block of Claude Code with its version and a hash: it is no instruction, and it
    would make equal tasks differ."""
    return string(fields_of(part).get("text")).startswith("x-anthropic-billing-header:")


def _rows(role: str, content: str | list[object]) -> list[Message]:
    """A message; the results in it are messages before it."""
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    texts: list[str] = []
    calls: list[Json] = []
    results: list[Message] = []
    for part in content:
        block = fields_of(part)
        kind = block.get("type")
        if kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            function = {"name": string(block.get("name")), "arguments": arguments}
            calls.append({"id": string(block.get("id")), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _text(block.get("content"))
            name = string(block.get("tool_use_id"))
            results.append({"role": "tool", "tool_call_id": name, "content": text})
        elif kind not in THOUGHTS:
            texts.append(part_text(part))
    message: Message = {"role": role, "content": "\n".join(texts)}
    message |= {"tool_calls": calls} if calls else {}
    return [*results, message] if texts or calls or not results else results


def _text(content: object) -> str:
    """The text of a content."""
    if isinstance(content, list):
        return "\n".join(part_text(part) for part in content)
    return string(content)


def _session(raw: Json, headers: Mapping[str, str]) -> str:
    """The session that Claude Code names: its requests get the same lessons, which keeps its prompt
    cache. "" for other clients."""
    if session := headers.get("x-claude-code-session-id", ""):
        return session
    match = SESSION.search(string(fields_of(raw.get("metadata")).get("user_id")))
    return match[1] if match else ""


def _offered(tools: list[Json], wanted: AnthropicChoice | None) -> tuple[Json, ...]:
    """The tools for the model, in the form of chat completions."""
    rows: list[Json] = []
    for tool in tools:
        if _tool_kind(tool) == "client":
            function = {"name": tool["name"], "parameters": tool["input_schema"]}
            function |= {"description": tool["description"]} if tool.get("description") else {}
            rows.append({"type": "function", "function": function})
    if wanted is None:
        return tuple(rows)
    return offered(rows, none=wanted.type == "none", name=wanted.name)


def _form(body: LocalMessages) -> Json | None:
    """The format of the answer in the form of chat completions."""
    form = (body.output_config and body.output_config.format) or body.output_format
    return {"type": "json_schema", "json_schema": {"schema": form.form}} if form else None


# -- the answer


class MessagesWriter:
    """Writes an answer as a message, or as its events."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._open = False  # a text block has begun

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The body of the answer."""
        (completion,) = completions
        content: list[Json] = []
        if completion.text:
            content.append({"type": "text", "text": completion.text})
        content += [_tool_use(call) | {"input": _arguments(call)} for call in completion.calls]
        ending = _ending(completion)
        return self._message(content, completion.completion_tokens) | ending

    def begin(self) -> bytes:
        """The empty message."""
        message = self._message([], 0) | {"stop_reason": None, "stop_sequence": None}
        start = named_event({"type": "message_start", "message": message})
        return start + named_event({"type": "ping"})

    def text(self, index: int, text: str) -> bytes:
        """The next piece of the text."""
        start = b""
        if not self._open:
            self._open = True
            start = _block_start(0, {"type": "text", "text": ""})
        return start + _block_delta(0, {"type": "text_delta", "text": text})

    def end(self, completions: Sequence[Completion], rest: Sequence[str]) -> bytes:
        """The rest of the text, the calls, and why the answer ends."""
        (completion,) = completions
        parts = [self.text(0, rest[0])] if rest[0] else []
        at = int(self._open)
        parts += [_block_stop(0)] if self._open else []
        for i, call in enumerate(completion.calls, at):
            delta = {"type": "input_json_delta", "partial_json": call["function"]["arguments"]}
            parts += [_block_start(i, _tool_use(call)), _block_delta(i, delta), _block_stop(i)]
        usage = self._usage(completion.completion_tokens)
        ending = {"type": "message_delta", "delta": _ending(completion), "usage": usage}
        return b"".join([*parts, named_event(ending), named_event({"type": "message_stop"})])

    def failed(self, e: ApiError) -> bytes:
        """The error as an event."""
        return named_event(anthropic_body(e))

    def _message(self, content: list[Json], tokens: int) -> Json:
        return {
            "id": self.served.id,
            "type": "message",
            "role": "assistant",
            "model": self.served.model,
            "content": content,
            "usage": self._usage(tokens),
        }

    def _usage(self, tokens: int) -> Json:
        cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {"input_tokens": self.served.prompt_tokens, **cache, "output_tokens": tokens}


def _ending(completion: Completion) -> Json:
    reason = "stop_sequence" if completion.stop else STOP_REASONS[completion.finish]
    return {"stop_reason": reason, "stop_sequence": completion.stop or None}


def _tool_use(call: Json) -> Json:
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {}}


def _arguments(call: Json) -> object:
    return json.loads(call["function"]["arguments"])


def _block_start(index: int, block: Json) -> bytes:
    return named_event({"type": "content_block_start", "index": index, "content_block": block})


def _block_delta(index: int, delta: Json) -> bytes:
    return named_event({"type": "content_block_delta", "index": index, "delta": delta})


def _block_stop(index: int) -> bytes:
    return named_event({"type": "content_block_stop", "index": index})


def anthropic_model(name: str, created: int) -> Json:
    """A model of the list. `created`: in seconds since 1970."""
    when = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": when}


class MessagesReader(AnswerReader):
    """Reads an upstream's message, whole or as events."""

    def _read_chunk(self, chunk: Json) -> None:
        kind = chunk.get("type")
        if kind == "error" or chunk.get("error"):
            raise ValueError("an error instead of an answer")
        choice = self._choices.setdefault(0, Choice())
        if kind in ("message_start", "message"):
            message = chunk if kind == "message" else fields_of(chunk.get("message"))
            choice.has_message = True
            self.id, self.model = word(message.get("id")), word(message.get("model"))
            self._read_usage(message)
            choice.finish = self._finish_of(message)
            for i, block in enumerate(objects(message.get("content"))):
                self._read_block(choice, i, block)
        elif kind == "content_block_start":
            self._read_block(choice, chunk.get("index"), fields_of(chunk.get("content_block")))
        elif kind == "content_block_delta":
            self._read_delta(choice, chunk)
        elif kind == "message_delta":
            self._read_usage(chunk)
            choice.finish = self._finish_of(fields_of(chunk.get("delta")))
        elif kind == "message_stop":
            self.complete = True

    def _completions(self) -> list[Completion]:
        for call in (call for choice in self._choices.values() for call in choice.calls):
            call.arguments = call.arguments or ["{}"]  # a call without input has no pieces of it
        return super()._completions()

    def _read_usage(self, message: Json) -> None:
        usage = fields_of(message.get("usage"))
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        if any(usage.get(name) for name in names):
            self._usage["prompt_tokens"] = sum(count(usage.get(name)) for name in names)
        if usage:
            self._usage["completion_tokens"] = count(usage.get("output_tokens"))

    def _finish_of(self, message: Json) -> str:
        reason = string(message.get("stop_reason"))
        return FINISHES.get(reason, reason)

    def _read_block(self, choice: Choice, index: object, block: Json) -> None:
        if block.get("type") == "text":
            choice.text.append(string(block.get("text")))
        elif block.get("type") == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or None}
            self._read_call(choice, {"index": index, "id": block.get("id"), "function": function})

    def _read_delta(self, choice: Choice, chunk: Json) -> None:
        delta = fields_of(chunk.get("delta"))
        if delta.get("type") == "text_delta":
            choice.text.append(string(delta.get("text")))
        elif delta.get("type") == "input_json_delta" and (
            call := choice.by_index.get(count(chunk.get("index")))
        ):
            call.arguments.append(string(delta.get("partial_json")))
