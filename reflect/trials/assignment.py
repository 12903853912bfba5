"""Random withholding of lessons: every rollout is an experiment.

A candidate is withheld from half of the rollouts in which it would be in the prompt, an active or
pinned lesson from a tenth; a small share of the rollouts misses all lessons. The draws are hashes,
so a run that is continued draws the same, and each lesson is drawn on its own, except candidates
for one condition: see `reflect.trials.tournament`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from reflect.records import SHOWN_STATUSES, Exposure, Lesson
from reflect.rollouts.runner import Part
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import lessons as db
from reflect.store import trials
from reflect.trials.tournament import compete, rival_sets
from reflect.types import LessonStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.tasksets.task import Task


class Assignment(NamedTuple):
    """Whether a rollout keeps its lessons (`Rollout.bundle_shown`), and the probability of that."""

    shown: bool
    probability: float

    def applied(self, exposures: list[Exposure]) -> list[Exposure]:
        """The exposures of the rollout: if all lessons are withheld, each has probability 0."""
        for exposure in exposures if not self.shown else ():
            exposure.shown, exposure.probability = False, 0.0
        return exposures


def draw(
    lessons: Sequence[Lesson], settings: Settings, seed: int, task_key: str, index: int
) -> Assignment:
    """Draw whether rollout `index` of the task keeps its lessons."""
    share = settings.withhold_bundle if settings.trials and lessons else 0.0
    return Assignment(_uniform(f"{seed}/{task_key}/{index}/bundle") >= share, 1.0 - share)


def withhold(
    lessons: Sequence[Lesson], settings: Settings, seed: int, task_key: str, index: int
) -> list[Exposure]:
    """Draw which lessons of the prompt rollout `index` of the task sees: one exposure for each."""
    key = f"{seed}/{task_key}/{index}"
    exposures = [_exposure(x, settings, f"{key}/{x.id}") for x in lessons]
    if settings.trials and settings.proposals > 1:
        rows = {exposure.lesson_id: exposure for exposure in exposures}
        for rivals in rival_sets(lessons):
            compete(rivals, rows, _uniform(f"{key}/rivals/{rivals.when}"))
    return exposures


def _exposure(lesson: Lesson, settings: Settings, key: str) -> Exposure:
    on_trial = lesson.status == LessonStatus.CANDIDATE and not lesson.pinned
    share = settings.withhold_candidate if on_trial else settings.withhold_active
    share = share if settings.trials else 0.0
    shown, ids = _uniform(key) >= share, {"lesson_id": lesson.id or 0, "version": lesson.version}
    return Exposure(rollout_id=0, **ids, shown=shown, probability=1.0 - share)


def _uniform(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(f"withhold/{key}".encode()).digest()[:8], "big") / 2**64


class LazyAssignment(list[Exposure]):
    """The exposures of a rollout whose lessons are chosen at each turn: each lesson is drawn once,
    when it is first chosen, and then shown or withheld for the whole rollout. Whether it is chosen
    does not depend on its own draw, so the estimate is unbiased."""

    def __init__(
        self, draw: Assignment, settings: Settings, seed: int, task_key: str, index: int
    ) -> None:
        super().__init__()
        self._draw, self._key = draw, (settings, seed, task_key, index)

    def of(self, lessons: PerTurnLessons) -> PerTurnLessons:
        """The lessons without those that are withheld from the rollout."""
        at = lessons.at
        return PerTurnLessons(lessons, lambda state: list(filter(self.shows, at(state))))

    def shows(self, lesson: Lesson) -> bool:
        """Whether the lesson is shown; drawn at the first call."""
        for exposure in self:
            if exposure.lesson_id == lesson.id:
                return exposure.shown
        self += self._draw.applied(withhold([lesson], *self._key))
        return self[-1].shown


def parts_of(
    task: Task, lessons: Sequence[Lesson], exposures: Sequence[Sequence[Exposure]]
) -> list[Part]:
    """The rollouts of a task, grouped by their lessons; `exposures`: of each rollout.

    If lessons are chosen at each turn, each rollout is a part, and its exposures are added while it
    runs (see `LazyAssignment`).
    """
    if isinstance(lessons, PerTurnLessons):
        lazy = [(i, one) for i, one in enumerate(exposures) if isinstance(one, LazyAssignment)]
        return [Part(task, one.of(lessons), [i]) for i, one in lazy]
    alike: dict[tuple[bool, ...], list[int]] = {}
    for index, rows in enumerate(exposures):
        alike.setdefault(tuple(row.shown for row in rows), []).append(index)
    return [
        Part(task, [x for x, shown in zip(lessons, subset, strict=True) if shown], indices)
        for subset, indices in alike.items()
    ]


def shown_to(
    s: Session, run_id: int | None, task_keys: Sequence[str]
) -> dict[str, tuple[list[Lesson], frozenset[int]]]:
    """task -> (the lessons that its rollouts saw and that are still shown, the indices of the
    rollouts that missed one of theirs). Read from the rows, so that a run that is continued after a
    verdict reflects on the same as one that was not interrupted."""
    shown = {}
    current: dict[tuple[int, int], Lesson | None] = {}  # most tasks have the same lessons
    for key, rows in trials.exposed(s, run_id, task_keys).items():
        seen = {exposure.lesson_id: exposure.version for _, exposure in rows if exposure.shown}
        for pair in seen.items():
            if pair not in current:
                head, was = db.get(s, pair[0]), db.version(s, *pair)
                same = (head.when, head.do) == (was.when, was.do)
                current[pair] = head if same and head.status in SHOWN_STATUSES else None
        lessons = [lesson for pair in sorted(seen.items()) if (lesson := current[pair])]
        shown[key] = lessons, frozenset(index for index, exposure in rows if not exposure.shown)
    return shown
