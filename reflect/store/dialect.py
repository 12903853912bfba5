"""What the two kinds of database do differently when they are opened; `sqlite` and `postgres` are
the two.

The full-text search has its own pair, `search` and `tsearch`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from reflect.errors import StoreError

LOCK_SECONDS = 30.0  # how long a writer waits for another
KINDS = (
    "read",
    "write",
    "claim",
    "migrate",
)  # of transactions; an engine's connections carry it as the option `begin`
MOST_WORDS = 64  # of one full-text query, the rarest
COMMON = 2000  # a word of more lessons than this says little about any of them
AGAIN = "then run the same command again: it continues where it stopped."


class Dialect(Protocol):
    """One database, not opened yet."""

    @property
    def name(self) -> str:
        """What it is called in a sentence: a path, or a URL without its password."""

    @property
    def url(self) -> str:
        """As SQLAlchemy writes it, without its password."""

    def prepare(self) -> None:
        """What must be there before the first transaction."""

    def engines(self) -> dict[str, Engine]:
        """For each of KINDS the engine whose transactions are of that kind. They share their
        connections."""

    def tables(self, connection: Connection) -> set[str]:
        """The names of all tables."""

    def orphans(self, connection: Connection) -> set[tuple[str, int, str]]:
        """Before a migration: (table, row, parent) of the rows whose parent is not there."""

    def settle(self, connection: Connection, before: set[tuple[str, int, str]]) -> None:
        """At the end of a migration, in its transaction. StoreError when it must not be kept.
        `before`: the orphans that existed already; `reflect doctor` names them."""

    def explain(self, e: BaseException) -> StoreError | None:
        """The sentence for an error of this database, or None for one that says that our own code
        is wrong."""


def storable(text: str) -> str:
    """The text with U+FFFD for half surrogates, which no database can hold. Two halves that follow
    each other become their character."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def without_password(url: str) -> str:
    """The URL as it may be printed, however badly it is written."""
    url = re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)(\bpassword=)[^&]*", r"\1***", url)
