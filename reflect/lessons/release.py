"""The release of a lesson that was learned from outside bytes, without a person.

It is released when the reflections on two different tasks without such bytes ask for the very same
lesson in the same scope: then the bytes were not needed to find it. The stored reflections count,
those of its tasks' groups and the one that asks now.

Only a text that is quarantined for nothing but its origin is released so. One that names an answer,
an address or a key, one that was imported, and one that a person has changed since, waits for a
person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.lessons import safety
from reflect.store import lesson_evidence
from reflect.store import lessons as db
from reflect.types import Author, LessonStatus, QuarantineReason, Trust

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.records import Lesson
    from reflect.tasksets.task import Task

OUTSIDE = "it was learned from attempts that read bytes from outside"
ENOUGH = 2  # clean tasks


def corroborated(s: Session, lesson: Lesson, task: Task, scope: str) -> str:
    """Why the lesson, requested by a clean group of this task, is released now; "" if it is not."""
    newest = db.version(s, lesson.id, lesson.version)
    if (lesson.status, lesson.trust) != (LessonStatus.QUARANTINED, Trust.UNTRUSTED):
        return ""
    origin = (newest.author, newest.quarantine)
    if lesson.scope != scope or origin != (Author.MODEL, QuarantineReason.OUTSIDE):
        return ""
    text = f"{lesson.when} {lesson.do}"
    if safety.suspicions(text) or safety.leaks(text, task):
        return ""
    asked = lesson_evidence.clean_tasks_asking(
        s, lesson.profile, scope, lesson.id, newest.reflection_id
    )
    names = [name for key, name in asked.items() if key != task.key]
    if len(names) + 1 < ENOUGH:
        return ""
    return f"two clean tasks ask for it: {names[0]} and {task.id}"
