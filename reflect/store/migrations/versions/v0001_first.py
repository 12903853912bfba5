"""Version 1: every table of the first release, and the full-text index of the lessons.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

from reflect.errors import StoreError

revision = "0001"
down_revision = None

SEED = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

# Kept in step by triggers, so that no way of writing a lesson can forget it. External content: the
# text stands once.
FULL_TEXT = (
    """CREATE VIRTUAL TABLE lesson_fts USING fts5(
        "when", "do", tags, content='lesson', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2')""",
    """CREATE TRIGGER lesson_fts_insert AFTER INSERT ON lesson BEGIN
        INSERT INTO lesson_fts (rowid, "when", "do", tags) VALUES (new.id, new."when", new."do", new.tags);
    END""",
    """CREATE TRIGGER lesson_fts_delete AFTER DELETE ON lesson BEGIN
        INSERT INTO lesson_fts (lesson_fts, rowid, "when", "do", tags)
        VALUES ('delete', old.id, old."when", old."do", old.tags);
    END""",
    """CREATE TRIGGER lesson_fts_update AFTER UPDATE OF "when", "do", tags ON lesson BEGIN
        INSERT INTO lesson_fts (lesson_fts, rowid, "when", "do", tags)
        VALUES ('delete', old.id, old."when", old."do", old.tags);
        INSERT INTO lesson_fts (rowid, "when", "do", tags) VALUES (new.id, new."when", new."do", new.tags);
    END""",
)

# The same on PostgreSQL: the words that FTS5 would find (stemmed, accents and punctuation aside),
# "when" as A, "do" as
# B, tags as C. Its own dictionary, for the built-in English one leaves common words out, which is
# for the search to
# decide; and its own punctuation, for PostgreSQL's parser takes "letters.count" for a host and
# "a/b" for a file.
PLAIN = r"""regexp_replace(regexp_replace(normalize({}, NFD), '[\u0300-\u036f]', '', 'g'),
    '[!-/:-@\[-`{{-~]', ' ', 'g')"""
WORDS = " || ".join(
    f"setweight(to_tsvector('reflect', {PLAIN.format(column)}), '{weight}')"
    for column, weight in (('"when"', "A"), ('"do"', "B"), ("tags::text", "C"))
)
FULL_TEXT_OF_POSTGRES = (
    "CREATE TEXT SEARCH DICTIONARY reflect_stem (TEMPLATE = pg_catalog.snowball, LANGUAGE = porter)",
    "CREATE TEXT SEARCH CONFIGURATION reflect (COPY = pg_catalog.simple)",
    "ALTER TEXT SEARCH CONFIGURATION reflect ALTER MAPPING FOR asciiword, word, numword WITH reflect_stem",
    f"ALTER TABLE lesson ADD COLUMN words tsvector GENERATED ALWAYS AS ({WORDS}) STORED",
    # no list that searches wade in
    "CREATE INDEX ix_lesson_words ON lesson USING gin (words) WITH (fastupdate = off)",
    # In SQLite every index ends with the id: the oldest or newest of a scope are read off it,
    # without a sort.
    "DROP INDEX ix_lesson_profile_status_scope",
    "CREATE INDEX ix_lesson_profile_status_scope ON lesson (profile, status, scope, id)",
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        encoding = op.get_bind().exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise StoreError(
                f"The database holds text as {encoding}.", "Make one with: createdb --encoding=UTF8"
            )
    op.create_table(
        "lesson",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("when", sa.String(), nullable=False),
        sa.Column("do", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("trust", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_lesson_profile_status_scope", "lesson", ["profile", "status", "scope"])
    op.create_table(
        "night",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("stages", sa.JSON(), nullable=False),
        sa.Column("lessons", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_night_key", "night", ["key"], unique=True)
    op.create_table(
        "task",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("taskset", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("split", sa.String(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_task_taskset", "task", ["taskset"])
    op.create_table(
        "adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("base_fingerprint", sa.String(), nullable=False),
        sa.Column("night_id", sa.Integer(), nullable=True),
        sa.Column("replaced", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["night_id"], ["night.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_adapter_name", "adapter", ["name"], unique=True)
    op.create_table(
        "alias",
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"]),
        sa.PrimaryKeyConstraint("profile"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("taskset", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("k", sa.Integer(), nullable=False),
        sa.Column("seed", SEED, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_fingerprint", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_run_key", "run", ["key"], unique=True)
    op.create_index("ix_run_profile", "run", ["profile"])
    op.create_index("ix_run_taskset", "run", ["taskset"])
    op.create_table(
        "trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("effect", sa.Float(), nullable=False),
        sa.Column("low", sa.Float(), nullable=False),
        sa.Column("high", sa.Float(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("model_fingerprint", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("night_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"]),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"]),
        sa.ForeignKeyConstraint(["night_id"], ["night.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_trial_lesson_id", "trial", ["lesson_id"])
    op.create_table(
        "reflection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("task_key", sa.String(), nullable=False),
        sa.Column("pack_hash", sa.String(), nullable=False),
        sa.Column("pack_tokens", sa.Integer(), nullable=False),
        sa.Column("cut", sa.String(), nullable=False),
        sa.Column("prompt_version", sa.String(), nullable=False),
        sa.Column("raw", sa.String(), nullable=False),
        sa.Column("edits", sa.JSON(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.ForeignKeyConstraint(["task_key"], ["task.key"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "task_key"),
    )
    op.create_index("ix_reflection_run_id", "reflection", ["run_id"])
    op.create_table(
        "rollout",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("task_key", sa.String(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=True),
        sa.Column("feedback", sa.String(), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("finish", sa.String(), nullable=False),
        sa.Column("seed", SEED, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapter.id"]),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.ForeignKeyConstraint(["task_key"], ["task.key"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id", "task_key", "index"),
    )
    op.create_index("ix_rollout_run_id", "rollout", ["run_id"])
    op.create_index("ix_rollout_task_key", "rollout", ["task_key"])
    op.create_table(
        "exposure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout_id", sa.Integer(), nullable=False),
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("shown", sa.Boolean(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"]),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rollout_id", "lesson_id"),
    )
    op.create_index("ix_exposure_lesson_id", "exposure", ["lesson_id"])
    op.create_index("ix_exposure_rollout_id", "exposure", ["rollout_id"])
    op.create_table(
        "lesson_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("lesson_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("when", sa.String(), nullable=False),
        sa.Column("do", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("trust", sa.String(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("reflection_id", sa.Integer(), nullable=True),
        sa.Column("night_id", sa.Integer(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["lesson_id"], ["lesson.id"]),
        sa.ForeignKeyConstraint(["night_id"], ["night.id"]),
        sa.ForeignKeyConstraint(["reflection_id"], ["reflection.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("lesson_id", "version"),
    )
    op.create_index("ix_lesson_version_lesson_id", "lesson_version", ["lesson_id"])
    op.create_index("ix_lesson_version_night_id", "lesson_version", ["night_id"])
    op.create_index("ix_lesson_version_reflection_id", "lesson_version", ["reflection_id"])

    statements = {"sqlite": FULL_TEXT, "postgresql": FULL_TEXT_OF_POSTGRES}
    for statement in statements[op.get_bind().dialect.name]:
        op.get_bind().exec_driver_sql(statement)
