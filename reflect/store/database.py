"""Open a database, bring it up to date, hand out transactions: a file of SQLite by default,
PostgreSQL by its URL."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlmodel import Session

from reflect.errors import NewerDatabase, StoreError, UsageError
from reflect.reading import expand_home
from reflect.store import row_hashes
from reflect.store.dialect import Dialect, without_password
from reflect.store.postgres import Postgres
from reflect.store.sqlite import SQLite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every revision that a database may have, oldest first."""
FIRST_HASHED = "0007"
"""The revision that brought the hashes of rows."""


class Store:
    """A lessons database. `url_or_path`: a file, made when missing, or a SQLAlchemy URL
    (sqlite:///..., or postgresql+psycopg://user@host/database).

    Raises StoreError for what cannot be opened, NewerDatabase for one that a newer reflect wrote.
    `url` has no password; `path` is the file, None on a server.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        self._dialect = _dialect(str(url_or_path))
        self.url = self._dialect.url
        self.path = self._dialect.path if isinstance(self._dialect, SQLite) else None
        self._engines = self._dialect.engines()
        try:
            with self.translate_errors():
                self._dialect.prepare()
                self._bring_up_to_date()
        except UnicodeDecodeError as e:  # from a database's own text: here nothing else is read
            raise self._dialect.explain(e) or e from e

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database and cannot write. Rows stay readable after
        it."""
        with self.translate_errors(), Session(self._engines["read"], expire_on_commit=False) as s:
            yield s

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: all of the block or, when anything is raised in it, nothing. One writer at
        a time."""
        with (
            self.translate_errors(),
            row_hashes.WriteSession(self._engines["write"], expire_on_commit=False) as s,
            s.begin(),
        ):
            s.connection()  # takes the lock now, so that reads stay true until the end
            yield s
            row_hashes.save(s)

    @contextmanager
    def claim(self) -> Iterator[Session]:
        """A transaction for `reflect.store.claims`: on PostgreSQL it does not wait for a writer."""
        with (
            self.translate_errors(),
            Session(self._engines["claim"], expire_on_commit=False) as s,
            s.begin(),
        ):
            yield s

    def close(self) -> None:
        """Let go of idle connections. The store can be used again."""
        self._engines["read"].dispose()

    def _bring_up_to_date(self) -> None:
        with self._engines["read"].connect() as c:
            if _revision(c, self._dialect) == REVISIONS[-1]:
                return
        # Importing alembic takes 0.2 s: only when there is work.
        from reflect.store.migrations import upgrade

        # One transaction: a killed migration changes nothing.
        with self._engines["migrate"].begin() as c:
            revision = _revision(c, self._dialect)
            if revision != REVISIONS[-1]:  # another process may have been faster
                before = self._dialect.orphans(c)
                hashed = revision is not None and revision >= FIRST_HASHED
                wrong = list(row_hashes.mismatches(c)) if hashed else []
                upgrade(c, revision)
                self._dialect.settle(c, before)
                row_hashes.save_all(c, wrong)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Database errors as StoreErrors, values that no column can hold as UsageErrors. A broken
        constraint is our bug, and stays as it is."""
        try:
            yield
        except OverflowError as e:
            hint = "An id or a count has at most 18 digits."
            raise UsageError("A number is too large for the database.", hint) from e
        except UnicodeEncodeError as e:
            hint = "It has half of a surrogate pair, or bytes that are not UTF-8."
            raise UsageError("A text cannot be stored.", hint) from e
        except (DBAPIError, sqlite3.Error) as e:
            if error := self._dialect.explain(
                e.orig if isinstance(e, DBAPIError) and e.orig else e
            ):
                raise error from e
            raise


def _dialect(text: str) -> Dialect:
    """The kind of database that the text names. StoreError, without a password in it, for one that
    is not served."""
    try:
        plain = "://" not in text
        url = URL.create("sqlite", database=str(expand_home(text))) if plain else make_url(text)
    except (ArgumentError, ValueError) as e:
        raise StoreError(
            f"{without_password(text)} is not a database URL.",
            "Name a file, for example --db lessons.db.",
        ) from e
    kind = url.drivername.split("+")[0]
    if kind == "sqlite":
        return SQLite(url)
    if kind in ("postgresql", "postgres"):
        return Postgres(url)
    raise StoreError(
        f"Databases of the kind {kind} are not served yet.",
        "Name a file, or a postgresql+psycopg:// URL.",
    )


def _revision(connection: Connection, database: Dialect) -> str | None:
    """The revision of the database, None when it is empty. StoreError when its tables are not
    ours."""
    tables, name = database.tables(connection), database.name
    if not tables:
        return None
    if not {"alembic_version", "lesson"} <= tables:  # others use alembic too
        what = f"{name} is a database of another program."
        raise StoreError(what, "Name another one with --db.")
    query = "SELECT version_num FROM alembic_version"
    rows = [str(row) for row in connection.exec_driver_sql(query).scalars()]
    hint = "Put back a copy of it, or name another one with --db."
    if not rows:
        raise StoreError(f"{name} does not say its version.", hint)
    if len(rows) > 1:
        raise StoreError(f"{name} says that it has the versions {' and '.join(rows)}.", hint)
    (revision,) = rows
    if revision not in REVISIONS:
        what = f"{name} was written by a newer reflect (revision {revision})."
        raise NewerDatabase(what, "Update reflect, then try again.")
    if "row_hash" in tables and revision < FIRST_HASHED:
        what = f"{name} says that it has version {revision}, but its tables are of a newer one."
        raise StoreError(what, hint)
    return revision
