"""Version 4: what a reward means, all lessons withheld together, outside bytes, links of lessons,
lessons to forget.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

COLUMNS = (
    ("run", "measure", sa.String(), ""),
    ("run", "bundle", sa.JSON(), "{}"),
    ("rollout", "trust", sa.String(), "clean"),
    ("rollout", "bundle_shown", sa.Boolean(), sa.true()),
    ("rollout", "bundle_probability", sa.Float(), "1.0"),
    ("trial", "measure", sa.String(), ""),
    ("adapter", "revoked", sa.JSON(), "[]"),
)


def upgrade() -> None:
    for table in dict.fromkeys(table for table, *_ in COLUMNS):
        columns = [(name, kind, was) for of, name, kind, was in COLUMNS if of == table]
        with op.batch_alter_table(table) as altered:
            for name, kind, was in columns:
                altered.add_column(sa.Column(name, kind, nullable=False, server_default=was))
        with op.batch_alter_table(table) as altered:  # only the rows that stand need a default
            for name, _, _ in columns:
                altered.alter_column(name, server_default=None)
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
