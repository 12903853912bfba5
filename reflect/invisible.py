"""Invisible characters: which of them a text needs, and which only hide something.

Joiners change the shape of letters in cursive and Indic scripts and build emoji; variation
selectors choose between the forms of a character. They stay where they can have an effect: one at
a time, next to a character of such a script or in an emoji (UAX 31, "Layout and format control
characters"; UTS 51 for emoji). Everything else that has no picture of its own is removed: in Latin
words a zero-width character, everywhere bidirectional controls, tag characters, fillers, runs of
selectors. They would let a text say to the model what no person sees.

Not covered: letters that look like others (homoglyphs), and what a choice between two valid forms
may encode.
"""

from __future__ import annotations

import functools
import re
import unicodedata

ZWJ = "\u200d"
JOINERS = frozenset("\u200b\u200c\u180e" + ZWJ)  # and separators inside words of such scripts
GRAPHEME_JOINER = "\u034f"
TEXT_STYLE, EMOJI_STYLE, KEYCAP = "\ufe0e", "\ufe0f", "\u20e3"
# Of the category Cf, but visible: signs that stand before or around digits.
SIGNS = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
# Default_Ignorable_Code_Point that str.isprintable() accepts.
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_FLAGS = ("gbeng", "gbsct", "gbwls")  # the flags that are written by tag characters
_FLAG = re.compile(
    "\U0001f3f4(?:{})\U000e007f".format(
        "|".join("".join(chr(0xE0000 + ord(c)) for c in name) for name in _FLAGS)
    )
)
# Cursive scripts without a virama, by the first word of their characters' names.
_CURSIVE = frozenset(
    "ARABIC SYRIAC MANDAIC NKO ADLAM MONGOLIAN PHAGS-PA MANICHAEAN PSALTER HANIFI SOGDIAN"
    " CHORASMIAN".split()
)  # fmt: skip


def remove_invisible(text: str, keep: str = "") -> str:
    """The text without invisible characters that have no effect where they are, and with a space
    for each control character and separator. `keep`: control characters that stay."""
    if text.isprintable() and not _IGNORABLE.search(text):
        return text
    flags = {i for m in _FLAG.finditer(text) for i in range(m.start(), m.end())}
    return "".join(c if i in flags or c in keep else _kept(text, i) for i, c in enumerate(text))


def _kept(text: str, i: int) -> str:
    """The character at `i`, or what takes its place."""
    c = text[i]
    before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
    if c in JOINERS:
        return c if _joins(text, i) else ""
    if _IGNORABLE.match(c):
        return c if _selects(c, before, after) else ""
    if c.isprintable() or c in SIGNS:
        return c
    category = unicodedata.category(c)
    if category == "Cn" and _reserved(c):
        return c
    return "" if category == "Cf" else " "


def _joins(text: str, i: int) -> bool:
    """Can the joiner at `i` have an effect? Of several in a row only the first one can."""
    before, end = text[i - 1] if i else "", i
    if before in JOINERS:
        return False
    while end < len(text) and text[end] in JOINERS:
        end += 1
    after = text[end : end + 1]
    if text[i] == ZWJ and _emoji_before(text, i):
        return _pictograph(after)
    return not {_script(before), _script(after)}.isdisjoint(_joining_scripts())


def _emoji_before(text: str, i: int) -> bool:
    """Does an emoji end before `i`, perhaps with a selector or a skin tone?"""
    while i and (text[i - 1] == EMOJI_STYLE or "\U0001f3fb" <= text[i - 1] <= "\U0001f3ff"):
        i -= 1
    return bool(i) and _pictograph(text[i - 1])


def _selects(c: str, before: str, after: str) -> bool:
    """Does a selector, or a grapheme joiner, belong to the character before it?"""
    if not before:
        return False
    if c == GRAPHEME_JOINER:  # between marks whose order matters
        return unicodedata.category(before) == "Mn" == unicodedata.category(after or " ")
    name = unicodedata.name(before, "")
    if c in (TEXT_STYLE, EMOJI_STYLE):
        keycap = before in "0123456789#*" and after == KEYCAP
        return keycap or _pictograph(before) or before in "\u203c\u2049\u3030"
    if "\u180b" <= c <= "\u180f":
        return name.startswith("MONGOLIAN LETTER")
    if "\ufe00" <= c <= "\ufe02":
        math = unicodedata.category(before) == "Sm" and before > "\x7f"
        return math or name.startswith(("CJK ", "MYANMAR LETTER", "PHAGS-PA LETTER"))
    return c >= "\U000e0100" and (name.startswith("CJK ") or _ideograph(before))


def _pictograph(c: str) -> bool:
    """Can it be an emoji? Also if it is newer than this Python's Unicode."""
    if not c or c <= "\x7f":
        return False
    return unicodedata.category(c) in ("So", "Sm") or "\U0001f000" <= c <= "\U0001faff"


def _ideograph(c: str) -> bool:
    return "\U00020000" <= c <= "\U0003fffd"


def _reserved(c: str) -> bool:
    """Not assigned in this Python's Unicode, but kept for emoji or ideographs."""
    return "\U0001f000" <= c <= "\U0001faff" or _ideograph(c)


def _script(c: str) -> str:
    """The first word of the character's name, which is its script for letters and marks."""
    if not c or unicodedata.category(c)[0] not in "LM":
        return ""
    return unicodedata.name(c, "").partition(" ")[0]


@functools.cache
def _joining_scripts() -> frozenset[str]:
    """The scripts in which joiners change shapes: cursive ones, and those with a virama."""
    blocks = ((0x900, 0x3100), (0xA800, 0xAC00), (0x10A00, 0x12000))
    marks = (chr(i) for block in blocks for i in range(*block))
    return _CURSIVE | {_script(c) for c in marks if unicodedata.combining(c) == 9} - {""}
