"""Version 6: facts as columns and CHECK constraints, from any version before the first release.

Earlier versions kept facts in sentences and in `run.config`. What versions 2 to 5 added (trials of
runs, rules, bundles and trust, links, exchanges) is added where it is missing.

Revision ID: 0006
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic import op

from reflect.errors import StoreError
from reflect.records import FACTS, SEED, fact_check
from reflect.store import search
from reflect.store.legacy import closing, error_kind, quarantine
from reflect.types import values

revision = "0006"
down_revision = None

ID, INTEGER, FLOAT = sa.Integer(), sa.Integer(), sa.Float()
TEXT, BOOLEAN, TIME = sa.String(), sa.Boolean(), sa.DateTime(timezone=True)
OPTIONAL_JSON = sa.JSON(none_as_null=True)
needed: Callable[..., sa.Column[Any]] = partial(sa.Column, nullable=False)
optional: Callable[..., sa.Column[Any]] = partial(sa.Column, nullable=True)

TABLES = {  # table -> its columns and constraints, its indexed columns
    "rule": (
        (needed("profile", TEXT), needed("pattern", TEXT), needed("kind", TEXT),
         needed("why", TEXT), needed("created", TIME), optional("lifted", TIME)),
        ("profile",),
    ),
    "lesson_link": (
        (needed("lesson_id", ID), needed("other_id", ID), needed("kind", TEXT),
         needed("why", TEXT), optional("reflection_id", ID), needed("created", TIME),
         sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"]),
         sa.ForeignKeyConstraint(["other_id"], ["lesson.id"]),
         sa.ForeignKeyConstraint(["reflection_id"], ["reflection.id"]),
         sa.UniqueConstraint("lesson_id", "other_id", "kind")),
        ("lesson_id", "other_id"),
    ),
    "exchange": (
        (needed("name", TEXT), needed("choice", INTEGER), needed("profile", TEXT),
         needed("taskset", TEXT), needed("asked", sa.JSON()), needed("messages", sa.JSON()),
         needed("exposures", sa.JSON()), needed("bundle_shown", BOOLEAN),
         needed("bundle_probability", FLOAT), needed("prompt_tokens", INTEGER),
         needed("completion_tokens", INTEGER), needed("finish", TEXT), needed("seed", SEED),
         needed("model", TEXT), needed("model_fingerprint", TEXT), optional("adapter_id", ID),
         needed("measure", TEXT), needed("trust", TEXT), optional("reward", FLOAT),
         needed("feedback", TEXT), optional("run_id", ID), needed("created", TIME),
         sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"]),
         sa.ForeignKeyConstraint(["run_id"], ["run.id"])),
        ("name", "run_id"),
    ),
}  # fmt: skip
COLUMNS = (  # table, column, its value in existing rows
    ("trial", optional("run_id", ID), None),
    ("trial", optional("moved", INTEGER), None),
    ("trial", needed("measure", TEXT), ""),
    ("run", needed("measure", TEXT), ""),
    ("run", needed("bundle", sa.JSON()), "{}"),
    ("run", optional("checkpoints", OPTIONAL_JSON), None),
    ("run", optional("spent", OPTIONAL_JSON), None),
    ("run", needed("from_traffic", BOOLEAN), sa.false()),
    ("rollout", needed("trust", TEXT), "clean"),
    ("rollout", needed("bundle_shown", BOOLEAN), sa.true()),
    ("rollout", needed("bundle_probability", FLOAT), "1.0"),
    ("rollout", optional("error_kind", TEXT), None),
    ("adapter", needed("revoked", sa.JSON()), "[]"),
    ("lesson_version", optional("quarantine", TEXT), None),
    ("lesson_version", needed("closing", BOOLEAN), sa.false()),
)

MINE = [row for row in FACTS if row[0] not in ("followed", "followed_check")]  # of version 8


def upgrade() -> None:
    """Complete a database of any earlier revision."""
    bind = op.get_bind()
    tables = sa.inspect(bind).get_table_names()
    for table, (parts, indexed) in TABLES.items():
        if table not in tables:
            op.create_table(table, needed("id", ID, primary_key=True), *parts)
            for name in indexed:
                op.create_index(f"ix_{table}_{name}", table, [name])
    present = {row[0]: {c["name"] for c in sa.inspect(bind).get_columns(row[0])} for row in COLUMNS}
    added = [row for row in COLUMNS if row[1].name not in present[row[0]]]
    for table, column, value in added:
        op.add_column(
            table,
            sa.Column(column.name, column.type, nullable=column.nullable, server_default=value),
        )
    _read_sentences(bind)
    for table in dict.fromkeys((*(row[0] for row in added), *(table for table, _ in MINE))):
        _refuse_unknown(bind, table)
        with op.batch_alter_table(table) as altered:
            for of, column, value in added:
                if of == table and value is not None:  # only the existing rows need a default
                    altered.alter_column(column.name, server_default=None)
            if table == "trial" and "run_id" not in present["trial"]:
                altered.create_foreign_key("fk_trial_run", "run", ["run_id"], ["id"])
                altered.create_index("ix_trial_run_id", ["run_id"])
            for of, name in MINE:
                if of == table:
                    altered.create_check_constraint(
                        f"ck_{table}_{name}", fact_check(table, name).sqltext
                    )
    if bind.dialect.name == "sqlite":  # the new table `lesson` has none
        for statement in search.TRIGGERS:
            bind.exec_driver_sql(statement)


def _refuse_unknown(bind: sa.Connection, table: str) -> None:
    """StoreError for a row whose value is none of its enum."""
    for name in (name for of, name in MINE if of == table):
        rows = sa.table(table, sa.column("id"), sa.column(name))
        unknown = sa.select(rows).where(rows.c[name].not_in(values(FACTS[table, name])))
        if row := bind.execute(unknown.limit(1)).first():
            raise StoreError(
                f"The {name} of row {row[0]} of {table} is '{row[1]}', which reflect never writes.",
                f"Nothing was changed. It must be one of {', '.join(values(FACTS[table, name]))}.",
            )


def _read_sentences(bind: sa.Connection) -> None:
    """Fill the new columns from the sentences and from `run.config`."""
    columns = [sa.column(name, OPTIONAL_JSON) for name in ("config", "checkpoints", "spent")]
    run = sa.table("run", sa.column("id"), sa.column("from_traffic", BOOLEAN), *columns)
    for row in bind.execute(sa.select(run.c.id, run.c.config)).all():
        config = json.loads(row.config) if isinstance(row.config, str) else dict(row.config or {})
        facts = {
            "checkpoints": config.pop("heard", None),
            "spent": config.pop("spent", None),
            "from_traffic": bool(config.pop("from_traffic", False)),
        }
        if any(facts.values()):
            bind.execute(sa.update(run).where(run.c.id == row.id).values(config=config, **facts))
    rollout = sa.table("rollout", *map(sa.column, ("id", "error", "error_kind")))
    for row in bind.execute(sa.select(rollout).where(rollout.c.error.is_not(None))).all():
        if kind := error_kind(row.error):
            changed = sa.update(rollout).where(rollout.c.id == row.id)
            bind.execute(changed.values(error_kind=kind.value))
    names = ("id", "author", "status", "reason", "quarantine", "closing")
    version = sa.table("lesson_version", *map(sa.column, names))
    for row in bind.execute(sa.select(version)).all():
        sentence = (row.author, row.status, row.reason)
        why, last = quarantine(*sentence), closing(*sentence)
        if why or last:
            changed = sa.update(version).where(version.c.id == row.id)
            bind.execute(changed.values(quarantine=why.value if why else None, closing=last))
