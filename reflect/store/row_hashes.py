"""A hash of every row, kept by ordinary writes, so that `reflect doctor --deep` finds rows that
anything else changed, added or deleted: a bad disk, a bad copy, another program.

`WriteSession` records which rows a transaction touched, whether by the unit of work or by UPDATE
and DELETE statements; before the commit `save` reads those rows back as the database stores them
and writes their hashes into the table `row_hash`, in the same transaction. SQLite's own schema is
hashed too, by the names of tables, indexes and triggers.

Not covered: a person who can write to the database can write hashes too; they prove nothing against
intent. A row that reflect itself writes again is right from then on. Statements that bypass the
ORM (migrations) must call `save_all`.
"""

from __future__ import annotations

import hashlib
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import (
    Connection,
    Delete,
    FromClause,
    Table,
    Update,
    event,
    inspect,
    orm,
    select,
    text,
    true,
)
from sqlalchemy.orm import ORMExecuteState, UOWTransaction, object_mapper
from sqlmodel import Session, SQLModel

from reflect.records import Claim, RowHash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

SCHEMA = "schema"
"""The table name under which the SQL of SQLite's tables, indexes and triggers is hashed."""
CHUNK, MANY = 500, 10_000  # values in one IN (...); rows that are written together
OUTSIDE = "by something other than reflect"
MOST = 10  # rows of one table that are named
OWN_SCHEMA = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"

Keys = dict[str, set[str]]
"""Table -> primary keys, as text."""


class Mismatch(NamedTuple):
    """A row that is not what reflect wrote."""

    table: str
    key: str
    what: str
    """changed, added or deleted"""


class WriteSession(Session):
    """A session that records the rows that it writes."""


def _touched(session: orm.Session, table: FromClause) -> set[str]:
    """The keys of the table's rows that the session has written."""
    tables: Keys = session.info.setdefault("touched", {})
    return tables.setdefault(str(table), set())


@event.listens_for(WriteSession, "after_flush")
def _after_flush(session: WriteSession, context: UOWTransaction) -> None:
    for rows in (session.new, session.dirty, session.deleted):
        for row in rows:
            mapper = object_mapper(row)
            key = mapper.primary_key_from_instance(row)[0]
            _touched(session, mapper.local_table).add(str(key))


@event.listens_for(WriteSession, "do_orm_execute")
def _before_statement(state: ORMExecuteState) -> None:
    """UPDATE and DELETE statements: the rows that they are about to change."""
    if isinstance(state.statement, Update | Delete) and state.bind_mapper is not None:
        state.session.flush()
        where, table = state.statement.whereclause, state.bind_mapper.local_table
        keys = select(*table.primary_key).where(true() if where is None else where)
        _touched(state.session, table).update(
            str(row[0]) for row in state.session.connection().execute(keys)
        )


def save(session: WriteSession) -> None:
    """Write the hashes of the rows that this transaction has written. Call it before the commit."""
    session.flush()
    tables: Keys = session.info.pop("touched", {})
    for table in hashed_tables():
        if table.name in tables:
            _save(session.connection(), table, sorted(tables[table.name]))


def save_all(connection: Connection, but: Collection[Mismatch] = ()) -> None:
    """Hash every row anew, except those that were wrong before."""
    wrong = {(one.table, one.key) for one in but}
    connection.exec_driver_sql("DELETE FROM row_hash")
    for table in hashed_tables():
        rows = _hashes(connection, table)
        _insert(connection, table.name, (row for row in rows if (table.name, row[0]) not in wrong))
        deleted = [one.key for one in but if one.table == table.name and one.what == "deleted"]
        _insert(connection, table.name, ((key, "") for key in deleted))
    if connection.dialect.name == "sqlite":
        parts = connection.exec_driver_sql(OWN_SCHEMA).all()
        _insert(connection, SCHEMA, ((name, _hash([sql])) for name, sql in parts))


