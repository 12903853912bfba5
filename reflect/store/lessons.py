"""Lessons, their versions and the links between them. A lesson's row is a copy of its newest
version; versions are only appended."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlmodel import Session, col, func, or_, select

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import (
    HELD_STATUSES,
    Adapter,
    Alias,
    Lesson,
    LessonLink,
    LessonVersion,
    Night,
    Run,
    now,
)
from reflect.store import revoked_adapters
from reflect.store import search as fulltext
from reflect.store.rows import get_row, save
from reflect.types import Author, Json, LessonStatus, LinkKind, QuarantineReason, Trust, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement

MINUS = re.compile(r"!(?==)|(?<!\w)-(?=\d)|(?<=[\s\d])-(?=[\s\d])|--+|->")
CONTENT = ("when", "do", "scope", "tags", "status", "pinned", "trust", "tokens")
"""The fields that a version is a snapshot of."""

TRANSITIONS: dict[str, tuple[str, ...]] = {
    LessonStatus.CANDIDATE: ("active", "distilled", "retired", "quarantined"),
    LessonStatus.ACTIVE: ("candidate", "distilled", "retired", "quarantined"),
    # it left the weights, or its text changed
    LessonStatus.DISTILLED: ("active", "candidate", "retired", "quarantined"),
    LessonStatus.RETIRED: ("active", "candidate", "quarantined"),
    # released by a person or by corroboration
    LessonStatus.QUARANTINED: ("candidate", "active", "retired"),
}
"""status -> the statuses that may follow. Undo and rollback restore an earlier version whole, and
do not ask this table."""


class Source(NamedTuple):
    """Who changes a lesson, and why."""

    author: str
    reason: str
    reflection_id: int | None = None
    night_id: int | None = None
    quarantine: QuarantineReason | None = None


def add(
    s: Session,
    *,
    when: str,
    do: str,
    author: str,
    reason: str = "",
    scope: str = "",
    tags: Sequence[str] = (),
    status: str = LessonStatus.CANDIDATE,
    pinned: bool = False,
    trust: str = Trust.CLEAN,
    profile: str = "default",
    tokens: int = 0,
    reflection_id: int | None = None,
    night_id: int | None = None,
    quarantine: QuarantineReason | None = None,
) -> Lesson:
    """A new lesson, version 1. Raises UsageError for an empty text."""
    lesson = Lesson(profile=profile, when=_one_line("when", when), do=_one_line("do", do))
    lesson.scope, lesson.tags, lesson.status = scope, list(tags), _known_status(status)
    lesson.pinned, lesson.trust, lesson.tokens = pinned, trust, tokens
    save(s, lesson)
    _record(s, lesson, None, Source(author, reason, reflection_id, night_id, quarantine))
    return lesson


def revise(
    s: Session,
    lesson_id: int | None,
    *,
    author: str,
    reason: str = "",
    expect_version: int | None = None,
    reflection_id: int | None = None,
    night_id: int | None = None,
    quarantine: QuarantineReason | None = None,
    **changes: Any,
) -> Lesson:
    """A new version with any of CONTENT changed; no new version when nothing differs.

    Conflict when `expect_version` is no longer the newest, or when the model would change the text
    of a pinned lesson. UsageError for an empty text or a forbidden step of status. New text of a
    distilled lesson is not in the weights: unless `changes` says otherwise it goes back into the
    prompt.
    """
    if unknown := set(changes) - set(CONTENT):
        raise TypeError(f"a lesson has no {', '.join(sorted(unknown))}")
    lesson = get(s, lesson_id)
    if expect_version is not None and expect_version != lesson.version:
        raise Conflict(
            f"Lesson {lesson.id} was changed by somebody else"
            f" (version {lesson.version}, yours was {expect_version}).",
            f"See `reflect lessons history {lesson.id}`, then make your change again.",
        )
    changes |= {name: _one_line(name, changes[name]) for name in ("when", "do") if name in changes}
    if "tags" in changes:
        changes["tags"] = list(changes["tags"])
    if any(
        changes.get(name, getattr(lesson, name)) != getattr(lesson, name) for name in ("when", "do")
    ):
        if lesson.pinned and author == Author.MODEL:
            raise Conflict(f"Lesson {lesson.id} is pinned: only a person may change its text.")
        changes.setdefault("tokens", 0)  # unknown until they are counted again
        if lesson.status == LessonStatus.DISTILLED:
            changes.setdefault("status", LessonStatus.ACTIVE)
    status = _known_status(changes.get("status", lesson.status))
    if status != lesson.status and status not in TRANSITIONS[lesson.status]:
        raise UsageError(
            f"Lesson {lesson.id} is {lesson.status} and cannot become {status}.",
            f"It can become {', '.join(TRANSITIONS[lesson.status])};"
            f" `reflect lessons undo {lesson.id}` steps back.",
        )
    return _write(s, lesson, changes, Source(author, reason, reflection_id, night_id, quarantine))


def undo(s: Session, lesson_id: int | None, author: str = Author.HUMAN) -> Lesson:
    """A new version with the content of the one before the newest: a second undo redoes. Undo of
    the first retires it.

    A lesson comes back as distilled only while the active adapter holds this text; else it comes
    back as active.
    """
    lesson = get(s, lesson_id)
    newest = version(s, lesson.id, lesson.version)
    if newest.parent is None:
        retired = {"status": LessonStatus.RETIRED}
        return _write(s, lesson, retired, Source(author, "undo of its first version"))
    before = content(version(s, lesson.id, newest.parent))
    if before["status"] == LessonStatus.DISTILLED and not _in_weights(s, lesson, before):
        before["status"] = LessonStatus.ACTIVE
    return _write(s, lesson, before, Source(author, f"undo: as in version {newest.parent}"))


def restore(s: Session, lesson: Lesson, before: Json, reason: str, night_id: int | None) -> Lesson:
    """Rollback's step: exactly this earlier content again, as a new version."""
    return _write(s, lesson, before, Source(Author.ROLLBACK, reason, night_id=night_id))


