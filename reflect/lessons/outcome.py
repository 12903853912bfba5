"""What the edits of a reflection share: their evidence, outcomes, checks and writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from reflect.lessons import safety
from reflect.lessons.protection import defended
from reflect.lessons.release import OUTSIDE
from reflect.lessons.selection import POOL
from reflect.lessons.similarity import identity
from reflect.records import HELD_STATUSES, Lesson
from reflect.store import lessons as db
from reflect.store.lesson_evidence import other_tasks
from reflect.store.lessons import link
from reflect.types import (
    Author,
    EditOutcome,
    LessonStatus,
    LinkKind,
    QuarantineReason,
    Trust,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from reflect.lessons.edit_format import Edit
    from reflect.tasksets.task import Task

OF_NO_USE = {  # by trust: why it changes no lesson, and why a new one is quarantined
    Trust.UNTRUSTED: ("the attempts read bytes from outside, which change no lesson", OUTSIDE),
    Trust.CHEATED: (
        "the attempts were fitted to tests that contradict the task, which changes no lesson",
        "it was learned from attempts that were fitted to tests which contradict the task",
    ),
}
WAITS = "it waits for a person's approval"
TASK_TAG = "task:"  # with a task's key: the lesson is for that task only


@dataclass(frozen=True)
class Evidence:
    """The rollouts behind the edits of one reflection.

    `task` is None if there are none: lessons were compared with each other (see
    `reflect.lessons.deduplicate`). `trust`: UNTRUSTED if an attempt read bytes from outside,
    CHEATED if one passed its twin; new lessons from such a group are quarantined, and it changes
    and retires nothing.
    """

    task: Task | None
    scope: str
    """Taskset name."""
    profile: str
    shown: Sequence[Lesson]
    """The lessons as the rollouts saw them."""
    contrast: bool
    """Some attempts earned more than others."""
    in_adapter: Sequence[Lesson] = ()
    """The lessons that are in the adapter's weights instead of the prompt."""
    reflection_id: int | None = None
    require_approval: bool = False
    """A person must approve every change: edits are stored as quarantined lessons."""
    trust: str = Trust.CLEAN
    proposals: int = 1
    """Candidates that may compete for one condition; 1: a new text replaces the old one."""

    @property
    def clean(self) -> bool:
        """Whether no rollout of the group read outside bytes or cheated."""
        return self.trust == Trust.CLEAN

    @property
    def nothing(self) -> str:
        """Why it may not change an existing lesson; only if the trust is not clean."""
        return OF_NO_USE[Trust(self.trust)][0]

    @property
    def source(self) -> str:
        """The reflection, as reasons of versions and links name it."""
        return (
            f"reflection {self.reflection_id}" if self.reflection_id else "a comparison of lessons"
        )


@dataclass(frozen=True)
class Outcome:
    """What was done with one edit, and why. `gone`: other lessons that `lesson_id` replaces."""

    edit: Edit
    outcome: EditOutcome | str
    reason: str = ""
    lesson_id: int | None = None
    version: int | None = None
    gone: tuple[int, ...] = ()

    def row(self) -> dict[str, object]:
        """As stored in `Reflection.edits`."""
        row = asdict(self.edit)
        row["id"], ids = row.pop("lesson_id"), row.pop("lesson_ids")
        row |= {"ids": list(ids)} if ids else {}
        row |= {"outcome": self.outcome, "reason": self.reason}
        row |= {"lesson": self.lesson_id, "version": self.version}
        return row | ({"gone": list(self.gone)} if self.gone else {})


