"""PostgreSQL, for a team. A reader sees one moment (REPEATABLE READ, READ ONLY); there is one
writer at a time.

Writers queue for a lock of the whole database, taken when their transaction begins, as SQLite's
BEGIN IMMEDIATE does: so a write may read, decide and write without losing anybody's update, and
never has to be tried again. The lock ends with its transaction, and with its process. Connections
are kept in a pool; a forked child opens its own.

Not covered: somebody who writes to the tables by other means than reflect takes no lock; a copy of
the database (`pg_dump`) is the team's own affair.
"""

from __future__ import annotations

import json
import math
import os
import re
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event

from reflect.errors import StoreError
from reflect.store import dialect
from reflect.store.dialect import AGAIN, storable, without_password

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.engine import URL

WRITER = int.from_bytes(b"reflect", "big")  # the key of the writers' lock
SILENT_SECONDS = 60  # a writer that is idle for so long (a closed laptop) loses the lock
OPTIONS = {  # for SQLAlchemy, per kind of transaction
    "read": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
    # Not REPEATABLE READ: its one moment would begin before the lock is ours.
    "write": {"isolation_level": "READ COMMITTED", "postgresql_readonly": False},
    "claim": {"isolation_level": "READ COMMITTED", "postgresql_readonly": False},
    "migrate": {"isolation_level": "READ COMMITTED", "postgresql_readonly": False},
}

# An id that was given by hand (an import) must not be given again: the sequences follow.
FOLLOW_IDS = """
    CREATE OR REPLACE FUNCTION reflect_follow_ids() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE own text := quote_ident(TG_TABLE_SCHEMA) || '.' || quote_ident(TG_TABLE_NAME);
            ids text := pg_get_serial_sequence(own, 'id');
    BEGIN
        EXECUTE format(
            'SELECT setval(%%L, max(id)) FROM %%s
             HAVING max(id) > (SELECT last_value - (NOT is_called)::int FROM %%s)', ids, own, ids);
        RETURN NULL;
    END $$"""
FOLLOWING = """
    CREATE OR REPLACE TRIGGER follow_ids AFTER INSERT ON {}
    FOR EACH STATEMENT EXECUTE FUNCTION reflect_follow_ids()"""
WITH_IDS = """
    SELECT quote_ident(table_name) FROM information_schema.columns
    WHERE table_schema = current_schema()
    AND column_name = 'id' AND column_default LIKE 'nextval(%%'"""

