"""One text that a regular expression matches, so that a task file's patterns can be checked without a model.

    example(r"^(\\d+) apples?$")   ->  "0 apple"

Not covered: look-behinds, conditions, and boundaries that the text made here happens to break. They give None.
"""

from __future__ import annotations

import importlib
import re
import string
from typing import Any

ALPHABET = "0a A_.,-" + string.printable


def example(pattern: str) -> str | None:
    """The simplest text that `pattern` matches, or None when none was found."""
    for least in (1, 0):  # repeat what may be left out once, then not at all
        try:
            # The standard library's own parser: private, and better than a second one of ours.
            parser = importlib.import_module("re._parser")
            text = _text(parser.parse(pattern), {}, least)
        except (ImportError, NotImplementedError, KeyError):
            return None
        if re.search(pattern, text):
            return text
    return None


def _text(parsed: Any, groups: dict[int, str], least: int) -> str:
    return "".join(_one(str(op), argument, groups, least) for op, argument in parsed)


def _one(op: str, argument: Any, groups: dict[int, str], least: int) -> str:
    match op:
        case "LITERAL":
            return chr(argument)
        case "ANY":
            return "a"
        case "NOT_LITERAL":
            return next(c for c in ALPHABET if ord(c) != argument)
        case "IN":
            for c in _candidates(argument):
                if _allowed(argument, c):
                    return c
        case "BRANCH":
            return _text(argument[1][0], groups, least)
        case "SUBPATTERN":
            text = _text(argument[-1], groups, least)
            groups[argument[0]] = text
            return text
        case "ATOMIC_GROUP":
            return _text(argument, groups, least)
        case "GROUPREF":
            return groups[argument]
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, repeated = argument
            return _text(repeated, groups, least) * min(max(low, least), high)
        case "AT" | "ASSERT" | "ASSERT_NOT":
            return ""  # the final search decides whether that was right
    raise NotImplementedError(op)


def _candidates(members: Any) -> str:
    """Characters that stand in the class itself, then everyday ones."""
    own = [chr(a if str(op) == "LITERAL" else a[0]) for op, a in members if str(op) in ("LITERAL", "RANGE")]
    return "".join(own) + ALPHABET


def _allowed(members: Any, c: str) -> bool:
    inside, negated = False, False
    for op, a in members:
        match str(op):
            case "NEGATE":
                negated = True
            case "LITERAL":
                inside |= ord(c) == a
            case "RANGE":
                inside |= a[0] <= ord(c) <= a[1]
            case "CATEGORY":
                inside |= bool(re.match(CATEGORIES[str(a)], c))
    return inside != negated


CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