def get(s: Session, lesson_id: int | None) -> Lesson:
    """The lesson, or UnknownName."""
    return get_row(s, Lesson, lesson_id, "lesson", "See `reflect lessons list`.")


def by_ids(s: Session, ids: Iterable[int]) -> list[Lesson]:
    """Those of these lessons that exist, by id."""
    return list(
        s.exec(select(Lesson).where(col(Lesson.id).in_(list(ids))).order_by(col(Lesson.id)))
    )


def history(s: Session, lesson_id: int | None) -> list[LessonVersion]:
    """All versions, oldest first."""
    get(s, lesson_id)
    mine = select(LessonVersion).where(LessonVersion.lesson_id == lesson_id)
    return list(s.exec(mine.order_by(col(LessonVersion.version))))


def version(s: Session, lesson_id: int | None, number: int) -> LessonVersion:
    """One version, or UnknownName."""
    mine = select(LessonVersion).where(LessonVersion.lesson_id == lesson_id)
    row = s.exec(mine.where(LessonVersion.version == number)).first()
    if row is None:
        raise UnknownName(
            f"Lesson {lesson_id} has no version {number}.",
            f"See `reflect lessons history {lesson_id}`.",
        )
    return row


def versions_of_night(s: Session, night_id: int | None) -> list[LessonVersion]:
    """The versions that a night, and a rollback of it, made, oldest first."""
    query = select(LessonVersion).where(LessonVersion.night_id == night_id)
    return list(s.exec(query.order_by(col(LessonVersion.id))))


def listing(
    s: Session,
    profile: str = "default",
    status: str | Sequence[str] | None = None,
    scope: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Lesson]:
    """Lessons by id. `scope` "" means those without a scope, None means all."""
    mine = select(Lesson).where(*_filters(profile, status, scope)).order_by(col(Lesson.id))
    return list(s.exec(mine.offset(offset).limit(limit)))


