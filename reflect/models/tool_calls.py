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
JSON text, and an object may be written with the quotes of Python. Where a format writes each
argument as text (GLM, Qwen Coder), the schema of the tool says what it is. When any call cannot be
parsed, there are no calls, and the answer stays text.

Not covered: `$ref` in schemas. Such an argument is JSON where it is JSON, else text.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


DECODER = json.JSONDecoder(
    strict=False, parse_constant=_refuse
)  # strings of models hold line breaks
JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}
Properties: TypeAlias = "Mapping[str, object]"
"""The schemas of a tool's parameters, by name."""
Offered: TypeAlias = "Mapping[str, Properties]"
"""The offered tools, by name."""


class Call(NamedTuple):
    """One tool call of an answer."""

    name: str
    arguments: Json


def read_calls(text: str, tools: Sequence[Json]) -> tuple[str, list[Call]]:
    """(the text without the calls, the calls). (text, []) without a call, or when one cannot be
    parsed.

    `tools`: those offered, in the API's form. JSON or Python without a format's own marks is a call
    only when it names one of these. Within marks any name is a call; an unknown tool fails when it
    runs.
    """
    offered = {tool["function"]["name"]: _properties(tool) for tool in tools}
    try:
        if "<tool_call>" in text or "</tool_call>" in text:
            return _tagged(text, offered)
        if "<function=" in text:
            return _marked(text, FUNCTION, "function=", offered)
        if DEEPSEEK.search(text):
            text_only = re.sub(r"<.tool.calls.(?:begin|end).>", "", text)
            return _marked(text_only, DEEPSEEK, "call", offered)
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


def _properties(tool: Json) -> Properties:
    schema = tool["function"].get("parameters")
    found = schema.get("properties") if isinstance(schema, dict) else None
    return found if isinstance(found, dict) else {}


def _tagged(text: str, offered: Offered) -> tuple[str, list[Call]]:
    calls = [call for body in TAGGED.findall(text) for call in _body(body.strip(), offered)]
    rest = TAGGED.sub("", text)
    if "tool_call>" in rest:
        raise ValueError("a tag without its other half")
    return rest.strip(), calls


def _body(body: str, offered: Offered) -> list[Call]:
    """The calls between two tags."""
    if body.startswith("<function="):
        return _marked(body, FUNCTION, "", offered)[1]
    name, key, _ = body.partition("<arg_key>")
    if key:
        if PAIR.sub("", body).strip() != name.strip():
            raise ValueError("words between arguments")
        name = name.strip()
        arguments = _typed(PAIR.findall(body), offered.get(name, {}))
        return [_call({"name": name, "arguments": arguments})]
    rows = _object(body)
    return [_call(row) for row in (rows if isinstance(rows, list) else [rows])]


def _marked(
    text: str, pattern: re.Pattern[str], mark: str, offered: Offered
) -> tuple[str, list[Call]]:
    """Calls whose mark gives their name."""
    calls: list[Call] = []
    for name, body in pattern.findall(text):
        pairs = PARAMETER.findall(body)
        if PARAMETER.sub("", body).strip() and pairs:
            raise ValueError("words between parameters")
        typed = _typed(pairs, offered.get(name, {}))
        arguments = typed if pairs else _object(body.strip() or "{}")
        calls.append(_call({"name": name, "arguments": arguments}))
    rest = pattern.sub("", text)
    if not calls or (mark and mark in rest):
        raise ValueError("a tag without its other half")
    return rest.strip(), calls


def _typed(pairs: Sequence[tuple[str, str]], properties: Properties) -> Json:
    """Arguments that are written as texts, by the schemas of the tool's parameters."""
    return {key.strip(): _value(text, properties.get(key.strip())) for key, text in pairs}


def _value(text: str, schema: object) -> object:
    """The value that the schema's types allow: text as it is, but for the format's line breaks,
    else JSON or what Python writes for it. Without types: JSON where it is JSON, else text."""
    types, plain = _types(schema), text.strip()
    try:
        value = _object(plain) if types else json.loads(plain, parse_constant=_refuse)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        value = plain
    if "string" not in types:
        return value
    fits = any(_is(value, name) for name in types - {"string"})
    return value if fits else text.removeprefix("\n").removesuffix("\n")


def _types(schema: object) -> set[str]:
    """The JSON types that a schema allows; empty if it does not say."""
    if not isinstance(schema, dict):
        return set()
    if isinstance(choices := schema.get("anyOf", schema.get("oneOf")), list):
        parts = [_types(choice) for choice in choices]
        return set().union(*parts) if all(parts) else set()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    types = schema.get("type")
    if types is None and isinstance(values, list):
        return {name for value in values for name in JSON_TYPES if _is(value, name)}
    names = types if isinstance(types, list) else [types]
    return {name for name in names if isinstance(name, str) and name in JSON_TYPES}


def _is(value: object, name: str) -> bool:
    """Whether a value is of the JSON type of that name."""
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, JSON_TYPES[name])


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
