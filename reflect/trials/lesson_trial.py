"""The trial of a lesson: its effect from the rollouts that it was shown to and withheld from, and
the verdicts that move it. No verdict moves a pinned lesson."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from reflect.records import SHOWN_STATUSES, Lesson, Run, Trial
from reflect.rollouts.episode import AUDIT
from reflect.stats.confidence import (
    USEFUL,
    BettingConfidenceSequence,
    Effect,
    EstimatorState,
    WithheldEstimator,
)
from reflect.store import lessons as db
from reflect.store import trials
from reflect.trials.checkpoints import PAGE, TrialCheckpoint
from reflect.trials.tournament import decide_duels, error_share
from reflect.types import Author, LessonStatus, TrialKind, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

MOVES: dict[str, str] = {"accept": LessonStatus.ACTIVE, "reject": LessonStatus.RETIRED}
Key = tuple[int, int]  # lesson id, the version from which on evidence counts
Reading = tuple[WithheldEstimator, set[tuple[str, int]], int]  # draws read, last exposure's id


@dataclass(frozen=True)
class TrialScope:
    """What a measured effect holds for: another model, adapter or version of the reward is another
    trial. Evidence from before versions of rewards were recorded ("") counts for nothing else."""

    model_fingerprint: str
    adapter_id: int | None = None
    measure: str = ""

    @classmethod
    def of(cls, run: Run) -> TrialScope:
        """The scope of a run."""
        return cls(run.model_fingerprint, run.adapter_id, run.measure)

    def columns(self) -> dict[str, object]:
        """As in a Trial, and in a Run."""
        return asdict(self)

    def trial(self, lesson: Lesson, version: int, kind: TrialKind) -> dict[str, object]:
        """The columns by which a Trial of the lesson from that version on is found."""
        return {"lesson_id": lesson.id, "version": version, "kind": kind} | self.columns()


class LessonTrials:
    """The evidence on lessons in one scope. It keeps what it has read, so that a wave reads its own
    rows only, and a run those that the last one has not (see `reflect.trials.checkpoints`).
    `compete`: lessons of one condition share an error rate (see `reflect.trials.tournament`)."""

    def __init__(self, scope: TrialScope, *, compete: bool = False) -> None:
        self.scope = scope
        self.compete = compete
        self._read: dict[Key, Reading] = {}
        self._audits: dict[Key, WithheldEstimator] = {}
        self._checkpoint: TrialCheckpoint | None = TrialCheckpoint(scope.columns())

    def update(self, s: Session, lesson: Lesson) -> tuple[int, WithheldEstimator]:
        """Read new evidence: (the version from which on it counts, the estimate from all of it)."""
        version, scope = trials.since(s, lesson), self.scope
        key = (lesson.id or 0, version)
        estimator, draws, last = self._read[key] if key in self._read else self._load(s, key)
        where = (scope.model_fingerprint, scope.adapter_id, scope.measure)
        while rows := trials.observations(s, lesson.id, version, *where, last, PAGE):
            if self._checkpoint and self._checkpoint.twins(s, {row.run_id for row in rows}):
                self._checkpoint, self._read, self._audits = None, {}, {}  # anew, draw by draw
                return self.update(s, lesson)
            for row in rows:
                draw, group = (row.task_key, row.seed), (row.run_id, row.task_key)
                if draw in draws:  # two runs with one seed hold the same draws: they count once
                    continue
                draws.add(draw)
                estimator.update(group, row.shown, row.probability, row.reward)
                if AUDIT in row.parts:
                    audit = self._audits.setdefault(key, WithheldEstimator())
                    audit.update(group, row.shown, row.probability, row.parts[AUDIT])
            last = rows[-1].exposure_id
            self._read[key] = estimator, draws, last
            if len(rows) < PAGE:
                break
        return version, estimator

    def _load(self, s: Session, key: Key) -> Reading:
        state = self._checkpoint.load(s, f"{key[0]}:{key[1]}") if self._checkpoint else None
        if state and "audit" in state:
            self._audits[key] = WithheldEstimator(state["audit"])
        return WithheldEstimator(state), set(), state["last"] if state else 0

    def states(self) -> dict[str, EstimatorState]:
        """What it has read, by stream, for a checkpoint."""
        states = {}
        for key, (estimator, _, last) in self._read.items():
            state: EstimatorState = {"last": last, **estimator.state()}
            if key in self._audits:
                state["audit"] = self._audits[key].state()
            states[f"{key[0]}:{key[1]}"] = state
        return states

    def judge(
        self, s: Session, lesson_ids: Sequence[int], run_id: int | None, *, move: bool = True
    ) -> None:
        """Record the effects and, at a verdict, move the lessons: in the transaction that saves the
        rollouts, so interruptions of a run do not change what a verdict rests on."""
        for lesson_id in sorted(set(lesson_ids)):
            lesson = db.get(s, lesson_id)
            version, estimator = self.update(s, lesson)
            if estimator.n:
                share = error_share(s, lesson, version) if self.compete else 1.0
                effect = audited(estimator.result(share), self._audits.get((lesson_id, version)))
                columns = self.scope.trial(lesson, version, TrialKind.WITHHOLD)
                trial = trials.open_trial(s, columns)
                trial.run_id = run_id
                record_trial(s, trial, lesson, effect, move=move)
        if self.compete and move:
            decide_duels(s, sorted(set(lesson_ids)), self.scope.columns())


def audited(effect: Effect, audit: BettingConfidenceSequence | None) -> Effect:
    """What the reward accepts the hidden metric must accept too, if the taskset has one. A gain
    that is proven not to exist there is a reward hack: reject."""
    if audit is None or effect.verdict != TrialVerdict.ACCEPT:
        return effect
    return replace(effect, verdict=audit.verdict())


def record_trial(
    s: Session, trial: Trial, lesson: Lesson, effect: Effect, *, move: bool = True
) -> Trial:
    """Save the effect; an accepted candidate becomes active, a rejected shown lesson retired."""
    trial.n, trial.verdict = effect.n, effect.verdict
    # rounded: the last bits depend on how many rollouts were summed at a time
    for name in ("effect", "low", "high"):
        setattr(trial, name, round(getattr(effect, name), 6))
    status = MOVES.get(effect.verdict, lesson.status)
    if move and not lesson.pinned and lesson.status in SHOWN_STATUSES and status != lesson.status:
        reason = verdict_reason(effect, trial.kind)
        moved = db.revise(s, lesson.id, author=Author.TRIAL, reason=reason, status=status)
        trial.moved = moved.version
    s.add(trial)
    s.flush()
    return trial


def verdict_reason(effect: Effect, kind: str) -> str:
    """Why a verdict moves a lesson."""
    reject = "it does harm" if effect.high < 0 else f"it brings less than {USEFUL}"
    if effect.low > 0:
        reject = "it raises the reward and not the hidden metric"
    reasons = {TrialVerdict.ACCEPT: "it helps", TrialVerdict.REJECT: reject}
    what = "pairs" if kind == TrialKind.PAIRED else "rollouts"
    return f"{reasons.get(effect.verdict, 'undecided')}: {effect} over {effect.n} {what}"
