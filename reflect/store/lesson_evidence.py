"""Evidence on a lesson: trials, persons, the attempts of one group, and what the lesson costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import ColumnElement, and_, case, exists
from sqlmodel import Session, col, func, or_, select

from reflect.records import (
    HELD_STATUSES,
    SHOWN_STATUSES,
    Exposure,
    Lesson,
    LessonVersion,
    Reflection,
    Rollout,
    Run,
    TaskRow,
    Trial,
)
from reflect.store import lessons as db
from reflect.types import Author, Json, LessonStatus, TrialKind, TrialVerdict, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

OF_DAY = (TrialKind.WITHHOLD.value, TrialKind.PAIRED.value)
POINT = 0.01  # of reward


def version_of(row: type[Trial | Exposure]) -> ColumnElement[bool]:
    """The condition that joins a trial or an exposure with its version of the lesson."""
    return and_(
        col(LessonVersion.lesson_id) == col(row.lesson_id),
        col(LessonVersion.version) == col(row.version),
    )


class Attempts(NamedTuple):
    """The rewards of one group: of the attempts that saw a lesson, and of those from which it was
    withheld. One that broke earned nothing."""

    seen: list[float]
    missed: list[float]


def proven(s: Session, lesson_id: int | None, when: str, do: str) -> bool:
    """Does a trial of this text of the lesson say accept, and none after it reject? For whatever
    model: a text that was proven once is worth a second look before it goes."""
    newest = (
        select(Trial.verdict)
        .join(LessonVersion, version_of(Trial))
        .where(Trial.lesson_id == lesson_id, col(Trial.kind).in_(OF_DAY))
        .where(Trial.verdict != TrialVerdict.UNDECIDED)
        .where(LessonVersion.when == when, LessonVersion.do == do)
        .order_by(col(Trial.id).desc())
    )
    return s.exec(newest).first() == TrialVerdict.ACCEPT


def well_supported(s: Session, row: Lesson | LessonVersion) -> bool:
    """Is it pinned, proven, or written or approved by a person with this text?"""
    lesson_id = row.lesson_id if isinstance(row, LessonVersion) else row.id
    if row.pinned or proven(s, lesson_id, row.when, row.do):
        return True
    by_person = (
        select(LessonVersion.id)
        .where(LessonVersion.lesson_id == lesson_id, LessonVersion.author == Author.HUMAN)
        .where(LessonVersion.when == row.when, LessonVersion.do == row.do)
        .where(col(LessonVersion.status).in_(SHOWN_STATUSES))
    )
    return s.exec(by_person).first() is not None


def supported(s: Session, profile: str) -> list[Lesson]:
    """The lessons in prompts or weights that are well supported, by id."""
    human = select(LessonVersion.lesson_id).where(LessonVersion.author == Author.HUMAN)
    tried = select(Trial.lesson_id).where(Trial.verdict == TrialVerdict.ACCEPT)
    maybe = or_(col(Lesson.pinned), col(Lesson.id).in_(human), col(Lesson.id).in_(tried))
    in_use = select(Lesson).where(Lesson.profile == profile, col(Lesson.status).in_(HELD_STATUSES))
    rows = s.exec(in_use.where(maybe).order_by(col(Lesson.id)))
    return [lesson for lesson in rows if well_supported(s, lesson)]


def newest_version(s: Session) -> int:
    """The id of the last version of any lesson, 0 where there is none."""
    return s.exec(select(func.max(LessonVersion.id))).one() or 0


def changed_after(s: Session, version_id: int, profile: str) -> list[LessonVersion]:
    """Of each lesson that has a version after that one: the version that it had before, by id of
    the lesson."""
    changed = (
        select(LessonVersion.lesson_id, func.min(LessonVersion.parent))
        .join(Lesson, col(Lesson.id) == LessonVersion.lesson_id)
        .where(col(LessonVersion.id) > version_id, Lesson.profile == profile)
        .group_by(col(LessonVersion.lesson_id))
        .order_by(col(LessonVersion.lesson_id))
    )
    pairs = [(i, parent) for i, parent in s.exec(changed) if parent is not None]
    return [db.version(s, lesson_id, parent) for lesson_id, parent in pairs]


def attempts(s: Session, reflection_id: int | None, lesson: Lesson) -> Attempts:
    """The rewards of a reflection's group with the lesson and without it. All attempts have what
    the weights hold; where the lesson was neither in the prompt nor in the weights none has seen
    it."""
    reflection = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if reflection is None:
        return Attempts([], [])
    mine = and_(col(Exposure.rollout_id) == col(Rollout.id), col(Exposure.lesson_id) == lesson.id)
    shown = (
        select(Rollout.reward, Exposure.shown)
        .join(Exposure, mine, isouter=True)
        .where(Rollout.run_id == reflection.run_id, Rollout.task_key == reflection.task_key)
        .order_by(col(Rollout.index))
    )
    in_weights = lesson.status == LessonStatus.DISTILLED
    rows = [(reward or 0.0, in_weights if saw is None else saw) for reward, saw in s.exec(shown)]
    return Attempts([x for x, saw in rows if saw], [x for x, saw in rows if not saw])


def confounder(s: Session, reflection_id: int | None, lesson: Lesson) -> int | None:
    """A candidate that was shown in every attempt of the reflection's group that saw this lesson,
    so that either of the two may have failed. None without one, or if no attempt saw the lesson."""
    reflection = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if reflection is None:
        return None
    saw = (
        select(Exposure.rollout_id)
        .join(Rollout, col(Rollout.id) == Exposure.rollout_id)
        .where(Rollout.run_id == reflection.run_id, Rollout.task_key == reflection.task_key)
        .where(Exposure.lesson_id == lesson.id, Exposure.shown)
    )
    attempts = s.exec(saw).all()
    rivals = (
        select(Exposure.lesson_id)
        .join(Lesson, col(Lesson.id) == Exposure.lesson_id)
        .where(col(Exposure.rollout_id).in_(attempts), Exposure.shown)
        .where(Exposure.lesson_id != lesson.id, Lesson.status == LessonStatus.CANDIDATE)
        .group_by(col(Exposure.lesson_id))
        .having(func.count() == len(attempts))
    )
    return min(s.exec(rivals), default=None)


def _earlier_edits(s: Session, reflection_id: int | None) -> list[Sequence[Json]]:
    """The edits of each earlier reflection of the same run."""
    reflection = s.get(Reflection, reflection_id) if reflection_id is not None else None
    if reflection is None:
        return []
    same_run = select(Reflection.edits).where(Reflection.run_id == reflection.run_id)
    return list(s.exec(same_run.where(col(Reflection.id) < reflection.id)))


def complaints(s: Session, reflection_id: int | None, lesson: Lesson) -> int:
    """How many earlier reflections of the same run asked for a change of this version, which was
    refused because it is proven."""
    mine = {"outcome": "defended", "lesson": lesson.id, "version": lesson.version}
    earlier = _earlier_edits(s, reflection_id)
    return sum(any(mine.items() <= edit.items() for edit in edits) for edits in earlier)


def chorus(s: Session, reflection_id: int | None, says: Callable[[str, str], bool]) -> int:
    """How many earlier reflections of the same run asked for a text of which `says(when, do)` is
    true, whatever the outcome."""
    return sum(
        any(edit["kind"] in ("add", "revise") and says(edit["when"], edit["do"]) for edit in edits)
        for edits in _earlier_edits(s, reflection_id)
    )


def other_tasks(s: Session, taskset: str, key: str, limit: int = 200) -> Iterator[str]:
    """The texts of other practised tasks of the taskset, without system messages; queried when
    read."""
    others = select(TaskRow.content).where(TaskRow.taskset == taskset, TaskRow.key != key)
    for content in s.exec(others.order_by(col(TaskRow.key)).limit(limit)):
        messages = [m for m in content.get("messages", []) if m.get("role") != "system"]
        yield "\n".join(str(m.get("content", "")) for m in messages)


# -- costs


@dataclass(frozen=True)
class Cost:
    """Calls and tokens of one lesson, and its newest trial."""

    lesson: Lesson
    shown: int
    """Calls whose prompt held it."""
    withheld: int
    """Calls from which it was left out at random."""
    paid: int
    """Prompt tokens in all, each call at the length that the lesson had then."""
    trial: Trial | None
    """The newest trial of its present text."""

    @property
    def tokens_per_point(self) -> float | None:
        """Prompt tokens of a call for each 0.01 of mean reward that it gains; None without a gain,
        or uncounted."""
        if self.trial is None or self.trial.effect <= 0 or not self.lesson.tokens:
            return None
        return self.lesson.tokens / (self.trial.effect / POINT)


def costs(s: Session, profile: str) -> list[Cost]:
    """The costs of every lesson of the profile, by id."""
    shown, tokens = col(Exposure.shown), case((col(Exposure.shown), LessonVersion.tokens), else_=0)
    calls = (
        select(Exposure.lesson_id, func.sum(case((shown, 1), else_=0)),
               func.sum(case((shown, 0), else_=1)), func.sum(tokens))
        .join(LessonVersion, version_of(Exposure))
        .join(Lesson, col(Lesson.id) == col(Exposure.lesson_id))
        .where(Lesson.profile == profile)
        .group_by(col(Exposure.lesson_id))
    )  # fmt: skip
    counts = {lesson_id: (x, y, z) for lesson_id, x, y, z in s.exec(calls)}
    measured = (  # a probe asks about an adapter, not about the text
        select(Trial)
        .join(Lesson, col(Lesson.id) == col(Trial.lesson_id))
        .join(LessonVersion, version_of(Trial))
        .where(Lesson.profile == profile, Trial.kind != TrialKind.PROBE)
        .where(LessonVersion.when == Lesson.when, LessonVersion.do == Lesson.do)
        .order_by(col(Trial.id))
    )
    newest = {trial.lesson_id: trial for trial in s.exec(measured)}
    return [
        Cost(lesson, *counts.get(lesson.id or 0, (0, 0, 0)), newest.get(lesson.id or 0))
        for lesson in db.listing(s, profile)
    ]


def clean_tasks_asking(
    s: Session, profile: str, taskset: str, lesson_id: int | None, after: int | None
) -> dict[str, str]:
    """key -> id of the tasks whose reflections asked for that very lesson, oldest first; only those
    of groups in which no rollout read outside bytes. `after`: the reflection that wrote the
    lesson."""
    dirty = exists().where(
        col(Rollout.run_id) == col(Reflection.run_id),
        col(Rollout.task_key) == col(Reflection.task_key),
        col(Rollout.trust) != Trust.CLEAN,
    )
    later = (
        select(Reflection, TaskRow.task_id)
        .join(Run, col(Run.id) == col(Reflection.run_id))
        .join(TaskRow, col(TaskRow.key) == col(Reflection.task_key))
        .where(Run.profile == profile, Run.taskset == taskset)
        .where(col(Reflection.id) > (after or 0), ~dirty)
        .order_by(col(Reflection.id))
    )
    wanted = {"lesson": lesson_id, "outcome": "known"}
    return {
        row.task_key: task_id
        for row, task_id in s.exec(later)
        if any(wanted.items() <= edit.items() for edit in row.edits)
    }
