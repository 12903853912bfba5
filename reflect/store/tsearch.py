"""Full-text search of the lessons on PostgreSQL: tsvector and GIN, with the meaning that `search` gives it on SQLite.

PostgreSQL's own ranking does not know which words are rare, so the words are counted here: exactly, up to COMMON. Words
that its statistics call much too common are not even counted; that saves time and changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlmodel import Session

from reflect.store.dialect import COMMON, MOST_WORDS

LONGEST = 500  # letters of a word: PostgreSQL indexes none of more than 2046 bytes

# The words of a query as the index has them: (word, is it known to be common, how many lessons there are, about).
ASKED = text("""
    SELECT lexeme, coalesce(freq * size > 2 * :common, false), size
    FROM (SELECT coalesce(max(id), 0) AS size FROM lesson) AS newest, unnest(to_tsvector('reflect', :words)) AS asked
    LEFT JOIN (
        SELECT elem, freq
        FROM pg_stats, unnest(CAST(CAST(most_common_elems AS text) AS text[]), most_common_elem_freqs) AS e (elem, freq)
        WHERE schemaname = current_schema() AND tablename = 'lesson' AND attname = 'words'
    ) AS known ON elem = lexeme""")

# (lesson id, score, null) of the best, and (null, null, word) for each word that turned out to be common.
RANKED = """
    WITH hit AS MATERIALIZED (
        SELECT word, lesson.* FROM unnest(CAST(:words AS text[])) AS asked (word), LATERAL (
            SELECT id, profile, status, scope, length(words) AS length FROM lesson
            WHERE words @@ CAST('\'\'' || word || '\'\'' AS tsquery) LIMIT :common + 1) AS lesson
    ), counted AS MATERIALIZED (
        SELECT word, CAST(count(*) AS float8) AS n FROM hit GROUP BY word
    ), rare AS MATERIALIZED (
        SELECT word, ln(1 + (greatest(:size - n, 0) + 0.5) / (n + 0.5)) AS idf
        FROM counted WHERE n <= :common ORDER BY n, word LIMIT :most
    ), best AS (
        SELECT id, sum(idf) / (1 + length / CAST(50 AS float8)) AS score FROM hit JOIN rare USING (word)
        WHERE {filters} GROUP BY id, length ORDER BY score DESC, id LIMIT :limit
    )
    SELECT id, score, NULL FROM best
    UNION ALL SELECT NULL, NULL, word FROM counted WHERE n > :common ORDER BY 2 DESC, 1"""

# The function behind @@ has no index: of words so common the newest few lessons are enough.
NEWEST = """
    SELECT id FROM lesson WHERE ts_match_vq(words, CAST(:query AS tsquery)) AND {filters}
    ORDER BY id DESC LIMIT :limit"""


def ranked(
    s: Session, query: str, *, profile: str, statuses: Sequence[str] | None, scopes: Sequence[str] | None, limit: int
) -> list[tuple[int, float]]:
    """`search.ranked` on PostgreSQL. Score: the sum of the words' idf (Robertson and Zaragoza, "The Probabilistic
    Relevance Framework", 2009, section 3.1), a little less for long lessons; 0 where only common words match."""
    c = s.connection()
    words = " ".join(list(dict.fromkeys(_words(query)))[: 8 * MOST_WORDS])
    asked = c.execute(ASKED, {"words": words, "common": COMMON}).all()
    if not asked:
        return []
    filters, values = _filters(profile, statuses, scopes)
    values |= {"limit": limit, "common": COMMON, "most": MOST_WORDS, "size": asked[0][2]}
    values |= {"words": [word for word, known, _ in asked if not known]}
    found = c.execute(text(RANKED.format(filters=filters)), values).all()
    rows = [(int(lesson_id), float(score)) for lesson_id, score, _ in found if lesson_id is not None]
    common = [word for word, known, _ in asked if known] + [word for _, _, word in found if word is not None]
    if len(rows) < limit and common:
        values["query"] = " | ".join(f"'{word}'" for word in common)
        seen = {lesson_id for lesson_id, _ in rows}
        newest = c.execute(text(NEWEST.format(filters=filters)), values).scalars()
        rows += [(lesson_id, 0.0) for lesson_id in newest if lesson_id not in seen]
    return rows[:limit]


def holding(s: Session, when: str, do: str, profile: str) -> list[tuple[int, str, str]]:
    """`search.holding` on PostgreSQL; in any order, not only in a row."""
    parts = [f"'{word}':{weight}" for weight, said in (("A", when), ("B", do)) for word in dict.fromkeys(_words(said))]
    holds = "AND words @@ to_tsquery('reflect', :query)" if parts else ""
    rows = s.connection().execute(
        text(f'SELECT id, "when", "do" FROM lesson WHERE profile = :profile {holds} ORDER BY id'),
        {"profile": profile} | ({"query": " & ".join(parts)} if parts else {}),
    )
    return [(int(row[0]), str(row[1]), str(row[2])) for row in rows]


def _words(said: str) -> list[str]:
    """The words as the index has them: without accents, in small letters, not stemmed yet."""
    plain = "".join(c for c in unicodedata.normalize("NFD", said) if not "\u0300" <= c <= "\u036f")
    return [word for word in re.findall(r"[^\W_]+", plain.lower()) if len(word) <= LONGEST]


def _filters(profile: str, statuses: Sequence[str] | None, scopes: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any]
    filters, values = ["profile = :profile"], {"profile": profile}
    for name, chosen in (("status", statuses), ("scope", scopes)):
        if chosen is not None:
            filters.append(f"{name} = ANY(CAST(:{name} AS text[]))")
            values |= {name: list(chosen)}
    return " AND ".join(filters), values
