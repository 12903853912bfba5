"""OpenAI's responses API: `POST /v1/responses`.

Over the local model: text, function tools, custom tools (their text is the one parameter of a
function), calls and results. Earlier reasoning is left out of the prompt; `reasoning` and other
fields that only set how much effort an answer costs change nothing. Tools that OpenAI runs itself
are not offered to the model.

Not covered: responses that continue a stored one (`previous_response_id`, `conversation`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
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
from reflect.serve.raw_request import rewrite_responses
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

SESSION_HEADERS = ("session_id", "session-id", "conversation_id", "conversation-id", "thread-id")
"""Codex names its session in one of these."""
STORED = "This server does not continue stored responses: send the whole conversation as 'input'"


class InputText(StrictModel):
    """A text of a message. Images and files are refused."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class Refusal(StrictModel):
    """A refusal of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


Part = Annotated[InputText | Refusal, Field(discriminator="type")]


class InputMessage(StrictModel):
    """One message."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]


class FunctionCall(StrictModel):
    """A function call of an earlier answer; `arguments` are JSON text."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: str


class CustomCall(StrictModel):
    """A call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: Name
    name: Name
    input: str


class CallOutput(StrictModel):
    """What a tool has returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: str | list[InputText]


class Reasoning(StrictModel):
    """What the model thought before an earlier answer."""

    type: Literal["reasoning"]


def _item_kind(item: object) -> str | None:
    kind = fields_of(item).get("type") or ("message" if isinstance(item, dict) else None)
    return OUTPUTS.get(kind, kind) if isinstance(kind, str) else None


OUTPUTS = {"custom_tool_call_output": "function_call_output"}
Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[CustomCall, Tag("custom_tool_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(_item_kind),
]


class FunctionTool(StrictModel):
    """A function that the client runs."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: Json | None = None


class CustomTool(StrictModel):
    """A tool that the client runs on a text."""

    type: Literal["custom"]
    name: Name
    description: str | None = None


class BuiltInTool(StrictModel):
    """A tool of another type; it is not offered to the model."""

    model_config = ConfigDict(extra="allow")
    type: Name


def _tool_kind(tool: object) -> str:
    kind = fields_of(tool).get("type")
    return kind if kind in ("function", "custom") else "other"


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[BuiltInTool, Tag("other")],
    Discriminator(_tool_kind),
]


class NamedTool(StrictModel):
    """The one tool that the model may call."""

    type: Literal["function", "custom"]
    name: Name


class TextFormat(StrictModel):
    """Text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    form: Json | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema(self) -> TextFormat:
        if self.type == "json_schema" and self.form is None:
            raise PydanticCustomError("missing", "It is required", {"field": "schema"})
        return self


class TextOptions(StrictModel):
    """How the text is written."""

    format: TextFormat | None = None


class RelayedResponse(AnyBody):
    """The fields that lessons depend on; no other field of an upstream request is read."""

    input: str | list[Json]
    instructions: str | None = None


class LocalResponse(RelayedResponse):
    """The body of `POST /v1/responses`: the fields and values that the model of this process
    supports. Unknown fields are ignored."""

    input: str | Annotated[list[Item], Field(min_length=1)]  # type: ignore[assignment]
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: object = None
    text: TextOptions | None = None
    background: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    truncation: Literal["disabled"] | None = None
    prompt: None = None

    @field_validator("previous_response_id", "conversation", mode="before")
    @classmethod
    def _not_stored(cls, value: object) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", STORED)


LocalResponse.unsupported = frozenset(("background", "top_logprobs", "truncation", "prompt"))


class ResponsesApi:
    """The form of OpenAI's responses."""

    def parse(self, raw: object, headers: Mapping[str, str], *, strict: bool) -> ChatRequest:
        """The request of a body. ApiError 400."""
        body = read(LocalResponse if strict else RelayedResponse, raw)
        assert isinstance(raw, dict)
        request = request_of(body, raw, headers, _messages(body.instructions or "", raw["input"]))
        session = next((value for name in SESSION_HEADERS if (value := headers.get(name))), "")
        session = request.conversation or session
        request = replace(request, prefix="resp_", conversation=session)
        if not isinstance(body, LocalResponse):
            return request
        tools = [tool for one in raw.get("tools") or [] if (tool := _offered(one))]
        wanted = body.tool_choice
        name = wanted.name if isinstance(wanted, NamedTool) else None
        return replace(
            request,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            max_tokens=body.max_output_tokens,
            tools=offered(tools, none=wanted == "none", name=name),
            response_format=_form(body.text),
            parallel=body.parallel_tool_calls is not False,
        )

    def rewrite(self, body: bytes, system: str, extended: str) -> bytes:
        """The body for an upstream server, with lessons."""
        return rewrite_responses(body, system, extended)

    def reader(self, encoding: str) -> AnswerReader:
        """The reader of an upstream's answer."""
        return ResponsesReader(encoding)

    def writer(self, request: ChatRequest, served: Served) -> ResponsesWriter:
        """The writer of an answer."""
        return ResponsesWriter(request, served)


