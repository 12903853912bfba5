"""What the trials of a profile have shown about its reviews: (group, edit) pairs with a verdict.

A review is a target where each lesson that it wrote was accepted, and contrast where each was
rejected. A lesson whose text has changed since counts by the text that was tried. Attempts that
read bytes from outside teach nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from sqlmodel import Session, col, select

from reflect.day.reflection import Group
from reflect.errors import UnknownName
from reflect.records import Lesson, Reflection, Run, Trial
from reflect.store import lessons, runs
from reflect.tasksets.task import Task
from reflect.trials.assignment import shown_to
from reflect.types import LessonStatus, TrialVerdict, Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.types import Json

WRITES = ("add", "revise", "merge")


class MeasuredReview(NamedTuple):
    """A group, the edits of its review as JSON, and what their lessons did."""

    group: Group
    analysis: str
    edits: list[Json]
    lessons: list[int]
    effect: float
    """The mean measured effect on the reward; below 0 where the lessons were rejected."""
    accepted: bool


def measured_reviews(s: Session, profile: str) -> list[MeasuredReview]:
    """The reviews of the profile whose lessons all have the same verdict, oldest first. Lessons
    that a person has revoked are left out."""
    query = select(Reflection, Run).join(Run, col(Reflection.run_id) == col(Run.id))
    rows = s.exec(query.where(Run.profile == profile).order_by(col(Reflection.id)))
    return [review for row, run in rows if (review := _measured(s, row, run))]


def _measured(s: Session, row: Reflection, run: Run) -> MeasuredReview | None:
    edits, ids, trials = [], [], []
    for edit in row.edits:
        lesson_id = edit.get("lesson")
        if edit.get("kind") not in WRITES or not isinstance(lesson_id, int):
            continue
        trial = _verdict(s, lesson_id, str(edit.get("when")), str(edit.get("do")))
        if trial is None:
            return None
        edits.append(_as_json(edit))
        ids.append(lesson_id)
        trials.append(trial)
    verdicts = {trial.verdict for trial in trials}
    if len(verdicts) != 1:
        return None
    effect = sum(trial.effect for trial in trials) / len(trials)
    group = _group(s, row, run)
    accepted = verdicts == {TrialVerdict.ACCEPT}
    if group is None:
        return None
    return MeasuredReview(group, _analysis(row.raw), edits, ids, effect, accepted)


def _verdict(s: Session, lesson_id: int, when: str, do: str) -> Trial | None:
    """The newest trial with a verdict of this text of the lesson, unless a person revoked it."""
    lesson = s.get(Lesson, lesson_id)
    if lesson is None or (lesson.status == LessonStatus.RETIRED and lesson.pinned):
        return None
    trials = s.exec(
        select(Trial).where(Trial.lesson_id == lesson_id).order_by(col(Trial.id).desc())
    )
    for trial in trials:
        version = lessons.version(s, lesson_id, trial.version)
        if trial.verdict != TrialVerdict.UNDECIDED and (version.when, version.do) == (when, do):
            return trial
    return None


def _as_json(edit: Json) -> Json:
    """A stored edit in the form of `reflect.lessons.edit_json`. A revision of a lesson that the
    later reader of the group may not see is a new lesson to it."""
    return {"edit": "add", "when": edit["when"], "do": edit["do"]}


def _group(s: Session, row: Reflection, run: Run) -> Group | None:
    """The group as the reflection saw it, without lessons, since the edits are additions."""
    try:
        content = runs.task(s, row.task_key).content
    except UnknownName:
        return None
    task = Task(**content)
    rollouts = runs.groups(s, run.id, [row.task_key])[row.task_key]
    missed = shown_to(s, run.id, [row.task_key]).get(row.task_key, ([], frozenset()))[1]
    group = Group(task, [], [], rollouts, missed, reviewer="reviewer")
    usable = group.trust == Trust.CLEAN and any(r.reward is not None for r in rollouts)
    return group if usable else None


def _analysis(raw: str) -> str:
    """The analysis in a JSON answer, "" in any other."""
    try:
        value = json.loads(raw)
    except ValueError:
        return ""
    return str(value.get("analysis", "")) if isinstance(value, dict) else ""


def split(reviews: Sequence[MeasuredReview]) -> tuple[list[MeasuredReview], list[MeasuredReview]]:
    """(to train on, held out): every fifth task is held out, so that no task is in both."""
    keys = list(dict.fromkeys(review.group.task.key for review in reviews))
    held = set(keys[4::5])
    train = [review for review in reviews if review.group.task.key not in held]
    return train, [review for review in reviews if review.group.task.key in held]
