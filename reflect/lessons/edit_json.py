"""Edits of lessons as JSON: the schema that a model is asked to fill, and the reader of its answer.

    {"analysis": "...", "edits": [{"edit": "add", "when": "...", "do": "..."}]}

The reader accepts more than the schema: text, a code block or thoughts around the JSON, other names
of the fields (FIELDS), a trailing comma, edits written as lines, and the complete edits of an
answer that was cut off.
"""

from __future__ import annotations

import functools
import json
import re
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reflect.types import Json

MOST_ASKED = 3  # edits that a model is asked for
# What a grammar wants of a condition and an advice, so that no slot stays open: no dots in a row,
# and in Latin script two words or more, of which the first after short ones has four letters.
_LATIN, _WORD = r"[A-Za-z0-9\u00c0-\u024f]", r"[^ .\u2026\x00-\x1f\x7f]"
_ANY = r"(?:[^.\u2026\x00-\x1f\x7f]|\.[^.\u2026\x00-\x1f\x7f])*\.?"
_LONG = rf"{_LATIN}{_WORD}{{3}}"
TEXT = rf"^(?:(?:{_LATIN}{_WORD}{{0,2}} )+{_LONG}|{_LONG}{_WORD}* {_WORD}|[^\x00-\u024f]){_ANY}$"
FIELDS = {
    "edit": "edit action kind type op operation",
    "when": "when condition if trigger",
    "do": "do advice then instruction",
    "why": "why reason because",
    "lesson": "lesson lesson_id lesson_number id number",
    "lessons": "lessons lesson_ids lesson_numbers ids numbers",
}
NAMES = {name: field for field, names in FIELDS.items() for name in names.split()}
KINDS = ("add", "revise", "retire", "merge", "none")
MOST_TRIPLES = 8  # lessons of which a grammar lists all sets of three
MOST_STARTS = 64  # brackets at which JSON may begin in an answer
TRAILING_COMMA = re.compile(r",(\s*[}\]])")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Add(_Model):
    """A new lesson."""

    edit: Literal["add"]
    when: str
    do: str


class Revise(_Model):
    """Another text for a lesson."""

    edit: Literal["revise"]
    lesson: int
    when: str
    do: str


class Retire(_Model):
    """A lesson is wrong or harmful."""

    edit: Literal["retire"]
    lesson: int
    why: str


class Merge(_Model):
    """Several lessons become one."""

    edit: Literal["merge"]
    lessons: list[int]
    when: str
    do: str


class ReviewAnswer(_Model):
    """The answer of a reflection: the analysis first, because the edits follow from it."""

    analysis: str
    edits: Annotated[list[Add | Revise | Retire | Merge], Field(max_length=MOST_ASKED)]


class FirstReviewAnswer(_Model):
    """The answer of a reflection on a group without lessons."""

    analysis: str
    edits: Annotated[list[Add], Field(max_length=MOST_ASKED)]


def review_schema(lesson_ids: Sequence[int], max_tokens: int = 0) -> Json:
    """The JSON schema of a reflection's answer. Only the lessons of the prompt can be named.

    `max_tokens`: the texts are bounded, so that the whole answer fits; for a grammar engine, since
    not every server supports such bounds. 0: no bounds. The result is shared: do not change it.
    """
    return _review_schema(tuple(lesson_ids), max_tokens)


