"""The chat completions API on the wire: request bodies, answers and errors.

A field that the model does not support is refused, never ignored: penalties, logprobs, images.
Fields that change no answer (`user`, `metadata`, `store` ...) and unknown fields are ignored.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from reflect.reading import clipped
from reflect.types import Json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Completion
    from reflect.tasksets.task import Message

Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Body = TypeVar("Body", bound="StrictModel")


class ApiError(Exception):
    """A refused request in the API's format. `code` is for programs, `param` names the field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StrictModel(BaseModel):
    """A body from a client: strict types, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    unsupported: ClassVar[frozenset[str]] = frozenset()
    """Fields with values that change nothing; each other value is refused."""


class Function(StrictModel):
    """A function that a tool names. Its other fields are for the chat template."""

    model_config = ConfigDict(extra="allow")
    name: Name
    description: str | None = None
    parameters: Json | None = None


class Tool(StrictModel):
    """An offered tool."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(StrictModel):
    """The name of an offered function."""

    name: Name


class ToolChoice(StrictModel):
    """The one tool that the model may call."""

    type: Literal["function"] = "function"
    function: FunctionName


class CalledFunction(StrictModel):
    """A call of an earlier answer. `arguments`: JSON text, or an object."""

    name: Name
    arguments: str | Json = "{}"


class ToolCall(StrictModel):
    """A tool call of an earlier answer."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class TextPart(StrictModel):
    """A part of a content. Images, sounds and files are refused."""

    type: Literal["text"]
    text: str


class ChatMessage(StrictModel):
    """One message. Without tool calls it has a content."""

    role: Literal["assistant", "developer", "function", "system", "tool", "user"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("string_type", "It must be a text", {"field": "content"})
        return self


class JsonSchema(StrictModel):
    """The schema of an answer. Strict or not, the answer has this form."""

    name: Name | None = None
    description: str | None = None
    schema_: Annotated[Json | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """Text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise PydanticCustomError("missing", "It is required", {"field": "json_schema"})
        return self


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool | None = None


class Options(StrictModel):
    """The `reflect` object of a body. Each field also exists as a header, `x-reflect-NAME`."""

    lessons: bool | None = None
    taskset: Name | None = None
    conversation: str | None = None
    untrusted: bool | None = None


class AnyBody(StrictModel):
    """The fields that the body of every API has."""

    model: Name
    reflect: Options | None = None
    stream: bool | None = None


class RelayedBody(AnyBody):
    """The fields that lessons depend on; no other field of an upstream request is read."""

    messages: Annotated[list[Json], Field(min_length=1)]
    stream_options: StreamOptions | None = None


class LocalBody(RelayedBody):
    """The body of `POST /v1/chat/completions`: the fields and values that the model of this process
    supports. Unknown fields are ignored."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]  # type: ignore[assignment]
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stop: Name | Annotated[list[Name], Field(max_length=4)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[Json, Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None
    functions: Annotated[list[Json], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    web_search_options: None = None
    reasoning_effort: None = None
    verbosity: Literal["medium"] | None = None


class Feedback(StrictModel):
    """A reward for the answer `id`; `choice` is its index among several."""

    id: Name
    reward: Annotated[float, Field(ge=0, le=1)]
    feedback: Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")] = ""
    choice: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class TokensBody(StrictModel):
    """The body of `POST /v1/completions`: a prompt in token ids, or a text that is encoded as it
    is. No lessons are added, and nothing is recorded."""

    model: Name
    prompt: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Name
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    stop: Name | Annotated[list[Name], Field(max_length=4)] | None = None
    return_token_ids: bool = False
    """Add the sampled ids to each choice, as vLLM does."""
    stream: Literal[False] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None


TokensBody.unsupported = frozenset({"stream", "echo", "logprobs"})


class AdapterFolder(StrictModel):
    """The body of `load_lora_adapter`."""

    lora_name: Name
    lora_path: Name


class AdapterName(StrictModel):
    """The body of `unload_lora_adapter`."""

    lora_name: Name


SUPPORTED = {"n", "seed", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop"}
SUPPORTED |= {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
} | RelayedBody.model_fields.keys()
LocalBody.unsupported = frozenset(LocalBody.model_fields.keys() - SUPPORTED)
DEEPEST = 200  # levels of a JSON body


def load_json(data: bytes) -> object:
    """The JSON value of a body. ApiError 400 for what is no JSON in UTF-8, and, naming the field,
    for half a surrogate pair, a number that is not finite, and nesting below DEEPEST levels."""
    error: Exception | None = None
    value: object = None
    try:
        value = from_json(data)
    except ValueError as e:
        error = e
    # Only a number with a large exponent or many digits can be infinite.
    if error or b"NaN" in data or b"Inf" in data or LARGE.search(data):
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as e:
            message = (
                f"We could not parse the JSON body of your request: {clipped(str(error or e))}."
            )
            raise ApiError(400, message) from e
        if problem := _bad_value(value):
            field, why = problem
            raise ApiError(400, f"'{field}' {why}.", param=field, code="invalid_value")
    return value


LARGE = re.compile(rb"[eE]\+?\d{3}|\d{300}")


def _bad_value(value: object) -> tuple[str, str] | None:
    """(its field, why) of the first value in a body that nothing can store or send."""
    stack: list[tuple[tuple[str | int, ...], int, object]] = [((), 0, value)]
    while stack:
        path, depth, item = stack.pop()
        field = _field(path)
        if depth > DEEPEST:
            return field, f"is nested deeper than {DEEPEST} levels"
        if isinstance(item, float) and not math.isfinite(item):
            return field, "is not a finite number"
        if isinstance(item, str) and not _encodes(item):
            return field, "has half of a surrogate pair"
        rows: list[tuple[str | int, object]] = []
        if isinstance(item, dict):
            rows += item.items()
        elif isinstance(item, list):
            rows += enumerate(item)
        if key := next((key for key, _ in rows if isinstance(key, str) and not _encodes(key)), ""):
            return _field((*path, key)), "has half of a surrogate pair"
        # The first components of a path are enough to name a field.
        stack += [((*path, key)[:4], depth + 1, inner) for key, inner in reversed(rows)]
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _field(path: Sequence[str | int]) -> str:
    """`messages[0].content`: the name of a field by its path."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return clipped("".join(parts).lstrip("."), 100)


