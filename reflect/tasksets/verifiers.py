"""Score the final text of a rollout: exact | number | contains | regex | code.

What is judged is the text after the last "answer:", or the whole text when there is none. Feedback
speaks of the form only ("there is no number") and never holds the answer.

    VERIFIERS["number"]("s t a r, so 1.  answer: 1", 1)   ->  Score(reward=1.0)

They run under the limits of `reflect.tasksets.isolation`: a pattern that takes for ever ends with
its worker. `code` runs in the sandbox (see `reflect.tasksets.code`).
"""

from __future__ import annotations

import functools
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.tasksets.code import code
from reflect.tasksets.task import Score

if TYPE_CHECKING:
    from collections.abc import Callable

MARKER = re.compile(r"\banswer:(?:\*\*)?", re.IGNORECASE)  # also "**Answer:** 4"
# A sign counts only where no word or number ends right before it: "10-3" ends in 3, "x = -3" in -3.
NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}\b)?"
)


def extract_answer(text: str) -> str:
    """The part of `text` that is scored: after the last "answer:", else all of it."""
    return MARKER.split(text)[-1].strip()


def normal(value: object) -> str:
    """One line, lower case, single spaces."""
    return " ".join(str(value).split()).casefold()


def exact(text: str, answer: object) -> Score:
    """The same words in the same order; case and white space do not count."""
    got, want = normal(extract_answer(text)), normal(extract_answer(str(answer)))
    if got == want:
        return Score(1.0)
    if not got:
        return Score(0.0, "there is no answer")
    if _letters(got) and _letters(got) == _letters(want):
        return Score(0.0, "only the punctuation is off")
    return Score(
        0.0,
        "" if MARKER.search(text) else "there is no answer: in it, so the whole text was judged",
    )


def contains(text: str, answer: object) -> Score:
    """The answer stands somewhere in the judged text; case and white space do not count."""
    got, want = normal(extract_answer(text)), normal(extract_answer(str(answer)))
    if got and want in got:
        return Score(1.0)
    return Score(0.0, "" if got else "there is no answer")


def number(text: str, answer: object) -> Score:
    """The last number equals the answer: whole numbers exactly, others to one part in a million."""
    got, want = last_number(extract_answer(text)), last_number(str(answer))
    if got is None:
        return Score(0.0, "there is no number in the answer")
    return Score(float(want is not None and _equal(got, want)))


def regex(text: str, answer: object) -> Score:
    """The pattern is found in the judged text, or in it with its "answer:", as the pattern may name
    that word."""
    tail = extract_answer(text)
    if any(re.search(str(answer), candidate) for candidate in (tail, f"answer: {tail}")):
        return Score(1.0)
    return Score(0.0, "" if tail else "there is no answer")


VERIFIERS: dict[str, Callable[[str, Any], Score]] = {
    verifier.__name__: verifier for verifier in (exact, number, contains, regex, code)
}


@functools.cache
def reward_texts(name: str) -> list[str]:
    """The texts of version 1 of a named verifier, or of `verify` of a taskset class of this package
    (`FunctionTaskset.verify`), which represent its code in `measure`, the hash of a reward; [] for
    code that counts by its source.

    Code of the same meaning may be rewritten without new trials. When the meaning of a verifier
    changes, add a text, such as "number: version 2", to its list in verifiers-v1.json.
    """
    texts: dict[str, list[str]] = json.loads(
        Path(__file__).with_name("verifiers-v1.json").read_text()
    )
    return texts.get(name, [])


def last_number(text: str) -> Decimal | None:
    """The last number of `text`: 3, -2, 1,000, 0.5, .5, 2e-3; None when there is none."""
    found = NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def _equal(a: Decimal, b: Decimal) -> bool:
    if a == a.to_integral_value() and b == b.to_integral_value():
        return a == b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _letters(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())
