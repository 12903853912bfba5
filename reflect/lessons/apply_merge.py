"""MERGE: one lesson in the place of several that say nearly the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from sqlmodel import Session

from reflect.lessons.edit_format import Edit
from reflect.lessons.outcome import (
    WAITS,
    Evidence,
    Outcome,
    changed,
    leave,
    new_lesson,
    same_condition,
    source,
    tags_of,
    tasks_of,
    why_suspect,
)
from reflect.lessons.protection import protection_reason
from reflect.lessons.similarity import apart, same, telling
from reflect.records import Lesson
from reflect.store import lessons as db
from reflect.store.lesson_evidence import STANDING


def merge(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    """One lesson in the place of several that say nearly the same; the oldest keeps its id, and the
    text is on trial again. Words that are pinned, proven or in the weights stay as they are, and
    the others are merged into them."""
    shown = {lesson.id: lesson for lesson in evidence.shown}
    if evidence.trust != "clean":
        return Outcome(edit, "refused", evidence.nothing)
    if strange := [str(i) for i in edit.lesson_ids if i not in shown]:
        return Outcome(
            edit, "refused", f"lesson {strange[0]} is not among the lessons it was shown"
        )
    heads = [db.get(s, lesson_id) for lesson_id in sorted(edit.lesson_ids)]
    for head in heads:
        if refusal := changed(edit, head, shown[head.id]):
            return refusal
    if reason := _not_one(heads, [lesson.when for lesson in evidence.shown]):
        return Outcome(edit, "refused", reason)
    stay = {head.id: why for head in heads if (why := protection_reason(s, head))}
    solid = sorted((head for head in heads if head.id in stay), key=lambda head: not head.pinned)
    if any(not same(head, solid[0]) for head in solid):
        told = " and ".join(f"lesson {lesson_id} is {why}" for lesson_id, why in stay.items())
        return Outcome(edit, "refused", f"{told}: their words differ, and both stay")
    kept = solid[0] if solid else heads[0]
    if solid:
        edit = replace(edit, when=kept.when, do=kept.do)
    going = [head for head in heads if head.id != kept.id and not head.pinned]
    if not going:
        return Outcome(edit, "refused", "all of them are pinned", kept.id, kept.version)
    if refusal := _unfit(s, edit, evidence, heads):
        return refusal
    names = ", ".join(str(head.id) for head in going)
    if evidence.review:
        return _propose(s, edit, evidence, tokens, kept, going)
    if not same(kept, edit):
        changes: dict[str, Any] = {
            "when": edit.when,
            "do": edit.do,
            "tokens": tokens,
            "status": "candidate",
        }
        changes["tags"] = sorted({tag for head in heads for tag in head.tags})
        changes["trust"] = (
            "untrusted" if any(head.trust == "untrusted" for head in heads) else kept.trust
        )
        words: dict[str, Any] = {
            "author": "model",
            "reason": f"merged with lesson {names}; was: {kept.do}",
        }
        kept = db.revise(s, kept.id, **changes, **words, reflection_id=evidence.reflection_id)
    for head in going:
        leave(
            s,
            evidence,
            kept.id,
            head,
            "merged",
            f"merged into lesson {kept.id}",
            edit.why or source(evidence),
        )
    reason = f"in the place of lesson {names}"
    return Outcome(
        edit, "merged", reason, kept.id, kept.version, tuple(head.id or 0 for head in going)
    )


def _not_one(heads: Sequence[Lesson], conditions: Sequence[str]) -> str:
    """Why these lessons cannot be one, "" when they can. `conditions`: those beside which they were
    seen."""
    told = telling(conditions)
    for head in heads:
        if head.status not in STANDING:
            return f"lesson {head.id} is {head.status}"
    for first, other in combinations(heads, 2):
        if (other.scope, tasks_of(other)) != (first.scope, tasks_of(first)):
            return f"lessons {first.id} and {other.id} are for different tasks"
        if apart(first.when, other.when, told):
            return f"lessons {first.id} and {other.id} hold under different conditions"
    return ""


def _unfit(s: Session, edit: Edit, evidence: Evidence, heads: Sequence[Lesson]) -> Outcome | None:
    """Why the new text may not stand. One that stands already may."""
    if any(same(head, edit) for head in heads):
        return None
    if suspect := why_suspect(edit, evidence.task):
        return Outcome(edit, "refused", suspect)
    if tags_of(s, edit, evidence) and not any(map(tasks_of, heads)):
        return Outcome(edit, "refused", "it names one task, and the lessons are for more than that")
    named = {head.id for head in heads}
    others = [
        x for x in same_condition(s, edit, evidence) if x.id not in named and x.status in STANDING
    ]
    return (
        Outcome(edit, "refused", f"lesson {others[0].id} already speaks for that condition")
        if others
        else None
    )


def _propose(
    s: Session, edit: Edit, evidence: Evidence, tokens: int, kept: Lesson, going: Sequence[Lesson]
) -> Outcome:
    """Where a person reviews nothing is merged: the text waits, once; one that stands already is
    for the person."""
    names = ", ".join(str(head.id) for head in going)
    if same(kept, edit):
        reason = f"a person decides: lesson {names} could go, lesson {kept.id} says it"
        return Outcome(edit, "refused", reason, kept.id, kept.version)
    if waiting := db.find_exact(s, edit.when, edit.do, evidence.profile):
        return Outcome(
            edit,
            "known",
            f"lesson {waiting.id} says so ({waiting.status})",
            waiting.id,
            waiting.version,
        )
    instead_of = [kept, *going]
    return new_lesson(
        s,
        edit,
        evidence,
        tokens,
        f"{WAITS}, in the place of lesson {kept.id} and {names}",
        instead_of,
    )
