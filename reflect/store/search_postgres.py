"""Full-text search of the lessons on PostgreSQL: tsvector and GIN, with the meaning that `search`
gives it on SQLite.

PostgreSQL's own ranking does not know which words are rare, so the words are counted here, up to
COMMON.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from sqlalchemy import text

from reflect.records import LESSON_STATUSES
from reflect.store.dialect import COMMON, MOST_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

LONGEST = 500  # letters of a word: PostgreSQL indexes none of more than 2046 bytes

# The words that FTS5 would find (stemmed, accents and punctuation aside), "when" as A, "do" as B,
# tags as C. The dictionary is our own, because the built-in English one leaves common words out; so
# is the punctuation, because PostgreSQL's parser takes "letters.count" for a host and "a/b" for a
# file.
PLAIN = r"""regexp_replace(regexp_replace(normalize({}, NFD), '[\u0300-\u036f]', '', 'g'),
    '[!-/:-@\[-`{{-~]', ' ', 'g')"""
WORDS = " || ".join(
    f"setweight(to_tsvector('reflect', {PLAIN.format(column)}), '{weight}')"
    for column, weight in (('"when"', "A"), ('"do"', "B"), ("tags::text", "C"))
)
INDEX = (
    "CREATE TEXT SEARCH DICTIONARY reflect_stem "
    "(TEMPLATE = pg_catalog.snowball, LANGUAGE = porter)",
    "CREATE TEXT SEARCH CONFIGURATION reflect (COPY = pg_catalog.simple)",
    "ALTER TEXT SEARCH CONFIGURATION reflect "
    "ALTER MAPPING FOR asciiword, word, numword WITH reflect_stem",
    f"ALTER TABLE lesson ADD COLUMN words tsvector GENERATED ALWAYS AS ({WORDS}) STORED",
    # no list that searches wade in
    "CREATE INDEX ix_lesson_words ON lesson USING gin (words) WITH (fastupdate = off)",
    # In SQLite every index ends with the id: the oldest or newest of a scope are read off it,
    # without a sort.
    "DROP INDEX ix_lesson_profile_status_scope",
    "CREATE INDEX ix_lesson_profile_status_scope ON lesson (profile, status, scope, id)",
)

# (lesson id, score, null) of the best lessons, then (null, null, word) of the common words. :known
# are common.
RANKED = """
    WITH asked AS MATERIALIZED (
        SELECT lexeme AS word, lexeme = ANY(CAST(:known AS text[])) AS known
        FROM unnest(to_tsvector('reflect', :words))
    ), hit AS MATERIALIZED (
        SELECT word, lesson.* FROM asked, LATERAL (
            SELECT id, profile, status, scope, length(words) AS length FROM lesson
            WHERE words @@ CAST('\'\'' || word || '\'\'' AS tsquery) LIMIT :common + 1
        ) AS lesson WHERE NOT known
    ), counted AS MATERIALIZED (
        SELECT word, CAST(count(*) AS float8) AS n FROM hit GROUP BY word
    ), rare AS MATERIALIZED (
        SELECT word, ln(1 + (greatest(size - n, 0) + 0.5) / (n + 0.5)) AS idf
        -- lessons are never deleted: the largest id is nearly their number
        FROM counted, (SELECT max(id) AS size FROM lesson) AS newest
        WHERE n <= :common ORDER BY n, word LIMIT :most
    ), best AS (
        SELECT id, sum(idf) * 2.2 / (1.3 + 0.9 * length / CAST(15 AS float8)) AS score
        FROM hit JOIN rare USING (word)
        WHERE {filters} GROUP BY id, length ORDER BY score DESC, id LIMIT {most}
    )
    SELECT id, score, NULL FROM best {bound}
    UNION ALL SELECT NULL, NULL, word FROM asked LEFT JOIN counted USING (word)
    WHERE known OR n > :common"""

# Of words so common the newest few lessons are enough: read backwards, piece by piece of the index
# by profile, status, scope and id. ts_match_vq is the function behind @@, which would go to the
# other index, and find them all.
NEWEST = """
    SELECT id FROM unnest(CAST(:status AS text[])) AS statuses (one_status),
    {scopes} AS scopes (one_scope), LATERAL (
        SELECT id FROM lesson WHERE ts_match_vq(words, CAST(:query AS tsquery))
        AND profile = :profile AND status = one_status AND scope = one_scope AND {bound}
        ORDER BY id DESC LIMIT :limit
    ) AS newest ORDER BY id DESC LIMIT :limit"""
UNBOUND = "(tags::text NOT LIKE '%\"task:%' OR tags::text LIKE :bound)"  # as search.UNBOUND
SOME = "unnest(CAST(:scope AS text[]))"
ALL = "(SELECT DISTINCT scope FROM lesson WHERE profile = :profile)"


def ranked(
    s: Session,
    query: str,
    known: set[str],
    profile: str,
    statuses: Sequence[str] | None,
    scopes: Sequence[str] | None,
    task: str | None,
    limit: int,
) -> list[tuple[int, float]]:
    """`search.ranked` on PostgreSQL; `known`: words known to be common, to which it adds others.
    Score: BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, section 3)
    with k1 = 1.2 and b = 0.75, as FTS5 has it, for texts in which no word occurs twice and a mean
    of 15 words; 0 where only common words match."""
    c = s.connection()
    filters, values = ["profile = :profile"], dict[str, object](profile=profile)
    for name, chosen in (("status", statuses), ("scope", scopes)):
        if chosen is not None:
            filters.append(f"{name} = ANY(CAST(:{name} AS text[]))")
            values |= {name: list(chosen)}
    # The tags are looked up for the best alone: more of them than are wanted, for some may be bound
    # to other tasks.
    bound, parts = "true", {"most": ":limit", "bound": ""}
    if task is not None:
        bound, values = UNBOUND, values | {"bound": f'%"task:{task}"%'}
        parts = {"most": "4 * :limit", "bound": f"JOIN lesson USING (id) WHERE {bound}"}
    values |= {"limit": limit, "common": COMMON, "most": MOST_WORDS, "known": list(known)}
    values |= {"words": " ".join(list(dict.fromkeys(_words(query)))[: 8 * MOST_WORDS])}
    rows = c.execute(text(RANKED.format(filters=" AND ".join(filters), **parts)), values).all()
    best = sorted((-score, lesson_id) for lesson_id, score, _ in rows if lesson_id is not None)
    matches = [(int(lesson_id), -float(score)) for score, lesson_id in best[:limit]]
    common = [word for _, _, word in rows if word is not None]
    known.update(common)
    if len(matches) < limit and common:
        values = {"status": list(LESSON_STATUSES), **values}
        values["query"] = " | ".join(f"'{word}'" for word in common)
        seen = {lesson_id for lesson_id, _ in matches}
        newest = text(NEWEST.format(scopes=ALL if scopes is None else SOME, bound=bound))
        matches += [(i, 0.0) for i in c.execute(newest, values).scalars() if i not in seen]
    return matches[:limit]


def holding(s: Session, when: str, do: str, profile: str) -> list[tuple[int, str, str]]:
    """`search.holding` on PostgreSQL; in any order, not only in a row."""
    parts = [
        f"'{word}':{weight}"
        for weight, part in (("A", when), ("B", do))
        for word in dict.fromkeys(_words(part))
    ]
    holds = "AND words @@ to_tsquery('reflect', :query)" if parts else ""
    question = f'SELECT id, "when", "do" FROM lesson WHERE profile = :profile {holds} ORDER BY id'
    values = {"profile": profile} | ({"query": " & ".join(parts)} if parts else {})
    rows = s.connection().execute(text(question), values)
    return [(int(row[0]), str(row[1]), str(row[2])) for row in rows]


def _words(text: str) -> list[str]:
    """The words as the index has them: without accents, in small letters, not stemmed yet."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not "\u0300" <= c <= "\u036f")
    return [word for word in re.findall(r"[^\W_]+", plain.lower()) if len(word) <= LONGEST]
