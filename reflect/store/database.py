"""Open a database, bring it up to date, hand out transactions.

SQLite with WAL, synchronous=FULL, foreign keys, and every write transaction begun with BEGIN IMMEDIATE: with
SQLAlchemy's default, a deferred BEGIN, two writers that both read first lose updates or fail with "database is locked".
Connections are not pooled: opening one costs less than a millisecond, and a forked child never shares its parent's.

Not covered: network file systems, on which SQLite's locks do not hold.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import NullPool
from sqlmodel import Session

from reflect.errors import NewerDatabase, StoreError

REVISIONS = ("0001", "0002", "0003")  # oldest first; a test holds it against the files in migrations/versions
LOCK_SECONDS = 30.0  # how long a writer waits for another

# What each kind of transaction says before its first statement. Migrations rebuild tables, which foreign keys forbid.
BEGIN = {
    "read": ("PRAGMA query_only=ON", "BEGIN"),
    "write": ("BEGIN IMMEDIATE",),
    "migrate": ("PRAGMA foreign_keys=OFF", "BEGIN IMMEDIATE"),
}


class Store:
    """A lessons database. `url_or_path`: a file, made when missing, or a SQLAlchemy URL (sqlite:///...).

    Raises StoreError for what cannot be opened, NewerDatabase for one that a newer reflect wrote.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        url = _url(str(url_or_path))
        self.path = Path(url.database or "").resolve()
        self.url = url.render_as_string()
        engine = create_engine(url, poolclass=NullPool, json_serializer=partial(json.dumps, ensure_ascii=False))
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
        self._engines = {kind: engine.execution_options(begin=kind) for kind in BEGIN}
        with self._in_plain_words():
            _prepare(self.path)
            self._bring_up_to_date()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database and cannot write. Rows stay readable after it."""
        with self._in_plain_words(), Session(self._engines["read"], expire_on_commit=False) as s:
            yield s

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction: all of the block or, when anything is raised in it, nothing. One writer at a time."""
        with self._in_plain_words(), Session(self._engines["write"], expire_on_commit=False) as s, s.begin():
            s.connection()  # take the lock now, not at the first statement: what is read here is still true at the end
            yield s

    def _bring_up_to_date(self) -> None:
        with self._engines["read"].connect() as c:
            if _revision(c, self.path) == REVISIONS[-1]:
                return
        from reflect.store.migrations import upgrade  # alembic costs 0.2 s to import: only when there is work

        with self._engines["migrate"].begin() as c:  # one transaction: a killed migration leaves what was there before
            if _revision(c, self.path) != REVISIONS[-1]:  # another process may have been faster
                upgrade(c)

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        """Database errors as one sentence and the next step. A broken constraint is our bug, and stays as it is."""
        try:
            yield
        except DBAPIError as e:
            if isinstance(e.orig, sqlite3.Error) and (told := explain(e.orig, self.path)):
                raise told from e
            raise
        except sqlite3.Error as e:
            if told := explain(e, self.path):
                raise told from e
            raise


def explain(e: sqlite3.Error, path: Path) -> StoreError | None:
    """The sentence for an error of SQLite, or None for one that says that our own code is wrong."""
    name = getattr(e, "sqlite_errorname", None) or ""
    if name.startswith("SQLITE_IOERR") and shutil.disk_usage(path.parent).free < 2**16:
        name = "SQLITE_FULL"  # where there is no room even for its shared memory, SQLite calls it an I/O error
    again = "then run the same command again: it continues where it stopped."
    known = {
        "SQLITE_FULL": (f"The disk is full, so the last step was not saved in {path}.", f"Free some space, {again}"),
        "SQLITE_NOTADB": (f"{path} is not a database.", "Name another file with --db, or move this one away."),
        "SQLITE_CORRUPT": (
            f"The database {path} is damaged ({e}).",
            "Put back a copy of it; `reflect doctor` says more.",
        ),
        "SQLITE_READONLY": (f"The database {path} cannot be written.", "Check who may write the file and its folder."),
        "SQLITE_CANTOPEN": (
            f"The database {path} cannot be opened.",
            "Check that its folder exists and may be written.",
        ),
        "SQLITE_PERM": (f"The database {path} may not be opened.", "Check who may read and write the file."),
        "SQLITE_BUSY": (
            f"Another process has been writing {path} for more than {LOCK_SECONDS:.0f} seconds.",
            f"Wait for it or stop it, {again}",
        ),
        "SQLITE_IOERR": (
            f"The disk refused to read or write {path} ({e}).",
            f"Check the disk and its free space, {again}",
        ),
    }
    for prefix, words in known.items():
        if name == prefix or name.startswith(prefix + "_"):
            return StoreError(*words)
    return None


# -- opening -----------------------------------------------------------------------------------------------------------


def _url(text: str) -> URL:
    try:
        plain = "://" not in text
        url = URL.create("sqlite", database=str(Path(text).expanduser())) if plain else make_url(text)
    except ArgumentError as e:
        raise StoreError(f"{text} is not a database URL.", "Name a file, for example --db lessons.db.") from e
    if url.get_backend_name() != "sqlite":
        raise StoreError(f"Databases of the kind {url.get_backend_name()} are not served yet.", "Name a file instead.")
    if url.database in (None, "", ":memory:"):
        raise StoreError("Lessons must outlive the process.", "Name a file, for example --db lessons.db.")
    return url


def _prepare(path: Path) -> None:
    """The folder, and WAL, which is a property of the file. Two processes that begin together meet here."""
    try:
        if path.is_dir():
            raise StoreError(f"{path} is a folder.", f"Name a file in it, for example --db {path / 'lessons.db'}.")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"{path.parent} cannot be used ({e.strerror}).", "Name another file with --db.") from e
    connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
    try:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL"))
    finally:
        connection.close()


def _revision(connection: Connection, path: Path) -> str | None:
    """The revision of the database, None when it is empty. StoreError when its tables are not ours."""
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if "alembic_version" not in tables:
        if tables:
            raise StoreError(f"{path} is a database of another program.", "Name another file with --db.")
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if revision is None:
        raise StoreError(f"{path} does not say its version.", "Put back a copy of it, or name another file with --db.")
    if revision not in REVISIONS:
        raise NewerDatabase(
            f"{path} was written by a newer reflect (revision {revision}).", "Update reflect, then try again."
        )
    return str(revision)


# -- hooks -------------------------------------------------------------------------------------------------------------


def _on_connect(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # Python's own BEGIN comes too late, and never for a SELECT
    connection.execute(f"PRAGMA busy_timeout={LOCK_SECONDS * 1000:.0f}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")


def _on_begin(connection: Connection) -> None:
    *settings, begin = BEGIN[connection.get_execution_options()["begin"]]
    for setting in settings:
        connection.exec_driver_sql(setting)
    _patiently(lambda: connection.exec_driver_sql(begin))


def _patiently(act: Any) -> None:
    """Try again while the database is busy: SQLite does not wait for one that another process is just opening,
    closing or recovering, whatever its busy_timeout."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            act()
            return
        except (OperationalError, sqlite3.OperationalError) as e:
            reason = getattr(e, "orig", e)
            if not getattr(reason, "sqlite_errorname", "").startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
