"""Every rollout is an experiment: which lessons to withhold from it, and what becomes of a lesson
by the results.

A candidate is withheld from half of the rollouts in which it would stand in the prompt, an active
lesson from a tenth; so is a pinned one, to tell a person what it is worth, but no verdict moves
what a person has pinned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlmodel import Session

from reflect.config import Settings
from reflect.records import SHOWN_STATUSES, Exposure, Lesson, LessonVersion, Trial
from reflect.rollouts.runner import AUDIT, Part
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.stats.confidence import USEFUL, Effect, PairedEstimator, WithheldEstimator
from reflect.store import lessons as db
from reflect.store import trials
from reflect.tasksets.task import Task
from reflect.trials.bundle import Assignment
from reflect.trials.checkpoints import AT_ONCE, TrialCheckpoint, state_of

# -- withholding
# -------------------------------------------------------------------------------------------------------


def withhold(
    lessons: Sequence[Lesson], settings: Settings, seed: int, task_key: str, index: int
) -> list[Exposure]:
    """One exposure for each lesson of a prompt: is it shown to rollout `index` of the task, and
    with what chance?

    A hash draws it: a run that is continued draws the same, and each lesson is drawn on its own.
    """
    return [
        _exposure(lesson, settings, f"{seed}/{task_key}/{index}/{lesson.id}") for lesson in lessons
    ]


class LazyAssignment(list[Exposure]):
    """The exposures of a rollout whose lessons are chosen at each turn: each lesson is drawn once,
    when it is first chosen, and then shown or withheld for the whole rollout. (Whether it comes to
    be chosen does not hang on its own draw, so the contrast stays fair.)"""

    def __init__(
        self, draw: Assignment, settings: Settings, seed: int, task_key: str, index: int
    ) -> None:
        super().__init__()
        self._draw = draw
        self._words = (settings, seed, task_key, index)

    def of(self, lessons: PerTurnLessons) -> PerTurnLessons:
        """The lessons without those that are withheld from the rollout."""
        return PerTurnLessons(
            lessons, lambda state: [lesson for lesson in lessons.at(state) if self.keeps(lesson)]
        )

    def keeps(self, lesson: Lesson) -> bool:
        """Is it shown?"""
        found = next((exposure for exposure in self if exposure.lesson_id == lesson.id), None)
        if found is None:
            (found,) = self._draw.applied(withhold([lesson], *self._words))
            self.append(found)
        return found.shown


def _exposure(lesson: Lesson, settings: Settings, words: str) -> Exposure:
    share = settings.withhold_candidate
    if lesson.pinned or lesson.status != "candidate":
        share = settings.withhold_active
    if not settings.trials:
        share = 0.0
    digest = hashlib.sha256(f"withhold/{words}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    shown = draw >= share
    return Exposure(
        rollout_id=0,
        lesson_id=lesson.id or 0,
        version=lesson.version,
        shown=shown,
        probability=1.0 - share,
    )


def parts_of(
    task: Task, lessons: Sequence[Lesson], drawn: Sequence[Sequence[Exposure]]
) -> list[Part]:
    """The rollouts of a task, those with the same lessons together; `drawn` has the exposures of
    each.

    Where lessons are chosen at each turn every rollout is for itself, and its exposures come while
    it runs (`LazyAssignment`).
    """
    if isinstance(lessons, PerTurnLessons):
        return [
            Part(task, one.of(lessons), [i])
            for i, one in enumerate(drawn)
            if isinstance(one, LazyAssignment)
        ]
    alike: dict[tuple[bool, ...], list[int]] = {}
    for index, exposures in enumerate(drawn):
        alike.setdefault(tuple(exposure.shown for exposure in exposures), []).append(index)
    return [
        Part(
            task, [lesson for lesson, shown in zip(lessons, subset, strict=True) if shown], indices
        )
        for subset, indices in alike.items()
    ]


def shown_to(
    s: Session, run_id: int | None, task_keys: Sequence[str]
) -> dict[str, tuple[list[Lesson], frozenset[int]]]:
    """task -> (the lessons that its rollouts saw and that still stand, the rollouts that missed one
    of theirs). Read from the rows, so that a run that is continued after a verdict reviews what one
    that was not would review."""
    found = {}
    texts: dict[
        tuple[int, int], tuple[Lesson, LessonVersion]
    ] = {}  # most tasks of a wave have the same lessons
    for key, rows in trials.exposed(s, run_id, task_keys).items():
        seen = {exposure.lesson_id: exposure.version for _, exposure in rows if exposure.shown}
        for pair in seen.items():
            if pair not in texts:
                texts[pair] = db.get(s, pair[0]), db.version(s, *pair)
        heads = [texts[pair] for pair in sorted(seen.items())]
        lessons = [
            head
            for head, was in heads
            if head.status in SHOWN_STATUSES and (head.when, head.do) == (was.when, was.do)
        ]
        found[key] = lessons, frozenset(index for index, exposure in rows if not exposure.shown)
    return found


# -- verdicts
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialScope:
    """What a measured effect holds for: another model, adapter or meaning of the reward is another
    trial. Evidence of before `measure` was recorded ("") holds for nothing else: it begins anew
    once."""

    fingerprint: str
    adapter_id: int | None = None
    measure: str = ""

    def words(self) -> dict[str, Any]:
        """As in a Trial, and in a Run."""
        return {
            "model_fingerprint": self.fingerprint,
            "adapter_id": self.adapter_id,
            "measure": self.measure,
        }


class LessonTrials:
    """The evidence on lessons, for one model, adapter and measure. It remembers what it has read,
    so that a wave reads its own rows only, and a run those that the last one has not (see
    `heard`)."""

    def __init__(self, holds: TrialScope) -> None:
        self.holds = holds
        self._seen: dict[tuple[int, int], tuple[WithheldEstimator, set[tuple[str, int]], int]] = {}
        self._audits: dict[tuple[int, int], WithheldEstimator] = {}
        self._heard: TrialCheckpoint | None = TrialCheckpoint(holds.words())

    def hear(self, s: Session, lesson: Lesson) -> tuple[int, WithheldEstimator]:
        """(the version from which on evidence counts, all of it so far)."""
        version = trials.since(s, lesson)
        key = (lesson.id or 0, version)
        contrast, seeds, last = self._seen[key] if key in self._seen else self._begin(s, key)
        words = {**self.holds.words(), "limit": AT_ONCE}
        while rows := trials.observations(s, lesson.id, version, **words, after=last):
            if self._heard and self._heard.twins(s, {row.run_id for row in rows}):
                self._heard, self._seen, self._audits = None, {}, {}  # all anew, draw by draw
                return self.hear(s, lesson)
            for row in rows:
                draw = (row.task_key, row.seed)
                if (
                    draw not in seeds
                ):  # two runs with one seed hold the same draws: once is all they say
                    seeds.add(draw)
                    group = (row.run_id, row.task_key)
                    contrast.update(group, row.shown, row.probability, row.reward)
                    if AUDIT in row.parts:
                        audit = self._audits.setdefault(key, WithheldEstimator())
                        audit.update(group, row.shown, row.probability, row.parts[AUDIT])
            last = rows[-1].exposure_id
            self._seen[key] = contrast, seeds, last
            if len(rows) < AT_ONCE:
                break
        return version, contrast

    def _begin(
        self, s: Session, key: tuple[int, int]
    ) -> tuple[WithheldEstimator, set[tuple[str, int]], int]:
        state = self._heard.begin(s, f"{key[0]}:{key[1]}") if self._heard else {}
        if not state:
            return WithheldEstimator(), set(), 0
        if "audit" in state:
            self._audits[key] = WithheldEstimator.of(state["audit"])
        return WithheldEstimator.of(state), set(), state["last"]

    def states(self) -> dict[str, Any]:
        """What it has heard, by stream."""
        found = {}
        for key, (contrast, _, last) in self._seen.items():
            audit = {"audit": self._audits[key].state()} if key in self._audits else {}
            found[f"{key[0]}:{key[1]}"] = state_of(contrast, last, **audit)
        return found

    def judge(
        self, s: Session, lesson_ids: Sequence[int], run_id: int | None, *, move: bool = True
    ) -> None:
        """Write down the effect of these lessons and, where a verdict has fallen, move them: inside
        the transaction that saves the rollouts, so that a verdict rests on the same evidence
        however often a run was interrupted."""
        for lesson_id in sorted(set(lesson_ids)):
            lesson = db.get(s, lesson_id)
            version, contrast = self.hear(s, lesson)
            if contrast.n:
                effect, audit = contrast.result(), self._audits.get((lesson_id, version))
                record_trial(
                    s,
                    lesson,
                    audited(effect, audit),
                    "withhold",
                    version,
                    self.holds,
                    run_id,
                    move=move,
                )


def audited(effect: Effect, audit: WithheldEstimator | PairedEstimator | None) -> Effect:
    """What is accepted by the reward must be accepted by the hidden metric too, where the taskset
    has one. A gain that is proven to vanish there is a reward hack: reject."""
    if audit is None or effect.verdict != "accept":
        return effect
    return replace(effect, verdict=audit.verdict())


def record_trial(
    s: Session,
    lesson: Lesson,
    effect: Effect,
    kind: str,
    version: int,
    holds: TrialScope,
    run_id: int | None = None,
    *,
    move: bool = True,
) -> Trial:
    """Save the trial; candidate -> active when it is accepted, candidate or active -> retired when
    it is rejected."""
    words = {"lesson_id": lesson.id, "version": version, "kind": kind} | holds.words()
    trial = trials.open_trial(s, words) if kind == "withhold" else trials.new_trial(words)
    trial.n, trial.verdict, trial.run_id = effect.n, effect.verdict, run_id
    # Rounded: the last bits depend on how many rollouts were summed at a time.
    trial.effect, trial.low, trial.high = (
        round(effect.effect, 6),
        round(effect.low, 6),
        round(effect.high, 6),
    )
    status = {"accept": "active", "reject": "retired"}.get(effect.verdict, lesson.status)
    if move and not lesson.pinned and lesson.status in SHOWN_STATUSES and status != lesson.status:
        moved = db.revise(
            s, lesson.id, author="trial", reason=in_words(effect, kind), status=status
        )
        trial.moved = moved.version
    s.add(trial)
    s.flush()
    return trial


def in_words(effect: Effect, kind: str) -> str:
    """Why a verdict moves a lesson."""
    what = "pairs" if kind == "paired" else "rollouts"
    said = {
        "accept": "it helps",
        "reject": "it does harm" if effect.high < 0 else f"it brings less than {USEFUL}",
    }
    if effect.verdict == "reject" and effect.low > 0:
        said["reject"] = "it raises the reward and not what the reward stands for"
    return f"{said.get(effect.verdict, 'undecided')}: {effect} over {effect.n} {what}"
