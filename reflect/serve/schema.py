"""The chat completions API on the wire: what a request may say, what an answer and an error look
like.

What cannot be honoured is refused and never ignored: another `top_p`, penalties, logprobs, a
response format, images. Fields that change no answer (`user`, `metadata`, `store` ...) and fields
that nobody knows are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reflect.models.base import Completion
from reflect.tasksets.task import Message

ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
MOST_CHOICES = 128
MOST_STOPS = 4
PLAIN = "x-reflect-lessons"  # a header: "off" for a client that brings its own lessons
ONLY = {
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
}  # what else would be ignored


class ApiError(Exception):
    """Refused, in the API's own words. `code` is for programs, `param` names the field that is
    off."""

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


@dataclass(frozen=True)
class ChatRequest:
    """One request of a client. `messages` have text contents only; `raw` is the body as it came."""

    model: str
    messages: list[Message]
    raw: dict[str, Any]
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    temperature: float = 1.0
    max_tokens: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    stream: bool = False
    usage: bool = False  # a last chunk of a stream says what it cost
    # -- ours: "reflect": {...} in the body, or headers
    lessons: bool = True
    taskset: str | None = None
    conversation: str = ""  # its requests see the same lessons
    untrusted: bool = False


def parse(raw: Any, headers: Mapping[str, str], *, strict: bool = True) -> ChatRequest:
    """What the client asks for. `strict=False`, for a request that goes on to another server, reads
    only what is needed to give it lessons. ApiError 400."""
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    model = raw.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "You must provide a model parameter.", param="model")
    ours = raw.get("reflect") or {}
    if not isinstance(ours, dict):
        raise ApiError(400, "'reflect' must be an object.", param="reflect")
    words: dict[str, Any] = {
        "lessons": ours.get(
            "lessons", headers.get(PLAIN, "on").lower() not in ("off", "false", "0", "no")
        )
        is not False,
        "taskset": _text(ours, "taskset") or headers.get("x-reflect-taskset"),
        "conversation": _text(ours, "conversation") or headers.get("x-reflect-conversation", ""),
        "untrusted": ours.get("untrusted") is True,
        "stream": raw.get("stream") is True,
        "usage": bool((raw.get("stream_options") or {}).get("include_usage")),
    }
    messages = read_messages(raw.get("messages"), strict)
    return ChatRequest(model, messages, raw, **words, **(_sampling(raw) if strict else {}))


def _text(ours: dict[str, Any], name: str) -> str | None:
    value = ours.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"'reflect.{name}' must be a text.", param=f"reflect.{name}")
    return value


def _sampling(raw: dict[str, Any]) -> dict[str, Any]:
    for name, only in ONLY.items():
        if raw.get(name) not in (None, only):
            raise ApiError(
                400,
                f"'{name}' other than {only} is not supported.",
                param=name,
                code="unsupported_value",
            )
    if (raw.get("response_format") or {"type": "text"}).get("type") != "text":
        raise ApiError(
            400,
            "Only text is answered: no 'response_format'.",
            param="response_format",
            code="unsupported_value",
        )
    if raw.get("logit_bias"):
        raise ApiError(
            400, "'logit_bias' is not supported.", param="logit_bias", code="unsupported_value"
        )
    limit = (
        "max_completion_tokens" if raw.get("max_completion_tokens") is not None else "max_tokens"
    )
    tools = raw.get("tools") or []
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise ApiError(
            400,
            "'tools' must be a list of {'type': 'function', 'function': {'name': ...}}.",
            param="tools",
        )
    return {
        "n": _number(raw, "n", 1, MOST_CHOICES, 1),
        "seed": _number(raw, "seed", -(2**63), 2**63 - 1, None),
        "max_tokens": _number(raw, limit, 1, 2**31, None),
        "temperature": float(_number(raw, "temperature", 0, 2, 1.0, whole=False)),
        "stop": _stops(raw.get("stop")),
        "tools": _offered(tools, raw.get("tool_choice")),
    }


def _number(
    raw: dict[str, Any], name: str, low: float, high: float, default: Any, *, whole: bool = True
) -> Any:
    value = raw.get(name)
    if value is None:
        return default
    if (
        isinstance(value, bool)
        or not isinstance(value, int if whole else (int, float))
        or not math.isfinite(value)
    ):
        kind = "an integer" if whole else "a number"
        raise ApiError(
            400,
            f"'{name}' must be {kind}, not {json.dumps(value)[:40]}.",
            param=name,
            code="invalid_type",
        )
    if not low <= value <= high:
        told = f"'{name}' must be between {low} and {high}, not {value}."
        raise ApiError(400, told, param=name, code="invalid_value")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(x, str) and x for x in stops)
    ):
        raise ApiError(
            400,
            f"'stop' must be a text or up to {MOST_STOPS} texts.",
            param="stop",
            code="invalid_value",
        )
    return tuple(stops)


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and bool(function["name"])
    )


def _offered(tools: list[dict[str, Any]], choice: Any) -> tuple[dict[str, Any], ...]:
    """The tools that the model is shown: none, all, or the one that the client names. It is not
    forced to call any."""
    if choice == "none":
        return ()
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        found = tuple(tool for tool in tools if tool["function"]["name"] == name)
        if not found:
            raise ApiError(
                400, f"'tool_choice' names no tool that is offered: {name}.", param="tool_choice"
            )
        return found
    if choice not in (None, "auto", "required"):
        raise ApiError(
            400, "'tool_choice' must be none, auto, required or a function.", param="tool_choice"
        )
    return tuple(tools)


def read_messages(value: Any, strict: bool = True) -> list[Message]:
    """The conversation with plain texts as contents, `developer` being another word for
    `system`."""
    if not isinstance(value, list) or not value:
        raise ApiError(
            400, "'messages' must be a list with at least one message.", param="messages"
        )
    found = []
    for i, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            known = ", ".join(sorted(ROLES))
            raise ApiError(
                400, f"'messages[{i}].role' must be one of {known}.", param=f"messages[{i}].role"
            )
        text = _content(
            message.get("content"),
            i,
            strict,
            role == "assistant" and bool(message.get("tool_calls")),
        )
        found.append(
            {**message, "content": text, "role": "system" if role == "developer" else role}
        )
    return found


def _content(value: Any, i: int, strict: bool, may_miss: bool) -> str:
    where = f"messages[{i}].content"
    if isinstance(value, str):
        return value
    if value is None and (may_miss or not strict):
        return ""
    if not isinstance(value, list):
        raise ApiError(400, f"'{where}' must be a text.", param=where, code="invalid_type")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif strict:
            raise ApiError(
                400, f"'{where}' has a part that is no text.", param=where, code="unsupported_value"
            )
        else:
            texts.append(f"[{kind or 'part'}]")
    return "\n".join(texts)


# -- what goes back
# ----------------------------------------------------------------------------------------------------


def choice(index: int, done: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": done.text or (None if done.calls else ""),
    }
    message |= {"refusal": None} | ({"tool_calls": list(done.calls)} if done.calls else {})
    return {"index": index, "message": message, "finish_reason": done.finish, "logprobs": None}


def usage(done: Sequence[Completion]) -> dict[str, int]:
    prompt, answer = done[0].prompt_tokens, sum(one.completion_tokens for one in done)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(data: Any) -> bytes:
    """One server-sent event."""
    return (
        b"data: "
        + (data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode())
        + b"\n\n"
    )


def delta(index: int, said: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": said, "finish_reason": finish, "logprobs": None}
