"""Version 2: a trial names the run in which it was last measured, and the version of the lesson
that its verdict made.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table(
        "trial"
    ) as trial:  # SQLite adds no foreign key to a table that stands
        trial.add_column(sa.Column("run_id", sa.Integer(), nullable=True))
        trial.add_column(sa.Column("moved", sa.Integer(), nullable=True))
        trial.create_foreign_key("fk_trial_run", "run", ["run_id"], ["id"])
        trial.create_index("ix_trial_run_id", ["run_id"])