def count(
    s: Session,
    profile: str = "default",
    status: str | Sequence[str] | None = None,
    scope: str | None = None,
) -> int:
    """How many lessons `listing` has without a limit."""
    mine = select(func.count()).select_from(Lesson)
    return s.exec(mine.where(*_filters(profile, status, scope))).one()


def scopes_in_use(s: Session, profile: str) -> set[str]:
    """The scopes of the profile's lessons, and the tasksets of its runs."""
    lessons = select(Lesson.scope).where(Lesson.profile == profile).distinct()
    runs = select(Run.taskset).where(Run.profile == profile).distinct()
    return {*s.exec(lessons), *s.exec(runs)}


def search(
    s: Session,
    text: str,
    *,
    profile: str = "default",
    statuses: Sequence[str] | None = None,
    scopes: Sequence[str] | None = None,
    limit: int = 20,
) -> list[tuple[Lesson, float]]:
    """Lessons that share words with `text`, best first, with a score (higher is better). Any text
    is safe."""
    rows = fulltext.ranked(s, text, fulltext.Filter(profile, statuses, scopes), limit)
    lessons = {lesson.id: lesson for lesson in by_ids(s, [lesson_id for lesson_id, _ in rows])}
    return [(lessons[lesson_id], score) for lesson_id, score in rows]


def find_exact(s: Session, when: str, do: str, profile: str = "default") -> Lesson | None:
    """The oldest lesson of the profile that says the same, case, spacing and punctuation aside."""
    text = (wording(when), wording(do))
    for lesson_id, its_when, its_do in fulltext.holding(s, when, do, profile):
        if (wording(its_when), wording(its_do)) == text:
            return get(s, lesson_id)
    return None


