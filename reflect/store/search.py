"""Full-text search of the lessons: FTS5 on SQLite, `search_postgres` on PostgreSQL."""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, text

from reflect.store import search_postgres
from reflect.store.dialect import COMMON, MOST_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

INDEX = """CREATE VIRTUAL TABLE lesson_fts USING fts5(
    "when", "do", tags, content='lesson', content_rowid='id',
    tokenize='porter unicode61 remove_diacritics 2')"""
# Triggers keep the index in step with the table, whatever writes to it.
TRIGGERS = (
    """CREATE TRIGGER lesson_fts_insert AFTER INSERT ON lesson BEGIN
        INSERT INTO lesson_fts (rowid, "when", "do", tags)
        VALUES (new.id, new."when", new."do", new.tags);
    END""",
    """CREATE TRIGGER lesson_fts_delete AFTER DELETE ON lesson BEGIN
        INSERT INTO lesson_fts (lesson_fts, rowid, "when", "do", tags)
        VALUES ('delete', old.id, old."when", old."do", old.tags);
    END""",
    """CREATE TRIGGER lesson_fts_update AFTER UPDATE OF "when", "do", tags ON lesson BEGIN
        INSERT INTO lesson_fts (lesson_fts, rowid, "when", "do", tags)
        VALUES ('delete', old.id, old."when", old."do", old.tags);
        INSERT INTO lesson_fts (rowid, "when", "do", tags)
        VALUES (new.id, new."when", new."do", new.tags);
    END""",
)

# The number of lessons with each word, counted up to just beyond COMMON. A word holds no quote.
SPREAD = text("""
    SELECT value, (SELECT count(*) FROM
        (SELECT 1 FROM lesson_fts WHERE lesson_fts MATCH '"' || value || '"' LIMIT :most))
    FROM json_each(:words)""")

# A lesson with a tag "task:KEY" is for that one task. The tags are JSON.
UNBOUND = "(CAST({0} AS VARCHAR) NOT LIKE '%\"task:%' OR CAST({0} AS VARCHAR) LIKE :bound)"
BOUND = '%"task:{}"%'

# Words that this process has found to be common in a database: counting them costs the most. They
# stay common, because lessons are never deleted.
_known: WeakKeyDictionary[Engine, set[str]] = WeakKeyDictionary()


class Filter(NamedTuple):
    """Which lessons are searched: None means all statuses, or all scopes. `task`: a task's key;
    lessons that are bound to other tasks are left out."""

    profile: str
    statuses: Sequence[str] | None
    scopes: Sequence[str] | None
    task: str | None = None


def ranked(s: Session, query: str, where: Filter, limit: int) -> list[tuple[int, float]]:
    """(lesson id, score) of the lessons that share words with `query`, best first; a higher score
    is better.

    Any text is a safe query: its words are quoted, and joined by OR. Words of very many lessons
    rank nothing and cost the most, so they are left out where rarer ones match.
    """
    known = _known.setdefault(s.get_bind().engine, set())
    if s.get_bind().dialect.name == "postgresql":
        return search_postgres.ranked(s, query, known, *where, limit)
    words = list(dict.fromkeys(w.lower() for w in re.findall(r"\w+", query)))[: 8 * MOST_WORDS]
    new = json.dumps([word for word in words if word not in known])
    counts = s.connection().execute(SPREAD, {"words": new, "most": COMMON + 1})
    spread = dict.fromkeys(words, COMMON + 1) | {str(word): int(n) for word, n in counts}
    known.update(word for word in words if spread[word] > COMMON)
    chosen = sorted((word for word in words if spread[word]), key=lambda word: spread[word])[
        :MOST_WORDS
    ]
    rare = [word for word in chosen if spread[word] <= COMMON]
    rows = _matches(s, rare, where, limit) if rare else []
    if len(rows) < limit and len(rare) < len(chosen):
        # The other lessons hold only common words: the newest of them, at a score of 0.
        seen = {lesson_id for lesson_id, _ in rows}
        common = _matches(s, chosen[len(rare) :], where, limit, newest=True)
        rows += [(lesson_id, score) for lesson_id, score in common if lesson_id not in seen]
    return rows[:limit]