def read(schema: type[Body], raw: object) -> Body:
    """The validated body. ApiError 400 names the first invalid field."""
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    try:
        return schema.model_validate(raw)
    except ValidationError as e:
        errors = e.errors(include_url=False, include_input=False)
    # Every branch of a union has its own error: the one that is deepest in the body says most.
    same = [row for row in errors if row["loc"][:1] == errors[0]["loc"][:1]]
    paths = [_path(raw, row["loc"], row["type"] == "missing") for row in same]
    ranks = [
        (len(path), not row["type"].endswith("_type"))
        for row, path in zip(same, paths, strict=True)
    ]
    best = ranks.index(max(ranks))
    error, path = same[best], paths[best]
    path += [error["ctx"]["field"]] if "field" in error.get("ctx", {}) else []
    # The whole path is in the message; `param` is the field of the body, or of a message.
    param = _field(path[: {"messages": 3, "input": 3, "reflect": 2}.get(str(path[0]), 1)])
    where, kind = _field(path), error["type"]
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    code = "unsupported_value" if kind == "unsupported" else code
    text = PLAIN.get(kind, error["msg"].replace(" after validation", ""))
    if param in schema.unsupported or (path[2:3] == ["content"] and path[4:] == ["type"]):
        code, text = "unsupported_value", "This value is not supported"
    message = f"'{where}': {clipped(text)}."
    raise ApiError(400, message, param=param, code=None if path[-1] == "role" else code)


PLAIN = {"missing": "It is required", "string_type": "It must be a text"}
PLAIN |= dict.fromkeys(("model_type", "dict_type"), "It must be a JSON object")
PLAIN |= {"model_attributes_type": "It must be a JSON object"}
PLAIN |= {"union_tag_invalid": "This type is not supported"}
PLAIN |= {"union_tag_not_found": "It must be a JSON object with a known type"}


def _path(value: object, location: Sequence[str | int], missing: bool) -> list[str | int]:
    """The part of pydantic's location that is in the body: it also names the branches of unions. A
    missing field is the last part."""
    path: list[str | int] = []
    for i, part in enumerate(location):
        rows = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(rows, dict) and part in rows:
            value = rows[part]
        elif not (missing and i + 1 == len(location)):
            continue
        path.append(part)
    return path


@dataclass(frozen=True)
class ChatRequest:
    """One request of a client. `messages` have text contents only; `raw` is the original body."""

    model: str
    messages: list[Message]
    raw: Json
    stream: bool
    lessons: bool
    taskset: str | None
    conversation: str
    """Requests of one conversation see the same lessons."""
    untrusted: bool
    prefix: str = "chatcmpl-"
    """The first letters of the answer's id."""
    usage: bool = False
    """The last chunk of a stream carries the token counts."""
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None
    tools: tuple[Json, ...] = ()
    parallel: bool = True
    """An answer may have more than one tool call."""
    response_format: Json | None = None
    """A form other than text."""


