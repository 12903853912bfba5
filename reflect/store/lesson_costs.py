"""What a lesson costs, against what it was measured to bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, case
from sqlmodel import Session, col, func, select

from reflect.records import Exposure, Lesson, LessonVersion, Rollout, TaskRow, Trial
from reflect.store import lessons as db

POINT = 0.01  # of reward


@dataclass(frozen=True)
class Cost:
    """One lesson. `trial` is the newest one of its present text, None where that was never
    measured."""

    lesson: Lesson
    shown: int  # calls whose prompt held it
    withheld: int  # calls from which it was left out at random
    paid: int  # prompt tokens in all, each call at the length that it had then
    trial: Trial | None

    @property
    def tokens_per_point(self) -> float | None:
        """Prompt tokens of a call for each 0.01 of mean reward that it gains; None without a gain,
        or uncounted."""
        if self.trial is None or self.trial.effect <= 0 or not self.lesson.tokens:
            return None
        return self.lesson.tokens / (self.trial.effect / POINT)


def costs(s: Session, profile: str) -> list[Cost]:
    """Of every lesson of the profile, by id."""
    calls = (
        select(
            Exposure.lesson_id,
            func.sum(case((col(Exposure.shown), 1), else_=0)),
            func.sum(case((col(Exposure.shown), 0), else_=1)),
            func.sum(case((col(Exposure.shown), LessonVersion.tokens), else_=0)),
        )
        .join(
            LessonVersion,
            and_(
                col(LessonVersion.lesson_id) == col(Exposure.lesson_id),
                col(LessonVersion.version) == col(Exposure.version),
            ),
        )
        .join(Lesson, col(Lesson.id) == col(Exposure.lesson_id))
        .where(Lesson.profile == profile)
        .group_by(col(Exposure.lesson_id))
    )
    counted = {
        lesson_id: (shown, withheld, paid) for lesson_id, shown, withheld, paid in s.exec(calls)
    }
    measured = _measured(s, profile)
    return [
        Cost(lesson, *counted.get(lesson.id or 0, (0, 0, 0)), measured.get(lesson.id or 0))
        for lesson in db.listing(s, profile)
    ]


def mean_tokens(s: Session, tasksets: Sequence[str]) -> float:
    """Tokens of an attempt at these tasksets, prompt and answer, on average over all that were
    made; 0 for none."""
    found = (
        select(func.avg(col(Rollout.prompt_tokens) + col(Rollout.completion_tokens)))
        .join(TaskRow, col(TaskRow.key) == col(Rollout.task_key))
        .where(col(TaskRow.taskset).in_(tasksets), col(Rollout.error).is_(None))
    )
    return float(s.exec(found).one() or 0.0)


def _measured(s: Session, profile: str) -> dict[int, Trial]:
    """lesson id -> its newest trial of the text that stands now. A probe asks about an adapter, not
    about the text."""
    found = (
        select(Trial)
        .join(Lesson, col(Lesson.id) == col(Trial.lesson_id))
        .join(
            LessonVersion,
            and_(
                col(LessonVersion.lesson_id) == col(Trial.lesson_id),
                col(LessonVersion.version) == col(Trial.version),
            ),
        )
        .where(Lesson.profile == profile, Trial.kind != "probe")
        .where(LessonVersion.when == Lesson.when, LessonVersion.do == Lesson.do)
        .order_by(col(Trial.id))
    )
    return {trial.lesson_id: trial for trial in s.exec(found)}