def holding(s: Session, when: str, do: str, profile: str) -> list[tuple[int, str, str]]:
    """(id, when, do), by id, of the lessons whose condition holds the words of `when` in a row, and
    whose advice those of `do`: they, and a few others, may say the same."""
    if s.get_bind().dialect.name == "postgresql":
        return search_postgres.holding(s, when, do, profile)
    parts = [
        f'"{column}" : "{" ".join(words)}"'
        for column, words in (("when", re.findall(r"\w+", when)), ("do", re.findall(r"\w+", do)))
        if words
    ]
    matching = "AND lesson_fts MATCH :query" if parts else ""
    question = f"""SELECT lesson.id, lesson."when", lesson."do" FROM lesson_fts
        JOIN lesson ON lesson.id = lesson_fts.rowid
        WHERE lesson.profile = :profile {matching} ORDER BY lesson.id"""
    values = {"profile": profile, "query": " AND ".join(parts)}
    rows = s.connection().execute(text(question), values if parts else {"profile": profile})
    return [(int(row[0]), str(row[1]), str(row[2])) for row in rows]


class Match(NamedTuple):
    """A lesson that selection may show. `score`: 0 if it shares no rare word with the query."""

    id: int
    when: str
    do: str
    score: float


def pool(
    s: Session,
    query: str,
    *,
    profile: str,
    statuses: Sequence[str],
    scopes: Sequence[str],
    limit: int,
    task: str,
) -> list[Match]:
    """The lessons that may be worth showing: those of `ranked`, then the oldest of each scope; at
    most `limit` of each, every lesson once. `task`: its key; lessons that are bound to others are
    left out."""
    scores = dict(ranked(s, query, Filter(profile, statuses, scopes, task), limit))
    rows = _oldest(s, profile, statuses, scopes, limit, task, list(scores))
    order = list(scores)
    for scope in scopes:
        order += [row[0] for row in rows.values() if row[3] == scope][:limit]
    return [Match(i, rows[i][1], rows[i][2], scores.get(i, 0.0)) for i in dict.fromkeys(order)]


def conditions(
    s: Session, *, profile: str, statuses: Sequence[str], scopes: Sequence[str], limit: int
) -> list[str]:
    """The conditions of the oldest lessons of each scope and status, at most `limit` of each."""
    return [row[1] for row in _oldest(s, profile, statuses, scopes, limit, "", []).values()]


def _oldest(
    s: Session,
    profile: str,
    statuses: Sequence[str],
    scopes: Sequence[str],
    limit: int,
    task: str,
    ids: list[int],
) -> dict[int, tuple[int, str, str, str]]:
    """id -> (id, when, do, scope), by id, of these lessons and the oldest of each scope and
    status."""
    # One question per scope and status: each reads the beginning of a range of the index; a single
    # question would sort all lessons.
    columns = 'SELECT id, "when", "do", scope FROM lesson WHERE'
    oldest = f"{columns} profile = :profile AND scope = :scope{{}} AND status = :status{{}}"
    oldest += f" AND {UNBOUND.format('tags')} ORDER BY id LIMIT :limit"
    pieces = [oldest.format(i, j) for i in range(len(scopes)) for j in range(len(statuses))]
    pieces += [f"{columns} id IN ({', '.join(map(str, ids))})"] if ids else []
    values = {"profile": profile, "limit": limit, "bound": BOUND.format(task)}
    values |= {f"scope{i}": scope for i, scope in enumerate(scopes)}
    values |= {f"status{j}": status for j, status in enumerate(statuses)}
    union = " UNION ".join(f"SELECT * FROM ({piece}) AS piece{n}" for n, piece in enumerate(pieces))
    rows = s.connection().execute(text(union), values).all() if pieces else []
    return {row[0]: (row[0], row[1], row[2], row[3]) for row in sorted(rows, key=itemgetter(0))}


def _matches(
    s: Session, words: Sequence[str], where: Filter, limit: int, newest: bool = False
) -> list[tuple[int, float]]:
    filters, values = ["lesson.profile = :profile"], {"profile": where.profile, "limit": limit}
    if where.task is not None:
        filters.append(UNBOUND.format("lesson.tags"))
        values["bound"] = BOUND.format(where.task)
    for name, chosen in (("status", where.statuses), ("scope", where.scopes)):
        if chosen is not None:
            filters.append(
                f"lesson.{name} IN ({', '.join(f':{name}{i}' for i in range(len(chosen)))})"
            )
            values |= {f"{name}{i}": value for i, value in enumerate(chosen)}
    values["query"] = " OR ".join(f'"{word}"' for word in words)
    score, order = ("-bm25(lesson_fts)", "score DESC, lesson_fts.rowid")
    if newest:
        score, order = ("0.0", "lesson_fts.rowid DESC")
    question = f"""SELECT lesson_fts.rowid, {score} AS score
        FROM lesson_fts JOIN lesson ON lesson.id = lesson_fts.rowid
        WHERE lesson_fts MATCH :query AND {" AND ".join(filters)} ORDER BY {order} LIMIT :limit"""
    rows = s.connection().execute(text(question), values)
    return [(int(row[0]), float(row[1])) for row in rows]
