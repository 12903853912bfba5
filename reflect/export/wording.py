"""What changed between two texts, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

Piece = tuple[
    str, str
]  # (sign, text): "=" in both, "-" only in the old one, "+" only in the new one


def word_diff(old: str, new: str) -> list[Piece]:
    """The pieces, in order; the old text is those of = and -, the new one those of = and +."""
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (old, new))
    pieces: list[Piece] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("=", "".join(a[i:j])))
            continue
        pieces += [
            (sign, text) for sign, text in (("-", "".join(a[i:j])), ("+", "".join(b[k:m]))) if text
        ]
    return pieces