@dataclass(frozen=True)
class PendingEdit:
    """An edit that is being carried out, inside the caller's transaction. `tokens`: of its text."""

    s: Session
    edit: Edit
    evidence: Evidence
    tokens: int

    def ended(
        self, outcome: EditOutcome, reason: str, lesson: Lesson | None = None, *gone: Lesson
    ) -> Outcome:
        """The outcome, about that lesson, which replaces those that are gone."""
        ids = tuple(old.id or 0 for old in gone)
        lesson_id, version = (lesson.id, lesson.version) if lesson else (None, None)
        return Outcome(self.edit, outcome, reason, lesson_id, version, ids)

    def refused(self, reason: str, lesson: Lesson | None = None) -> Outcome:
        """The outcome of an edit that is refused."""
        return self.ended(EditOutcome.REFUSED, reason, lesson)

    def known(self, reason: str, lesson: Lesson) -> Outcome:
        """The outcome of an edit that repeats an existing lesson."""
        return self.ended(EditOutcome.KNOWN, reason, lesson)

    def suspicion(self) -> str:
        """What the text names or gives away that no lesson should; "" if nothing."""
        text, task = f"{self.edit.when} {self.edit.do}", self.evidence.task
        reasons = [f"it names {what}" for what in safety.suspicions(text)]
        leak = safety.leaks(text, task) if task else None
        return "; ".join([*reasons, leak] if leak else reasons)

    def same_condition(self) -> list[Lesson]:
        """Lessons with the same condition (wording aside), in this scope or general, by id."""
        when, scopes = self.edit.when, [self.evidence.scope, ""]
        hits = db.search(self.s, when, profile=self.evidence.profile, scopes=scopes, limit=POOL)
        same = [lesson for lesson, _ in hits if identity(lesson.when) == identity(when)]
        return sorted(same, key=lambda lesson: lesson.id or 0)

    def rivals(self, *ids: int | None) -> list[Lesson]:
        """Those of `same_condition` that are in use, without the lessons with these ids."""
        same = self.same_condition()
        return [x for x in same if x.status in HELD_STATUSES and x.id not in ids]

    def tags(self) -> list[str]:
        """The tag that limits the lesson to the task of the evidence, if its text names it."""
        task = self.evidence.task
        if task is None:
            return []
        others = other_tasks(self.s, self.evidence.scope, task.key)
        named = safety.instance(f"{self.edit.when} / {self.edit.do}", task, others)
        return [TASK_TAG + task.key] if named else []

    def stale(self, head: Lesson, shown: Lesson) -> Outcome | None:
        """The refusal of an edit of a lesson that changed after the model saw it."""
        if head.version == shown.version:
            return None
        versions = f"version {shown.version} was shown, {head.version} is the newest"
        return self.refused(f"lesson {head.id} has changed since ({versions})", head)

    def held_back(self, old: Lesson) -> Outcome | None:
        """The outcome if the lesson is protected from this edit (see `protection.defended`)."""
        defence = defended(self.s, old, self.evidence.reflection_id, self.edit)
        return self.ended(*defence, old) if defence else None

    def new_lesson(
        self,
        suspect: str,
        instead_of: Sequence[Lesson] = (),
        quarantine: QuarantineReason = QuarantineReason.APPROVAL,
    ) -> Outcome:
        """Add a candidate, or a quarantined lesson if there is a reason `suspect`, of the kind
        `quarantine`. `instead_of`: lessons that a person's approval of it retires."""
        evidence = self.evidence
        if not evidence.clean:
            trust = Trust(evidence.trust)
            if not suspect:
                quarantine = QuarantineReason.OUTSIDE
                if trust == Trust.CHEATED:
                    quarantine = QuarantineReason.CHEATED
            suspect = "; ".join(filter(None, [suspect, OF_NO_USE[trust][1]]))
        lesson = db.add(
            self.s,
            when=self.edit.when,
            do=self.edit.do,
            author=Author.MODEL,
            reason=suspect,
            scope=evidence.scope,
            tags=self.tags(),
            status=LessonStatus.QUARANTINED if suspect else LessonStatus.CANDIDATE,
            profile=evidence.profile,
            trust=Trust.CLEAN if evidence.clean else Trust.UNTRUSTED,
            tokens=self.tokens,
            reflection_id=evidence.reflection_id,
            quarantine=quarantine,
        )
        for old in instead_of:
            link(self.s, lesson.id, old.id, LinkKind.PROPOSED, suspect, evidence.reflection_id)
        return self.ended(
            EditOutcome.QUARANTINED if suspect else EditOutcome.ADDED, suspect, lesson
        )

    def revise(self, lesson: Lesson, reason: str, **changes: object) -> Lesson:
        """A new version by the model, for this reflection. Conflict if the lesson has changed."""
        changes |= {"expect_version": lesson.version, "reflection_id": self.evidence.reflection_id}
        return db.revise(self.s, lesson.id, author=Author.MODEL, reason=reason, **changes)  # type: ignore[arg-type]

    def replace(self, old: Lesson, into: int | None, kind: LinkKind, reason: str, why: str) -> None:
        """Retire `old`, with a link to the lesson that replaces it."""
        self.revise(old, reason, status=LessonStatus.RETIRED)
        link(self.s, into, old.id, kind, why, self.evidence.reflection_id)

    def with_text(self, lesson: Lesson) -> PendingEdit:
        """The same edit with the text of that lesson."""
        return replace(self, edit=replace(self.edit, when=lesson.when, do=lesson.do))


def tasks_of(lesson: Lesson) -> list[str]:
    """The tags that limit a lesson to single tasks."""
    return sorted(tag for tag in lesson.tags if tag.startswith(TASK_TAG))