def parse(raw: object, headers: Mapping[str, str], *, strict: bool = True) -> ChatRequest:
    """The request of a client. `strict=False`, for an upstream request, reads only what lessons
    need. ApiError 400."""
    body = read(LocalBody if strict else RelayedBody, raw)
    assert isinstance(raw, dict)
    messages = [_message(message, i, strict) for i, message in enumerate(raw["messages"])]
    common = replace(
        request_of(body, raw, headers, messages),
        usage=bool(body.stream_options and body.stream_options.include_usage),
    )
    if not isinstance(body, LocalBody):
        return common
    return replace(
        common,
        n=body.n or 1,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        parallel=body.parallel_tool_calls is not False,
        tools=offered(
            raw.get("tools") or [],
            none=body.tool_choice == "none",
            name=body.tool_choice.function.name
            if isinstance(body.tool_choice, ToolChoice)
            else None,
        ),
        response_format=_form(raw.get("response_format")),
    )


def _form(given: Json | None) -> Json | None:
    return given if given and given.get("type", "text") != "text" else None


def request_of(
    body: AnyBody, raw: Json, headers: Mapping[str, str], messages: list[Message]
) -> ChatRequest:
    """The request with the fields that every API has."""
    options = body.reflect or Options()
    off = headers.get("x-reflect-lessons", "on").lower() in ("off", "false", "0", "no")
    return ChatRequest(
        model=body.model,
        messages=messages,
        raw=raw,
        stream=body.stream is True,
        lessons=not off if options.lessons is None else options.lessons,
        taskset=options.taskset or headers.get("x-reflect-taskset"),
        conversation=options.conversation or headers.get("x-reflect-conversation", ""),
        untrusted=options.untrusted is True,
    )


def offered(tools: list[Json], *, none: bool, name: str | None) -> tuple[Json, ...]:
    """The tools for the model: none, all, or the one that the client names. No call is forced."""
    if name is None:
        return () if none else tuple(tools)
    named = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not named:
        message = f"'tool_choice' names no offered tool: {clipped(name)}."
        raise ApiError(400, message, param="tool_choice", code="invalid_value")
    return named


def _message(message: Json, i: int, strict: bool) -> Message:
    """The message with text content; `developer` becomes `system`. In an upstream request a content
    may have other parts, and no role is unknown."""
    where, role, content = f"messages[{i}]", message.get("role"), message.get("content")
    if not isinstance(role, str):
        where += ".role"
        raise ApiError(400, f"'{where}' must be a text.", param=where, code="invalid_type")
    if not isinstance(content, str | list | None):
        where += ".content"
        raise ApiError(400, f"'{where}' must be a text.", param=where, code="invalid_type")
    parts = [part_text(part) for part in content] if isinstance(content, list) else [content or ""]
    changed: Message = {"content": "\n".join(parts)}
    if role == "developer":
        changed["role"] = "system"
    if strict and not message.get("tool_calls"):  # null and [] are no calls
        message = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**message, **changed}


def part_text(part: object) -> str:
    """The text of a content part; the kind of another part in brackets."""
    fields = part if isinstance(part, dict) else {}
    if fields.get("type") == "text" and isinstance(fields.get("text"), str):
        return str(fields["text"])
    return f"[{clipped(str(fields.get('type') or 'part'), 40)}]"


def choice(index: int, completion: Completion) -> Json:
    """One answer of a reply."""
    message: Json = {
        "role": "assistant",
        "content": completion.text or (None if completion.calls else ""),
    }
    message |= {"refusal": None} | (
        {"tool_calls": list(completion.calls)} if completion.calls else {}
    )
    return {
        "index": index,
        "message": message,
        "finish_reason": completion.finish,
        "logprobs": None,
    }


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """The token counts of a reply."""
    prompt = completions[0].prompt_tokens
    answer = sum(completion.completion_tokens for completion in completions)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(data: Json | bytes) -> bytes:
    """One server-sent event."""
    content = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    return b"data: " + content + b"\n\n"


def named_event(data: Json) -> bytes:
    """One server-sent event with its type as its name."""
    return f"event: {data['type']}\n".encode() + event(data)


def delta(index: int, content: Json, finish: str | None = None) -> Json:
    """One part of a streamed answer."""
    return {"index": index, "delta": content, "finish_reason": finish, "logprobs": None}