# -- the request


def _messages(instructions: str, items: str | list[Json]) -> list[Message]:
    """The conversation in the form of chat completions. ApiError 400."""
    rows: list[Message] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(items, str):
        return [*rows, {"role": "user", "content": items}]
    for i, item in enumerate(items):
        kind = item.get("type") or "message"
        if kind == "message":
            rows.append(_message(item, i))
        elif kind in ("function_call", "custom_tool_call"):
            arguments = item.get("arguments")
            if kind == "custom_tool_call":
                arguments = json.dumps({"input": item.get("input")}, ensure_ascii=False)
            function = {"name": string(item.get("name")), "arguments": string(arguments) or "{}"}
            name = string(item.get("call_id"))
            if not rows or rows[-1]["role"] != "assistant":
                rows.append({"role": "assistant", "content": ""})
            calls = rows[-1].setdefault("tool_calls", [])
            calls.append({"id": name, "type": "function", "function": function})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            name, text = string(item.get("call_id")), _text(item.get("output"))
            rows.append({"role": "tool", "tool_call_id": name, "content": text})
        elif kind != "reasoning":
            rows.append({"role": "assistant", "content": part_text(item)})
    return rows


def _message(item: Json, i: int) -> Message:
    role, content = item.get("role"), item.get("content")
    wrong = "role" if not isinstance(role, str) else "content"
    if wrong == "role" or not isinstance(content, str | list):
        where = f"input[{i}].{wrong}"
        problem = f"'{where}' must be a text{' or a list' * (wrong == 'content')}."
        raise ApiError(400, problem, param=where, code="invalid_type")
    return {"role": "system" if role == "developer" else role, "content": _text(content)}


def _text(content: object) -> str:
    """The text of a content."""
    if isinstance(content, list):
        return "\n".join(_part(part) for part in content)
    return string(content)


def _part(part: object) -> str:
    fields = fields_of(part)
    if fields.get("type") in ("input_text", "output_text"):
        return string(fields.get("text"))
    return string(fields.get("refusal")) or part_text(part)


def _offered(tool: Json) -> Json | None:
    """A tool in the form of chat completions, None if the client does not run it."""
    function: Json = {"name": tool.get("name")}
    function |= {"description": tool["description"]} if tool.get("description") else {}
    if tool["type"] == "function":
        function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
    elif tool["type"] == "custom":
        text = {"type": "object", "properties": {"input": {"type": "string"}}}
        function["parameters"] = text | {"required": ["input"]}
    else:
        return None
    return {"type": "function", "function": function}


def _form(text: TextOptions | None) -> Json | None:
    """The format of the text in the form of chat completions."""
    if text is None or text.format is None or text.format.type == "text":
        return None
    if text.format.type == "json_object":
        return {"type": "json_object"}
    schema = {"name": text.format.name, "schema": text.format.form, "strict": text.format.strict}
    return {"type": "json_schema", "json_schema": schema}


# -- the answer


