"""Version 8: whether rollouts followed lessons, and the patterns that tell it.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

from reflect.records import fact_check

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add two tables and an index. `reflect.store.database` hashes the rows."""
    text = (sa.Column(name, sa.String(), nullable=False) for name in ("do", "kind", "pattern"))
    op.create_table(
        "followed_check",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("lesson_id", sa.Integer(), sa.ForeignKey("lesson.id"), nullable=False),
        *text,
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("lesson_id"),
        fact_check("followed_check", "kind"),
    )
    op.create_table(
        "followed",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("rollout_id", sa.Integer(), sa.ForeignKey("rollout.id"), nullable=False),
        sa.Column("lesson_id", sa.Integer(), sa.ForeignKey("lesson.id"), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("followed", sa.Boolean(), nullable=False),
        sa.UniqueConstraint("lesson_id", "rollout_id", "source"),
        fact_check("followed", "source"),
    )
    op.create_index("ix_followed_rollout_id", "followed", ["rollout_id"])
    figures = ["run_id", "reward", "error_kind"]
    op.create_index("ix_rollout_figures", "rollout", figures, if_not_exists=True)
