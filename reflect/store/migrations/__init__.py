"""Alembic's migrations, run inside a transaction that the caller has begun.

A new database is made from the tables of `reflect.records` and stamped with the newest revision. An
existing one runs the migrations that it lacks; the first of them completes databases of all
versions before the first release. A batch that rebuilds the table `lesson` of SQLite drops its
triggers: create them again.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlmodel import SQLModel

import reflect.records  # noqa: F401  (registers the tables)
from reflect.errors import StoreError
from reflect.store import search, search_postgres

if TYPE_CHECKING:
    from sqlalchemy import Connection

UNRELEASED = ("0001", "0002", "0003", "0004", "0005")
_one_at_a_time = threading.Lock()  # alembic keeps its context in a module


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings; there is no alembic.ini."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings


def upgrade(connection: Connection, revision: str | None) -> None:
    """Bring a database of this revision (None: an empty one) to the newest; the caller commits."""
    with _one_at_a_time:
        if revision is None:
            _create(connection)
            command.stamp(config(connection), "head")
            return
        if revision in UNRELEASED:
            connection.exec_driver_sql("DELETE FROM alembic_version")
        command.upgrade(config(connection), "head")


def _create(connection: Connection) -> None:
    statements: tuple[str, ...] = (search.INDEX, *search.TRIGGERS)
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise StoreError(
                f"The database holds text as {encoding}.", "Make one with: createdb --encoding=UTF8"
            )
        statements = search_postgres.INDEX
    SQLModel.metadata.create_all(connection)
    for statement in statements:
        connection.exec_driver_sql(statement)