# SQLSTATE (PostgreSQL's manual, appendix A), or how it begins -> what happened, what to do. The
# first that fits.
ANSWERS = {
    "55P03": (
        "Another process has been writing {name} for more than {seconds} seconds.",
        f"Wait for it, {AGAIN}",
    ),
    "25P03": (
        "This process kept {name} waiting too long: its last step was not saved.",
        f"If it may, {AGAIN}",
    ),
    "25006": ("The database {name} cannot be written.", "Check that it is not a read-only copy."),
    "42501": ("You may not do this in {name}: {problem}.", "Ask its owner for the right to do so."),
    "53100": (
        "The server's disk is full, so the last step was not saved in {name}.",
        f"Free some space, {AGAIN}",
    ),
    "53": ("The server of {name} has no room for this: {problem}.", f"Wait a little, {AGAIN}"),
    "58": (
        "The server of {name} has trouble with its disk: {problem}.",
        "Look into the server's log.",
    ),
    "XX001": (
        "The database {name} is damaged: {problem}.",
        "Look into the server's log; put back a copy.",
    ),
    "XX002": (
        "The database {name} is damaged: {problem}.",
        "Run REINDEX DATABASE in psql: it may repair it.",
    ),
    "57P": ("The server of {name} is going down or starting: {problem}.", f"Wait for it, {AGAIN}"),
    "08": (
        "The connection to {name} broke: {problem}.",
        f"Check the server and the network, {AGAIN}",
    ),
}

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Postgres:
    """A database on a server. It must be there already; its tables are made when it is empty."""

    def __init__(self, url: URL) -> None:
        if url.host and "@" in url.host:  # else a part of the password would be the host
            raise StoreError(
                "The database URL has two @.", "Write %40 for one that belongs to the password."
            )
        self._url = url.set(drivername="postgresql+psycopg")
        self.url = self.name = without_password(self._url.render_as_string())

    def prepare(self) -> None:
        """Nothing: a server brings what it needs."""

    def engines(self) -> dict[str, Engine]:
        """The engines of readers and writers."""
        defaults = {"connect_timeout": "10", "application_name": "reflect"}
        settings: dict[str, object] = {
            "client_encoding": "utf8",
            "prepare_threshold": None,  # a plan made for rare words is no plan for common ones
            **{name: value for name, value in defaults.items() if name not in self._url.query},
        }
        try:
            engine = create_engine(
                self._url,
                connect_args=settings,
                json_serializer=_dumps,
                json_deserializer=_loads,
                pool_pre_ping=True,  # a server that was started again is not an error
                max_overflow=-1,
            )
        except ImportError as e:
            raise StoreError(
                f"{self.name} needs the driver psycopg, which is not installed.",
                "pip install 'second-nature[postgres]'",
            ) from e
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
        _engines.add(engine)
        return {
            kind: engine.execution_options(begin=kind, **OPTIONS[kind]) for kind in dialect.KINDS
        }

    def tables(self, connection: Connection) -> set[str]:
        """Names of the existing tables."""
        query = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        return set(connection.exec_driver_sql(query).scalars())

    def orphans(self, connection: Connection) -> set[tuple[str, int, str]]:
        """Rows without their parent: (table, row, parent table)."""
        return set()  # the server keeps foreign keys while it migrates too

    def settle(self, connection: Connection, before: set[tuple[str, int, str]]) -> None:
        """Every table, those of later migrations too, keeps its ids in step."""
        connection.exec_driver_sql(FOLLOW_IDS)
        for table in connection.exec_driver_sql(WITH_IDS).scalars().all():
            connection.exec_driver_sql(FOLLOWING.format(table))

    def explain(self, e: BaseException) -> StoreError | None:
        """The database's error as a StoreError with a next step."""
        try:
            import psycopg
        except ImportError:
            return None
        if not isinstance(e, psycopg.Error):
            return None
        if not e.sqlstate:
            return self._unreached(e)
        seconds = f"{dialect.LOCK_SECONDS:.0f}"
        facts = {"name": self.name, "problem": _first_line(e), "seconds": seconds}
        for state, (what, hint) in ANSWERS.items():
            if e.sqlstate.startswith(state):
                return StoreError(what.format(**facts), hint)
        return None

    def _unreached(self, e: psycopg.Error) -> StoreError | None:
        """No connection: the driver has no code for the cause, only a message in the server's
        language."""
        import psycopg

        name, database, whole = self.name, self._url.database, _first_line(e)
        opening = r"^connection (failed|is bad): (connection to server .*? failed: )?(FATAL: +)?"
        cause = re.sub(opening, "", whole)
        if "password" in cause:
            hint = "Put the password into ~/.pgpass or PGPASSWORD, or into the URL."
            return StoreError(f"{name} was not opened: {cause}.", hint)
        if f'database "{database}" does not exist' in cause:
            hint = f"Make it on its server: createdb {database}"
            return StoreError(f"There is no database {name}.", hint)
        if "FATAL" in whole:
            hint = "Check the user and the name of the database."
            return StoreError(f"{name} was not opened: {cause}.", hint)
        if "connection option" in cause:
            what = f"{name} has a part that PostgreSQL does not know: {cause}."
            return StoreError(what, "Leave it out of the URL.")
        if re.match(r"connection (failed|is bad|timeout)|failed to resolve", whole):
            hint = "Start it, or check the host and port in --db."
            return StoreError(f"No server answers for {name}: {cause}.", hint)
        if not isinstance(e, psycopg.OperationalError):
            return None
        hint = f"Check the server and the network, {AGAIN}"
        return StoreError(f"The connection to {name} broke: {cause}.", hint)


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".")


# -- JSON
# PostgreSQL's has no NaN and no Infinity, which a training that went wrong may well report.


def _dumps(value: object) -> str:
    return storable(json.dumps(_spelled(value), ensure_ascii=False))


def _loads(text: str) -> object:
    return json.loads(
        text, object_hook=lambda x: float(x["$float"]) if list(x) == ["$float"] else x
    )


def _spelled(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, dict):
        return {key: _spelled(one) for key, one in value.items()}
    return [_spelled(one) for one in value] if isinstance(value, list | tuple) else value


# -- hooks


def _on_connect(connection: psycopg.Connection, record: object) -> None:
    from psycopg.types.string import StrDumper

    class Text(StrDumper):
        """PostgreSQL's text cannot hold the character 0, which a model may write."""

        def dump(self, obj: str) -> Any:
            return super().dump(storable(obj).replace("\0", "\N{REPLACEMENT CHARACTER}"))

    connection.adapters.register_dumper(str, Text)
    connection.execute("SET jit = off")  # compiling a search takes longer than searching
    # Rows are hashed as text: the same text whatever the server's configuration.
    connection.execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET extra_float_digits = 1")
    connection.commit()


def _on_begin(connection: Connection) -> None:
    kind = connection.get_execution_options()["begin"]
    if kind != "read":
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = {dialect.LOCK_SECONDS * 1000:.0f};"
            f"SET LOCAL idle_in_transaction_session_timeout = {SILENT_SECONDS * 1000};"
            + ("" if kind == "claim" else f"SELECT pg_advisory_xact_lock({WRITER})")
        )


def _after_fork() -> None:
    for engine in list(_engines):
        engine.dispose(close=False)  # the connections are the parent's


os.register_at_fork(after_in_child=_after_fork)
