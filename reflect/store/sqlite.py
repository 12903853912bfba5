"""SQLite: WAL, synchronous=FULL, foreign keys, and every write transaction begun with BEGIN
IMMEDIATE: with SQLAlchemy's default, a deferred BEGIN, two writers that both read first lose
updates or fail with "database is locked". Connections are not pooled: opening one costs less than a
millisecond, and a forked child never shares its parent's.

Not covered: network file systems, on which SQLite's locks do not hold.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from reflect.errors import StoreError
from reflect.store import dialect
from reflect.store.dialect import AGAIN, storable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

# The statements that begin each kind of transaction. Migrations rebuild tables, which foreign keys
# forbid.
BEGIN = {
    "read": ("PRAGMA query_only=ON", "BEGIN"),
    "write": ("BEGIN IMMEDIATE",),
    "claim": ("BEGIN IMMEDIATE",),
    "migrate": ("PRAGMA foreign_keys=OFF", "BEGIN IMMEDIATE"),
}

ERRORS = {  # code of SQLite, or how it begins -> the message, the next step
    "SQLITE_FULL": (
        "The disk is full, so the last step was not saved in {path}.",
        f"Free some space, {AGAIN}",
    ),
    "SQLITE_NOTADB": (
        "{path} is not a database.",
        "Name another file with --db, or move this one away.",
    ),
    "SQLITE_CORRUPT": (
        "The database {path} is damaged ({error}).",
        "Put back a copy of it; `reflect doctor` says more.",
    ),
    "SQLITE_READONLY": (
        "The database {path} cannot be written.",
        "Check who may write the file and its folder.",
    ),
    "SQLITE_CANTOPEN": (
        "The database {path} cannot be opened.",
        "Check that its folder exists and may be written.",
    ),
    "SQLITE_PERM": (
        "The database {path} may not be opened.",
        "Check who may read and write the file.",
    ),
    "SQLITE_BUSY": (
        "Another process has been writing {path} for more than {seconds} seconds.",
        f"Wait for it or stop it, {AGAIN}",
    ),
    "SQLITE_IOERR": (
        "The disk refused to read or write {path} ({error}).",
        f"Check the disk and its free space, {AGAIN}",
    ),
}


class SQLite:
    """A database in a file, made when missing."""

    def __init__(self, url: URL) -> None:
        if url.database in (None, "", ":memory:"):
            raise StoreError(
                "Lessons must outlive the process.", "Name a file, for example --db lessons.db."
            )
        self._url = url
        self.path = Path(url.database or "").resolve()
        self.name = str(self.path)
        self.url = url.render_as_string()

    def prepare(self) -> None:
        """The folder, and WAL, which is a property of the file. Two processes that begin together
        meet here."""
        path = self.path
        try:
            if path.is_dir():
                raise StoreError(
                    f"{path} is a folder.",
                    f"Name a file in it, for example --db {path / 'lessons.db'}.",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(
                f"{path.parent} cannot be used ({e.strerror}).", "Name another file with --db."
            ) from e
        connection = sqlite3.connect(path, timeout=dialect.LOCK_SECONDS, isolation_level=None)
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL"))
        finally:
            connection.close()

    def engines(self) -> dict[str, Engine]:
        """The engines of readers and writers."""
        engine = create_engine(
            self._url, poolclass=NullPool, json_serializer=partial(json.dumps, ensure_ascii=False)
        )
        event.listen(engine, "before_cursor_execute", _before_execute, retval=True)
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
        return {kind: engine.execution_options(begin=kind) for kind in dialect.KINDS}

    def tables(self, connection: Connection) -> set[str]:
        """Names of the existing tables."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        return set(connection.exec_driver_sql(query).scalars())

    def orphans(self, connection: Connection) -> set[tuple[str, int, str]]:
        """Rows without their parent: (table, row, parent table)."""
        rows = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return {(row[0], row[1], row[2]) for row in rows}

    def settle(self, connection: Connection, before: set[tuple[str, int, str]]) -> None:
        """Refuse a migration that leaves rows without their parent."""
        if new := self.orphans(connection) - before:
            raise StoreError(
                f"Updating the database would leave {len(new)} rows without their parent.",
                "Nothing was changed.",
            )

    def explain(self, e: BaseException) -> StoreError | None:
        """The database's error as a StoreError with a next step."""
        if not isinstance(e, sqlite3.Error | UnicodeDecodeError):
            return None
        name = getattr(e, "sqlite_errorname", None) or ""
        if isinstance(e, UnicodeDecodeError) or str(e).startswith("Could not decode to UTF-8"):
            name = "SQLITE_CORRUPT"  # a text, or SQLite's message about one, is not UTF-8
        if name.startswith("SQLITE_IOERR") and shutil.disk_usage(self.path.parent).free < 2**16:
            # where there is no room even for its shared memory, SQLite calls it an I/O error
            name = "SQLITE_FULL"
        for code, (what, hint) in ERRORS.items():
            if name == code or name.startswith(code + "_"):
                facts = {"path": self.path, "error": e, "seconds": f"{dialect.LOCK_SECONDS:.0f}"}
                return StoreError(what.format(**facts), hint)
        return None


# -- hooks


def _on_connect(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late, and never for a SELECT
    connection.execute(f"PRAGMA busy_timeout={dialect.LOCK_SECONDS * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _before_execute(
    connection: Connection,
    cursor: object,
    statement: str,
    parameters: object,
    context: object,
    executemany: bool,
) -> tuple[str, object]:
    return statement, _storable(parameters)


def _storable(value: object) -> object:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {key: _storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_storable, value))
    return value


def _on_begin(connection: Connection) -> None:
    *settings, begin = BEGIN[connection.get_execution_options()["begin"]]
    for setting in settings:
        connection.exec_driver_sql(setting)
    _patiently(lambda: connection.exec_driver_sql(begin))


def _patiently(act: Callable[[], object]) -> None:
    """Try again while the database is busy: SQLite does not wait for one that another process is
    just opening, closing or recovering, whatever its busy_timeout."""
    deadline = time.monotonic() + dialect.LOCK_SECONDS
    while True:
        try:
            act()
            return
        except (OperationalError, sqlite3.OperationalError) as e:
            reason = getattr(e, "orig", e)
            if (
                not getattr(reason, "sqlite_errorname", "").startswith("SQLITE_BUSY")
                or time.monotonic() > deadline
            ):
                raise
            time.sleep(0.01)
