"""When does a lesson that was learned from outside bytes leave the quarantine without a person?

When the reviews of two different tasks without such bytes ask for the very same lesson in the same
scope: then it did not need the bytes to be found. What counts is read from the reviews as they are
stored, the groups of their tasks and the one that asks now.

Only a text that waits for nothing but its origin is released so. One that names an answer, an
address or a key, one that an import brought, and one that a person has touched since, waits for a
person.
"""

from __future__ import annotations

from sqlmodel import Session

from reflect.lessons import safety
from reflect.records import Lesson
from reflect.store import lessons as db
from reflect.store import runs
from reflect.tasksets.task import Task
from reflect.types import QuarantineReason

OUTSIDE = "it was learned from attempts that read bytes from outside"
ENOUGH = 2  # clean tasks


def corroborated(s: Session, lesson: Lesson, task: Task, scope: str) -> str:
    """Why the lesson, for which a clean group of this task asks, is released now; "" while it must
    wait."""
    newest = db.version(s, lesson.id, lesson.version)
    waits = lesson.status == "quarantined" and lesson.trust == "untrusted" and lesson.scope == scope
    if not waits or newest.author != "model" or newest.quarantine != QuarantineReason.OUTSIDE:
        return ""
    text = f"{lesson.when} {lesson.do}"
    if safety.suspicions(text) or safety.leaks(text, task):
        return ""
    asked = runs.clean_tasks_asking(s, lesson.profile, scope, lesson.id, newest.reflection_id)
    asked = {key: name for key, name in asked.items() if key != task.key}
    if len(asked) + 1 < ENOUGH:
        return ""
    return f"two clean tasks ask for it: {next(iter(asked.values()))} and {task.id}"
