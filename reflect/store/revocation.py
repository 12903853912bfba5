"""Forgetting on request: a lesson leaves prompts and weights at once, in one transaction."""

from __future__ import annotations

from typing import NamedTuple

from sqlmodel import Session

from reflect.records import SHOWN_STATUSES, Adapter, Lesson
from reflect.store import lessons as db
from reflect.store import nights, revoked_adapters


class Revoked(NamedTuple):
    """What a revocation did."""

    lesson: Lesson
    marked: list[Adapter]  # all that hold it
    left: Adapter | None  # the adapter that the profile answered with, where it held the lesson
    now: Adapter | None  # the one that it answers with; None is the bare base
    returned: list[Lesson]  # other lessons, in the prompt again because their adapter was left


def revoke(s: Session, lesson_id: int | None, reason: str = "") -> Revoked:
    """Forget a lesson everywhere: retired for good, its adapters marked, the profile back on
    weights without it.

    Those are the newest adapter below the active one that holds nothing of what was taken away,
    else the bare base.
    """
    profile = db.get(s, lesson_id).profile
    # Pinned, as a rejected lesson is: no review brings it back.
    lesson = db.revise(s, lesson_id, author="human", reason=reason, status="retired", pinned=True)
    marked = revoked_adapters.mark(s, lesson)  # also where it was retired long ago
    active = nights.active_adapter(s, profile)
    if active is None or lesson.id not in active.revoked:
        return Revoked(lesson, marked, None, active, [])
    slept = {row.id for row in db.listing(s, profile, "distilled")}
    left, now_on = nights.rollback(s, profile)
    returned = [row for row in db.listing(s, profile, SHOWN_STATUSES) if row.id in slept]
    return Revoked(lesson, marked, left, now_on, returned)


def leave_marked(s: Session, profile: str = "default") -> nights.Rollback | None:
    """Off an adapter that knows what was taken away; None where the active one does not. For when
    there is nothing left from which a night could make another."""
    active = nights.active_adapter(s, profile)
    return nights.rollback(s, profile) if active is not None and active.revoked else None
