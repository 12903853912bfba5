"""Score the final text of a rollout: exact | number | contains | regex | code.

What is scored is the text after the last "answer:", or the whole text when there is none. Feedback
describes the form only ("there is no number") and never holds the answer.

    VERIFIERS["number"]("s t a r, so 1.  answer: 1", 1)   ->  Score(reward=1.0)

They run under the limits of `reflect.tasksets.isolation`: a pattern that does not end stops with
its worker. `code` runs in the sandbox (see `reflect.tasksets.code`).
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.tasksets.code import code
from reflect.tasksets.numbers import equal, last_number, only_number
from reflect.tasksets.task import Score

if TYPE_CHECKING:
    from collections.abc import Callable

# "answer:" with Markdown, HTML or LaTeX around it: **Answer:** 4, __Answer__: 4, Answer\uff1a4
MARKER = re.compile(
    r"(?<![^\W_])answer(?:[*_`~\])}]+|</\w{1,9}>)?[ \t]?[:\uff1a\ufe55]"
    r"(?:[*_`~\])}]+(?=\s)|\*\*|</\w{1,9}>)?",
    re.IGNORECASE,
)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Characters without width. Joiners count between letters of scripts that are written with them.
ZERO_WIDTH = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    "|(?<![^\\x00-\u024f])[\u200c\u200d]|[\u200c\u200d](?![^\\x00-\u024f])"
)
ONE_SPELLING = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
)
WRAPPED = re.compile(  # formatting or quotes around all of a text
    r"[*_`~]{1,3}(?P<a>[^*_`~].*?)[*_`~]{1,3}|\\(?:text\w*|math\w*)\s*\{(?P<b>[^{}]*)\}"
    r"|\$+(?P<c>[^$]+)\$+|\\[(\[](?P<d>.*)\\[)\]]|\"(?P<e>[^\"]*)\"|'(?P<f>[^']*)'"
    r"|<(\w+)>(?P<g>[^<>]*)</\7>"
)
LABEL = r"[(\[*_$\"']*(?P<letter>[a-z])[)\].:,!*_$\"']*"
CHOICE = re.compile(  # "(b)", "b.", "the correct answer is option b", "b) paris"
    r"(?:(?:.*[\s*(:])?(?:answer|option|choice)\b\s*(?:is\b\s*)?(?::\s*)?(?:(?:option|choice)\s+)?)?"
    rf"{LABEL}(?:(?<=[).:,\]*])\s+(?P<rest>.*))?"
)
HEDGED = re.compile(
    r"\b(?:or|and|not|nor|neither|either|between|than)\b[^.:]{0,30}\b(?:answer|option|choice)\b"
)
ANOTHER = re.compile(r"(?<![\w'])(?:[b-hj-z](?![\w'])|[ai][).\]])")  # another option


def extract_answer(text: str) -> str:
    """The part of `text` that is scored: after the last "answer:", else all of it."""
    *before, tail = MARKER.split(text)
    tail = tail.strip()
    rest = tail.rstrip("*_`~")
    end = tail[len(rest) :]
    if before and end and tail.count(end) == 1:  # **Answer: B**, opened before "answer:"
        return rest.rstrip()
    return tail


def final_answer(text: str) -> str:
    r"""The answer of a text: what its last \boxed{...} holds, else what `extract_answer` gives."""
    text = extract_answer(text)
    *_, start = [0, *(match.end() for match in BOXED.finditer(text))]
    if not start:
        return text
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start:end]
    return text


def normal(value: object) -> str:
    """One line, lower case, single spaces, canonical Unicode; typographic quotes and hyphens as
    ASCII, without characters that have no width."""
    text = ZERO_WIDTH.sub("", unicodedata.normalize("NFC", str(value))).translate(ONE_SPELLING)
    return unicodedata.normalize("NFC", " ".join(text.split()).casefold())


def exact(text: str, answer: object) -> Score:
    """The same words in the same order; case, white space, and formatting or quotes around all of
    the answer do not count. Where the answer is one letter, "(B)" and "The answer is B." are."""
    got, want = normal(final_answer(text)), normal(final_answer(str(answer)))
    if want in (got, bare := _bare(got)):
        return Score(1.0)
    if len(_letters(want)) == 1 and (letter := choice(want)) and letter == choice(bare):
        return Score(1.0)
    if not got:
        return Score(0.0, "there is no answer")
    if _letters(got) and _letters(got) == _letters(want):
        return Score(0.0, "only the punctuation is off")
    return Score(
        0.0,
        "" if MARKER.search(text) else "there is no answer: in it, so the whole text was judged",
    )


def choice(text: str) -> str:
    """The letter that a `normal` text chooses among options; "" where it chooses none or
    several."""
    match = CHOICE.fullmatch(text)
    if match is None or HEDGED.search(text) or ANOTHER.search(match["rest"] or ""):
        return ""
    return match["letter"]


def _bare(text: str) -> str:
    """A `normal` text without formatting or quotes around all of it."""
    for _ in range(8):
        match = WRAPPED.fullmatch(text)
        if match is None or not match.lastgroup:
            break
        text = match[match.lastgroup].strip()
    return text


def contains(text: str, answer: object) -> Score:
    """The answer is a part of the scored text; case and white space do not count."""
    got, want = normal(extract_answer(text)), normal(extract_answer(str(answer)))
    if got and want in got:
        return Score(1.0)
    return Score(0.0, "" if got else "there is no answer")


def number(text: str, answer: object) -> Score:
    """The last number equals the answer: whole numbers exactly, others to one part in a million.
    See `reflect.tasksets.numbers` for what is a number."""
    tail = final_answer(text)
    got, want = (
        last_number(tail, marked=tail != text.strip()),
        only_number(final_answer(str(answer))),
    )
    if got is None:
        return Score(0.0, "there is no number in the answer")
    return Score(float(want is not None and equal(got, want)))


def regex(text: str, answer: object) -> Score:
    """The pattern is found in the judged text, or in it with its "answer:", as the pattern may name
    that word."""
    tail = extract_answer(text)
    if any(re.search(str(answer), candidate) for candidate in (tail, f"answer: {tail}")):
        return Score(1.0)
    if not tail:
        return Score(0.0, "there is no answer")
    scored = "answer" if MARKER.search(text) else 'whole text, in which there is no "answer:",'
    return Score(0.0, f"the {scored} does not have the form that is asked for")


VERIFIERS: dict[str, Callable[[str, Any], Score]] = {
    verifier.__name__: verifier for verifier in (exact, number, contains, regex, code)
}


# What was changed in how they score, by name; code that calls `extract_answer` is affected too.
CHANGES = {
    name: ["version 2: answers as models write them"]
    for name in "exact number contains regex extract_answer Generator.verify Mixed.verify".split()
}


@functools.cache
def reward_texts(name: str, first: bool = False) -> list[str]:
    """The texts that represent the code of a named verifier, or of `verify` of a taskset class of
    this package (`FunctionTaskset.verify`), in the hash of a reward; [] for code that counts by
    its source. `first`: of version 1 only.

    Code of the same meaning may be rewritten without new trials. When a verifier scores otherwise,
    add a text to CHANGES.
    """
    texts: dict[str, list[str]] = json.loads(
        Path(__file__).with_name("verifiers-v1.json").read_text()
    )
    changes = [] if first else [f"{name}, {change}" for change in CHANGES.get(name, [])]
    return texts.get(name, []) + changes


def _letters(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text).split())
