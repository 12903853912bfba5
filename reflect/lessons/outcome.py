"""What the edits of a reflection share: the evidence behind them, what became of them, the checks
and the writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from reflect.lessons import safety
from reflect.lessons.edit_format import Edit
from reflect.lessons.protection import defended
from reflect.lessons.release import OUTSIDE
from reflect.lessons.selection import POOL
from reflect.lessons.similarity import normal
from reflect.records import CHEATED, Lesson
from reflect.store import lessons as db
from reflect.store.lesson_evidence import other_tasks
from reflect.store.lesson_links import link
from reflect.tasksets.task import Task
from reflect.types import QuarantineReason

OF_NO_USE = {  # by trust: why it changes no lesson, and why a new one waits
    "untrusted": ("the attempts read bytes from outside, which change no lesson", OUTSIDE),
    CHEATED: (
        "the attempts were fitted to tests that contradict the task, which changes no lesson",
        "it was learned from attempts that were fitted to tests which contradict the task",
    ),
}
WAITS = "it waits for a person's approval"
TASK_TAG = "task:"  # with a task's key: the lesson is for that task only


@dataclass(frozen=True)
class Evidence:
    """What stands behind the edits of one reflection.

    `shown`: the lessons as the rollouts saw them. `held`: those that the adapter brought along
    instead. `contrast`: some attempts went better than others. `review`: nothing is shown, changed
    or retired before a person has approved it; what the model wants is stored as quarantined
    lessons. `task` is None where no attempts stand behind it: lessons were compared with each other
    (`reflect.lessons.deduplicate`). `trust`: "untrusted" where an attempt read bytes from outside,
    CHEATED where one passed its twin; what such a group teaches waits in quarantine too, and it
    changes and retires nothing.
    """

    task: Task | None
    scope: str  # taskset name
    profile: str
    shown: Sequence[Lesson]
    contrast: bool
    held: Sequence[Lesson] = ()
    reflection_id: int | None = None
    review: bool = False  # a person approves first
    trust: str = "clean"

    @property
    def nothing(self) -> str:
        """Why it may not change a lesson that stands; only where the trust is not clean."""
        return OF_NO_USE[self.trust][0]


@dataclass(frozen=True)
class Outcome:
    """What became of one edit: added, superseded, revised, merged, retired, known, quarantined,
    kept, defended (the lesson is proven: see `keeping`), outvoted or refused. `gone`: other lessons
    in whose place `lesson_id` stands now.
    """

    edit: Edit
    outcome: str
    reason: str = ""
    lesson_id: int | None = None
    version: int | None = None
    gone: tuple[int, ...] = ()

    def row(self) -> dict[str, Any]:
        """As stored in `Reflection.edits`."""
        edit = asdict(self.edit)
        edit["id"], ids = edit.pop("lesson_id"), edit.pop("lesson_ids")
        became = {
            "outcome": self.outcome,
            "reason": self.reason,
            "lesson": self.lesson_id,
            "version": self.version,
        }
        return (
            edit
            | ({"ids": list(ids)} if ids else {})
            | became
            | ({"gone": list(self.gone)} if self.gone else {})
        )


def why_suspect(edit: Edit, task: Task | None) -> str:
    text = f"{edit.when} {edit.do}"
    reasons = [f"it names {what}" for what in safety.suspicions(text)]
    leak = safety.leaks(text, task) if task else None
    return "; ".join([*reasons, leak] if leak else reasons)


def same_condition(s: Session, edit: Edit, evidence: Evidence) -> list[Lesson]:
    """Lessons of the profile that hold under the same condition, wording aside, in this scope or
    everywhere."""
    found = db.search(
        s, edit.when, profile=evidence.profile, scopes=[evidence.scope, ""], limit=POOL
    )
    return sorted(
        (lesson for lesson, _ in found if normal(lesson.when) == normal(edit.when)),
        key=lambda lesson: lesson.id or 0,
    )


def tags_of(s: Session, edit: Edit, evidence: Evidence) -> list[str]:
    """The tag that keeps the lesson for the task that taught it, where it names that one: it is no
    principle."""
    task = evidence.task
    if task is None:
        return []
    others = other_tasks(s, evidence.scope, task.key)
    return (
        [TASK_TAG + task.key] if safety.instance(f"{edit.when} / {edit.do}", task, others) else []
    )


def tasks_of(lesson: Lesson) -> list[str]:
    return sorted(tag for tag in lesson.tags if tag.startswith(TASK_TAG))


def changed(edit: Edit, head: Lesson, shown: Lesson) -> Outcome | None:
    if head.version == shown.version:
        return None
    reason = f"lesson {head.id} has changed since (version {shown.version} was shown, {head.version} stands)"
    return Outcome(edit, "refused", reason, head.id, head.version)


def held_back(s: Session, edit: Edit, evidence: Evidence, old: Lesson) -> Outcome | None:
    found = defended(s, old, evidence.reflection_id, edit)
    return Outcome(edit, *found, old.id, old.version) if found else None


def new_lesson(
    s: Session,
    edit: Edit,
    evidence: Evidence,
    tokens: int,
    suspect: str,
    instead_of: Sequence[Lesson] = (),
    quarantine: QuarantineReason = QuarantineReason.APPROVAL,
) -> Outcome:
    """A new lesson: a candidate, or quarantined for a reason. `instead_of`: what a person's
    approval of it retires. `quarantine`: the kind of the reason `suspect`, where there is one."""
    if evidence.trust != "clean":
        if not suspect:
            quarantine = (
                QuarantineReason.CHEATED if evidence.trust == CHEATED else QuarantineReason.OUTSIDE
            )
        origin = OF_NO_USE[evidence.trust][1]
        suspect = f"{suspect}; {origin}" if suspect else origin
    lesson = db.add(
        s,
        when=edit.when,
        do=edit.do,
        author="model",
        reason=suspect,
        scope=evidence.scope,
        tags=tags_of(s, edit, evidence),
        status="quarantined" if suspect else "candidate",
        profile=evidence.profile,
        trust="clean" if evidence.trust == "clean" else "untrusted",
        tokens=tokens,
        reflection_id=evidence.reflection_id,
        quarantine=quarantine,
    )
    for old in instead_of:
        link(s, lesson.id, old.id, "proposed", suspect, evidence.reflection_id)
    return Outcome(edit, "quarantined" if suspect else "added", suspect, lesson.id, lesson.version)


def leave(
    s: Session, evidence: Evidence, into: int | None, old: Lesson, kind: str, reason: str, why: str
) -> None:
    """`old` is retired, with a link to the lesson that stands in its place."""
    words: dict[str, Any] = {"author": "model", "reason": reason, "expect_version": old.version}
    db.revise(s, old.id, status="retired", reflection_id=evidence.reflection_id, **words)
    link(s, into, old.id, kind, why, evidence.reflection_id)


def source(evidence: Evidence) -> str:
    return (
        f"review {evidence.reflection_id}" if evidence.reflection_id else "a comparison of lessons"
    )
