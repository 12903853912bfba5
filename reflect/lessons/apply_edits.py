"""What becomes of the edits that a reflection asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlmodel import Session

from reflect.lessons.apply_merge import merge
from reflect.lessons.edit_format import Edit
from reflect.lessons.outcome import (
    TASK_TAG,
    WAITS,
    Evidence,
    Outcome,
    changed,
    held_back,
    leave,
    new_lesson,
    same_condition,
    source,
    tags_of,
    why_suspect,
)
from reflect.lessons.release import corroborated
from reflect.lessons.selection import MAX_TOKENS, Count, format_lesson
from reflect.lessons.similarity import alike, covers_condition, normal, same
from reflect.records import Lesson
from reflect.store import forbidden_rules
from reflect.store import lessons as db
from reflect.store.lesson_evidence import STANDING
from reflect.store.lesson_links import successor
from reflect.types import QuarantineReason

__all__ = ["Evidence", "Outcome", "apply_edits"]


def apply_edits(
    s: Session,
    edits: Sequence[Edit],
    evidence: Evidence,
    *,
    count_tokens: Count,
    budget: int = MAX_TOKENS,
) -> list[Outcome]:
    """Carry out the edits in order, inside the caller's transaction. Never raises for a bad edit:
    it is refused.

    `budget`: tokens of lessons in one prompt; a lesson that could never be shown is not learned.
    """
    most = min(budget, MAX_TOKENS)
    forbidden = forbidden_rules.listing(s, evidence.profile)
    outcomes = []
    for edit in edits:
        act = {"add": _add, "revise": _revise, "retire": _retire, "merge": merge}[edit.kind]
        tokens = count_tokens(format_lesson(edit.when, edit.do))
        if edit.kind != "retire" and tokens > most:
            outcomes.append(
                Outcome(
                    edit, "refused", f"{tokens} tokens are too long for a lesson (at most {most})"
                )
            )
        elif edit.kind != "retire" and (
            rule := forbidden_rules.forbidding(forbidden, edit.when, edit.do)
        ):
            outcomes.append(Outcome(edit, "refused", rule))
        else:
            outcomes.append(act(s, edit, evidence, tokens))
    return outcomes


# -- ADD
# ---------------------------------------------------------------------------------------------------------------


def _add(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    there = same_condition(s, edit, evidence)
    standing = [lesson for lesson in there if lesson.status in STANDING]
    for lesson in there:
        if normal(lesson.do) == normal(edit.do):
            return _again(s, edit, evidence, lesson, standing)
    suspect = why_suspect(edit, evidence.task)
    if not standing or suspect or evidence.trust != "clean":
        kind = QuarantineReason.TEXT if suspect else QuarantineReason.APPROVAL
        words = suspect or (WAITS if evidence.review else "")
        return new_lesson(s, edit, evidence, tokens, words, quarantine=kind)
    for old in standing:
        if refusal := _contradicts(s, edit, evidence, old):
            return refusal
    mine = [lesson for lesson in standing if lesson.scope == evidence.scope]
    if mine:
        outcome = _rewrite(s, edit, evidence, mine[0], tokens, "superseded")
    # only general lessons say otherwise: their words are not rewritten by what one taskset has
    # shown
    else:
        others = ", ".join(str(old.id) for old in standing)
        outcome = new_lesson(
            s,
            edit,
            evidence,
            tokens,
            f"{WAITS}, against lesson {others}" if evidence.review else "",
        )
    return (
        _supersede(s, outcome, evidence, standing)
        if outcome.outcome in ("added", "superseded")
        else outcome
    )


def _contradicts(s: Session, edit: Edit, evidence: Evidence, old: Lesson) -> Outcome | None:
    """Why the newer evidence does not overrule what `old` says under the same condition; None when
    it does."""
    if old.pinned:
        return Outcome(edit, "refused", f"lesson {old.id} is pinned", old.id, old.version)
    tried = {lesson.id for lesson in (*evidence.shown, *evidence.held)}
    if not evidence.contrast and old.id not in tried:
        return Outcome(
            edit, "kept", f"lesson {old.id} was not tried in this group", old.id, old.version
        )
    return held_back(s, edit, evidence, old)


def _supersede(
    s: Session, outcome: Outcome, evidence: Evidence, others: Sequence[Lesson]
) -> Outcome:
    """Of the lessons under the same condition only that of the outcome stands from now on; links
    tell why."""
    others = [old for old in others if old.id != outcome.lesson_id]
    for old in others:
        kind, verb = (
            ("merged", "merged into")
            if same(old, outcome.edit)
            else ("supersedes", "superseded by")
        )
        why = f"{source(evidence)} says: {outcome.edit.do}"
        leave(s, evidence, outcome.lesson_id, old, kind, f"{verb} lesson {outcome.lesson_id}", why)
    gone = tuple(old.id or 0 for old in others)
    return replace(outcome, outcome="superseded", gone=gone) if gone else outcome


def _again(
    s: Session, edit: Edit, evidence: Evidence, lesson: Lesson, standing: Sequence[Lesson]
) -> Outcome:
    """The very lesson is there already. One that a model retired comes back, unless a lesson into
    which it was merged still says it; a person's decision stands. One that was learned from outside
    bytes is released by the second clean task that asks for it."""
    task = evidence.task if evidence.trust == "clean" and not evidence.review else None
    if task and (reason := corroborated(s, lesson, task, evidence.scope)):
        released: dict[str, Any] = {
            "status": "candidate",
            "trust": "clean",
            "reflection_id": evidence.reflection_id,
        }
        now = db.revise(s, lesson.id, author="model", reason=reason, **released)
        return Outcome(edit, "added", reason, now.id, now.version)
    if lesson.status != "retired":
        return Outcome(
            edit,
            "known",
            f"lesson {lesson.id} says so ({lesson.status})",
            lesson.id,
            lesson.version,
        )
    if lesson.pinned or db.history(s, lesson.id)[-1].author == "human":
        return Outcome(
            edit, "refused", f"a person retired lesson {lesson.id}", lesson.id, lesson.version
        )
    if evidence.trust != "clean":
        return Outcome(
            edit,
            "refused",
            f"lesson {lesson.id} is retired: {evidence.nothing}",
            lesson.id,
            lesson.version,
        )
    if evidence.review:
        return Outcome(
            edit,
            "refused",
            f"{WAITS}: reflect lessons approve {lesson.id}",
            lesson.id,
            lesson.version,
        )
    if (
        (into := successor(s, lesson.id))
        and (heir := db.get(s, into)).status in STANDING
        and alike(heir, lesson)
    ):
        return Outcome(
            edit,
            "known",
            f"lesson {heir.id}, into which it was merged, says so",
            heir.id,
            heir.version,
        )
    for old in standing:
        if refusal := _contradicts(s, edit, evidence, old):
            return refusal
    by_trial = (
        db.history(s, lesson.id)[-1].author == "trial"
    )  # measured, and found wanting: it is on trial again
    status = "candidate" if by_trial else "active"
    back = db.revise(
        s,
        lesson.id,
        author="model",
        reason="learned again",
        status=status,
        reflection_id=evidence.reflection_id,
    )
    return _supersede(
        s, Outcome(edit, "revised", "learned again", back.id, back.version), evidence, standing
    )


# -- REVISE, RETIRE
# ----------------------------------------------------------------------------------------------------


def _addressed(s: Session, edit: Edit, evidence: Evidence) -> Lesson | Outcome:
    """The lesson that a REVISE or RETIRE means, or why nothing is to be done."""
    shown = {lesson.id: lesson for lesson in evidence.shown}.get(edit.lesson_id)
    if shown is None:
        return Outcome(
            edit, "refused", f"lesson {edit.lesson_id} is not among the lessons it was shown"
        )
    head = db.get(s, shown.id)
    if head.pinned:
        return Outcome(edit, "refused", f"lesson {head.id} is pinned", head.id, head.version)
    if head.status == "retired" if edit.kind == "retire" else same(head, edit):
        return Outcome(edit, "known", f"lesson {head.id} is so already", head.id, head.version)
    return changed(edit, head, shown) or held_back(s, edit, evidence, head) or head


def _revise(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    head = _addressed(s, edit, evidence)
    if isinstance(head, Outcome):
        return head
    if suspect := why_suspect(edit, evidence.task):
        return Outcome(edit, "refused", suspect, head.id, head.version)
    if evidence.trust != "clean":
        return _add(s, edit, evidence, tokens)  # a lesson of its own, in quarantine
    others = [
        x for x in same_condition(s, edit, evidence) if x.id != head.id and x.status in STANDING
    ]
    for other in others:
        # A condition of another kind is a number misread, or a lesson that would be lost; nearly
        # its own is none.
        if not covers_condition(edit.when, head.when) or evidence.review:
            reason = f"lesson {other.id} already speaks for that condition"
            return Outcome(edit, "refused", reason, head.id, head.version)
        if refusal := _contradicts(s, edit, evidence, other):
            return refusal
    outcome = _rewrite(s, edit, evidence, head, tokens, "revised")
    return _supersede(s, outcome, evidence, others) if outcome.outcome == "revised" else outcome


def _rewrite(
    s: Session, edit: Edit, evidence: Evidence, old: Lesson, tokens: int, outcome: str
) -> Outcome:
    """A new version of `old`. New text in a distilled lesson is not in the weights: it returns to
    the prompt.

    Where a person reviews, `old` stays and the new text waits beside it. A lesson for more than one
    task does not shrink to the one that is named; one that was for its task only is a principle
    when it names the task no more.
    """
    if evidence.review:
        return new_lesson(
            s, edit, evidence, tokens, f"{WAITS}, in the place of lesson {old.id}: {old.do}", [old]
        )
    tags = tags_of(s, edit, evidence)
    if tags and not set(tags) <= set(old.tags):
        reason = f"it names one task, and lesson {old.id} is for more than that"
        return Outcome(edit, "refused", reason, old.id, old.version)
    changes: dict[str, Any] = {
        "when": edit.when,
        "do": edit.do,
        "tokens": tokens,
        "author": "model",
    }
    changes["tags"] = [tag for tag in old.tags if not tag.startswith(TASK_TAG)] + tags
    if old.status == "distilled":
        changes["status"] = "active"
    first = next(row for row in db.history(s, old.id) if same(row, old))  # who said so first
    by = f"{first.author}, review {first.reflection_id}" if first.reflection_id else first.author
    against = f"{source(evidence)} says otherwise than version {first.version} ({by})"
    reason = f"{against if outcome == 'superseded' else 'was'}: {old.do}"
    changes |= {
        "reason": reason,
        "expect_version": old.version,
        "reflection_id": evidence.reflection_id,
    }
    new = db.revise(s, old.id, **changes)
    return Outcome(edit, outcome, reason, new.id, new.version)


def _retire(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    head = _addressed(s, edit, evidence)
    if isinstance(head, Outcome):
        return head
    if evidence.trust != "clean":
        return Outcome(edit, "refused", evidence.nothing, head.id, head.version)
    if evidence.review:
        reason = f"a person decides: reflect lessons reject {head.id} --why ..."
        return Outcome(edit, "refused", reason, head.id, head.version)
    new = db.revise(
        s,
        head.id,
        author="model",
        reason=edit.why,
        expect_version=head.version,
        status="retired",
        reflection_id=evidence.reflection_id,
    )
    return Outcome(edit, "retired", edit.why, new.id, new.version)
