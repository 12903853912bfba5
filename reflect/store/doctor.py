"""The problems of a database, one sentence each. The checks change nothing.

`check` compares what the tables say of each other; with `deep` also each row with the hash that
reflect wrote for it (see `reflect.store.row_hashes`) and the search index with the lessons.

Not covered: the files of adapters (`reflect adapters verify`), and SQLite's write-ahead log, which
has checksums of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, SQLModel

from reflect.errors import StoreError
from reflect.records import FACTS, fact_check
from reflect.store import forbidden_rules, row_hashes
from reflect.store.lessons import CONTENT

if TYPE_CHECKING:
    from reflect.store.database import Store


def check(database: Store | Session, *, deep: bool = False) -> list[str]:
    """Every problem found, one sentence each; an empty list is a healthy database. `deep`: compare
    every row with its hash, and the search index with the lessons (only of a Store)."""
    try:
        if isinstance(database, Session):
            return _problems(database, deep)
        with database.read() as s:
            _read_any_text(s)
            problems = _problems(s, deep)
        return problems + (_search_problems(database) if deep and not problems else [])
    except StoreError as e:
        return [str(e)]
    except DBAPIError as e:
        return [f"The tables are not as reflect made them: {e.orig}."]
    except UnicodeDecodeError as e:  # also in SQLite's own messages about a damaged schema
        return [f"The database is damaged: a text in it is not UTF-8 ({e})."]


def accept(database: Store) -> None:
    """Take the present rows as right: hash all of them anew, and rebuild the search index."""
    with database.write() as s:
        if s.get_bind().dialect.name == "sqlite":
            rebuild = "INSERT INTO lesson_fts(lesson_fts) VALUES('rebuild')"
            s.connection().exec_driver_sql(rebuild)
        row_hashes.save_all(s.connection())


def _read_any_text(s: Session) -> None:
    """Text that is no UTF-8 is read as it is, so that the row which has it can be named."""
    if s.get_bind().dialect.name == "sqlite":
        raw = s.connection().connection.dbapi_connection
        setattr(raw, "text_factory", lambda text: text.decode(errors="surrogateescape"))  # noqa: B010


def _problems(s: Session, deep: bool) -> list[str]:
    if damage := _damage(s):
        return damage  # the other checks would not read what was written
    problems = row_hashes.sentences(row_hashes.mismatches(s.connection())) if deep else []
    try:
        return problems + (
            _orphans(s)
            + [problem for query, sentence in CHECKS for problem in _ask(s, query, sentence)]
            + forbidden_rules.problems(s)
        )
    except (DBAPIError, ValueError) as e:  # a value that no column of its type can hold
        if not problems:
            raise
        return [*problems, f"Further checks failed: {e}."]


def _damage(s: Session) -> list[str]:
    """SQLite's report on its file. PostgreSQL checks its pages whenever it reads them."""
    if s.get_bind().dialect.name != "sqlite":
        return []
    reports = s.connection().exec_driver_sql("PRAGMA integrity_check(20)").scalars()
    known = ("ok", "CHECK constraint failed")  # CHECKS names the rows that broke a constraint
    return [f"SQLite reports damage: {text}." for text in reports if not text.startswith(known)]


def _search_problems(database: Store) -> list[str]:
    """SQLite's comparison of the search index with the lessons. It is written as an INSERT, and
    writes nothing."""
    compare = "INSERT INTO lesson_fts(lesson_fts, rank) VALUES('integrity-check', 1)"
    try:
        with database.write() as s:
            if s.get_bind().dialect.name == "sqlite":
                s.connection().exec_driver_sql(compare)
    except StoreError as e:
        return [f"The search index does not match the lessons: {e}"]
    return []


def _orphans(s: Session) -> list[str]:
    """References to rows that are not there, and lessons that search cannot find."""
    if s.get_bind().dialect.name != "sqlite":
        return _orphans_of_postgres(s)
    c = s.connection()
    problems = [
        f"Row {row} of {table} names a {parent} that is not there."
        for table, row, parent, _ in c.exec_driver_sql("PRAGMA foreign_key_check")
    ]
    lessons, indexed = (
        c.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
        for table in ("lesson", "lesson_fts_docsize")
    )
    if lessons != indexed:
        problems.append(f"The search index holds {indexed} of {lessons} lessons.")
    return problems


def _orphans_of_postgres(s: Session) -> list[str]:
    problems = []
    for table in SQLModel.metadata.sorted_tables:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            mine, theirs = key.parent, key.column
            orphans = s.connection().execute(
                select(table.primary_key.columns[0])
                .where(mine.is_not(None), mine.not_in(select(theirs)))
                .order_by(table.primary_key.columns[0])
            )
            what = f"of {table.name} names a {theirs.table.name} that is not there."
            problems += [f"Row {row} {what}" for row in orphans.scalars()]
    return problems + _ask(s, NO_INDEX, "The search index is not there: searching is slow.")


def _ask(s: Session, query: str, sentence: str) -> list[str]:
    return [sentence.format(*row) for row in s.connection().execute(text(query))]


def _unknown(table: str, column: str) -> tuple[str, str]:
    known = fact_check(table, column).sqltext
    query = f"SELECT id, {column} FROM {table} WHERE NOT {known} ORDER BY id"
    name = table.replace("_", " ").capitalize()
    return query, f"{name} {{0}} has the unknown {column} '{{1}}'."


