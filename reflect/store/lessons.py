"""Lessons and their versions. A lesson's row is a copy of its newest version; versions are only
ever appended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlmodel import Session, col, func, select

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import LESSON_STATUSES, Adapter, Alias, Lesson, LessonVersion, Night, now
from reflect.store import revoked_adapters
from reflect.store import search as fulltext
from reflect.types import Author, LessonStatus, QuarantineReason

CONTENT = (
    "when",
    "do",
    "scope",
    "tags",
    "status",
    "pinned",
    "trust",
    "tokens",
)  # what a version is a snapshot of
AUTHORS = tuple(author.value for author in Author)

# status -> where it may go. Undo and rollback restore an earlier version whole; they do not ask
# this table.
TRANSITIONS: dict[str, tuple[str, ...]] = {
    "candidate": ("active", "distilled", "retired", "quarantined"),
    "active": ("candidate", "distilled", "retired", "quarantined"),
    "distilled": (
        "active",
        "candidate",
        "retired",
        "quarantined",
    ),  # it left the weights, or its text changed
    "retired": ("active", "candidate", "quarantined"),
    "quarantined": ("candidate", "active", "retired"),  # released by a person or by corroboration
}


def add(
    s: Session,
    *,
    when: str,
    do: str,
    author: str,
    reason: str = "",
    scope: str = "",
    tags: Sequence[str] = (),
    status: str = "candidate",
    pinned: bool = False,
    trust: str = "clean",
    profile: str = "default",
    tokens: int = 0,
    reflection_id: int | None = None,
    night_id: int | None = None,
    quarantine: QuarantineReason | None = None,
) -> Lesson:
    """A new lesson, version 1. Raises UsageError for an empty text."""
    lesson = Lesson(
        profile=profile, version=1, when=when, do=do, scope=scope, tags=list(tags), status=status
    )
    lesson.pinned, lesson.trust, lesson.tokens = pinned, trust, tokens
    lesson.when, lesson.do = _words("when", when), _words("do", do)
    _known_status(status)
    s.add(lesson)
    s.flush()
    _record(s, lesson, None, author, reason, reflection_id, night_id, quarantine)
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
            f"Lesson {lesson.id} was changed by somebody else (version {lesson.version}, yours was {expect_version}).",
            f"See `reflect lessons history {lesson.id}`, then make your change again.",
        )
    changes |= {
        field: _words(field, changes[field]) for field in ("when", "do") if field in changes
    }
    if "tags" in changes:
        changes["tags"] = list(changes["tags"])
    reworded = any(
        field in changes and changes[field] != getattr(lesson, field) for field in ("when", "do")
    )
    if reworded and lesson.pinned and author == "model":
        raise Conflict(f"Lesson {lesson.id} is pinned: only a person may change its text.")
    if reworded:
        changes.setdefault("tokens", 0)  # unknown until somebody counts again
        if lesson.status == "distilled":
            changes.setdefault("status", "active")
    status = changes.get("status", lesson.status)
    _known_status(status)
    if status != lesson.status and status not in TRANSITIONS[lesson.status]:
        raise UsageError(
            f"Lesson {lesson.id} is {lesson.status} and cannot become {status}.",
            f"It can become {', '.join(TRANSITIONS[lesson.status])}; `reflect lessons undo {lesson.id}` steps back.",
        )
    return _write(s, lesson, changes, author, reason, reflection_id, night_id, quarantine)


def undo(s: Session, lesson_id: int | None, author: str = "human") -> Lesson:
    """A new version with the content of the one before the newest: a second undo redoes. Undo of
    the first retires it.

    A lesson comes back as distilled only while the active adapter holds this text; else it comes
    back as active.
    """
    lesson = get(s, lesson_id)
    newest = version(s, lesson.id, lesson.version)
    if newest.parent is None:
        return _write(
            s, lesson, {"status": "retired"}, author, "undo of its first version", None, None
        )
    before = content(version(s, lesson.id, newest.parent))
    if before["status"] == "distilled" and not _in_weights(s, lesson, before):
        before["status"] = "active"
    return _write(s, lesson, before, author, f"undo: as in version {newest.parent}", None, None)


def restore(
    s: Session, lesson: Lesson, before: dict[str, Any], reason: str, night_id: int | None
) -> Lesson:
    """Rollback's step: exactly this earlier content again, as a new version."""
    return _write(s, lesson, before, "rollback", reason, None, night_id)


def get(s: Session, lesson_id: int | None) -> Lesson:
    """The lesson, or UnknownName."""
    lesson = s.get(Lesson, lesson_id) if lesson_id is not None else None
    if lesson is None:
        raise UnknownName(f"There is no lesson {lesson_id}.", "See `reflect lessons list`.")
    return lesson


def by_ids(s: Session, ids: Sequence[int]) -> list[Lesson]:
    """Those of these lessons that are there, by id."""
    return (
        list(s.exec(select(Lesson).where(col(Lesson.id).in_(ids)).order_by(col(Lesson.id))))
        if ids
        else []
    )


def history(s: Session, lesson_id: int | None) -> list[LessonVersion]:
    """All versions, oldest first."""
    get(s, lesson_id)
    found = (
        select(LessonVersion)
        .where(LessonVersion.lesson_id == lesson_id)
        .order_by(col(LessonVersion.version))
    )
    return list(s.exec(found))


def version(s: Session, lesson_id: int | None, number: int) -> LessonVersion:
    """One version, or UnknownName."""
    found = select(LessonVersion).where(
        LessonVersion.lesson_id == lesson_id, LessonVersion.version == number
    )
    row = s.exec(found).first()
    if row is None:
        raise UnknownName(
            f"Lesson {lesson_id} has no version {number}.",
            f"See `reflect lessons history {lesson_id}`.",
        )
    return row


