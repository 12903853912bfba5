"""The bundle: are prompts better with all their lessons than with none?

A lesson is judged where it is shown, the bundle on the whole suite. A small share of the rollouts
with lessons in their prompt misses all of them together; the contrast between these and the others
is the effect of the bundle as runs show it (each lesson in it may be withheld from some of the
others by itself). It adds up over the runs of one taskset, profile, model, adapter and measure, and
is kept in `Run.bundle`. A rollout that missed all lessons is no evidence on a single one: there its
exposures have probability 0.

If the bundle is proven to do harm, the lessons of the taskset leave the prompt, except those that
were accepted by themselves and those that a person has pinned; then the evidence begins anew,
because it was about other lessons. A bundle that merely brings little changes nothing: which of its
lessons is the cause follows from their own trials.

Not covered: general lessons (they serve other tasksets too), a hidden metric (single lessons must
pass it), and a lesson that joins while the evidence gathers (it shares the others' result).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflect.records import SHOWN_STATUSES, Run
from reflect.stats.confidence import USEFUL, Effect, EstimatorState, WithheldEstimator
from reflect.store import lessons as db
from reflect.store import runs, trials
from reflect.trials.checkpoints import COLUMNS, PAGE, TrialCheckpoint, columns_of
from reflect.types import Author, LessonStatus, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlmodel import Session


class Bundle:
    """The evidence on all lessons of a run's taskset together; like `LessonTrials` it reads on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stream = f"bundle of {run.taskset}"
        self._estimator = WithheldEstimator()
        self._draws: set[tuple[str, int]] = set()
        self._since, self._last = -1, 0
        self._checkpoint: TrialCheckpoint | None = TrialCheckpoint(columns_of(run))

    def update(self, s: Session) -> Effect:
        """Read new evidence: the effect since the bundle was last found to do harm."""
        since = trials.bundle_since(s, self.run)
        if since > self._since:
            self._estimator, self._draws = WithheldEstimator(), set()
            self._since = self._last = since
            state = self._checkpoint.load(s, self._stream) if self._checkpoint else None
            if state and state["since"] == since:
                self._estimator, self._last = WithheldEstimator(state), state["last"]
        while rows := trials.bundle_observations(s, self.run, self._last, PAGE):
            if self._checkpoint and self._checkpoint.twins(s, {row.run_id for row in rows}):
                self._checkpoint, self._since = None, -1  # anew, draw by draw
                return self.update(s)
            for row in rows:
                if (row.task_key, row.seed) not in self._draws:
                    self._draws.add((row.task_key, row.seed))
                    group = (row.run_id, row.task_key)
                    self._estimator.update(group, row.shown, row.probability, row.reward)
            self._last = rows[-1].rollout_id
            if len(rows) < PAGE:
                break
        return self._estimator.result()

    def states(self) -> dict[str, EstimatorState]:
        """What it has read, for a checkpoint."""
        if not self._estimator.n:
            return {}
        own = self._estimator.state()
        return {self._stream: {"last": self._last, **own, "since": self._since}}

    def judge(self, s: Session, *, move: bool = True) -> None:
        """Record the effect of the bundle, inside the transaction that saves the rollouts; if it
        does harm, retire the lessons that are not proven. `move=False` only records."""
        effect = self.update(s)
        run = runs.get_run(s, self.run.id)
        if not effect.n:
            return
        figures: dict[str, object] = {
            x: round(getattr(effect, x), 6) for x in ("effect", "low", "high")
        }
        figures |= {"n": effect.n, "verdict": effect.verdict}
        harm = run.bundle.get("harm", [])
        if move and effect.verdict == TrialVerdict.REJECT and effect.high < 0:
            figures |= {"retired": self._retire(s, effect), "since": self._last}
            harm = [*harm, dict(figures)]
        run.bundle = figures | ({"harm": harm} if harm else {})
        s.add(run)
        s.flush()

    def _retire(self, s: Session, effect: Effect) -> list[list[int]]:
        """[lesson id, version] of those that were retired."""
        run, retired = self.run, []
        reason = f"all lessons of {run.taskset} together do harm: {effect} over {effect.n} rollouts"
        for lesson in db.listing(s, run.profile, SHOWN_STATUSES, run.taskset):
            if not lesson.pinned and not trials.accepted(s, lesson, columns_of(run, COLUMNS[:3])):
                status = LessonStatus.RETIRED
                row = db.revise(s, lesson.id, author=Author.TRIAL, reason=reason, status=status)
                retired.append([row.id or 0, row.version])
        return retired


def describe(bundle: Mapping[str, Any], what: str = "rollouts") -> str:
    """`Run.bundle` as a sentence; "" if it is empty."""
    if not bundle:
        return ""
    effect = Effect(*(bundle[name] for name in ("effect", "low", "high", "n", "verdict")))
    little = f"they bring less than {USEFUL}; nothing is changed by that"
    reject = "they do harm" if effect.high < 0 else little
    results = {TrialVerdict.ACCEPT: "they help", TrialVerdict.REJECT: reject}
    result = results.get(effect.verdict, "undecided")
    retired = sum(len(harm["retired"]) for harm in bundle.get("harm", ()))
    before = f"; it did harm before: {retired} lessons were retired" if "harm" in bundle else ""
    return f"all lessons together {effect} over {effect.n} {what}: {result}{before}"
