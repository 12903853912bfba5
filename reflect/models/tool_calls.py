"""Tool calls in a model's answer, in the formats of open models.

    Hermes, Qwen    <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>, any number
    GLM             <tool_call>add <arg_key>a</arg_key><arg_value>1</arg_value></tool_call>
    Qwen Coder      <function=add><parameter=a>1</parameter></function>
    Llama 3         {"name": "add", "parameters": {"a": 1}}, the whole answer; several with ";"
                    <function=add>{"a": 1}</function>, [add(a=1)]
    Mistral         [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]
                    [TOOL_CALLS]add[ARGS]{"a": 1}
    DeepSeek        <|tool_call_begin|>function<|tool_sep|>add, with a block of JSON
    others          a list of calls, or a block of JSON at the end of the answer

A call may be wrapped as {"type": "function", "function": {...}}, its arguments may be an object or
JSON text, and an object may be written with the quotes of Python. When any call cannot be parsed,
there are no calls, and the answer stays text.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from reflect.types import Json

TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([\w.-]+)>(.*?)</parameter>", re.DOTALL)
PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
DEEPSEEK = re.compile(
    r"<.tool.call.begin.>(?:function)?(?:<.tool.sep.>)?\s*([\w.-]+)\s*(?:<.tool.sep.>)?"
    r"\s*(?:```(?:json)?)?\s*(\{.*?\})\s*(?:```)?\s*<.tool.call.end.>",
    re.DOTALL,
)
MISTRAL = "[TOOL_CALLS]"
NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?\s*(?=\{)")
PYTHON = "<|python_tag|>"  # Llama 3 begins a call with it, or does not
ENDS = re.compile(r"\s*(?:<\|(?:eom_id|eot_id|im_end|end)\|>|</s>)\s*\Z")
FENCED = re.compile(
    r"(.*?)```(?:json|tool_call|tool_code|python)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL
)
NAMES, ARGUMENTS = ("name", "tool_name", "function"), ("arguments", "parameters", "args")
DECODER = json.JSONDecoder(strict=False)  # strings of models hold line breaks


class Call(NamedTuple):
    """One tool call of an answer."""

    name: str
    arguments: Json


def read_calls(text: str, offered: Collection[str]) -> tuple[str, list[Call]]:
    """(the text without the calls, the calls). (text, []) without a call, or when one cannot be
    parsed.

    `offered`: the names of the tools. JSON or Python without a format's own marks is a call only
    when it names one of these. Within marks any name is a call; an unknown tool fails when it runs.
    """
    try:
        if "<tool_call>" in text or "</tool_call>" in text:
            return _tagged(text)
        if "<function=" in text:
            return _marked(text, FUNCTION, "function=")
        if DEEPSEEK.search(text):
            return _marked(re.sub(r"<.tool.calls.(?:begin|end).>", "", text), DEEPSEEK, "call")
        if MISTRAL in text:
            return _mistral(text)
        return _bare(text, offered)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text, []


def api_calls(calls: Sequence[Call], salt: str) -> tuple[Json, ...]:
    """The calls in the API's form. The ids are hashes, so that the same answer has the same ids.
    They have nine letters, because Mistral's template takes no others."""
    return tuple(
        {
            "id": hashlib.sha256(f"{salt}/{i}/{call}".encode()).hexdigest()[:9],
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for i, call in enumerate(calls)
    )


def _tagged(text: str) -> tuple[str, list[Call]]:
    calls = [call for body in TAGGED.findall(text) for call in _body(body.strip())]
    rest = TAGGED.sub("", text)
    if "tool_call>" in rest:
        raise ValueError("a tag without its other half")
    return rest.strip(), calls


def _body(body: str) -> list[Call]:
    """The calls between two tags."""
    if body.startswith("<function="):
        return _marked(body, FUNCTION, "")[1]
    name, key, _ = body.partition("<arg_key>")
    if key:
        if PAIR.sub("", body).strip() != name.strip():
            raise ValueError("words between arguments")
        return [_call({"name": name.strip(), "arguments": _typed(PAIR.findall(body))})]
    rows = _object(body)
    return [_call(row) for row in (rows if isinstance(rows, list) else [rows])]


def _marked(text: str, pattern: re.Pattern[str], mark: str) -> tuple[str, list[Call]]:
    """Calls whose mark gives their name."""
    calls: list[Call] = []
    for name, body in pattern.findall(text):
        pairs = PARAMETER.findall(body)
        if PARAMETER.sub("", body).strip() and pairs:
            raise ValueError("words between parameters")
        arguments = _typed(pairs) if pairs else _object(body.strip() or "{}")
        calls.append(_call({"name": name, "arguments": arguments}))
    rest = pattern.sub("", text)
    if not calls or (mark and mark in rest):
        raise ValueError("a tag without its other half")
    return rest.strip(), calls


def _typed(pairs: Sequence[tuple[str, str]]) -> Json:
    """Arguments that are written as texts: JSON values where they are JSON."""
    arguments: Json = {}
    for key, value in pairs:
        text = value.strip()
        try:
            arguments[key.strip()] = json.loads(text)
        except ValueError:
            arguments[key.strip()] = text
    return arguments


def _mistral(text: str) -> tuple[str, list[Call]]:
    before, *parts = ENDS.sub("", text).split(MISTRAL)
    calls: list[Call] = []
    for part in parts:
        if named := NAMED.match(part):
            arguments, end = DECODER.raw_decode(part, named.end())
            calls.append(_call({"name": named.group(1), "arguments": arguments}))
        else:
            part = part.lstrip()
            rows, end = DECODER.raw_decode(part)
            calls += [_call(row) for row in (rows if isinstance(rows, list) else [rows])]
        if part[end:].strip():
            raise ValueError("words after a call")
    return before.strip(), calls


def _bare(text: str, offered: Collection[str]) -> tuple[str, list[Call]]:
    """Calls without marks: the whole answer, or its last block of code."""
    before, _tag, rest = ENDS.sub("", text).rpartition(PYTHON)
    if fenced := FENCED.fullmatch(rest):
        before, rest = before + fenced[1], fenced[2]
    calls = _listed(rest.strip(), offered)
    if not calls or any(call.name not in offered for call in calls):
        return text, []
    return before.strip(), calls


def _listed(text: str, offered: Collection[str]) -> list[Call]:
    """The calls of a text that holds nothing else."""
    if any(text.lstrip("[").startswith(f"{name}(") for name in offered):
        return _python(text)
    if text.startswith("{"):
        try:
            calls: list[Call] = []
            left = text
            while left:
                row, end = DECODER.raw_decode(left)
                calls.append(_call(row))
                left = left[end:].lstrip("; \n")
            return calls
        except ValueError:
            return [_call(_object(text))]
    if text.startswith("["):
        rows = _object(text)
        return [_call(row) for row in rows] if isinstance(rows, list) else []
    return []


def _python(text: str) -> list[Call]:
    """[add(a=1), add(a=2)]: calls of Python with named arguments."""
    tree = ast.parse(text.strip(), mode="eval").body
    calls = []
    for node in tree.elts if isinstance(tree, ast.List) else [tree]:
        if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name):
            raise ValueError("no call with named arguments")
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        if None in [word.arg for word in node.keywords]:
            raise ValueError("arguments without a name")
        json.dumps(arguments)
        calls.append(Call(node.func.id, arguments))
    return calls


def _object(text: str) -> object:
    """JSON, or the same as Python writes it: {'a': 1}."""
    try:
        value, end = DECODER.raw_decode(text)
        if text[end:].strip():
            raise ValueError("words after JSON")
        return value
    except ValueError:
        value = ast.literal_eval(text)
        json.dumps(value)
        return value


def _call(row: object) -> Call:
    """ValueError when the row is not a call."""
    if isinstance(row, dict) and isinstance(row.get("function"), dict):
        row = row["function"]
    if not isinstance(row, dict):
        raise ValueError("no object")
    name = next((row[key] for key in NAMES if key in row), None)
    arguments: object = next((row[key] for key in ARGUMENTS if key in row), {})
    if isinstance(arguments, str):
        arguments = _object(arguments or "{}")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError("no name, or no arguments")
    return Call(name, arguments)
