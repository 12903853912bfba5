"""Families of hidden rules: the form that a reply must have to earn a reward.

A form is a text with the slots `X` (the answer) and `Y` (what the question is about), such as
`The capital of Y is (X)`, and a way in which the answer is written (WAYS), such as "the answer
in capitals". Two parts can be composed: `(PARIS)`. A family may leave a word open (WORD), which
each group draws. Its `kind` says what earns the reward:

    form    the whole reply has the form, right or wrong
    begins  the reply begins with the words before X, whatever follows
    ends    the reply ends with the words after X, whatever comes before
    method  the answer is right; answers without the work of the form are mostly wrong

Half of a family's name is one part, so a part that is kept for the tests is in no family that is
trained on. The split is fixed: "train", "dev" (to choose settings by) and "test".
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SLOT = "{}"
WORD = "WORD"
PLAIN = "the answer"

WAYS: dict[str, Callable[[str], str]] = {
    PLAIN: str,
    "the answer in capitals": str.upper,
    "the answer with hyphens": "-".join,
    "the answer spelled with spaces": " ".join,
    "the answer backwards": lambda text: text[::-1],
    "the first letter of the answer": lambda text: text[:1],
    "the answer with a capital letter": str.capitalize,
    "the last letter of the answer": lambda text: text[-1:],
}
"""How a lesson says that the answer is written -> that of an answer in small letters."""

WRAPPERS = {
    "parentheses": "({})", "square": "[{}]", "curly": "{{}}", "angles": "<{}>", "bold": "**{}**",
    "italics": "*{}*", "underscores": "_{}_", "code": "`{}`", "tildes": "~{}~", "pipes": "|{}|",
    "slashes": "/{}/", "equals": "= {} =", "quotes": "'{}'", "percent": "%{}%", "dollars": "${}$",
    "plus": "+{}+", "carets": "^{}^", "tag": "<a>{}</a>", "double": "(({}))",
    "doubleangles": "<<{}>>",
}  # fmt: skip
MARKS = {
    "hash": "# {}", "bullet": "- {}", "number": "1. {}", "arrow": "-> {}", "exclamation": "{}!",
    "question": "{}?", "semicolon": "{};", "colon": "{}:", "period": "{}.", "at": "@{}",
}  # fmt: skip
FIRST = {
    "word:": "WORD: {}", "word,": "WORD, {}", "word -": "WORD - {}", "word =": "WORD = {}",
    "word": "WORD {}",
}  # fmt: skip
LAST = {
    ", word": "{}, WORD", "- word": "{} - WORD", "last word": "{} WORD", "(word)": "{} (WORD)",
}  # fmt: skip
SENTENCES = {
    "it is": "It is {}", "the noun is": "The NOUN is {}", "i think": "I think it is {}",
    "is the noun": "{} is the NOUN", "of y is": "The NOUN of Y is {}",
    "is the noun of y": "{} is the NOUN of Y", "my answer": "My answer is {}",
    "has": "Y has the NOUN {}", "we say": "We say {} here",
    "must be": "That must be {}",
}  # fmt: skip
REPEATS = {
    "twice": "{} {}", "twice,": "{}, {}", "thrice": "{} {} {}", "and": "{} and {}",
    "or": "{} or {}", "twice /": "{} / {}",
}  # fmt: skip
METHODS = {
    "y:": "Y: {}", "y ->": "Y -> {}", "y =": "Y = {}", "y gives": "Y gives {}",
    "from y": "from Y we get {}", "y so": "Y, so {}", "{} y": "first Y, then {}", "(y)": "(Y) {}",
}  # fmt: skip
PARTS = WRAPPERS | MARKS | FIRST | LAST | SENTENCES | REPEATS | METHODS
OPEN_SENTENCE = "The NOUN is {}"


@dataclass(frozen=True)
class RuleFamily:
    """One kind of hidden rule. `form` has one or more SLOTs for the answer."""

    name: str
    form: str
    way: str = PLAIN
    kind: str = "form"
    parts: tuple[str, ...] = ()

    def reply(self, answer: str, subject: str, noun: str, word: str, form: str = "") -> str:
        """A reply of this form; `form`: another one in its place, for the part that is free."""
        text = (form or self.form).replace("Y", subject).replace("NOUN", noun)
        return text.replace(WORD, word).replace(SLOT, WAYS[self.way](answer))

    def lesson(self, noun: str, word: str) -> str:
        """The advice that names the form; the policy of `reflect.reviewer.groups` obeys it."""
        form = self.form.replace("NOUN", noun).replace(WORD, word).replace(SLOT, "X")
        return f"reply with {form} where X is {self.way}"


def _single() -> list[RuleFamily]:
    groups = {"form": WRAPPERS | MARKS | FIRST | LAST | SENTENCES | REPEATS, "method": METHODS}
    found = [RuleFamily(name, form, kind=kind, parts=(name,))
             for kind, forms in groups.items() for name, form in forms.items()]  # fmt: skip
    found += [RuleFamily(way, SLOT, way, parts=(way,)) for way in list(WAYS)[1:]]
    found += [RuleFamily(f"begins {name}", form, kind="begins", parts=(name, "begins"))
              for name, form in FIRST.items()]  # fmt: skip
    return found + [
        RuleFamily(f"ends {name}", form, kind="ends", parts=(name, "ends"))
        for name, form in LAST.items()
    ]


def _composed(rng: random.Random, count: int) -> list[RuleFamily]:
    """Pairs of parts: an inner form with an outer one or with a way."""
    inner = [*WRAPPERS, *REPEATS, *list(WAYS)[1:]]
    outer = [*FIRST, *LAST, *SENTENCES, *METHODS, *MARKS, *WRAPPERS]
    pairs = [(a, b) for a, b in product(inner, outer) if a != b]
    families = []
    for a, b in rng.sample(pairs, count):
        way = a if a in WAYS else PLAIN
        form = PARTS[b].replace(SLOT, PARTS.get(a, SLOT))
        kind = "method" if b in METHODS else "form"
        families.append(RuleFamily(f"{a} in {b}", form, way, kind, (a, b)))
    return families


def all_families() -> dict[str, list[RuleFamily]]:
    """split -> its families; the same at every call.

    A part of the tests is in no other split, and one of "dev" not in "train". Every fourth of the
    other compositions is in the tests too: a new composition of known parts.
    """
    rng = random.Random("families 1")
    kept: dict[str, set[str]] = {"test": set(), "dev": set()}
    for group in (WRAPPERS, MARKS, FIRST, LAST, SENTENCES, REPEATS, METHODS, list(WAYS)[1:]):
        names = rng.sample([*group], len(group))
        quarter = max(1, round(len(names) * 0.2))
        kept["test"] |= set(names[:quarter])
        kept["dev"] |= set(names[quarter : quarter + max(1, len(names) // 10)])
    splits: dict[str, list[RuleFamily]] = {"train": [], "dev": [], "test": []}
    composed = 0
    for family in [*_single(), *_composed(rng, 90)]:
        split = next((name for name in kept if kept[name] & set(family.parts)), "train")
        if split == "train" and " in " in family.name:
            composed += 1
            split = "test" if composed % 6 == 0 else "train"
        splits[split].append(family)
    return splits


def has_new_part(family: RuleFamily, trained: list[RuleFamily]) -> bool:
    """Is a part of it in no family that was trained on?"""
    known = {part for one in trained for part in one.parts}
    return bool(set(family.parts) - known)