NO_INDEX = """SELECT 1 WHERE NOT EXISTS
              (SELECT 1 FROM pg_index
               WHERE indexrelid = to_regclass('ix_lesson_words') AND indisvalid)"""

_COMPARED = {"tags": 'CAST({}."tags" AS VARCHAR)'}  # PostgreSQL does not compare JSON
_SIDES = [
    [_COMPARED.get(field, f'{{}}."{field}"').format(side) for side in "lv"] for field in CONTENT
]
_DIFFERS = " OR ".join(f"{head} <> {version}" for head, version in _SIDES)

# (query, sentence for each of its rows)
CHECKS: tuple[tuple[str, str], ...] = (
    *(_unknown(table, column) for table, column in FACTS),
    (
        """SELECT l.id, l.version, max(v.version)
           FROM lesson l LEFT JOIN lesson_version v ON v.lesson_id = l.id GROUP BY l.id, l.version
           HAVING max(v.version) IS NULL OR max(v.version) <> l.version ORDER BY l.id""",
        "Lesson {0} is at version {1}, but its newest recorded version is {2}.",
    ),
    (
        f"""SELECT l.id, l.version FROM lesson l
            JOIN lesson_version v ON v.lesson_id = l.id AND v.version = l.version
            WHERE {_DIFFERS} ORDER BY l.id""",
        "Lesson {0} differs from its version {1}.",
    ),
    (
        """SELECT lesson_id, max(version), count(*) FROM lesson_version GROUP BY lesson_id
           HAVING max(version) <> count(*) OR min(version) <> 1 ORDER BY lesson_id""",
        "The history of lesson {0} has gaps: {2} of {1} versions are there.",
    ),
    (
        """SELECT run_id, task_key, "index", count(*) FROM rollout
           GROUP BY run_id, task_key, "index" HAVING count(*) > 1 ORDER BY run_id""",
        "Run {0} has rollout {2} of the task {1} {3} times.",
    ),
    (
        """SELECT o.run_id, o.task_key, count(*), r.k FROM rollout o JOIN run r ON r.id = o.run_id
           WHERE r.status = 'done' AND r.k > 0 GROUP BY o.run_id, o.task_key, r.k
           HAVING count(*) <> r.k ORDER BY o.run_id""",
        "Run {0} is marked done, but the task {1} has {2} of {3} rollouts.",
    ),
    (
        """SELECT r.id FROM run r WHERE r.status = 'done'
           AND NOT EXISTS (SELECT 1 FROM rollout o WHERE o.run_id = r.id) ORDER BY r.id""",
        "Run {0} is marked done, but has no rollouts.",
    ),
    (
        """SELECT run_id, count(DISTINCT task_key), n FROM rollout JOIN run ON run.id = run_id
           GROUP BY run_id, n HAVING count(DISTINCT task_key) > n ORDER BY run_id""",
        "Run {0} practised {1} tasks instead of {2}.",
    ),
    (
        """SELECT f.id, f.run_id FROM reflection f WHERE NOT EXISTS
           (SELECT 1 FROM rollout o WHERE o.run_id = f.run_id AND o.task_key = f.task_key)
           ORDER BY f.id""",
        "Reflection {0} of run {1} is over a group without rollouts.",
    ),
    (
        # One that a person has to grade has no reward until then.
        """SELECT id FROM rollout WHERE reward < 0 OR reward > 1 OR (
             reward IS NULL AND error IS NULL AND NOT EXISTS (
               SELECT 1 FROM task t WHERE t.key = task_key
               AND CAST(t.content AS VARCHAR) LIKE '%"verifier": "human"%'))
           ORDER BY id""",
        "Rollout {0} has neither a reward between 0 and 1 nor an error.",
    ),
    (
        """SELECT id FROM exchange
           WHERE reward < 0 OR reward > 1 OR (run_id IS NOT NULL AND reward IS NULL) ORDER BY id""",
        "Exchange {0} has no reward between 0 and 1.",
    ),
    (
        """SELECT e.id, e.lesson_id, e.version FROM exposure e WHERE NOT EXISTS
           (SELECT 1 FROM lesson_version v WHERE v.lesson_id = e.lesson_id
            AND v.version = e.version) ORDER BY e.id""",
        "Exposure {0} is of lesson {1}, version {2}, which is not there.",
    ),
    (
        """SELECT a.profile, a.adapter_id FROM alias a LEFT JOIN adapter d ON d.id = a.adapter_id
           WHERE a.adapter_id IS NOT NULL AND (d.id IS NULL OR d.status <> 'promoted')
           ORDER BY a.profile""",
        "The profile {0} answers with adapter {1}, which is not there or was not promoted.",
    ),
    (
        """SELECT a.id, a.replaced FROM adapter a WHERE a.replaced IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM adapter b WHERE b.id = a.replaced) ORDER BY a.id""",
        "Adapter {0} replaced adapter {1}, which is not there.",
    ),
    (
        """SELECT n.id, n.adapter_id FROM night n WHERE n.status = 'promoted'
           AND NOT EXISTS (SELECT 1 FROM adapter a WHERE a.id = n.adapter_id) ORDER BY n.id""",
        "Night {0} was promoted, but its adapter {1} is not there.",
    ),
    (
        """SELECT l.id, l.profile FROM lesson l WHERE l.status = 'distilled' AND NOT EXISTS
           (SELECT 1 FROM alias a WHERE a.profile = l.profile AND a.adapter_id IS NOT NULL)
           ORDER BY l.id""",
        "Lesson {0} counts as distilled, but the profile {1} answers with the bare base.",
    ),
)
