"""What stands behind a lesson: trials and persons, and what one group of attempts says about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from sqlalchemy import and_
from sqlmodel import Session, col, func, or_, select

from reflect.records import (
    SHOWN_STATUSES,
    Exposure,
    Lesson,
    LessonVersion,
    Reflection,
    Rollout,
    TaskRow,
    Trial,
)
from reflect.store import lessons as db

STANDING = (*SHOWN_STATUSES, "distilled")  # in prompts or in the weights: lessons that do something
OF_DAY = ("withhold", "paired")


class Attempts(NamedTuple):
    """The rewards of one group: of the attempts that saw a lesson, and of those from which it was
    withheld. One that broke earned nothing."""

    seen: list[float]
    missed: list[float]


def proven(s: Session, lesson_id: int | None, when: str, do: str) -> bool:
    """Does a trial of this text of the lesson say accept, and none after it reject? For whatever
    model: a text that was proven once is worth a second look before it goes."""
    version = LessonVersion
    newest = (
        select(Trial.verdict)
        .join(
            version,
            and_(col(version.lesson_id) == Trial.lesson_id, col(version.version) == Trial.version),
        )
        .where(
            Trial.lesson_id == lesson_id, col(Trial.kind).in_(OF_DAY), Trial.verdict != "undecided"
        )
        .where(version.when == when, version.do == do)
        .order_by(col(Trial.id).desc())
    )
    return s.exec(newest).first() == "accept"


def well_supported(s: Session, row: Lesson | LessonVersion) -> bool:
    """Is it pinned, proven, or written or approved by a person in these words?"""
    lesson_id = row.lesson_id if isinstance(row, LessonVersion) else row.id
    if row.pinned or proven(s, lesson_id, row.when, row.do):
        return True
    by_person = select(LessonVersion.id).where(
        LessonVersion.lesson_id == lesson_id,
        LessonVersion.author == "human",
        LessonVersion.when == row.when,
    )
    shown = col(LessonVersion.status).in_(SHOWN_STATUSES)
    return s.exec(by_person.where(LessonVersion.do == row.do, shown)).first() is not None


def supported(s: Session, profile: str) -> list[Lesson]:
    """The standing lessons that are well supported, by id."""
    human = select(LessonVersion.lesson_id).where(LessonVersion.author == "human")
    tried = select(Trial.lesson_id).where(Trial.verdict == "accept")
    maybe = or_(col(Lesson.pinned), col(Lesson.id).in_(human), col(Lesson.id).in_(tried))
    found = s.exec(
        select(Lesson)
        .where(Lesson.profile == profile, col(Lesson.status).in_(STANDING), maybe)
        .order_by(col(Lesson.id))
    )
    return [lesson for lesson in found if well_supported(s, lesson)]


def newest_version(s: Session) -> int:
    """The id of the last version of any lesson, 0 where there is none."""
    return s.exec(select(func.max(LessonVersion.id))).one() or 0


def changed_after(s: Session, version_id: int, profile: str) -> list[LessonVersion]:
    """Of each lesson that has a version after that one: the version that it had before, by id of
    the lesson."""
    found = (
        select(LessonVersion.lesson_id, func.min(LessonVersion.parent))
        .join(Lesson, col(Lesson.id) == LessonVersion.lesson_id)
        .where(col(LessonVersion.id) > version_id, Lesson.profile == profile)
        .group_by(col(LessonVersion.lesson_id))
        .order_by(col(LessonVersion.lesson_id))
    )
    return [
        db.version(s, lesson_id, parent)
        for lesson_id, parent in s.exec(found)
        if parent is not None
    ]


def attempts(s: Session, reflection_id: int | None, lesson: Lesson) -> Attempts:
    """What the group of a reflection earned with the lesson and without it. What the weights hold
    all attempts have; where the lesson was neither in the prompt nor in the weights none has seen
    it."""
    review = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if review is None:
        return Attempts([], [])
    shown = (
        select(Rollout.reward, Exposure.shown)
        .join(
            Exposure,
            and_(col(Exposure.rollout_id) == col(Rollout.id), col(Exposure.lesson_id) == lesson.id),
            isouter=True,
        )
        .where(Rollout.run_id == review.run_id, Rollout.task_key == review.task_key)
        .order_by(col(Rollout.index))
    )
    held = lesson.status == "distilled"
    rows = [(reward or 0.0, held if saw is None else saw) for reward, saw in s.exec(shown)]
    return Attempts(
        [reward for reward, saw in rows if saw], [reward for reward, saw in rows if not saw]
    )


def complaints(s: Session, reflection_id: int | None, lesson: Lesson) -> int:
    """How many earlier reviews of the same run wanted this version changed, and were not heard
    because it is proven."""
    review = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if review is None:
        return 0
    earlier = select(Reflection).where(
        Reflection.run_id == review.run_id, col(Reflection.id) < review.id
    )
    mine = {"outcome": "defended", "lesson": lesson.id, "version": lesson.version}
    return sum(any(mine.items() <= edit.items() for edit in row.edits) for row in s.exec(earlier))


def other_tasks(s: Session, taskset: str, key: str, limit: int = 200) -> Iterator[str]:
    """The texts of other tasks of the taskset that were practised, without a system message; asked
    for when read."""
    found = select(TaskRow.content).where(TaskRow.taskset == taskset, TaskRow.key != key)
    for content in s.exec(found.order_by(col(TaskRow.key)).limit(limit)):
        yield "\n".join(
            str(m.get("content", ""))
            for m in content.get("messages", [])
            if m.get("role") != "system"
        )


def chorus(s: Session, reflection_id: int | None, says: Callable[[str, str], bool]) -> int:
    """How many earlier reviews of the same run asked for words of which `says(when, do)` is true,
    whatever became of that."""
    review = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if review is None:
        return 0
    earlier = select(Reflection.edits).where(
        Reflection.run_id == review.run_id, col(Reflection.id) < review.id
    )
    return sum(
        any(edit["kind"] in ("add", "revise") and says(edit["when"], edit["do"]) for edit in edits)
        for edits in s.exec(earlier)
    )
