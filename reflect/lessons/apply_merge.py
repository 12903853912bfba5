"""MERGE: one lesson replaces several near duplicates."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from reflect.lessons.outcome import WAITS, Outcome, PendingEdit, tasks_of
from reflect.lessons.protection import protection_reason
from reflect.lessons.similarity import apart, same, telling
from reflect.records import HELD_STATUSES, Lesson
from reflect.store import lessons as db
from reflect.types import EditOutcome, LessonStatus, LinkKind, Trust

if TYPE_CHECKING:
    from collections.abc import Sequence


def merge(e: PendingEdit) -> Outcome:
    """The oldest lesson keeps its id, and the text is on trial again. A text that is pinned, proven
    or in the weights stays as it is, and the others are merged into it."""
    shown = {lesson.id: lesson for lesson in e.evidence.shown}
    if not e.evidence.clean:
        return e.refused(e.evidence.nothing)
    if strange := [i for i in e.edit.lesson_ids if i not in shown]:
        return e.refused(f"lesson {strange[0]} is not among the lessons it was shown")
    heads = [db.get(e.s, lesson_id) for lesson_id in sorted(e.edit.lesson_ids)]
    for head in heads:
        if refusal := e.stale(head, shown[head.id]):
            return refusal
    if reason := _differs(heads, [lesson.when for lesson in e.evidence.shown]):
        return e.refused(reason)
    stay = {head.id: why for head in heads if (why := protection_reason(e.s, head))}
    solid = sorted((head for head in heads if head.id in stay), key=lambda head: not head.pinned)
    if any(not same(head, solid[0]) for head in solid):
        reasons = " and ".join(f"lesson {lesson_id} is {why}" for lesson_id, why in stay.items())
        return e.refused(f"{reasons}: their texts differ, and both stay")
    kept = solid[0] if solid else heads[0]
    if solid:
        e = e.with_text(kept)
    going = [head for head in heads if head.id != kept.id and not head.pinned]
    if not going:
        return e.refused("all of them are pinned", kept)
    if reason := _unfit(e, heads):
        return e.refused(reason)
    names = ", ".join(str(head.id) for head in going)
    if e.evidence.require_approval:
        return _propose(e, kept, going, names)
    if not same(kept, e.edit):
        trusts = {head.trust for head in heads}
        kept = e.revise(
            kept,
            f"merged with lesson {names}; was: {kept.do}",
            when=e.edit.when,
            do=e.edit.do,
            tokens=e.tokens,
            status=LessonStatus.CANDIDATE,
            tags=sorted({tag for head in heads for tag in head.tags}),
            trust=Trust.UNTRUSTED if Trust.UNTRUSTED in trusts else kept.trust,
        )
    why = e.edit.why or e.evidence.source
    for head in going:
        e.replace(head, kept.id, LinkKind.MERGED, f"merged into lesson {kept.id}", why)
    return e.ended(EditOutcome.MERGED, f"in the place of lesson {names}", kept, *going)


def _differs(heads: Sequence[Lesson], conditions: Sequence[str]) -> str:
    """Why these lessons cannot be one, "" if they can. `conditions`: of all that were shown."""
    contrasts = telling(conditions)
    for head in heads:
        if head.status not in HELD_STATUSES:
            return f"lesson {head.id} is {head.status}"
    for first, other in combinations(heads, 2):
        if (other.scope, tasks_of(other)) != (first.scope, tasks_of(first)):
            return f"lessons {first.id} and {other.id} are for different tasks"
        if apart(first.when, other.when, contrasts):
            return f"lessons {first.id} and {other.id} hold under different conditions"
    return ""


def _unfit(e: PendingEdit, heads: Sequence[Lesson]) -> str:
    """Why the new text is not allowed, "" if it is. A text that is in use already is."""
    if any(same(head, e.edit) for head in heads):
        return ""
    if suspect := e.suspicion():
        return suspect
    if e.tags() and not any(map(tasks_of, heads)):
        return "it names one task, and the lessons are for more than that"
    rivals = e.rivals(*(head.id for head in heads))
    return f"lesson {rivals[0].id} already has that condition" if rivals else ""


def _propose(e: PendingEdit, kept: Lesson, going: Sequence[Lesson], names: str) -> Outcome:
    """If a person must approve, nothing is merged: a new text is quarantined, once."""
    if same(kept, e.edit):
        reason = f"a person decides: lesson {names} could go, lesson {kept.id} has its text"
        return e.refused(reason, kept)
    if waiting := db.find_exact(e.s, e.edit.when, e.edit.do, e.evidence.profile):
        return e.known(f"lesson {waiting.id} has that text ({waiting.status})", waiting)
    return e.new_lesson(f"{WAITS}, in the place of lesson {kept.id} and {names}", [kept, *going])