@functools.lru_cache(maxsize=256)  # building one takes longer than a rollout
def _review_schema(lesson_ids: tuple[int, ...], max_tokens: int) -> Json:
    schema = (ReviewAnswer if lesson_ids else FirstReviewAnswer).model_json_schema()
    ids = {"enum": list(lesson_ids)}
    for name, model in schema["$defs"].items():
        properties = model["properties"]
        if "lesson" in properties:
            properties["lesson"] = ids
        if "lessons" in properties:
            properties["lessons"] = (
                _sets(lesson_ids) if max_tokens else {"type": "array", "items": ids}
            )
        if name == "Merge" and len(lesson_ids) < 2:
            schema["properties"]["edits"]["items"]["anyOf"].pop()
        if max_tokens:
            # about half of the characters that so many tokens of English have
            sizes = {"when": max_tokens // 5, "do": max_tokens // 3, "why": max_tokens // 5}
            for field in sizes.keys() & properties.keys():
                properties[field] = {"type": "string", "pattern": TEXT}
                properties[field] |= {"minLength": 4, "maxLength": max(sizes[field], 40)}
    if not max_tokens:
        del schema["properties"]["edits"]["maxItems"]
    else:
        schema["properties"]["analysis"] |= {"minLength": 1, "maxLength": max(max_tokens // 2, 80)}
    return without_titles(schema)


def _sets(ids: Sequence[int]) -> Json:
    """Two or three different lessons; a grammar cannot say "different"."""
    sizes = (2, 3) if len(ids) <= MOST_TRIPLES else (2,)
    return {"enum": [list(some) for size in sizes for some in combinations(sorted(ids), size)]}


def without_titles(schema: Json) -> Json:
    """The schema without titles and descriptions of its models, which are for people."""
    if isinstance(schema, dict):
        return {
            key: without_titles(value)
            for key, value in schema.items()
            if not (key in ("title", "description") and isinstance(value, str))
        }
    return [without_titles(one) for one in schema] if isinstance(schema, list) else schema


def find_review(text: str) -> tuple[list[object], bool] | None:
    """(the edits as they are in the answer, whether the answer is whole); None without JSON edits.

    The last JSON value that has edits counts: a model may write a draft first.
    """
    found = None
    for value, whole in _values(text):
        rows = _rows(value)
        if rows is not None:
            found = rows, whole
    return found


def _values(text: str) -> Iterator[tuple[object, bool]]:
    """The JSON values in a text, each with whether it is whole. Only the last may be cut off."""
    decoder, place = json.JSONDecoder(strict=False), 0
    for _ in range(MOST_STARTS):
        start = min((at for c in "{[" if (at := text.find(c, place)) >= 0), default=-1)
        if start < 0:
            return
        try:
            value, place = decoder.raw_decode(text, start)
            yield value, True
            continue
        except (ValueError, RecursionError):
            place = start + 1
        repaired = TRAILING_COMMA.sub(r"\1", text[start:])
        try:
            value, end = decoder.raw_decode(repaired)
        except (ValueError, RecursionError):
            if '"edits"' in text[start:] or '"edit"' in text[start:]:
                try:
                    yield from_json(text[start:].strip(), allow_partial=True), False
                    return
                except (ValueError, TypeError, RecursionError):  # TypeError: half a surrogate pair
                    continue
        else:
            yield value, True
            text, place = repaired, end


def _rows(value: object) -> list[object] | None:
    """The edits in a JSON value; None if it has none."""
    if isinstance(value, list):
        return value if value and all(_is_edit(row) for row in value) else None
    if not isinstance(value, dict):
        return None
    fields = {str(name).lower(): inner for name, inner in value.items()}
    if "edits" not in fields:
        return [value] if _is_edit(value) else None
    edits = fields["edits"]
    if edits is None or (isinstance(edits, str) and edits.strip(" .!").lower() in ("", "none")):
        return []
    return edits if isinstance(edits, list) else [edits]


def _is_edit(row: object) -> bool:
    return isinstance(row, dict) and str(named_fields(row).get("edit", "")).lower() in KINDS


def named_fields(row: Json) -> dict[str, object]:
    """The fields of an edit by the names of the schema. `{"add": {...}}` is an edit too."""
    if len(row) == 1:
        ((kind, inner),) = row.items()
        if str(kind).lower() in KINDS and isinstance(inner, dict):
            row = {"edit": kind, **inner}
    fields: dict[str, object] = {}
    for name, value in row.items():
        field = NAMES.get(str(name).strip().lower().replace(" ", "_"), str(name))
        if field == "edit" and str(value).lower() not in KINDS:
            field = "do"  # "action" may also name the advice
        fields.setdefault(field, value)
    return fields
