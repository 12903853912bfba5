"""Version 6: facts as columns, which the program had to read out of sentences and out of
`run.config` before.

Revision ID: 0006
Revises: 0005
"""

import json

import sqlalchemy as sa
from alembic import op

from reflect.store.legacy import closing, error_kind, quarantine

revision = "0006"
down_revision = "0005"

COLUMNS: tuple[tuple[str, sa.Column], ...] = (
    ("run", sa.Column("checkpoints", sa.JSON(none_as_null=True), nullable=True)),
    ("run", sa.Column("spent", sa.JSON(none_as_null=True), nullable=True)),
    ("run", sa.Column("from_traffic", sa.Boolean(), nullable=False, server_default=sa.false())),
    ("rollout", sa.Column("error_kind", sa.String(), nullable=True)),
    ("lesson_version", sa.Column("quarantine", sa.String(), nullable=True)),
    (
        "lesson_version",
        sa.Column("closing", sa.Boolean(), nullable=False, server_default=sa.false()),
    ),
)


def upgrade() -> None:
    for table in dict.fromkeys(table for table, _ in COLUMNS):
        with op.batch_alter_table(table) as altered:
            for of, column in COLUMNS:
                if of == table:
                    altered.add_column(column)
        with op.batch_alter_table(table) as altered:  # only the existing rows need a default
            for of, column in COLUMNS:
                if of == table and not column.nullable:
                    altered.alter_column(column.name, server_default=None)
    bind = op.get_bind()
    run = sa.table(
        "run",
        sa.column("id"),
        sa.column("config", sa.JSON()),
        sa.column("checkpoints", sa.JSON(none_as_null=True)),
        sa.column("spent", sa.JSON(none_as_null=True)),
        sa.column("from_traffic", sa.Boolean()),
    )
    for run_id, found in bind.execute(sa.select(run.c.id, run.c.config)).all():
        config = json.loads(found) if isinstance(found, str) else dict(found or {})
        facts = {
            "checkpoints": config.pop("heard", None),
            "spent": config.pop("spent", None),
            "from_traffic": bool(config.pop("from_traffic", False)),
        }
        if any(facts.values()):
            bind.execute(sa.update(run).where(run.c.id == run_id).values(config=config, **facts))
    rollout = sa.table("rollout", sa.column("id"), sa.column("error"), sa.column("error_kind"))
    broken = bind.execute(
        sa.select(rollout.c.id, rollout.c.error).where(rollout.c.error.is_not(None))
    ).all()
    for rollout_id, error in broken:
        if kind := error_kind(error):
            bind.execute(
                sa.update(rollout).where(rollout.c.id == rollout_id).values(error_kind=kind.value)
            )
    names = ("id", "author", "status", "reason", "quarantine", "closing")
    version = sa.table("lesson_version", *map(sa.column, names))
    for row in bind.execute(
        sa.select(version.c.id, version.c.author, version.c.status, version.c.reason)
    ).all():
        why, last = (
            quarantine(row.author, row.status, row.reason),
            closing(row.author, row.status, row.reason),
        )
        if why or last:
            values = {"quarantine": why.value if why else None, "closing": last}
            bind.execute(sa.update(version).where(version.c.id == row.id).values(**values))
