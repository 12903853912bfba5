"""Tools: what the model reads about a Python function, and that no call of it can break anything."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from reflect.errors import UsageError
from reflect.tasksets.tools import LONGEST_RESULT, MOST_CALLS, Outside, call_all, schema


def search(
    words: str,
    n: int = 5,
    kind: Literal["page", "mail"] | None = None,
    tags: list[str] = [],  # noqa: B006
) -> str:
    """Look something up
    in the archive.

    words: what to look for
    n (int): how many results
    """
    return f"{n} of {words} {kind} {tags}"


def plus(a: int, b: int) -> int:
    "a + b."
    return a + b


def broken(path: str) -> str:
    raise FileNotFoundError(f"there is no {path}")


def quits() -> None:
    raise SystemExit(3)


def web(url: str) -> Outside:
    "A page."
    if not url:
        raise ValueError("obey me")
    return Outside(f"page {url}")


def lines(text: str, *tools):
    return call_all(tools or (plus,), {"role": "assistant", "content": text}, lines=True)


def native(name: str, arguments: object, *tools):
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return call_all(tools or (plus,), {"role": "assistant", "content": "", "tool_calls": [call]})[0]


def test_a_schema_is_made_of_the_signature_and_the_docstring() -> None:
    function = schema(search)["function"]
    assert (
        function["name"] == "search"
        and function["description"] == "Look something up in the archive."
    )
    assert function["parameters"] == {
        "type": "object",
        "properties": {
            "words": {"type": "string", "description": "what to look for"},
            "n": {"type": "integer", "description": "how many results", "default": 5},
            "kind": {
                "anyOf": [{"enum": ["page", "mail"], "type": "string"}, {"type": "null"}],
                "default": None,
            },
            "tags": {"type": "array", "items": {"type": "string"}, "default": []},
        },
        "required": ["words"],
        "additionalProperties": False,
    }
    json.dumps(schema(search))
    with pytest.raises(UsageError, match=r"takes \*numbers"):
        schema(lambda *numbers: 0)


def test_lines_of_text_call_tools_in_their_order() -> None:
    text = "First I add.\ncall: plus(3, 4)\n  Call: plus(a=3, b=-4)\nthat is all: plus(1, 1)"
    assert [(r.call, r.text, r.error) for r in lines(text)] == [
        ("plus(3, 4)", "7", ""),
        ("plus(a=3, b=-4)", "-1", ""),
    ]
    assert lines("call: plus (3, 4)")[0].text == "7"  # as the pocket model's tokenizer writes it
    assert (
        call_all((plus,), {"role": "assistant", "content": text}) == []
    )  # where no text protocol is declared


def test_calls_of_the_api_keep_their_id() -> None:
    result = native("plus", '{"a": 3, "b": 4}')
    assert (result.text, result.id, result.error) == ("7", "c1", "")
    assert native("search", {"words": "x", "kind": "mail"}, search).text == "5 of x mail []"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("call: add(3, 4)", "there is no tool 'add'"),
        ("call: pluss(3, 4)", "Did you mean plus?"),
        ("call: plus(3)", "missing a required argument"),
        ("call: plus(3, 4, 5)", "too many positional"),
        ("call: plus(3, c=4)", "missing a required argument"),
        ("call: plus(3, 'x')", "b = 'x' is not of the type integer"),
        ("call: plus(3, True)", "is not of the type integer"),
        ("call: plus(3, 4", "plain values"),
        ("call: plus", "plain values"),
        ("call: plus(3, __import__('os').getpid())", "plain values"),
        ("call: plus(3, 9**9**9)", "plain values"),
        ("call: plus(**{'a': 1})", "plain values"),
        (f"call: plus({'(' * 3000}1{')' * 3000}, 1)", "longer than"),
        (f"call: plus({'[' * 1500}{']' * 1500}, 1)", "plain values"),
        ("call: ", "there is no tool ''"),
    ],
)
def test_a_malformed_call_is_its_own_result(text: str, says: str) -> None:
    (result,) = lines(text)
    assert says in result.error and result.text == f"error: {result.error}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("{", "no JSON"),
        ("[3, 4]", "no JSON object"),
        ('"a"', "no JSON object"),
        ("{}", "missing a required argument"),
        ('{"a": 1, "b": 2, "c": 3}', "unexpected keyword"),
        ('{"a": 1, "b": null}', "not of the type"),
        ("[" * 100_000, "no JSON"),
        (7, "no JSON object"),
    ],
)
def test_malformed_arguments_of_the_api(arguments: object, says: str) -> None:
    assert says in native("plus", arguments).error


def test_a_choice_must_be_one_of_those_there_are() -> None:
    assert "None of" not in lines("call: search('x', kind='page')", search)[0].error
    assert "is none of" in lines("call: f('c')", _choosing())[0].error


def _choosing():
    def f(kind: Literal["a", "b"]) -> str:
        return kind

    return f


def test_a_tool_that_raises_or_says_too_much_is_data() -> None:
    assert lines("call: broken('x')", broken)[0].text == "error: FileNotFoundError: there is no x"
    assert lines("call: quits()", quits)[0].error == "SystemExit: 3"
    (result,) = lines("call: flood()", _flood())
    assert len(result.text) < LONGEST_RESULT + 100 and "characters cut]" in result.text
    assert len(lines("call: plus(1, 1)\n" * 50)) == MOST_CALLS


def _flood():
    def flood() -> str:
        return "x" * 10_000_000

    return flood


def test_text_from_outside_is_known_as_such_and_so_are_the_errors_of_its_tools() -> None:
    assert [
        r.outside for r in lines("call: web('a')\ncall: web('')\ncall: plus(1, 2)", web, plus)
    ] == [
        True,
        True,
        False,
    ]
    assert lines("call: sometimes()", _sometimes())[0].outside


def _sometimes():
    def sometimes() -> str:
        return Outside("from a mail")

    return sometimes
