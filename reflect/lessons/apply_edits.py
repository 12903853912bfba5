"""Carry out the edits of a reflection."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reflect.lessons.apply_merge import merge
from reflect.lessons.outcome import WAITS, Evidence, Outcome, PendingEdit, tasks_of
from reflect.lessons.release import corroborated
from reflect.lessons.selection import MAX_TOKENS, Count, format_lesson
from reflect.lessons.similarity import alike, covers_condition, identity, same
from reflect.records import HELD_STATUSES, Lesson
from reflect.store import forbidden_rules
from reflect.store import lessons as db
from reflect.store.lesson_evidence import confounder
from reflect.store.lessons import successor
from reflect.store.trials import newest_effects
from reflect.types import (
    Author,
    EditKind,
    EditOutcome,
    LessonStatus,
    LinkKind,
    QuarantineReason,
    TrialVerdict,
    Trust,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from reflect.lessons.edit_format import Edit

__all__ = ["Evidence", "Outcome", "apply_edits"]

ENOUGH, HOPE = 32, 0.1  # rollouts of a trial, and its effect: see `_make_room`


def apply_edits(
    s: Session,
    edits: Sequence[Edit],
    evidence: Evidence,
    *,
    count_tokens: Count,
    budget: int = MAX_TOKENS,
) -> list[Outcome]:
    """Carry out the edits in order, inside the caller's transaction. A bad edit is refused and
    never raises.

    `budget`: tokens of lessons in one prompt; a lesson that could never be shown is refused.
    """
    most = min(budget, MAX_TOKENS)
    forbidden = forbidden_rules.listing(s, evidence.profile)
    acts = dict(zip(EditKind, (_add, _revise, _retire, merge), strict=True))
    outcomes = []
    for edit in edits:
        tokens = count_tokens(format_lesson(edit.when, edit.do))
        e = PendingEdit(s, edit, evidence, tokens)
        writes = edit.kind != EditKind.RETIRE
        if writes and tokens > most:
            refusal = f"{tokens} tokens are too long for a lesson (at most {most})"
        else:
            rule = writes and forbidden_rules.forbidding(forbidden, edit.when, edit.do)
            refusal = rule or ""
        outcomes.append(e.refused(refusal) if refusal else acts[EditKind(edit.kind)](e))
    return outcomes


def _add(e: PendingEdit) -> Outcome:
    """ADD: a new lesson, or a new text for the lesson of the same condition."""
    evidence, existing = e.evidence, e.same_condition()
    in_use = [lesson for lesson in existing if lesson.status in HELD_STATUSES]
    for lesson in existing:
        if identity(lesson.do) == identity(e.edit.do):
            return _again(e, lesson, in_use)
    suspect = e.suspicion()
    if not in_use or suspect or not evidence.clean:
        kind = QuarantineReason.TEXT if suspect else QuarantineReason.APPROVAL
        return e.new_lesson(
            suspect or (WAITS if evidence.require_approval else ""), quarantine=kind
        )
    if evidence.proposals > 1:
        return _compete(e, in_use)
    for old in in_use:
        if refusal := _contradicts(e, old):
            return refusal
    mine = [lesson for lesson in in_use if lesson.scope == evidence.scope]
    if mine:
        outcome = _rewrite(e, mine[0], EditOutcome.SUPERSEDED)
    else:  # one taskset's evidence does not rewrite a general lesson
        others = ", ".join(str(old.id) for old in in_use)
        outcome = e.new_lesson(
            f"{WAITS}, against lesson {others}" if evidence.require_approval else ""
        )
    if outcome.outcome in (EditOutcome.ADDED, EditOutcome.SUPERSEDED):
        return _supersede(e, outcome, in_use)
    return outcome


def _compete(e: PendingEdit, in_use: Sequence[Lesson]) -> Outcome:
    """A further candidate for the condition of lessons in use, which stay: the trials decide."""
    for old in in_use:
        if alike(old, e.edit):
            return e.known(f"lesson {old.id} says nearly that", old)
    if refusal := _no_room(e, in_use):
        return refusal
    waits = f"{WAITS}, against lesson {in_use[0].id}" if e.evidence.require_approval else ""
    # equal in their words, so that they compete in one draw
    return replace(e, edit=replace(e.edit, when=in_use[0].when)).new_lesson(waits)


def _no_room(e: PendingEdit, in_use: Sequence[Lesson]) -> Outcome | None:
    """The outcome if no further candidate may compete with the lessons in use."""
    candidates = [lesson for lesson in in_use if lesson.status == LessonStatus.CANDIDATE]
    if pinned := next((lesson for lesson in in_use if lesson.pinned), None):
        return e.refused(f"lesson {pinned.id} is pinned", pinned)
    if len(candidates) < e.evidence.proposals or _make_room(e, candidates):
        return None
    why = f"{len(candidates)} candidates compete for this condition already"
    return e.ended(EditOutcome.KEPT, why, candidates[0])


def _make_room(e: PendingEdit, candidates: Sequence[Lesson]) -> bool:
    """Retire the least promising candidate, if its trial has ENOUGH rollouts and an effect below
    HOPE. This needs no proof, as no lesson becomes active; the same text may be proposed again."""
    effects = newest_effects(e.s, candidates)
    poor = [
        (trial.effect, lesson)
        for lesson in candidates
        if (trial := effects.get(lesson.id or 0)) and trial.n >= ENOUGH and trial.effect < HOPE
    ]
    if not poor:
        return False
    effect, lesson = min(poor, key=lambda pair: (pair[0], pair[1].id))
    reason = f"it makes room for another proposal: {effect:+.2f} so far"
    db.revise(e.s, lesson.id, author=Author.TRIAL, reason=reason, status=LessonStatus.RETIRED)
    return True


def _contradicts(e: PendingEdit, old: Lesson) -> Outcome | None:
    """The outcome if the newer evidence may not overrule `old`, of the same condition."""
    if old.pinned:
        return e.refused(f"lesson {old.id} is pinned", old)
    tried = {lesson.id for lesson in (*e.evidence.shown, *e.evidence.in_adapter)}
    if not e.evidence.contrast and old.id not in tried:
        return e.ended(EditOutcome.KEPT, f"lesson {old.id} was not tried in this group", old)
    return _confounded(e, old) or e.held_back(old)


def _confounded(e: PendingEdit, old: Lesson) -> Outcome | None:
    """The outcome if all attempts failed alike and `old`, on trial, was seen only together with
    another lesson on trial: the group does not tell which of the two failed."""
    if e.evidence.contrast or old.status != LessonStatus.CANDIDATE:
        return None
    rival = confounder(e.s, e.evidence.reflection_id, old)
    seen = f"this group saw lesson {old.id} only together with lesson {rival}, on trial too"
    return e.ended(EditOutcome.KEPT, seen, old) if rival else None


def _supersede(e: PendingEdit, outcome: Outcome, others: Sequence[Lesson]) -> Outcome:
    """Retire the other lessons of the same condition, each with a link to the outcome's lesson."""
    others = [old for old in others if old.id != outcome.lesson_id]
    why = f"{e.evidence.source} says: {outcome.edit.do}"
    for old in others:
        kind, verb = LinkKind.SUPERSEDES, "superseded by"
        if same(old, outcome.edit):
            kind, verb = LinkKind.MERGED, "merged into"
        e.replace(old, outcome.lesson_id, kind, f"{verb} lesson {outcome.lesson_id}", why)
    gone = tuple(old.id or 0 for old in others)
    return replace(outcome, outcome=EditOutcome.SUPERSEDED, gone=gone) if gone else outcome


