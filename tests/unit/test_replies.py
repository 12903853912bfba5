"""A model behind an API is read as a local one is: thoughts, text parts and tool calls in the
spellings of real models, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from api_server import Server, say

from reflect.config import Settings
from reflect.models import load_model
from reflect.models.base import Completion, Request
from reflect.models.tool_calls import read_calls
from reflect.tasksets.thoughts import split_thought

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ONE = '{"name": "add", "arguments": {"a": 1}}'
THOUGHTS = [
    ("<think>2 or 3?</think>\n\nanswer: 3", "2 or 3?", "answer: 3"),
    ("<think>\n\n</think>\n\nanswer: 3", "", "answer: 3"),
    ("\n <think>2?</think>answer: 3", "2?", "answer: 3"),
    ("<think>it is answer: 2", "it is answer: 2", ""),
    ("it is 2\n</think>\n\nanswer: 3", "it is 2", "answer: 3"),
    ("<Think>2</Think> answer: 3", "2", "answer: 3"),
    ("<think>1</think><think>2</think>answer: 3", "1\n2", "answer: 3"),
    ("<think>1</think>\n<think>answer: 2", "1\nanswer: 2", ""),
    ("<think>a <think> b</think> c</think>answer: 3", "a <think> b\nc", "answer: 3"),
    ("<thinking>2</thinking>answer: 3", "2", "answer: 3"),
    ("<thought>2</thought>answer: 3", "2", "answer: 3"),
    ("<reasoning>2</reasoning>\nanswer: 3", "2", "answer: 3"),
    ("<reasoning>answer: 2", "answer: 2", ""),
    ("<seed:think>2</seed:think>answer: 3", "2", "answer: 3"),
    ("[THINK]2[/THINK]answer: 3", "2", "answer: 3"),
    ("[THINK]answer: 2", "answer: 2", ""),
    ("\u25c1think\u25b72\u25c1/think\u25b7answer: 3", "2", "answer: 3"),
    (
        "<|START_THINKING|>2<|END_THINKING|><|START_RESPONSE|>answer: 3<|END_RESPONSE|>",
        "2",
        "answer: 3",
    ),
    (
        "<|begin_of_thought|>2<|end_of_thought|>\n<|begin_of_solution|>answer: 3<|end_of_solution|>",
        "2",
        "answer: 3",
    ),
    ("<think>2</thinking>answer: 3", "2", "answer: 3"),
    ("< think >2</ think >answer: 3", "2", "answer: 3"),
    ("<|thinking|>2<|/thinking|>answer: 3", "2", "answer: 3"),
    ("[THOUGHT]2[/THOUGHT]answer: 3", "2", "answer: 3"),
    ("<scratchpad>2</scratchpad>answer: 3", "2", "answer: 3"),
    ("2</think></think>answer: 3", "2", "answer: 3"),
    ("<thought>2</thought><answer>3</answer>", "2", "<answer>3</answer>"),
    ("answer: 3", "", "answer: 3"),
    ("I <think> it is 3", "", "I <think> it is 3"),
    ("", "", ""),
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("REFLECT_API_KEY", "sk-1234567890")
    with Server() as server:
        yield server


def read(server: Server, tools: bool = False, finish: str = "stop", **message: Any) -> Any:
    """The completion of one reply of the server."""
    server.script = [say("", finish=finish, **message)]
    model = load_model("openai:m", Settings(base_url=server.url, timeout=5.0, retries=0))
    question = [{"role": "user", "content": "How many?"}]
    request = Request(question, (7,), tools=(TOOL,) if tools else ())
    ((answer,),) = model.answer_each([request])
    return answer


@pytest.mark.parametrize(("text", "thought", "answer"), THOUGHTS)
def test_a_thought_is_no_answer(text: str, thought: str, answer: str) -> None:
    assert split_thought(text) == (thought, answer)


def test_channels_of_gpt_oss() -> None:
    thinks = "<|channel|>analysis<|message|>answer: 2"
    final = "<|end|><|start|>assistant<|channel|>final<|message|>answer: 3<|return|>"
    assert split_thought(thinks + final)[1] == "answer: 3"
    assert split_thought(thinks)[1] == ""


def test_a_template_that_opens_the_thought() -> None:
    assert split_thought("2?\n</think>\n3", "<think>") == ("2?", "3")
    assert split_thought("2?", "<think>") == ("2?", "")
    assert split_thought("<think>2?</think>3", "<think>") == ("2?", "3")


def test_a_thousand_thoughts_end() -> None:
    assert split_thought("<think></think>" * 1000)[1].startswith("<think>")


@pytest.mark.parametrize(("text", "thought", "answer"), THOUGHTS[::4])
def test_a_reply_is_split_like_a_local_answer(
    server: Server, text: str, thought: str, answer: str
) -> None:
    done = read(server, content=text)
    assert isinstance(done, Completion) and (done.thought, done.text) == (thought, answer)


@pytest.mark.parametrize(
    ("message", "thought", "answer"),
    [
        ({"content": "3", "reasoning_content": "2?"}, "2?", "3"),
        ({"content": None, "reasoning_content": "answer: 2"}, "answer: 2", ""),
        ({"content": "", "reasoning": "answer: 2"}, "answer: 2", ""),
        (
            {"content": [{"type": "text", "text": "answer: "}, {"type": "text", "text": "3"}]},
            "",
            "answer: 3",
        ),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "2"}]},
                    {"type": "text", "text": "3"},
                ]
            },
            "",
            "3",
        ),
        ({"content": [{"type": "output_text", "text": "<think>2</think>3"}]}, "2", "3"),
        ({"content": ["answer: ", "3"]}, "", "answer: 3"),
        ({"content": {"type": "text", "text": "3"}}, "", "3"),
        ({"content": [{"type": "text", "text": {"value": "3"}}]}, "", "3"),
        (
            {
                "content": [
                    {"type": "image_url", "image_url": {"url": "x"}},
                    {"type": "text", "text": "3"},
                ]
            },
            "",
            "3",
        ),
        ({"content": []}, "", ""),
    ],
)
def test_text_parts_are_text(server: Server, message: Any, thought: str, answer: str) -> None:
    done = read(server, **message)
    assert isinstance(done, Completion) and (done.thought, done.text) == (thought, answer)


def test_a_content_that_is_no_text_is_an_error_of_its_attempt(server: Server) -> None:
    assert not isinstance(read(server, content=[3]), Completion)


@pytest.mark.parametrize(
    "message",
    [
        {"content": f"<tool_call>{ONE}</tool_call>"},
        {"content": f"<think>I add.</think>{ONE}"},
        {"content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
        {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
    ],
)  # fmt: skip
def test_calls_of_a_server_that_does_not_parse_them(server: Server, message: Any) -> None:
    done = read(server, tools=True, **message)
    assert isinstance(done, Completion) and (done.finish, done.text) == ("tool_calls", "")
    (call,) = done.calls
    assert json.loads(call["function"]["arguments"]) == {"a": 1}


def test_a_cut_text_and_a_text_without_tools_hold_no_calls(server: Server) -> None:
    assert read(server, tools=True, finish="length", content=ONE).calls == ()
    assert read(server, content=ONE).text == ONE


BEGIN, SEP, END = (
    "<\uff5ctool\u2581call\u2581begin\uff5c>",
    "<\uff5ctool\u2581sep\uff5c>",
    "<\uff5ctool\u2581call\u2581end\uff5c>",
)


ADD = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f'<tool_call>[{ONE}, {ONE}]</tool_call>', "", [{"a": 1}, {"a": 1}]),
        ("<tool_call>{'name': 'add', 'arguments': {'a': True}}</tool_call>", "", [{"a": True}]),
        ("<tool_call>\nadd\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "", [{"a": 1}]),
        ("<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", "", [{"a": 1}]),
        ('I add. <function=add>{"a": 1}</function>', "I add.", [{"a": 1}]),
        ("<function=add><parameter=a>it's\ntwo</parameter></function>", "", [{"a": "it's\ntwo"}]),
        ("<function=add></function><function=add>{}</function>", "", [{}, {}]),
        (f"```json\n{ONE}\n```", "", [{"a": 1}]),
        (f"I call it:\n```tool_call\n[{ONE}]\n```\n", "I call it:", [{"a": 1}]),
        (f"[{ONE}, {ONE}]", "", [{"a": 1}, {"a": 1}]),
        (f"{ONE}\n{ONE}", "", [{"a": 1}, {"a": 1}]),
        ('{"type": "function", "function": {"name": "add", "arguments": "{\\"a\\": 1}"}}', "", [{"a": 1}]),
        ('{"function": "add", "parameters": {"a": 1}}', "", [{"a": 1}]),
        ('{"name": "add", "args": {"a": "b\nc"}}', "", [{"a": "b\nc"}]),
        ("{'name': 'add', 'parameters': {'a': None}}", "", [{"a": None}]),
        ("[add(a=1), add(a='x')]", "", [{"a": 1}, {"a": "x"}]),
        ("<|python_tag|>add(a=-1)<|eom_id|>", "", [{"a": -1}]),
        (f"{ONE}<|im_end|>", "", [{"a": 1}]),
        (f"{BEGIN}function{SEP}add\n```json\n" '{"a": 1}' f"\n```{END}", "", [{"a": 1}]),
        (f'Well. {BEGIN}add{SEP}{{"a": 1}}{END}', "Well.", [{"a": 1}]),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}</s>', "", [{"a": 1}]),
    ],
)  # fmt: skip
def test_calls_as_models_write_them(text: str, rest: str, calls: list[Any]) -> None:
    assert read_calls(text, [ADD]) == (rest, [("add", arguments) for arguments in calls])


@pytest.mark.parametrize(
    "text",
    [
        "```json\n{}\n```",
        f"```json\n{ONE}\n``` is what I would call",
        "```python\nprint(1)\n```",
        "[add(1)]",
        "add(a=__import__('os').getpid())",
        "add(**{'a': 1})",
        "add(a=1) + 2",
        "[mul(a=1)]",
        "{'name': 'add', 'arguments': {'a': f()}}",
        "{'name': 'add', 'arguments': {'a': 'it's'}}",
        "{'name': 'add', 'arguments': {'a': {1, 2}}}",
        '<function=add>{"a": 1}',
        "<function=add>a is 1</function>",
        "<function=add><parameter=a>1</parameter> and</function>",
        "<tool_call>add<arg_key>a</arg_key> is 1</tool_call>",
        "[" * 50_000,
        "{'a':" * 50_000,
        "add(" * 5_000,
        '[{"name": "add"}, {"name": "mul"}]',
    ],
)
def test_what_is_ambiguous_stays_text(text: str) -> None:
    assert read_calls(text, [ADD]) == (text, [])


INTEGER, STRING = {"type": "integer"}, {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (STRING, "1", "1"),
        (STRING, "007", "007"),
        (STRING, "true", "true"),
        (STRING, "null", "null"),
        (STRING, '"quoted"', '"quoted"'),
        (STRING, '{"a": 1}', '{"a": 1}'),
        (STRING, "\n    return x\n", "    return x"),
        (STRING, "\n\na\n\n", "\na\n"),
        (STRING, "", ""),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": "1"}, "1", "1"),
        ({"enum": [1, "x"]}, "1", 1),
        (INTEGER, "\n1\n", 1),
        (INTEGER, "one", "one"),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "array"}, "['a', 1]", ["a", 1]),
        ({"type": "object"}, '{"a": [true]}', {"a": [True]}),
        ({"type": "object"}, "{'a': None}", {"a": None}),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "1", "1"),
        ({"type": ["string", "integer"]}, "1", 1),
        ({"type": ["string", "integer"]}, "true", "true"),
        ({"type": ["string", "integer"]}, " 1.5 ", " 1.5 "),
        ({"anyOf": [STRING, {"type": "null"}]}, "None", None),
        ({"anyOf": [STRING, {"type": "array"}]}, "[1]", [1]),
        ({"oneOf": [STRING, {"$ref": "#/x"}]}, "1", 1),
        ({"$ref": "#/x"}, "1", 1),
        ({}, "1", 1),
        ({}, "it", "it"),
        ({}, "NaN", "NaN"),
        (None, "[1, 2]", [1, 2]),
        ({"type": 7}, "1", 1),
        ({"type": ["string", 7]}, "1", "1"),
    ],
)
def test_arguments_written_as_text_are_read_by_the_schema(
    schema: Any, text: str, value: Any
) -> None:
    tool = {"name": "add", "parameters": {"type": "object", "properties": {"a": schema}}}
    for call in (
        f"<function=add><parameter=a>{text}</parameter></function>",
        f"<tool_call>add<arg_key>a</arg_key><arg_value>{text}</arg_value></tool_call>",
    ):
        (read,) = read_calls(call, [{"type": "function", "function": tool}])[1]
        assert read.arguments == {"a": value} and type(read.arguments["a"]) is type(value)


@pytest.mark.parametrize("parameters", [None, {}, {"properties": None}, {"properties": []}])
def test_a_tool_without_a_schema_has_arguments_by_their_look(parameters: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    call = "<function=add><parameter=a>1</parameter><parameter=b>x</parameter></function>"
    assert read_calls(call, [tool])[1] == [("add", {"a": 1, "b": "x"})]