def wording(text: str) -> str:
    """The text without case, spacing and punctuation: two texts with the same wording say the same.

    Vowel signs and symbols are no punctuation: `a + b` is not `a - b`, and `3` is not `-3`.
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    words = re.findall(r"\w+", "".join(map(_as_letter, folded)))
    symbols = [c for c in folded if c in "%#@&/\\*" or _is_symbol(c)]
    return " ".join([*words, *symbols, *MINUS.findall(folded)]) or text.strip()


def _is_symbol(c: str) -> bool:
    return unicodedata.category(c)[0] == "S" and c not in "`\u00b4"


def _as_letter(c: str) -> str:
    """The character, or for a mark within a word, which `\\w` does not match, letters for it."""
    return c if c.isascii() or unicodedata.category(c)[0] != "M" else f"_{ord(c):x}_"


def content(row: Lesson | LessonVersion) -> Json:
    """The snapshot: every field of CONTENT."""
    return {field: getattr(row, field) for field in CONTENT}


# -- links


def link(
    s: Session,
    lesson_id: int | None,
    other_id: int | None,
    kind: str,
    why: str = "",
    reflection_id: int | None = None,
) -> LessonLink:
    """Lesson `lesson_id` replaces `other_id` (or would, where it is proposed). A second call, after
    an undo, keeps the link and updates its reason. ValueError for an unknown kind, or for a lesson
    linked to itself."""
    if kind not in values(LinkKind) or lesson_id == other_id:
        raise ValueError(f"no link: {kind} {lesson_id} {other_id}")
    pair = select(LessonLink).where(
        LessonLink.lesson_id == lesson_id, LessonLink.other_id == other_id
    )
    row = s.exec(pair.where(LessonLink.kind == kind)).first()
    row = row or LessonLink(lesson_id=lesson_id or 0, other_id=other_id or 0, kind=kind)
    row.why, row.reflection_id = why, reflection_id
    return save(s, row)


def links(s: Session, lesson_id: int | None) -> list[LessonLink]:
    """The links of a lesson, both ways, oldest first."""
    mine = or_(col(LessonLink.lesson_id) == lesson_id, col(LessonLink.other_id) == lesson_id)
    return list(s.exec(select(LessonLink).where(mine).order_by(col(LessonLink.id))))


def links_from(s: Session, lesson_id: int | None) -> list[LessonLink]:
    """The links in which it replaces another lesson, in a fixed order."""
    mine = select(LessonLink).where(LessonLink.lesson_id == lesson_id)
    return list(s.exec(mine.order_by(col(LessonLink.other_id), col(LessonLink.kind))))


def successor(s: Session, lesson_id: int | None) -> int | None:
    """The lesson into which this one was merged last, and that one again if it was; None where it
    was not."""
    seen, current, merged = {lesson_id}, lesson_id, LinkKind.MERGED
    while into := [
        x.lesson_id for x in links(s, current) if (x.other_id, x.kind) == (current, merged)
    ]:
        if into[-1] in seen:
            break
        current = into[-1]
        seen.add(current)
    return current if current != lesson_id else None


def proposed_for(s: Session, lesson_id: int | None) -> list[Lesson]:
    """The lessons that it was proposed to replace."""
    others = [x.other_id for x in links_from(s, lesson_id) if x.kind == LinkKind.PROPOSED]
    return [lesson for i in others if (lesson := s.get(Lesson, i))]


# -- inside


def _write(s: Session, lesson: Lesson, changes: Json, source: Source) -> Lesson:
    """Change the head, append the version, keep the adapters' marks true; nothing when nothing
    differs."""
    if all(getattr(lesson, field) == value for field, value in changes.items()):
        return lesson
    parent, was_held, was = lesson.version, lesson.status in HELD_STATUSES, lesson.status
    for field, value in changes.items():
        setattr(lesson, field, value)
    lesson.version, lesson.updated = parent + 1, now()
    s.add(lesson)
    _record(s, lesson, parent, source)
    by_person = source.author == Author.HUMAN and was_held
    if lesson.status in HELD_STATUSES:
        if not was_held:
            revoked_adapters.lift(s, lesson)
    elif was == LessonStatus.DISTILLED or by_person:
        revoked_adapters.mark(s, lesson)
    return lesson


def _record(s: Session, lesson: Lesson, parent: int | None, source: Source) -> None:
    if source.author not in values(Author):
        raise ValueError(f"author {source.author!r} is none of {', '.join(Author)}")
    row = LessonVersion(
        **content(lesson), **source._asdict(), lesson_id=lesson.id or 0, version=lesson.version
    )
    quarantined = lesson.status == LessonStatus.QUARANTINED
    row.parent = parent
    row.quarantine = (source.quarantine or QuarantineReason.PERSON) if quarantined else None
    save(s, row)


def _in_weights(s: Session, lesson: Lesson, before: Json) -> bool:
    """Does the active adapter hold this text of the lesson?"""
    adapter = s.exec(select(Adapter).join(Alias).where(Alias.profile == lesson.profile)).first()
    night = s.get(Night, adapter.night_id) if adapter and adapter.night_id else None
    versions = {int(i): int(v) for i, v in night.lessons} if night else {}
    if lesson.id not in versions:
        return False
    trained = version(s, lesson.id, versions[lesson.id])
    return (trained.when, trained.do) == (before["when"], before["do"])


def _filters(
    profile: str, status: str | Sequence[str] | None, scope: str | None
) -> list[ColumnElement[bool]]:
    filters: list[ColumnElement[bool]] = [col(Lesson.profile) == profile]
    if status is not None:
        statuses = [status] if isinstance(status, str) else status
        filters.append(col(Lesson.status).in_([_known_status(one) for one in statuses]))
    if scope is not None:
        filters.append(col(Lesson.scope) == scope)
    return filters


def _known_status(status: str) -> str:
    if status not in values(LessonStatus):
        raise UnknownName(
            f"There is no lesson status '{status}'.", f"Known are: {', '.join(LessonStatus)}."
        )
    return status


def _one_line(field: str, text: str) -> str:
    """The text on one line, as prompts show it. UsageError when it is empty."""
    if not (line := " ".join(text.split())):
        raise UsageError(
            f"A lesson needs a text: '{field}' is empty.", "Say when it applies and what to do."
        )
    return line