class ResponsesWriter:
    """Writes an answer as a response, or as its events."""

    def __init__(self, request: ChatRequest, served: Served) -> None:
        self.request, self.served = request, served
        self._name = served.id.removeprefix("resp_")
        self._custom = {
            tool["name"] for tool in request.raw.get("tools") or [] if tool["type"] == "custom"
        }
        self._sequence = 0
        self._open = False  # a text has begun
        self._sent: list[str] = []  # its pieces

    def whole(self, completions: Sequence[Completion]) -> Json:
        """The body of the answer."""
        (completion,) = completions
        return self._response(completion, self._items(completion))

    def begin(self) -> bytes:
        """The empty response."""
        response = self._response(None, [])
        kinds = ("response.created", "response.in_progress")
        return b"".join(self._event(kind, response=response) for kind in kinds)

    def text(self, index: int, text: str) -> bytes:
        """The next piece of the text."""
        start = b""
        if not self._open:
            self._open = True
            item = self._message("in_progress", [])
            start = self._event("response.output_item.added", output_index=0, item=item)
            start += self._part_event("response.content_part.added", part=_output_text(""))
        self._sent.append(text)
        return start + self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def end(self, completions: Sequence[Completion], rest: Sequence[str]) -> bytes:
        """The rest of the text, the calls, and the whole response."""
        (completion,) = completions
        items = self._items(completion)
        parts = [self.text(0, rest[0])] if rest[0] or not (self._open or completion.calls) else []
        if self._open:
            text = "".join(self._sent)
            part = _output_text(text)
            parts += [
                self._part_event("response.output_text.done", text=text, logprobs=[]),
                self._part_event("response.content_part.done", part=part),
                self._event("response.output_item.done", output_index=0, item=items[0]),
            ]
        for i, item in enumerate(items):
            if item["type"] != "message":
                parts.append(self._call_events(i, item))
        response = self._response(completion, items)
        parts.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(parts)

    def failed(self, e: ApiError) -> bytes:
        """The error as an event."""
        error = e.body["error"]
        failure = {"code": "server_error", "message": error["message"]}
        response = self._response(None, []) | {"status": "failed", "error": failure}
        fields = {name: error[name] for name in ("code", "message", "param")}
        return self._event("error", **fields) + self._event("response.failed", response=response)

    def _call_events(self, index: int, item: Json) -> bytes:
        """The events of one call."""
        custom = item["type"] == "custom_tool_call"
        name = "input" if custom else "arguments"
        kind = f"response.{'custom_tool_call_input' if custom else 'function_call_arguments'}"
        where: Json = {"output_index": index, "item_id": item["id"]}
        start = item | {"status": "in_progress", name: ""}
        done = where | {name: item[name]} | ({} if custom else {"name": item["name"]})
        return b"".join(
            (
                self._event("response.output_item.added", output_index=index, item=start),
                self._event(f"{kind}.delta", **where, delta=item[name]),
                self._event(f"{kind}.done", **done),
                self._event("response.output_item.done", output_index=index, item=item),
            )
        )

    def _items(self, completion: Completion) -> list[Json]:
        items: list[Json] = []
        status = "incomplete" if completion.finish == "length" else "completed"
        if completion.text or not completion.calls:
            items.append(self._message(status, [_output_text(completion.text)]))
        for i, call in enumerate(completion.calls):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            item: Json = {"id": f"fc_{self._name}{i}", "call_id": call["id"], "name": name}
            item["status"] = "completed"
            if name in self._custom:
                text = string(fields_of(json.loads(arguments)).get("input"))
                items.append(item | {"type": "custom_tool_call", "input": text})
            else:
                items.append(item | {"type": "function_call", "arguments": arguments})
        return items

    def _message(self, status: str, content: list[Json]) -> Json:
        return {
            "id": f"msg_{self._name}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, completion: Completion | None, output: list[Json]) -> Json:
        """The response; without a completion, before its end."""
        raw, finish = self.request.raw, completion.finish if completion else ""
        usage = None
        if completion:
            tokens, answer = self.served.prompt_tokens, completion.completion_tokens
            usage = {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens + answer,
            }
        cut = finish == "length"
        return {
            "id": self.served.id,
            "object": "response",
            "created_at": self.served.created,
            "status": "incomplete" if cut else "completed" if completion else "in_progress",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": raw.get("instructions"),
            "max_output_tokens": raw.get("max_output_tokens"),
            "metadata": fields_of(raw.get("metadata")),
            "model": self.served.model,
            "output": output,
            "parallel_tool_calls": self.request.parallel,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": self.request.temperature,
            "text": raw.get("text") or {"format": {"type": "text"}},
            "tool_choice": raw.get("tool_choice") or "auto",
            "tools": raw.get("tools") or [],
            "top_p": self.request.top_p,
            "truncation": "disabled",
            "usage": usage,
        }

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        where = {"item_id": f"msg_{self._name}", "output_index": 0, "content_index": 0}
        return self._event(kind, **where, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return named_event({"type": kind, "sequence_number": self._sequence - 1, **fields})


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponsesReader(AnswerReader):
    """Reads an upstream's response, whole or as events: the last event repeats the whole."""

    def __init__(self, encoding: str = "") -> None:
        super().__init__(encoding)
        self._items: list[Json] = []

    def _read_chunk(self, chunk: Json) -> None:
        kind = string(chunk.get("type"))
        if kind in ("error", "response.failed") or chunk.get("error"):
            raise ValueError("an error instead of an answer")
        if kind == "response.output_item.done":
            self._items.append(fields_of(chunk.get("item")))
        elif kind in ("response.completed", "response.incomplete", "response.done"):
            self._read_response(fields_of(chunk.get("response")))
            self.complete = True
        elif isinstance(chunk.get("output"), list):
            self._read_response(chunk)

    def _read_response(self, response: Json) -> None:
        if response.get("status") not in ("completed", "incomplete", None):
            raise ValueError("no answer yet, or none at all")
        self.id, self.model = word(response.get("id")), word(response.get("model"))
        usage = fields_of(response.get("usage"))
        self._usage = {
            "prompt_tokens": count(usage.get("input_tokens")),
            "completion_tokens": count(usage.get("output_tokens")),
        }
        choice = self._choices.setdefault(0, Choice(has_message=True))
        # Some servers send the items in their own events only.
        for item in objects(response.get("output")) or self._items:
            if item.get("type") == "message":
                choice.text += [_part(part) for part in objects(item.get("content"))]
            elif item.get("type") in ("function_call", "custom_tool_call"):
                arguments = item.get("arguments")
                if item["type"] == "custom_tool_call":
                    arguments = {"input": item.get("input")}
                function = {"name": item.get("name"), "arguments": arguments}
                self._read_call(choice, {"id": item.get("call_id"), "function": function})
        choice.finish = "tool_calls" if choice.calls else "stop"
        if response.get("status") == "incomplete":
            choice.finish = "length"
