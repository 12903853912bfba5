"""Tools: Python functions that a model may call, described to it by their signature and docstring.

    def times(a: int, b: int) -> int:
        "Multiply two numbers."

    schema(times)                     ->  {"type": "function", "function": {"name": "times", ...}}
    call_all([times], message, True)  ->  one Result for each line `call: times(3, 4)` of the
                                          message, or for each of its `tool_calls`

Whatever goes wrong in a call (no such tool, arguments that do not fit, an exception in the tool) is
its result: the model reads it, and may do better in the next turn.

Not covered: a tool that never comes back, and what a tool does to the machine. Tools run in this
process.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from reflect.errors import UsageError

if typing.TYPE_CHECKING:
    from reflect.tasksets.task import Message

CALL = re.compile(r"^[ \t]*call[ \t]*:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
MOST_CALLS = 16  # in one message
LONGEST_CALL = 4000  # characters of one call
LONGEST_RESULT = 20_000  # characters of what one tool gives back; the middle of more is cut

Tool = Callable[..., Any]
Arguments = tuple[tuple[object, ...], dict[str, object]]  # positional, named


class Outside(str):
    """Text from outside (a web page, a mail, somebody's file). What is learned from a rollout that
    read any waits in quarantine. A tool that returns one says so, or is annotated with it: then its
    errors are from outside as well."""


class Result(NamedTuple):
    """The result of one call."""

    call: str
    """The call as the model wrote it: `times(3, 4)`."""
    text: str
    """What the model reads."""
    error: str = ""
    """Why there is no result."""
    outside: bool = False
    id: str = ""
    """The id of a call from the API."""


def schema(tool: Tool) -> dict[str, Any]:
    """The tool as an API describes it: {"type": "function", "function": {name, description,
    parameters}}.

    The description is the docstring up to its first empty line; a line `a: the first number` below
    describes the parameter a. UsageError for a tool with *args or **kwargs.
    """
    lines = inspect.cleandoc(tool.__doc__ or "").splitlines()
    head = " ".join(lines[: lines.index("")] if "" in lines else lines)
    properties: dict[str, dict[str, object]] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(tool).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UsageError(
                f"The tool {tool.__name__} takes *{name}.", "Name each of its parameters."
            )
        properties[name] = _type_schema(_hints(tool).get(name, object))
        pattern = rf"\s*{name}(?: \(.*?\))?:\s+(.+)"
        if description := next(
            (match[1] for line in lines if (match := re.match(pattern, line))), ""
        ):
            properties[name]["description"] = description
        if parameter.default is parameter.empty:
            required.append(name)
        else:
            properties[name]["default"] = parameter.default
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    function = {"name": tool.__name__, "description": head, "parameters": parameters}
    return {"type": "function", "function": function}


def _hints(tool: Tool) -> dict[str, object]:
    try:
        return typing.get_type_hints(tool)
    except Exception:  # a name that only its type checker knows
        return {}


def _type_schema(hint: Any) -> dict[str, object]:
    """The JSON schema of a type; {} (anything) for one that JSON does not know."""
    try:
        return TypeAdapter(hint).json_schema()
    except PydanticUserError:
        return {}


def call_all(tools: Sequence[Tool], message: Message, lines: bool = False) -> list[Result]:
    """Carry out the calls of an assistant's message, in order: its `tool_calls`, and with `lines`
    also each line `call: NAME(ARGUMENTS)` of its text. [] where it calls nothing. Never raises."""
    known = {tool.__name__: tool for tool in tools}
    results = []
    for call in (message.get("tool_calls") or [])[:MOST_CALLS]:
        function = call.get("function") or {}
        name, arguments = str(function.get("name", "")), function.get("arguments", "")
        result = _call(known, f"{name}({arguments})", name, partial(_from_json, arguments))
        results.append(result._replace(id=str(call.get("id", ""))))
    for text in CALL.findall(message.get("content") or "")[:MOST_CALLS] if lines else ():
        name = text.partition("(")[0].strip()
        results.append(_call(known, text.strip(), name, partial(_from_line, text)))
    return results


def _call(known: Mapping[str, Tool], call: str, name: str, read: Callable[[], Arguments]) -> Result:
    call = call if len(call) <= 200 else f"{call[:197]}..."
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        return _failed(
            call, f"there is no tool {name[:60]!r}.{meant} There are: {', '.join(known)}"
        )
    tool = known[name]
    outside = _hints(tool).get("return") is Outside
    try:
        positional, named = read()
        bound = inspect.signature(tool).bind(*positional, **named)
        hints = _hints(tool)
        misfits = (
            _misfit(key, value, hints.get(key, object)) for key, value in bound.arguments.items()
        )
        wrong = [misfit for misfit in misfits if misfit]
    except (ValueError, TypeError) as e:
        wrong = [str(e)]
    if wrong:
        return _failed(call, f"these arguments do not fit: {'; '.join(wrong)}")
    try:
        value = tool(*bound.args, **bound.kwargs)
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        )
    except (
        Exception,
        SystemExit,
    ) as e:  # somebody's tool: whatever it raises is what the model learns of the call
        return _failed(call, f"{type(e).__name__}: {e}", outside)
    return Result(call, shortened(text), outside=outside or isinstance(value, Outside))


def _failed(call: str, why: str, outside: bool = False) -> Result:
    why = shortened(why, 1000)
    return Result(call, f"error: {why}", why, outside)


def _misfit(name: str, value: object, hint: Any) -> str:
    """Why the value is not of that type, "" when it is."""
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except PydanticUserError:  # a type that JSON does not know: anything fits
        return ""
    except ValidationError as e:
        if choices := e.errors()[0].get("ctx", {}).get("expected"):
            return f"{name} = {str(value)[:60]!r} is none of {choices}"
        kind = _type_schema(hint)
        parts = kind.get("anyOf", [kind])
        kinds = (
            [str(part.get("type", "choice")) for part in parts] if isinstance(parts, list) else []
        )
        return f"{name} = {str(value)[:60]!r} is not of the type {' or '.join(kinds)}"
    return ""


def _from_json(text: object) -> Arguments:
    """The named arguments; ValueError where they are none."""
    try:
        named = json.loads(text) if isinstance(text, str) and text.strip() else text or {}
    except (ValueError, RecursionError) as e:
        raise ValueError(f"they are no JSON ({e})") from None
    if not isinstance(named, dict):
        raise ValueError("they are no JSON object")
    return (), named


def _from_line(text: str) -> Arguments:
    """The arguments in `times(3, b=4)`, which are read and never run; ValueError where they are no
    plain values."""
    form = "write call: NAME(VALUE, ...) with plain values, texts in quotes"
    if len(text) > LONGEST_CALL:
        raise ValueError(f"the call is longer than {LONGEST_CALL} characters")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        plain = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and all(k.arg for k in node.keywords)
        )
        if not plain or not isinstance(node, ast.Call):
            raise ValueError(form)
        positional = tuple(ast.literal_eval(one) for one in node.args)
        return positional, {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(form) from None


def shortened(text: str, most: int = LONGEST_RESULT) -> str:
    """The text, or its two ends with a word of what was cut between them."""
    if len(text) <= most:
        return text
    return (
        f"{text[: most // 2]}\n[{len(text) - most} characters cut]\n"
        f"{text[len(text) - (most - most // 2) :]}"
    )
