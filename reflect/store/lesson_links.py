"""Links between lessons: which one stands where another stood, and why."""

from __future__ import annotations

from sqlmodel import Session, col, or_, select

from reflect.records import Lesson, LessonLink

LINK_KINDS = ("merged", "supersedes", "proposed")  # proposed: a person has not decided yet


def link(
    s: Session,
    lesson_id: int | None,
    other_id: int | None,
    kind: str,
    why: str = "",
    reflection_id: int | None = None,
) -> LessonLink:
    """Lesson `lesson_id` stands (or would, where it is proposed) where `other_id` stood. Said
    again, after an undo, it is the same link with the newer words. ValueError for a kind that there
    is not, or a lesson linked to itself."""
    if kind not in LINK_KINDS or lesson_id == other_id:
        raise ValueError(f"no link: {kind} {lesson_id} {other_id}")
    wanted = select(LessonLink).where(
        LessonLink.lesson_id == lesson_id, LessonLink.other_id == other_id
    )
    row = s.exec(wanted.where(LessonLink.kind == kind)).first()
    row = row or LessonLink(lesson_id=lesson_id or 0, other_id=other_id or 0, kind=kind)
    row.why, row.reflection_id = why, reflection_id
    s.add(row)
    s.flush()
    return row


def links(s: Session, lesson_id: int | None) -> list[LessonLink]:
    """Of a lesson, both ways, oldest first."""
    mine = or_(col(LessonLink.lesson_id) == lesson_id, col(LessonLink.other_id) == lesson_id)
    return list(s.exec(select(LessonLink).where(mine).order_by(col(LessonLink.id))))


def standing_for(s: Session, lesson_id: int | None) -> list[LessonLink]:
    """The links in which it stands where another lesson stood, in a fixed order."""
    mine = select(LessonLink).where(LessonLink.lesson_id == lesson_id)
    return list(s.exec(mine.order_by(col(LessonLink.other_id), col(LessonLink.kind))))


def successor(s: Session, lesson_id: int | None) -> int | None:
    """The lesson into which this one was merged last, and that one again if it was; None where it
    was not."""
    seen, now = {lesson_id}, lesson_id
    while into := [x.lesson_id for x in links(s, now) if (x.other_id, x.kind) == (now, "merged")]:
        if into[-1] in seen:
            break
        now = into[-1]
        seen.add(now)
    return now if now != lesson_id else None


def proposed_for(s: Session, lesson_id: int | None) -> list[Lesson]:
    """The lessons in whose place it was proposed."""
    places = [x.other_id for x in standing_for(s, lesson_id) if x.kind == "proposed"]
    return [lesson for i in places if (lesson := s.get(Lesson, i))]
