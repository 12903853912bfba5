"""Version 4: what a reward means, all lessons withheld together, outside bytes, links of lessons, lessons to forget.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("run", sa.Column("measure", sa.String(), nullable=False, server_default=""))
    op.add_column("run", sa.Column("bundle", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("rollout", sa.Column("trust", sa.String(), nullable=False, server_default="clean"))
    op.add_column("rollout", sa.Column("bundle_shown", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("rollout", sa.Column("bundle_probability", sa.Float(), nullable=False, server_default="1.0"))
    op.add_column("trial", sa.Column("measure", sa.String(), nullable=False, server_default=""))
    op.add_column("adapter", sa.Column("revoked", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "lesson_link",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("other_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("reflection_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"]),
        sa.ForeignKeyConstraint(["other_id"], ["lesson.id"]),
        sa.ForeignKeyConstraint(["reflection_id"], ["reflection.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("lesson_id", "other_id", "kind"),
    )
    op.create_index("ix_lesson_link_lesson_id", "lesson_link", ["lesson_id"])
    op.create_index("ix_lesson_link_other_id", "lesson_link", ["other_id"])
