"""Run by Alembic: hand it the connection of reflect.store.migrations.upgrade."""

from alembic import context
from sqlmodel import SQLModel

import reflect.records  # noqa: F401  (registers the tables)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite cannot alter a column: the table is rebuilt
)
with context.begin_transaction():
    context.run_migrations()
