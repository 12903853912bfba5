"""Version 7: the hash of every row, the tasks of a run, and abandoned runs.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

from reflect.records import OPTIONAL_JSON, fact_check

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add what version 6 lacks. `reflect.store.database` fills the table of hashes."""
    text = (sa.Column(name, sa.String(), nullable=False) for name in ("name", "key", "hash"))
    key = sa.PrimaryKeyConstraint("name", "key")
    op.create_table("row_hash", *text, key, sqlite_with_rowid=False)
    with op.batch_alter_table("run") as run:
        run.add_column(sa.Column("task_keys", OPTIONAL_JSON, nullable=True))
        if op.get_bind().dialect.name != "sqlite":  # whose rebuilt table has no CHECK constraints
            run.drop_constraint("ck_run_status", type_="check")
        run.create_check_constraint("ck_run_status", fact_check("run", "status").sqltext)