def mismatches(connection: Connection) -> Iterator[Mismatch]:
    """The rows that are not what reflect wrote, by table. A database of an older version has fewer
    tables."""
    present = set(inspect(connection).get_table_names())
    for table in hashed_tables():
        rows = _hashes(connection, table) if table.name in present else iter(())
        yield from _compare(_stored(connection, table.name), rows, table.name)
    if connection.dialect.name == "sqlite":
        parts = connection.exec_driver_sql(OWN_SCHEMA).all()
        now = {name: _hash([sql]) for name, sql in parts}
        stored = _stored(connection, SCHEMA)
        mine = ((name, value) for name, value in now.items() if name in stored)
        yield from _compare(stored, mine, SCHEMA)


def sentences(rows: Iterable[Mismatch]) -> list[str]:
    """The mismatches for a person, the first MOST of each table."""
    by_table: dict[str, list[Mismatch]] = {}
    for row in rows:
        by_table.setdefault(row.table, []).append(row)
    lines = []
    for table, wrong in by_table.items():
        of, name = ("The part", "the schema") if table == SCHEMA else ("Row", table)
        lines += [f"{of} {one.key} of {name} was {one.what} {OUTSIDE}." for one in wrong[:MOST]]
        if len(wrong) > MOST:
            lines.append(f"{len(wrong) - MOST} more rows of {name} were changed {OUTSIDE}.")
    return lines


def hashed_tables() -> list[Table]:
    """Every table but that of the hashes and that of the claims, whose rows do not last."""
    unhashed = (RowHash.__tablename__, Claim.__tablename__)
    return [table for table in SQLModel.metadata.sorted_tables if table.name not in unhashed]


# -- inside


def _compare(
    stored: dict[str, str], rows: Iterable[tuple[str, str]], table: str
) -> Iterator[Mismatch]:
    for key, value in rows:
        if (before := stored.pop(key, None)) != value:
            yield Mismatch(table, key, "added" if before is None else "changed")
    yield from (Mismatch(table, key, "deleted") for key in stored)


def _stored(connection: Connection, table: str) -> dict[str, str]:
    rows = connection.execute(
        text("SELECT key, hash FROM row_hash WHERE name = :name"), {"name": table}
    )
    return {row[0]: row[1] for row in rows}


def _save(connection: Connection, table: Table, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), CHUNK):
        some = keys[start : start + CHUNK]
        hashes = list(_hashes(connection, table, some))
        _insert(connection, table.name, hashes)
        present = {key for key, _ in hashes}
        missing = [{"name": table.name, "key": key} for key in some if key not in present]
        if missing:
            connection.execute(
                text("DELETE FROM row_hash WHERE name = :name AND key = :key"), missing
            )


def _insert(connection: Connection, table: str, hashes: Iterable[tuple[str, str]]) -> None:
    rows = ((table, key, value) for key, value in hashes)
    mark = _mark(connection)
    while some := list(islice(rows, MANY)):
        connection.exec_driver_sql(
            f"INSERT INTO row_hash (name, key, hash) VALUES ({mark}, {mark}, {mark})"
            " ON CONFLICT (name, key) DO UPDATE SET hash = excluded.hash",
            some,
        )


def _hashes(
    connection: Connection, table: Table, keys: Sequence[str] | None = None
) -> Iterator[tuple[str, str]]:
    """(primary key, hash) of the table's rows, or of those with these keys, as they are stored."""
    (key,) = table.primary_key
    whole = "t.*" if connection.dialect.name == "sqlite" else "CAST(t AS text)"
    query = f'SELECT t."{key.name}", {whole} FROM "{table.name}" t'
    if keys is None:
        result = connection.exec_driver_sql(query)
    else:
        typed = tuple(map(int, keys) if key.type.python_type is int else keys)
        query += f' WHERE t."{key.name}" IN ({", ".join([_mark(connection)] * len(typed))})'
        result = connection.exec_driver_sql(query, typed)
    assert result.cursor is not None
    for own, *values in iter(result.cursor.fetchone, None):
        yield str(own), _hash(values)


def _mark(connection: Connection) -> str:
    """The driver's placeholder of a value."""
    return "?" if connection.dialect.name == "sqlite" else "%s"


def _hash(values: Sequence[object]) -> str:
    return hashlib.blake2b(repr(values).encode(errors="surrogatepass"), digest_size=8).hexdigest()
