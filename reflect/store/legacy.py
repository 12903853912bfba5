"""The sentences by which earlier versions stored facts, read once: by the migration, and for
exports of that time.

These are copies of the old texts. They must stay as they are, whatever the messages of today say.
"""

from __future__ import annotations

from reflect.types import Author, LessonStatus, QuarantineReason, RolloutErrorKind

OUTSIDE = "it was learned from attempts that read bytes from outside"
CHEATED = "it was learned from attempts that were fitted to tests which contradict the task"
WAITS = "it waits for a person's approval"
IMPORTED = "imported from "
AS_TEXT = "exported without the weights that held it"


def error_kind(error: str) -> RolloutErrorKind | None:
    """The kind of a rollout's error, by the word before the colon."""
    word = error.partition(": ")[0]
    return RolloutErrorKind(word) if word in list(RolloutErrorKind) else None


def quarantine(author: str, status: str, reason: str) -> QuarantineReason | None:
    """Why a version is quarantined; None where it is not."""
    if status != LessonStatus.QUARANTINED:
        return None
    if author == Author.HUMAN and reason.startswith(IMPORTED):
        return QuarantineReason.IMPORTED
    if author != Author.MODEL:
        return QuarantineReason.PERSON
    known = {OUTSIDE: QuarantineReason.OUTSIDE, CHEATED: QuarantineReason.CHEATED}
    return known.get(
        reason, QuarantineReason.APPROVAL if reason.startswith(WAITS) else QuarantineReason.TEXT
    )


def closing(author: str, status: str, reason: str) -> bool:
    """Is it the version with which an export ended a lesson that the weights held?"""
    return author == Author.ROLLBACK and status == LessonStatus.ACTIVE and reason == AS_TEXT
