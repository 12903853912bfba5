"""Answers as real models write them. tests/data/answers.jsonl: [verifier, final text, answer, reward]."""

from __future__ import annotations

import ast
import json
import re
import time
from fractions import Fraction
from pathlib import Path

import pytest

from reflect.tasksets import load_taskset, verifiers
from reflect.tasksets.numbers import Number, equal, last_number, only_number
from reflect.tasksets.verifiers import VERIFIERS

DATA = Path(__file__).parents[1] / "data" / "answers.jsonl"
ROWS = [json.loads(line) for line in DATA.read_text().splitlines()]
CHEAP = ["exact", "number", "contains", "regex"]


@pytest.mark.parametrize("verifier", ["number", "exact", "contains"])
def test_each_answer_has_its_reward(verifier: str) -> None:
    rows = [row for row in ROWS if row[0] == verifier]
    wrong = [row for row in rows if VERIFIERS[verifier](row[1], row[2]).reward != row[3]]
    assert len(rows) >= 5 and wrong == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s t a r, 1, 2", 2),
        ("x = -3", -3),
        ("1,000.", 1000),
        (".5", Fraction(1, 2)),
        ("2e-3", Fraction(1, 500)),
        ("\u22124", -4),
        ("10-3", None),
        ("3, 4", None),
        ("It is 3 or 4", None),
        ("so 6*7", None),
        ("so 6*7 = 42", 42),
        ("She had 3 apples and 4 pears, so 7", 7),
        ("Step 1: 3 apples. Step 2: 5 apples", 5),
        ("1. First 3\n2. Then 4", 4),
        ("The price is $3, tax $4: total $7.", 7),
        ("Therefore $x = \\frac{1}{2}$.", Fraction(1, 2)),
        ("The result is **\\$1,234.50**.", Fraction(2469, 2)),
        ("no digits", None),
    ],
)
def test_the_last_number_of_a_derivation(text: str, value: object) -> None:
    number = last_number(text)
    assert (number and number.value) == value


@pytest.mark.parametrize("text", ["3 or 4", "3-5", "2 cats, 3 dogs", "many", "", "2024-01-02"])
def test_a_gold_with_several_numbers_or_none_is_no_number(text: str) -> None:
    assert only_number(text) is None


def test_fractions_are_compared_exactly_and_percent_has_two_readings() -> None:
    third, half = Number(Fraction(1, 3)), Number(Fraction(50), percent=True)
    assert equal(third, Number(Fraction(333333, 10**6)))
    assert not equal(third, Number(Fraction(33333, 10**5)))
    assert not equal(Number(Fraction(10**20)), Number(Fraction(10**20 + 1)))
    assert equal(half, Number(Fraction(1, 2))) and equal(Number(Fraction(50)), half)
    assert not equal(half, Number(Fraction(1, 2), percent=True))


PARTS = (
    "1|1 |1,|-|*|* |_|$|$ |\\frac{|<a|1 234 |~|(1)|\\text{|a_{|a^|1/|10^|\u2014|\u00bd|&|9**|USD "
)
PARTS += "|*a |1 x |\n- 1|A-1|answer:|answer|\\boxed{|{|option |or |b) |(|\u200d|\u00e9\u200d| not|**answer:**"


@pytest.mark.parametrize("verifier", CHEAP)
def test_the_cost_is_linear(verifier: str) -> None:
    """6,000 characters of anything: a quadratic pattern takes a hundred times as long."""
    began = time.process_time()
    for part in PARTS.split("|"):
        text = (part * 6000)[:6000]
        for whole in (text, f"{text}b", f"answer: {text}"):
            VERIFIERS[verifier](whole, 1 if verifier == "number" else "b")
    assert time.process_time() - began < 20


def first_version() -> dict[str, object]:
    """The verifiers of version 1, from the texts that represent them in hashes of rewards."""
    texts = json.loads(Path(verifiers.__file__).with_name("verifiers-v1.json").read_text())
    scope: dict[str, object] = {}
    exec("import math, re\nfrom decimal import Decimal\nfrom typing import Any", scope)
    exec("from reflect.tasksets.task import Score", scope)
    for text in sorted(set(texts["exact"] + texts["number"])):
        if text.startswith("def "):
            exec(text, scope)
        else:
            name, _, value = text.partition(" = ")
            pattern, flags = ast.literal_eval(f"({value})")
            scope[name] = re.compile(pattern, flags)
    return scope


@pytest.mark.parametrize("name", ["letters", "calc", "dialect", "skills"])
def test_shipped_tasksets_score_as_with_version_1(name: str) -> None:
    """Their evidence goes on (see `reward_version`), so the forms that their answers have score as
    before."""
    old = first_version()
    forms = ["answer: {}", "{}", "s t a r, so {}.  answer: {}", "r 1, r 2, {}", "answer: {} ."]
    forms += [
        "answer: ",
        "call: plus(1, 2)\nanswer: {}",
        "Answer:  {}\n",
        "{} answer",
        "**Answer:** {}",
    ]
    tasks = load_taskset(name).tasks("practice", 40)
    for task in tasks:
        others = ["1", "-3", "007"] if task.verifier == "number" else ["1", "2 1", "c h e e s e"]
        for given in [str(task.answer), str(tasks[0].answer), *others]:
            for form in forms:
                text = form.replace("{}", given)
                before = old[task.verifier](text, task.answer)
                assert VERIFIERS[task.verifier](text, task.answer) == before, (text, task.answer)
