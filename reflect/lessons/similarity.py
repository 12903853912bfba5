"""Near duplicates among lessons: candidates for a merge, which a model or a person decides.

Two texts that are equal in most of their words may still mean different things: "the task says
zubi" and "the task says fapo", "use reverse" and "use sort", "at most 3" and "at most 4", "do" and
"do not". Such pairs are apart, however much else they share.

Not covered: the same thing in other words; a small difference that is not one of those above.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from reflect.store.lessons import wording

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SIMILAR = 0.6  # share of all their words that two near duplicates have in common
NEGATIONS = frozenset("not no never without except unless don doesn isn cannot".split())
# words in which a difference does not count
FILLERS = frozenset("you your i we are is be being it its this that when if in of for".split())
ARTICLES = frozenset(("a", "an", "the"))
ENDINGS = ("ing", "ed", "es", "s", "e")


class LessonText(Protocol):
    """A condition and an advice: a `records.Lesson`, a `LessonVersion` or an `Edit`."""

    @property
    def when(self) -> str:
        """The condition."""

    @property
    def do(self) -> str:
        """The advice."""


def stems(text: str) -> frozenset[str]:
    """The words of `normal`, the longer ones without their endings: "counting" is "count"."""
    return frozenset(_stem(word) for word in normal(text).split())


def same(a: LessonText, b: LessonText) -> bool:
    """Whether their texts are equal, but for case, punctuation and articles."""
    return (identity(a.when), identity(a.do)) == (identity(b.when), identity(b.do))


def apart(a: str, b: str, telling: Iterable[str] = ()) -> bool:
    """Whether the words in which they differ distinguish them: one word instead of another, a
    number, a negation, a word that is known to be `telling`, or a symbol or vowel sign between
    the same words."""
    if normal(a) == normal(b):
        return identity(a) != identity(b)
    ours, theirs = stems(a) - FILLERS, stems(b) - FILLERS
    differ = ours ^ theirs
    swapped = len(ours - theirs) == len(theirs - ours) == 1
    numbers = any(char.isdigit() for word in differ for char in word)
    return swapped or numbers or not differ.isdisjoint(NEGATIONS | set(telling))


def telling(conditions: Iterable[str]) -> frozenset[str]:
    """The words that distinguish these conditions: another condition has another word in the same
    place, as zubi and fapo in "the task says zubi" and "the task says fapo"."""
    slots: dict[tuple[str, ...], set[str]] = {}
    for condition in conditions:
        words = [_stem(word) for word in normal(condition).split()]
        for i, word in enumerate(words if len(words) > 1 else ()):
            slots.setdefault((*words[:i], "", *words[i + 1 :]), set()).add(word)
    return frozenset(word for family in slots.values() if len(family) > 1 for word in family)


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard: the share of their words that both have."""
    return len(a & b) / max(len(a | b), 1)


def alike(a: LessonText, b: LessonText, telling: Iterable[str] = ()) -> bool:
    """Whether they are near duplicates: neither conditions nor advice are apart, and the conditions
    are equal or most of all their words are common."""
    if apart(a.when, b.when, telling) or apart(a.do, b.do):
        return False
    whole = overlap(stems(f"{a.when} {a.do}"), stems(f"{b.when} {b.do}"))
    return normal(a.when) == normal(b.when) or whole >= SIMILAR


def covers_condition(new: str, old: str) -> bool:
    """Whether the condition `new` holds where `old` did: it names nearly all that `old` names."""
    ours, theirs = stems(new), stems(old)
    return theirs <= ours or (not apart(new, old) and overlap(ours, theirs) >= SIMILAR)


def families(
    lessons: Sequence[LessonText], pairs: Iterable[tuple[int, int]], telling: Iterable[str] = ()
) -> list[list[int]]:
    """Groups of two or more indices of `lessons` that are all alike, compared by `pairs` only. The
    first lesson opens a family; each other one joins the first family that it fits."""
    close = {frozenset(x) for x in pairs if alike(lessons[x[0]], lessons[x[1]], telling)}
    groups: list[list[int]] = []
    for i in range(len(lessons)):
        fits = (group for group in groups if all(frozenset((i, j)) in close for j in group))
        if (home := next(fits, None)) is not None:
            home.append(i)
        else:
            groups.append([i])
    return [group for group in groups if len(group) > 1]


def _stem(word: str) -> str:
    """Crude, and only for words of six letters or more: short and made-up words do not change."""
    ends = (word[: -len(end)] for end in ENDINGS if word.endswith(end))
    return next(ends, word) if len(word) > 5 else word


def normal(text: str) -> str:
    """The text without case, punctuation and articles: near duplicates are equal in it."""
    return " ".join(w for w in re.findall(r"\w+", text.lower()) if w not in ARTICLES)


def identity(text: str) -> tuple[str, ...]:
    """What the text says: equal for two texts only if one of them can be left out. Unlike `normal`
    it keeps symbols and the vowel signs of all scripts (see `reflect.store.lessons.wording`)."""
    return tuple(word for word in wording(text).split() if word not in ARTICLES)