def _again(e: PendingEdit, lesson: Lesson, in_use: Sequence[Lesson]) -> Outcome:
    """The outcome for a lesson that exists. One that a model retired returns, unless it was merged
    into a similar lesson in use; a person's decision is final. A second clean task that proposes a
    lesson which was learned from outside bytes releases it."""
    s, evidence = e.s, e.evidence
    task = evidence.task if evidence.clean and not evidence.require_approval else None
    if task and (reason := corroborated(s, lesson, task, evidence.scope)):
        now = e.revise(lesson, reason, status=LessonStatus.CANDIDATE, trust=Trust.CLEAN)
        return e.ended(EditOutcome.ADDED, reason, now)
    if lesson.status != LessonStatus.RETIRED:
        return e.known(f"lesson {lesson.id} has that text ({lesson.status})", lesson)
    author = db.history(s, lesson.id)[-1].author
    if lesson.pinned or author == Author.HUMAN:
        return e.refused(f"a person retired lesson {lesson.id}", lesson)
    if not evidence.clean:
        return e.refused(f"lesson {lesson.id} is retired: {evidence.nothing}", lesson)
    if evidence.require_approval:
        return e.refused(f"{WAITS}: reflect lessons approve {lesson.id}", lesson)
    heir = db.get(s, into) if (into := successor(s, lesson.id)) else None
    if heir and heir.status in HELD_STATUSES and alike(heir, lesson):
        return e.known(f"lesson {heir.id}, into which it was merged, has that text", heir)
    if evidence.proposals > 1 and in_use:
        trial = newest_effects(s, [lesson]).get(lesson.id or 0)
        if trial and trial.verdict == TrialVerdict.REJECT:
            return e.known(f"a trial rejected lesson {lesson.id}", lesson)
        if refusal := _no_room(e, in_use):
            return refusal
        back = e.revise(lesson, "proposed again", status=LessonStatus.CANDIDATE)
        return e.ended(EditOutcome.REVISED, "proposed again", back)
    for old in in_use:
        if refusal := _contradicts(e, old):
            return refusal
    # retired by a trial: it is on trial again
    status = LessonStatus.CANDIDATE if author == Author.TRIAL else LessonStatus.ACTIVE
    back = e.revise(lesson, "learned again", status=status)
    return _supersede(e, e.ended(EditOutcome.REVISED, "learned again", back), in_use)


