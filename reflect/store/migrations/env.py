"""Run by Alembic, on the connection that reflect.store.migrations.upgrade hands over."""

from alembic import context
from sqlmodel import SQLModel

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite cannot alter a column: the table is rebuilt
)
with context.begin_transaction():
    context.run_migrations()
