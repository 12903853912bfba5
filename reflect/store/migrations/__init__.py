"""Alembic's migrations, run inside a transaction that the caller has begun."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

_one_at_a_time = threading.Lock()  # alembic keeps its context in a module


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings; there is no alembic.ini."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.attributes["connection"] = connection
    return settings


def upgrade(connection: Connection) -> None:
    """Bring the database up to the newest revision; the caller looks at the outcome, and
    commits."""
    with _one_at_a_time:
        command.upgrade(config(connection), "head")