def _addressed(e: PendingEdit) -> Lesson | Outcome:
    """The lesson that a REVISE or RETIRE means, or the outcome if nothing is to be done."""
    edit = e.edit
    shown = {lesson.id: lesson for lesson in e.evidence.shown}.get(edit.lesson_id)
    if shown is None:
        return e.refused(f"lesson {edit.lesson_id} is not among the lessons it was shown")
    head = db.get(e.s, shown.id)
    if head.pinned:
        return e.refused(f"lesson {head.id} is pinned", head)
    retired = head.status == LessonStatus.RETIRED
    if retired if edit.kind == EditKind.RETIRE else same(head, edit):
        return e.known(f"lesson {head.id} is so already", head)
    return e.stale(head, shown) or _confounded(e, head) or e.held_back(head) or head


def _revise(e: PendingEdit) -> Outcome:
    """REVISE: a new text for a lesson that was shown. If proposals compete, it competes with the
    old one."""
    if e.evidence.proposals > 1:
        shown = {lesson.id: lesson for lesson in e.evidence.shown}.get(e.edit.lesson_id)
        if shown and covers_condition(e.edit.when, shown.when):
            e = replace(e, edit=replace(e.edit, when=shown.when))
        return _add(e)
    head = _addressed(e)
    if isinstance(head, Outcome):
        return head
    if suspect := e.suspicion():
        return e.refused(suspect, head)
    if not e.evidence.clean:
        return _add(e)  # a separate lesson, in quarantine
    others = e.rivals(head.id)
    for other in others:
        # Another condition means a misread number or the loss of a lesson, unless it covers the
        # old one.
        if not covers_condition(e.edit.when, head.when) or e.evidence.require_approval:
            return e.refused(f"lesson {other.id} already has that condition", head)
        if refusal := _contradicts(e, other):
            return refusal
    outcome = _rewrite(e, head, EditOutcome.REVISED)
    return _supersede(e, outcome, others) if outcome.outcome == EditOutcome.REVISED else outcome


def _rewrite(e: PendingEdit, old: Lesson, outcome: EditOutcome) -> Outcome:
    """A new version of `old`. New text of a distilled lesson is not in the weights: it returns to
    the prompt.

    If a person must approve, `old` stays and the new text is quarantined. A lesson for several
    tasks is not narrowed to the one that is named; one that was for its task only becomes general
    when it no longer names the task.
    """
    edit = e.edit
    if e.evidence.require_approval:
        return e.new_lesson(f"{WAITS}, in the place of lesson {old.id}: {old.do}", [old])
    tags, before = e.tags(), tasks_of(old)
    if not set(tags) <= set(old.tags):
        return e.refused(f"it names one task, and lesson {old.id} is for more than that", old)
    tags = [tag for tag in old.tags if tag not in before] + tags
    status = LessonStatus.ACTIVE if old.status == LessonStatus.DISTILLED else old.status
    reason = f"was: {old.do}"
    if outcome == EditOutcome.SUPERSEDED:
        first = next(row for row in db.history(e.s, old.id) if same(row, old))  # who wrote it first
        by = f", reflection {first.reflection_id}" if first.reflection_id else ""
        against = f"otherwise than version {first.version} ({first.author}{by})"
        reason = f"{e.evidence.source} says {against}: {old.do}"
    text = {"when": edit.when, "do": edit.do, "tokens": e.tokens}
    new = e.revise(old, reason, **text, tags=tags, status=status)
    return e.ended(outcome, reason, new)


def _retire(e: PendingEdit) -> Outcome:
    """RETIRE: a lesson that was shown leaves the prompt."""
    head = _addressed(e)
    if isinstance(head, Outcome):
        return head
    if not e.evidence.clean:
        return e.refused(e.evidence.nothing, head)
    if e.evidence.require_approval:
        return e.refused(f"a person decides: reflect lessons reject {head.id} --why ...", head)
    new = e.revise(head, e.edit.why, status=LessonStatus.RETIRED)
    return e.ended(EditOutcome.RETIRED, e.edit.why, new)
