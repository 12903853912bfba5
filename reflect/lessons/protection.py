"""Rules that stop a single reflection from changing or deleting a proven lesson.

One reflection on one group is weak evidence compared with a trial, and one pass of merges must not
remove what the lessons were built for. Neither rule limits a person, a trial's own verdict, or
`lessons undo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.lessons.similarity import covers_condition, normal
from reflect.records import HELD_STATUSES, Lesson, LessonVersion
from reflect.store import lessons as db
from reflect.store.lesson_evidence import (
    attempts,
    changed_after,
    chorus,
    complaints,
    newest_version,
    proven,
    supported,
    well_supported,
)
from reflect.types import EditKind, EditOutcome, LessonStatus

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.lessons.edit_format import Edit

SHRINK = 1 / 3  # share of the well-supported lessons that one transaction may lose; one is allowed
CHORUS = 3  # reflections of one run that propose exactly the same text
HALF = 0.5  # of the reward: a proven lesson that earns less does badly


def defended(
    s: Session, lesson: Lesson, reflection_id: int | None, edit: Edit
) -> tuple[EditOutcome, str] | None:
    """Whether one reflection may change or remove this lesson by that edit: None if it may, else
    (outcome, reason).

    A trial measured an accepted text over many groups; one group against it is mostly bad luck, or
    a stray edit of a small model. So the group's own rewards must be against it: the attempts with
    it earned at most half, and those without it were no worse. Then it goes at once if all attempts
    with it did badly and one without it did better, else when a second group of the same run wants
    the same: if the tasks have changed, the lesson fails in every group. A lesson that helps may
    still be improved: by equal new texts from CHORUS reflections of a run.
    """
    if not _is_proven(s, lesson):
        return None
    seen, missed = attempts(s, reflection_id, lesson)
    if edit.kind in (EditKind.ADD, EditKind.REVISE) and seen and min(seen) < 1:
        mine = normal(edit.when), normal(edit.do)
        earlier = chorus(s, reflection_id, lambda *text: tuple(map(normal, text)) == mine)
        if earlier + 1 >= CHORUS:
            return None
    proof = f"lesson {lesson.id} is proven"
    if not seen:
        return EditOutcome.KEPT, f"{proof}, and was not tried in this group"
    mean = sum(seen) / len(seen)
    if mean > HALF or (missed and sum(missed) / len(missed) < mean):
        group = f"this group ({mean:.2f} with it)"
        return EditOutcome.KEPT, f"{proof}, and {group} is not against it"
    shows_the_way = max(seen) < HALF and missed and max(missed) > max(seen)
    if shows_the_way or complaints(s, reflection_id, lesson):
        return None
    return EditOutcome.DEFENDED, f"{proof}: a second group must be against it before it goes"


def protection_reason(s: Session, lesson: Lesson) -> str:
    """Why its text stays in a merge, "" if it need not."""
    if lesson.pinned:
        return "pinned"
    if lesson.status == LessonStatus.DISTILLED:
        return "in the weights"
    return "proven" if _is_proven(s, lesson) else ""


def _is_proven(s: Session, lesson: Lesson) -> bool:
    return proven(s, lesson.id, lesson.when, lesson.do)


class EditTransaction:
    """Changes of lessons that are kept or undone together: undone if they would lose too much.

    A lesson is lost if it is no longer in use and no lesson in use covers its condition. Made
    before the first change, in the caller's transaction; `close` after the last.
    """

    def __init__(self, s: Session, profile: str) -> None:
        self.s, self.profile = s, profile
        self._newest = newest_version(s)
        self._point = s.begin_nested()

    def close(self, *, keep: bool = True) -> str:
        """Why the changes were undone, "" if they stay. A dry run (`keep=False`) always undoes."""
        self.s.flush()
        alarm = self._alarm()
        if alarm or not keep:
            self._point.rollback()
        else:
            self._point.commit()
        return alarm

    def _alarm(self) -> str:
        was = changed_after(self.s, self._newest, self.profile)
        mattered = [
            row for row in was if row.status in HELD_STATUSES and well_supported(self.s, row)
        ]
        lost = [row for row in mattered if self._lost(row)]
        if len(lost) <= 1:
            return ""
        touched = {row.lesson_id for row in was}
        rest = [x for x in supported(self.s, self.profile) if x.id not in touched]
        before = len(mattered) + len(rest)
        if len(lost) <= SHRINK * before:
            return ""
        ids = ", ".join(str(row.lesson_id) for row in lost)
        return (
            f"shrink alarm: it would lose {len(lost)} of {before} well-supported lessons ({ids}) "
            "without a successor for their conditions; nothing was changed"
        )

    def _lost(self, was: LessonVersion) -> bool:
        now, scopes = db.get(self.s, was.lesson_id), sorted({was.scope, ""})
        if now.status in HELD_STATUSES and covers_condition(now.when, was.when):
            return False
        near = db.search(
            self.s, was.when, profile=self.profile, statuses=HELD_STATUSES, scopes=scopes
        )
        rest = [lesson for lesson, _ in near if lesson.id != now.id]
        return not any(covers_condition(lesson.when, was.when) for lesson in rest)
