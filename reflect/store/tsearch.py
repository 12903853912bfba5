"""Full-text search of the lessons on PostgreSQL: tsvector and GIN, with the meaning that `search` gives it on SQLite.

PostgreSQL's own ranking does not know which words are rare. The table `lesson_word`, kept by triggers, does: it says in
how many lessons each word stands, and under '' how many lessons there are.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlmodel import Session

from reflect.store.dialect import COMMON, MOST_WORDS

LONGEST = 500  # letters of a word: PostgreSQL indexes none of more than 2046 bytes

SPREAD = text("""
    SELECT word, lessons, (SELECT l.lessons FROM lesson_word l WHERE l.word = '') AS total FROM lesson_word
    WHERE lessons > 0 AND word = ANY(tsvector_to_array(to_tsvector('reflect', :words)))
    ORDER BY lessons, word LIMIT :most""")


def ranked(
    s: Session, query: str, *, profile: str, statuses: Sequence[str] | None, scopes: Sequence[str] | None, limit: int
) -> list[tuple[int, float]]:
    """`search.ranked` on PostgreSQL. Score: the sum of the words' idf (Robertson and Zaragoza, "The Probabilistic
    Relevance Framework", 2009, section 3.1), a little less for long lessons; 0 where only common words match."""
    words = " ".join(list(dict.fromkeys(_words(query)))[: 8 * MOST_WORDS])
    found = s.connection().execute(SPREAD, {"words": words, "most": MOST_WORDS}).all()
    idf = {word: math.log(1 + (of + 0.5) / (n + 0.5)) for word, n, of in found if n <= COMMON}
    common = [word for word, n, _ in found if n > COMMON]
    rows = _rarest(s, idf, profile, statuses, scopes, limit) if idf else []
    if len(rows) < limit and common:
        seen = {lesson_id for lesson_id, _ in rows}
        newest = _newest(s, common, profile, statuses, scopes, limit)
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


def _rarest(
    s: Session,
    idf: dict[str, float],
    profile: str,
    statuses: Sequence[str] | None,
    scopes: Sequence[str] | None,
    limit: int,
) -> list[tuple[int, float]]:
    """(lesson id, score), best first, of the lessons that hold any of these words."""
    filters, values = _filters(profile, statuses, scopes)
    rows = s.connection().execute(
        text(f"""
            SELECT id, sum(idf) / (1 + length(words) / 50.0) AS score
            FROM unnest(CAST(:words AS text[]), CAST(:idfs AS float8[])) AS rare (word, idf)
            JOIN lesson ON words @@ CAST('''' || word || '''' AS tsquery)
            WHERE {filters} GROUP BY id ORDER BY score DESC, id LIMIT :limit"""),
        {**values, "words": list(idf), "idfs": list(idf.values()), "limit": limit},
    )
    return [(int(row[0]), float(row[1])) for row in rows]


def _newest(
    s: Session,
    common: Sequence[str],
    profile: str,
    statuses: Sequence[str] | None,
    scopes: Sequence[str] | None,
    limit: int,
) -> list[int]:
    """The newest lessons that hold any of these words, of which so many are there that no index is needed."""
    filters, values = _filters(profile, statuses, scopes)
    rows = s.connection().execute(  # the function behind @@, which has no index: it would read all lessons first
        text(f"""
            SELECT id FROM lesson WHERE ts_match_vq(words, CAST(:query AS tsquery)) AND {filters}
            ORDER BY id DESC LIMIT :limit"""),
        {**values, "query": " | ".join(f"'{word}'" for word in common), "limit": limit},
    )
    return [int(row[0]) for row in rows]


def _filters(profile: str, statuses: Sequence[str] | None, scopes: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    filters, values = ["profile = :profile"], {"profile": profile}
    for name, chosen in (("status", statuses), ("scope", scopes)):
        if chosen is not None:
            filters.append(f"{name} = ANY(CAST(:{name} AS text[]))")
            values |= {name: list(chosen)}  # type: ignore[dict-item]
    return " AND ".join(filters), values
