"""Reviewer adapters in the table of adapters: rows without a night, whose `gate` names the profile.

    gate = {"kind": "reviewer", "profile": ..., "lessons_read": [lesson id, ...], "checks": [...]}

The reviewer of a profile is the newest promoted one for the base. One that was trained on a lesson
which a person has revoked since is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlmodel import Session, col, select

from reflect.errors import UnknownName, UsageError
from reflect.records import Adapter, Lesson
from reflect.types import AdapterStatus, LessonStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

KIND = "reviewer"


def is_reviewer(adapter: Adapter) -> bool:
    """Is it an adapter for reflections?"""
    return adapter.gate.get("kind") == KIND


def listing(s: Session, profile: str | None = None) -> list[Adapter]:
    """The reviewers of one profile or of all, newest first."""
    rows = s.exec(select(Adapter).where(col(Adapter.night_id).is_(None)).order_by(_NEWEST))
    mine = [row for row in rows if is_reviewer(row)]
    return [row for row in mine if profile is None or row.gate["profile"] == profile]


def active(s: Session, profile: str, fingerprint: str) -> Adapter | None:
    """The promoted reviewer of the profile for this base, None for the bare base."""
    promoted = (
        row
        for row in listing(s, profile)
        if row.status == AdapterStatus.PROMOTED and row.base_fingerprint == fingerprint
    )
    return next((row for row in promoted if not revoked_lessons(s, row)), None)


def revoked_lessons(s: Session, adapter: Adapter) -> Sequence[int]:
    """The lessons that the reviewer was trained on and that a person has revoked since."""
    query = select(Lesson.id).where(
        col(Lesson.id).in_(adapter.gate.get("lessons_read", [])),
        Lesson.status == LessonStatus.RETIRED,
        col(Lesson.pinned),
    )
    return sorted(i for i in s.exec(query) if i is not None)


def get(s: Session, id_or_name: str) -> Adapter:
    """A reviewer by its name or id. UnknownName."""
    for row in listing(s):
        if id_or_name in (row.name, str(row.id)):
            return row
    raise UnknownName(f"There is no reviewer {id_or_name}.", "See `reflect reviewer list`.")


def rollback(s: Session, profile: str, fingerprint: str) -> tuple[Adapter, Adapter | None]:
    """Undo the last promotion: (the former reviewer, the one now). UsageError without one."""
    left = active(s, profile, fingerprint)
    if left is None:
        raise UsageError(
            f"The profile {profile} has no reviewer for this model: there is nothing to undo.",
            "See `reflect reviewer list`.",
        )
    left.status = AdapterStatus.ROLLED_BACK
    s.add(left)
    s.flush()
    return left, active(s, profile, fingerprint)


_NEWEST = col(Adapter.id).desc()
