"""The chat completions API on the wire: request bodies, answers and errors.

A field that the model does not support is refused, never ignored: another `top_p`, penalties,
logprobs, a response format, images. Fields that change no answer (`user`, `metadata`, `store` ...)
and unknown fields are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reflect.types import Json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.models.base import Completion
    from reflect.tasksets.task import Message

Text = Annotated[str, Field(min_length=1)]
Body = TypeVar("Body", bound=BaseModel)


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


class Function(StrictModel):
    """A function that a tool names."""

    name: Text


class Tool(StrictModel):
    """An offered tool."""

    function: Function


class ToolChoice(StrictModel):
    """The one tool that the model may call."""

    function: Function


class ResponseFormat(StrictModel):
    """Text; other formats are refused."""

    type: Literal["text"] = "text"


class StreamOptions(StrictModel):
    """Options of a stream."""

    include_usage: bool | None = None


class Options(StrictModel):
    """The `reflect` object of a body. Each field also exists as a header, `x-reflect-NAME`."""

    lessons: bool | None = None
    taskset: str | None = None
    conversation: str | None = None
    untrusted: bool | None = None


class RelayedBody(StrictModel):
    """The fields that lessons depend on; no other field of an upstream request is read."""

    model: Text
    messages: Annotated[list[Json], Field(min_length=1)]
    reflect: Options | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class LocalBody(RelayedBody):
    """The fields and values that the model of this process supports."""

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    top_p: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    logit_bias: Annotated[Json, Field(max_length=0)] | None = None
    response_format: ResponseFormat | None = None


class Feedback(StrictModel):
    """A reward for the answer `id`; `choice` is its index among several."""

    id: Text
    reward: Annotated[float, Field(ge=0, le=1)]
    feedback: Annotated[str, Field(max_length=10_000)] = ""
    choice: Annotated[int, Field(ge=0, lt=2**31)] | None = None


class AdapterFolder(StrictModel):
    """The body of `load_lora_adapter`."""

    lora_name: Text
    lora_path: Text


class AdapterName(StrictModel):
    """The body of `unload_lora_adapter`."""

    lora_name: Text


UNSUPPORTED = {"top_p", "frequency_penalty", "presence_penalty", "logprobs", "logit_bias"}
UNSUPPORTED |= {"response_format"}


def read(schema: type[Body], raw: object) -> Body:
    """The validated body. ApiError 400 names the first invalid field."""
    try:
        return schema.model_validate(raw)
    except ValidationError as e:
        errors = e.errors(include_url=False)
    # Every branch of a union has its own error; the one about the value says more.
    same = [row for row in errors if row["loc"][:1] == errors[0]["loc"][:1]]
    error = next((row for row in same if not row["type"].endswith("_type")), errors[0])
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    # For `stop: str | list[str]` pydantic names the branch too: keep the field only.
    path = [part for part in error["loc"] if part in raw or len(error["loc"]) == 1]
    nested = error["loc"][:2] if error["loc"][0] == "reflect" else path or error["loc"][:1]
    param = ".".join(map(str, nested))
    kind = error["type"]
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    if param in UNSUPPORTED:
        code = "unsupported_value"
    raise ApiError(400, f"'{param}': {error['msg']}.", param=param, code=code)


@dataclass(frozen=True)
class ChatRequest:
    """One request of a client. `messages` have text contents only; `raw` is the original body."""

    model: str
    messages: list[Message]
    raw: Json
    stream: bool
    usage: bool
    """The last chunk of a stream carries the token counts."""
    lessons: bool
    taskset: str | None
    conversation: str
    """Requests of one conversation see the same lessons."""
    untrusted: bool
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float = 1.0
    max_tokens: int | None = None
    tools: tuple[Json, ...] = ()


def parse(raw: Json, headers: Mapping[str, str], *, strict: bool = True) -> ChatRequest:
    """The request of a client. `strict=False`, for an upstream request, reads only what lessons
    need. ApiError 400."""
    body = read(LocalBody if strict else RelayedBody, raw)
    options = body.reflect or Options()
    off = headers.get("x-reflect-lessons", "on").lower() in ("off", "false", "0", "no")
    common = ChatRequest(
        model=body.model,
        messages=[_message(message, i, strict) for i, message in enumerate(body.messages)],
        raw=raw,
        stream=body.stream is True,
        usage=bool(body.stream_options and body.stream_options.include_usage),
        lessons=not off if options.lessons is None else options.lessons,
        taskset=options.taskset or headers.get("x-reflect-taskset"),
        conversation=options.conversation or headers.get("x-reflect-conversation", ""),
        untrusted=options.untrusted is True,
    )
    if not isinstance(body, LocalBody):
        return common
    return replace(
        common,
        n=body.n or 1,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        seed=body.seed,
        temperature=1.0 if body.temperature is None else body.temperature,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        tools=_offered(raw.get("tools") or [], body.tool_choice),
    )


def _offered(tools: list[Json], wanted: str | ToolChoice | None) -> tuple[Json, ...]:
    """The tools for the model: none, all, or the one that the client names. No call is forced."""
    if not isinstance(wanted, ToolChoice):
        return () if wanted == "none" else tuple(tools)
    name = wanted.function.name
    named = tuple(tool for tool in tools if tool["function"]["name"] == name)
    if not named:
        raise ApiError(400, f"'tool_choice' names no offered tool: {name}.", param="tool_choice")
    return named


ROLES = ("assistant", "developer", "function", "system", "tool", "user")


def _message(message: Json, i: int, strict: bool) -> Message:
    """The message with text content; `developer` becomes `system`."""
    role = message.get("role")
    if role not in ROLES:
        where = f"messages[{i}].role"
        raise ApiError(400, f"'{where}' must be one of {', '.join(ROLES)}.", param=where)
    optional = not strict or (role == "assistant" and bool(message.get("tool_calls")))
    text = _content(message.get("content"), f"messages[{i}].content", strict, optional)
    return {**message, "content": text, "role": "system" if role == "developer" else role}


def _content(value: object, where: str, strict: bool, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if not isinstance(value, list):
        raise ApiError(400, f"'{where}' must be a text.", param=where, code="invalid_type")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif strict:
            message = f"'{where}' has a part that is no text."
            raise ApiError(400, message, param=where, code="unsupported_value")
        else:
            texts.append(f"[{kind or 'part'}]")
    return "\n".join(texts)


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


def delta(index: int, content: Json, finish: str | None = None) -> Json:
    """One part of a streamed answer."""
    return {"index": index, "delta": content, "finish_reason": finish, "logprobs": None}