def versions_of_night(s: Session, night_id: int | None) -> list[LessonVersion]:
    """What a night, and a rollback of it, did to the lessons, oldest first."""
    return list(
        s.exec(
            select(LessonVersion)
            .where(LessonVersion.night_id == night_id)
            .order_by(col(LessonVersion.id))
        )
    )


def versions_of_reflection(s: Session, reflection_id: int | None) -> list[LessonVersion]:
    """What a reflection did to the lessons, oldest first."""
    found = select(LessonVersion).where(LessonVersion.reflection_id == reflection_id)
    return list(s.exec(found.order_by(col(LessonVersion.id))))


def listing(
    s: Session,
    profile: str = "default",
    status: str | Sequence[str] | None = None,
    scope: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Lesson]:
    """Lessons by id. `scope` "" means those without a scope, None means all."""
    found = (
        select(Lesson)
        .where(*_filters(profile, status, scope))
        .order_by(col(Lesson.id))
        .offset(offset)
    )
    return list(s.exec(found.limit(limit) if limit is not None else found))


def count(
    s: Session,
    profile: str = "default",
    status: str | Sequence[str] | None = None,
    scope: str | None = None,
) -> int:
    """How many lessons `listing` has without a limit."""
    return s.exec(
        select(func.count()).select_from(Lesson).where(*_filters(profile, status, scope))
    ).one()


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
    rows = fulltext.ranked(s, text, profile=profile, statuses=statuses, scopes=scopes, limit=limit)
    found = {
        lesson.id: lesson
        for lesson in s.exec(select(Lesson).where(col(Lesson.id).in_([i for i, _ in rows])))
    }
    return [(found[lesson_id], score) for lesson_id, score in rows]


def find_exact(s: Session, when: str, do: str, profile: str = "default") -> Lesson | None:
    """The oldest lesson of the profile that says the same, case, spacing and punctuation aside."""
    wanted = (_normal(when), _normal(do))
    for lesson_id, its_when, its_do in fulltext.holding(s, when, do, profile):
        if (_normal(its_when), _normal(its_do)) == wanted:
            return get(s, lesson_id)
    return None


def content(row: Lesson | LessonVersion) -> dict[str, Any]:
    """The snapshot: every field of CONTENT."""
    return {field: getattr(row, field) for field in CONTENT}


# -- inside
# ------------------------------------------------------------------------------------------------------------


def _write(
    s: Session,
    lesson: Lesson,
    changes: dict[str, Any],
    author: str,
    reason: str,
    reflection_id: int | None,
    night_id: int | None,
    quarantine: QuarantineReason | None = None,
) -> Lesson:
    """Change the head, append the version, keep the adapters' marks true; nothing when nothing
    differs."""
    if all(getattr(lesson, field) == value for field, value in changes.items()):
        return lesson
    parent, was = lesson.version, lesson.status
    for field, value in changes.items():
        setattr(lesson, field, value)
    lesson.version, lesson.updated = parent + 1, now()
    s.add(lesson)
    _record(s, lesson, parent, author, reason, reflection_id, night_id, quarantine)
    if lesson.status in revoked_adapters.STANDING and was not in revoked_adapters.STANDING:
        revoked_adapters.lift(s, lesson)
    elif lesson.status not in revoked_adapters.STANDING and (
        was == "distilled" or (author == "human" and was in revoked_adapters.STANDING)
    ):
        revoked_adapters.mark(s, lesson)
    return lesson


def _record(
    s: Session,
    lesson: Lesson,
    parent: int | None,
    author: str,
    reason: str,
    reflection_id: int | None,
    night_id: int | None,
    quarantine: QuarantineReason | None = None,
) -> None:
    if author not in AUTHORS:
        raise ValueError(f"author {author!r} is none of {', '.join(AUTHORS)}")
    held = lesson.status == LessonStatus.QUARANTINED
    row = LessonVersion(
        quarantine=(quarantine or QuarantineReason.PERSON) if held else None,
        lesson_id=lesson.id or 0,
        version=lesson.version,
        parent=parent,
        author=author,
        reason=reason,
        reflection_id=reflection_id,
        night_id=night_id,
        **content(lesson),
    )
    s.add(row)
    s.flush()


def _in_weights(s: Session, lesson: Lesson, before: dict[str, Any]) -> bool:
    """Does the active adapter hold this text of the lesson?"""
    adapter = s.exec(select(Adapter).join(Alias).where(Alias.profile == lesson.profile)).first()
    night = s.get(Night, adapter.night_id) if adapter and adapter.night_id else None
    held = {int(i): int(v) for i, v in night.lessons} if night else {}
    if lesson.id not in held:
        return False
    taught = version(s, lesson.id, held[lesson.id])
    return (taught.when, taught.do) == (before["when"], before["do"])


def _filters(profile: str, status: str | Sequence[str] | None, scope: str | None) -> list[Any]:
    filters: list[Any] = [Lesson.profile == profile]
    if status is not None:
        statuses = [status] if isinstance(status, str) else list(status)
        for one in statuses:
            _known_status(one)
        filters.append(col(Lesson.status).in_(statuses))
    if scope is not None:
        filters.append(Lesson.scope == scope)
    return filters


def _known_status(status: str) -> None:
    if status not in LESSON_STATUSES:
        raise UnknownName(
            f"There is no lesson status '{status}'.", f"Known are: {', '.join(LESSON_STATUSES)}."
        )


def _words(field: str, text: str) -> str:
    """The text on one line, as it stands in a prompt. UsageError when nothing is left."""
    if not (line := " ".join(text.split())):
        raise UsageError(
            f"A lesson needs a text: '{field}' is empty.", "Say when it applies and what to do."
        )
    return line


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()
