"""Marks on adapters: the lessons in their weights that are no longer in use, `Adapter.revoked`.

An adapter is marked when a lesson in its weights is revoked or retired; the mark is removed when
the lesson is in use again. A marked adapter is not promoted, and a rollback skips it.

Not covered: a lesson that was reworded counts by its id, so an adapter that holds its old text is
marked as well; the same text under another id, or in another profile, is another lesson.
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from reflect.errors import UsageError
from reflect.records import HELD_STATUSES, Adapter, Lesson, LessonVersion, Night
from reflect.store import reviewers
from reflect.types import Author, TrialVerdict


def holds(adapter: Adapter, night: Night | None) -> set[int]:
    """The lessons that the adapter was trained on, also those of which it keeps too little.

    These are the lessons that preflight found useful; a night without that record counts with all
    its lessons. Of a reviewer: the lessons of the reviews that it learned from.
    """
    if night is None:
        return {*map(int, adapter.gate.get("lessons_read", ()))}
    useful = night.stages.get("preflight", {}).get("worth")
    lessons = [lesson_id for lesson_id, _ in night.lessons] if useful is None else useful
    return {*map(int, lessons), *map(int, adapter.gate.get("lessons", {}))}


def still_holds(adapter: Adapter, night: Night | None) -> list[int]:
    """The lessons that the adapter proved to hold; of one that was never judged those of its
    night."""
    judged = adapter.gate.get("lessons")
    if judged is None:
        return sorted(int(lesson_id) for lesson_id, _ in night.lessons) if night else []
    return sorted(int(i) for i, row in judged.items() if row["verdict"] == TrialVerdict.ACCEPT)


def held_by(s: Session, adapter: Adapter) -> set[int]:
    """`holds`, its night looked up."""
    return holds(adapter, s.get(Night, adapter.night_id) if adapter.night_id else None)


def of_profile(s: Session, profile: str) -> list[tuple[Adapter, Night]]:
    """The adapters that nights of the profile made, oldest first."""
    query = select(Adapter, Night).join(Night, col(Adapter.night_id) == col(Night.id))
    return [
        (a, n) for a, n in s.exec(query.where(Night.profile == profile).order_by(col(Adapter.id)))
    ]


def _trained(s: Session, profile: str) -> list[tuple[Adapter, Night | None]]:
    """All adapters of the profile, its reviewers included."""
    mine: list[tuple[Adapter, Night | None]] = [(a, None) for a in reviewers.listing(s, profile)]
    return [*mine, *of_profile(s, profile)]


def mark(s: Session, lesson: Lesson) -> list[Adapter]:
    """Mark every adapter of the lesson's profile that holds it; returns these."""
    holders = [a for a, night in _trained(s, lesson.profile) if lesson.id in holds(a, night)]
    for adapter in holders:
        adapter.revoked = sorted({*adapter.revoked, lesson.id or 0})
        s.add(adapter)
    s.flush()
    return holders


def lift(s: Session, lesson: Lesson) -> None:
    """Remove the marks of a lesson that is in use again."""
    for adapter, _ in _trained(s, lesson.profile):
        if lesson.id in adapter.revoked:
            adapter.revoked = [i for i in adapter.revoked if i != lesson.id]
            s.add(adapter)
    s.flush()


def taken_away(s: Session, adapter: Adapter) -> list[int]:
    """Lessons in a new adapter that a person has taken away while the night was on."""
    head = (col(LessonVersion.lesson_id) == col(Lesson.id)) & (
        col(LessonVersion.version) == col(Lesson.version)
    )
    query = select(Lesson.id).join(LessonVersion, head).where(
        col(Lesson.id).in_(held_by(s, adapter)),
        col(Lesson.status).not_in(HELD_STATUSES),
        LessonVersion.author == Author.HUMAN,
    )  # fmt: skip
    return sorted(i for i in s.exec(query) if i is not None)


def refuse(adapter: Adapter) -> None:
    """UsageError for an adapter that knows lessons which were taken away."""
    if adapter.revoked:
        which = ", ".join(map(str, adapter.revoked))
        raise UsageError(
            f"The adapter {adapter.name} knows what was revoked or retired: lesson {which}.",
            "Sleep again, for one without it: reflect sleep. "
            "Or bring the lesson back: reflect lessons undo ID",
        )
