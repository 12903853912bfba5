"""The key of a server: read from the environment when needed, never stored in a setting, and hidden
in all text of a server, because some servers repeat it in their errors."""

from __future__ import annotations

import base64
import functools
import os
from itertools import groupby
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from reflect.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("REFLECT_API_KEY", "OPENAI_API_KEY")  # the first that is set
PIECE = 8  # letters of a key that are already too many
HIDDEN = "[key]"


def the_key() -> str:
    """The key, "" where none is set."""
    return next((value for name in NAMES if (value := os.environ.get(name, "").strip())), "")


def hide(text: str, key: str) -> str:
    """The text without any piece of the key, as it is, percent-encoded, in base64 or escaped. A key
    of fewer letters than a piece is a placeholder, and no secret."""
    pieces = _pieces(key)
    if not pieces:
        return text
    inside = [False] * len(text)
    for at in range(len(text) - PIECE + 1):
        if text[at : at + PIECE] in pieces:
            inside[at : at + PIECE] = [True] * PIECE
    parts = (
        "".join(letter for letter, _ in run) if not secret else HIDDEN
        for secret, run in _runs(text, inside)
    )
    return "".join(parts) if any(inside) else text


def _runs(text: str, inside: list[bool]) -> Iterator[tuple[bool, Iterator[tuple[str, bool]]]]:
    return groupby(zip(text, inside, strict=True), key=lambda pair: pair[1])


@functools.lru_cache(maxsize=8)
def _pieces(key: str) -> frozenset[str]:
    forms = {key, quote(key, safe=""), repr(key)[1:-1]}
    forms |= {
        base64.b64encode(("x" * i + key).encode()).decode()[2 * i : -4] for i in range(3)
    }  # wherever it begins
    return frozenset(form[i : i + PIECE] for form in forms for i in range(len(form) - PIECE + 1))


def checked_url(url: str, name: str) -> str:
    """The address without a slash at its end. UsageError, which does not repeat it, for one that is
    none or holds a name or key."""
    refusal = UsageError(
        f"{name} is no address of a server.",
        f"Write for example: {name} = http://127.0.0.1:8000/v1",
    )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as e:
        raise refusal from e
    if not valid:
        raise refusal
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{name} holds more than an address.", f"Put the key into {' or '.join(NAMES)} instead."
        )
    return url.rstrip("/")
