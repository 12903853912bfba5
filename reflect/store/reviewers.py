"""Reviewer adapters in the table of adapters: rows without a night, whose `gate` names the profile.

    gate = {"kind": "reviewer", "profile": ..., "lessons_read": [lesson id, ...], "checks": [...]}

The reviewer of a profile is the newest promoted one for the base. One that is marked, because it
was trained on a lesson that was revoked since, is not used (see `reflect.store.revoked_adapters`).
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from reflect.errors import UsageError
from reflect.records import Adapter
from reflect.types import AdapterStatus

KIND = "reviewer"


def is_reviewer(adapter: Adapter) -> bool:
    """Is it an adapter for reflections?"""
    return adapter.gate.get("kind") == KIND


def listing(s: Session, profile: str | None = None) -> list[Adapter]:
    """The reviewers of one profile or of all, newest first."""
    rows = s.exec(
        select(Adapter).where(col(Adapter.night_id).is_(None)).order_by(col(Adapter.id).desc())
    )
    mine = [row for row in rows if is_reviewer(row)]
    return [row for row in mine if profile is None or row.gate["profile"] == profile]


def active(s: Session, profile: str, fingerprint: str) -> Adapter | None:
    """The promoted reviewer of the profile for this base, None for the bare base."""
    return next(
        (
            row
            for row in listing(s, profile)
            if row.status == AdapterStatus.PROMOTED
            and row.base_fingerprint == fingerprint
            and not row.revoked
        ),
        None,
    )


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
