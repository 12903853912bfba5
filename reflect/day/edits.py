"""What becomes of the edits that a reflection asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from reflect.day import guards
from reflect.day.corroboration import OUTSIDE, corroborated
from reflect.day.lessons import MAX_TOKENS, POOL, Count, line
from reflect.day.reflection import Edit, normal
from reflect.records import Lesson
from reflect.store import lessons as db
from reflect.store import rules
from reflect.tasksets.base import Task

WAITS = "it waits for a person's approval"
NOTHING = "the attempts read bytes from outside, which change no lesson"
OUT = ("retired", "quarantined")  # neither shown nor held: such a lesson speaks for no condition


@dataclass(frozen=True)
class Evidence:
    """What stands behind the edits of one reflection.

    `shown`: the lessons as the rollouts saw them. `held`: those that the adapter brought along instead. `contrast`:
    some attempts went better than others. `review`: nothing is shown, changed or retired before a person has approved
    it; what the model wants is stored as quarantined lessons. `trust`: "untrusted" where an attempt read bytes from
    outside; what such a group teaches waits in quarantine too, and it changes and retires nothing.
    """

    task: Task
    scope: str  # taskset name
    profile: str
    shown: Sequence[Lesson]
    contrast: bool
    held: Sequence[Lesson] = ()
    reflection_id: int | None = None
    review: bool = False  # a person approves first
    trust: str = "clean"


@dataclass(frozen=True)
class Outcome:
    """What became of one edit: added, superseded, revised, retired, known, quarantined, kept, outvoted or refused."""

    edit: Edit
    outcome: str
    reason: str = ""
    lesson_id: int | None = None
    version: int | None = None

    def row(self) -> dict[str, Any]:
        """As stored in `Reflection.edits`."""
        edit = asdict(self.edit)
        edit["id"] = edit.pop("lesson_id")
        became = {"outcome": self.outcome, "reason": self.reason, "lesson": self.lesson_id, "version": self.version}
        return edit | became


def apply_edits(
    s: Session, edits: Sequence[Edit], evidence: Evidence, *, count_tokens: Count, budget: int = MAX_TOKENS
) -> list[Outcome]:
    """Carry out the edits in order, inside the caller's transaction. Never raises for a bad edit: it is refused.

    `budget`: tokens of lessons in one prompt; a lesson that could never be shown is not learned.
    """
    most = min(budget, MAX_TOKENS)
    forbidden = rules.listing(s, evidence.profile)
    outcomes = []
    for edit in edits:
        act = {"add": _add, "revise": _revise, "retire": _retire}[edit.kind]
        tokens = count_tokens(line(edit.when, edit.do))
        if edit.kind != "retire" and tokens > most:
            outcomes.append(Outcome(edit, "refused", f"{tokens} tokens are too long for a lesson (at most {most})"))
        elif edit.kind != "retire" and (rule := rules.forbidding(forbidden, edit.when, edit.do)):
            outcomes.append(Outcome(edit, "refused", rule))
        else:
            outcomes.append(act(s, edit, evidence, tokens))
    return outcomes


def _why_suspect(edit: Edit, task: Task) -> str:
    text = f"{edit.when} {edit.do}"
    reasons = [f"it names {what}" for what in guards.suspicions(text)]
    leak = guards.leaks(text, task)
    return "; ".join([*reasons, leak] if leak else reasons)


def _same_condition(s: Session, edit: Edit, evidence: Evidence) -> list[Lesson]:
    """Lessons of the profile that hold under the same condition, wording aside, in this scope or everywhere."""
    found = db.search(s, edit.when, profile=evidence.profile, scopes=[evidence.scope, ""], limit=POOL)
    return sorted(
        (lesson for lesson, _ in found if normal(lesson.when) == normal(edit.when)), key=lambda lesson: lesson.id or 0
    )


def _add(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    same = _same_condition(s, edit, evidence)
    for lesson in same:
        if normal(lesson.do) == normal(edit.do):
            return _again(s, edit, evidence, lesson)
    suspect = _why_suspect(edit, evidence.task)
    standing = [lesson for lesson in same if lesson.status not in OUT]
    if not standing or suspect or evidence.trust != "clean":
        return _new(s, edit, evidence, tokens, suspect or (WAITS if evidence.review else ""))
    old = standing[0]
    if old.pinned:
        return Outcome(edit, "refused", f"lesson {old.id} is pinned", old.id, old.version)
    tried = {lesson.id for lesson in (*evidence.shown, *evidence.held)}
    if not evidence.contrast and old.id not in tried:
        return Outcome(edit, "kept", f"lesson {old.id} was not tried in this group", old.id, old.version)
    return _rewrite(s, edit, evidence, old, tokens, "superseded")


def _new(s: Session, edit: Edit, evidence: Evidence, tokens: int, suspect: str) -> Outcome:
    """A new lesson: a candidate, or quarantined for a reason."""
    if evidence.trust != "clean":
        suspect = f"{suspect}; {OUTSIDE}" if suspect else OUTSIDE
    lesson = db.add(
        s,
        when=edit.when,
        do=edit.do,
        author="model",
        reason=suspect,
        scope=evidence.scope,
        status="quarantined" if suspect else "candidate",
        profile=evidence.profile,
        trust=evidence.trust,
        tokens=tokens,
        reflection_id=evidence.reflection_id,
    )
    return Outcome(edit, "quarantined" if suspect else "added", suspect, lesson.id, lesson.version)


def _again(s: Session, edit: Edit, evidence: Evidence, lesson: Lesson) -> Outcome:
    """The very lesson is there already. One that a model retired comes back; a person's decision stands. One that was
    learned from outside bytes is released by the second clean task that asks for it."""
    clean = evidence.trust == "clean"
    if clean and not evidence.review and (reason := corroborated(s, lesson, evidence.task, evidence.scope)):
        released: dict[str, Any] = {"status": "candidate", "trust": "clean", "reflection_id": evidence.reflection_id}
        now = db.revise(s, lesson.id, author="model", reason=reason, **released)
        return Outcome(edit, "added", reason, now.id, now.version)
    if lesson.status != "retired":
        return Outcome(edit, "known", f"lesson {lesson.id} says so ({lesson.status})", lesson.id, lesson.version)
    if lesson.pinned or db.history(s, lesson.id)[-1].author == "human":
        return Outcome(edit, "refused", f"a person retired lesson {lesson.id}", lesson.id, lesson.version)
    if not clean:
        return Outcome(edit, "refused", f"lesson {lesson.id} is retired: {NOTHING}", lesson.id, lesson.version)
    if evidence.review:
        return Outcome(edit, "refused", f"{WAITS}: reflect lessons approve {lesson.id}", lesson.id, lesson.version)
    by_trial = db.history(s, lesson.id)[-1].author == "trial"  # measured, and found wanting: it is on trial again
    status = "candidate" if by_trial else "active"
    back = db.revise(
        s, lesson.id, author="model", reason="learned again", status=status, reflection_id=evidence.reflection_id
    )
    return Outcome(edit, "revised", "learned again", back.id, back.version)


def _addressed(s: Session, edit: Edit, evidence: Evidence) -> Lesson | Outcome:
    """The lesson that a REVISE or RETIRE means, or why nothing is to be done."""
    shown = {lesson.id: lesson for lesson in evidence.shown}.get(edit.lesson_id)
    if shown is None:
        return Outcome(edit, "refused", f"lesson {edit.lesson_id} is not among the lessons it was shown")
    head = db.get(s, shown.id)
    if head.pinned:
        return Outcome(edit, "refused", f"lesson {head.id} is pinned", head.id, head.version)
    same_text = (normal(head.when), normal(head.do)) == (normal(edit.when), normal(edit.do))
    if head.status == "retired" if edit.kind == "retire" else same_text:
        return Outcome(edit, "known", f"lesson {head.id} is so already", head.id, head.version)
    if head.version != shown.version:
        reason = f"lesson {head.id} has changed since (version {shown.version} was shown, {head.version} stands)"
        return Outcome(edit, "refused", reason, head.id, head.version)
    return head


def _revise(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    head = _addressed(s, edit, evidence)
    if isinstance(head, Outcome):
        return head
    if suspect := _why_suspect(edit, evidence.task):
        return Outcome(edit, "refused", suspect, head.id, head.version)
    if evidence.trust != "clean":
        return _add(s, edit, evidence, tokens)  # a lesson of its own, in quarantine
    others = [x for x in _same_condition(s, edit, evidence) if x.id != head.id and x.status not in OUT]
    if others:
        reason = f"lesson {others[0].id} already speaks for that condition"
        return Outcome(edit, "refused", reason, head.id, head.version)
    return _rewrite(s, edit, evidence, head, tokens, "revised")


def _rewrite(s: Session, edit: Edit, evidence: Evidence, old: Lesson, tokens: int, outcome: str) -> Outcome:
    """A new version of `old`. New text in a distilled lesson is not in the weights: it returns to the prompt.

    Where a person reviews, `old` stays and the new text waits beside it.
    """
    if evidence.review:
        return _new(s, edit, evidence, tokens, f"{WAITS}, in the place of lesson {old.id}: {old.do}")
    changes: dict[str, Any] = {"when": edit.when, "do": edit.do, "tokens": tokens, "author": "model"}
    if old.status == "distilled":
        changes["status"] = "active"
    reason = f"{'newer evidence than' if outcome == 'superseded' else 'was'}: {old.do}"
    changes |= {"reason": reason, "expect_version": old.version, "reflection_id": evidence.reflection_id}
    new = db.revise(s, old.id, **changes)
    return Outcome(edit, outcome, reason, new.id, new.version)


def _retire(s: Session, edit: Edit, evidence: Evidence, tokens: int) -> Outcome:
    head = _addressed(s, edit, evidence)
    if isinstance(head, Outcome):
        return head
    if evidence.trust != "clean":
        return Outcome(edit, "refused", NOTHING, head.id, head.version)
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
