"""What stands between a well-supported lesson and an edit that would lose it.

One review of one group is weak evidence beside a trial, and one tidy-up must not cost a memory what
it was built for. Neither stops a person, a trial's own verdict, or `lessons undo`.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlmodel import Session

from reflect.lessons.edit_format import Edit
from reflect.lessons.similarity import covers_condition, normal
from reflect.records import Lesson, LessonVersion
from reflect.store import lessons as db
from reflect.store.lesson_evidence import (
    STANDING,
    attempts,
    changed_after,
    chorus,
    complaints,
    newest_version,
    proven,
    supported,
    well_supported,
)

SHRINK = 1 / 3  # of the well-supported lessons; one consolidation may lose no more, but always one
CHORUS = 3  # reviews of one run that ask for the very same words
HALF = 0.5  # of the reward: with less a lesson that is proven is doing badly


def defended(
    s: Session, lesson: Lesson, reflection_id: int | None, edit: Edit
) -> tuple[str, str] | None:
    """May one review change or remove this lesson by that edit? None when it may, else (outcome,
    reason).

    A lesson whose present text a trial has accepted was measured over many groups; one group that
    wants it gone is mostly bad luck, and a stray edit of a small model. So the group itself must
    speak against it: the attempts that saw it earned no more than half, and those without it did no
    worse. Then it goes at once where the group also shows the way (all attempts with it did badly,
    one without it did better), else when a second group of the same run wants the same: where the
    world has changed the lesson fails in every group, and the second one comes soon. A lesson that
    helps may still be bettered: the same new words, asked for by CHORUS reviews of a run, are no
    accident.
    """
    if not _is_proven(s, lesson):
        return None
    seen, missed = attempts(s, reflection_id, lesson)
    rewords = edit.kind in ("add", "revise")
    if (
        rewords
        and seen
        and min(seen) < 1
        and chorus(s, reflection_id, _same_words(edit)) + 1 >= CHORUS
    ):
        return None
    if not seen:
        return "kept", f"lesson {lesson.id} is proven, and was not tried in this group"
    with_it = sum(seen) / len(seen)
    if with_it > HALF or (missed and sum(missed) / len(missed) < with_it):
        return (
            "kept",
            f"lesson {lesson.id} is proven, and this group ({with_it:.2f} with it) does not speak against it",
        )
    if max(seen) < HALF and missed and max(missed) > max(seen):
        return None
    if complaints(s, reflection_id, lesson):
        return None
    return (
        "defended",
        f"lesson {lesson.id} is proven: a second group must speak against it before it goes",
    )


def _same_words(edit: Edit) -> Callable[[str, str], bool]:
    mine = normal(edit.when), normal(edit.do)
    return lambda when, do: (normal(when), normal(do)) == mine


def protection_reason(s: Session, lesson: Lesson) -> str:
    """Why its words stay in a merge, "" where they need not."""
    if lesson.pinned:
        return "pinned"
    return (
        "in the weights"
        if lesson.status == "distilled"
        else "proven"
        if _is_proven(s, lesson)
        else ""
    )


def _is_proven(s: Session, lesson: Lesson) -> bool:
    return proven(s, lesson.id, lesson.when, lesson.do)


# -- the shrink alarm
# --------------------------------------------------------------------------------------------------


class EditTransaction:
    """Changes of lessons that stand whole, or are taken back whole because they would lose too
    much.

    A lesson is lost when it stands no more and no standing lesson holds under its condition. Made
    before the first change, in the caller's transaction; `close` after the last.
    """

    def __init__(self, s: Session, profile: str) -> None:
        self.s, self.profile = s, profile
        self._newest = newest_version(s)
        self._point = s.begin_nested()

    def close(self, *, keep: bool = True) -> str:
        """Why the changes were taken back, "" when they stand. With `keep=False` they are taken
        back in any case: a rehearsal."""
        self.s.flush()
        alarm = self._alarm()
        if alarm or not keep:
            self._point.rollback()
        else:
            self._point.commit()
        return alarm

    def _alarm(self) -> str:
        was = changed_after(self.s, self._newest, self.profile)
        mattered = [row for row in was if row.status in STANDING and well_supported(self.s, row)]
        lost = [row for row in mattered if self._lost(row)]
        if len(lost) <= 1:
            return ""
        touched = {row.lesson_id for row in was}
        before = len(mattered) + sum(
            lesson.id not in touched for lesson in supported(self.s, self.profile)
        )
        if len(lost) <= SHRINK * before:
            return ""
        ids = ", ".join(str(row.lesson_id) for row in lost)
        return (
            f"shrink alarm: it would lose {len(lost)} of {before} well-supported lessons ({ids}) without a "
            "successor for their conditions; nothing was changed"
        )

    def _lost(self, was: LessonVersion) -> bool:
        now = db.get(self.s, was.lesson_id)
        if now.status in STANDING and covers_condition(now.when, was.when):
            return False
        scopes = sorted({was.scope, ""})
        near = db.search(self.s, was.when, profile=self.profile, statuses=STANDING, scopes=scopes)
        return not any(
            lesson.id != now.id and covers_condition(lesson.when, was.when) for lesson, _ in near
        )
