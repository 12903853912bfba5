"""The second level of the gate: are prompts better with their lessons than with none of them?

A lesson is judged where it fires, the bundle on the whole suite. A small share of the rollouts with
lessons in their prompt misses all of them together; the contrast between these and the others is
the effect of the bundle as runs show it (each lesson in it may be withheld from some of the others
by itself). It adds up over the runs of one taskset, profile, model, adapter and measure, and is
kept in `Run.bundle`. A rollout that missed all lessons says nothing of a single one: there its
exposures have probability 0.

Where the bundle is proven to do harm, the lessons of the taskset leave the prompt, but for those
that were accepted by themselves and those that a person has pinned; then the evidence begins anew,
lest it fall on lessons that it does not speak of. A bundle that merely brings little changes
nothing: which of its lessons is to blame is for their own trials to say.

Not covered: general lessons (they serve other tasksets too), a hidden metric (single lessons must
pass it), and a lesson that joins while the evidence gathers (it shares the others' fate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlmodel import Session

from reflect.config import Settings
from reflect.records import SHOWN_STATUSES, Exposure, Lesson, Run
from reflect.stats.confidence import USEFUL, Effect, WithheldEstimator
from reflect.store import lessons as db
from reflect.store import runs, trials
from reflect.trials.checkpoints import AT_ONCE, TrialCheckpoint, state_of


class Assignment(NamedTuple):
    """Does a rollout keep its lessons, and with what chance? As in `Rollout.bundle_shown`,
    `bundle_probability`."""

    shown: bool
    probability: float

    def applied(self, exposures: list[Exposure]) -> list[Exposure]:
        """The exposures of the rollout: where all lessons are withheld, none of them had a
        chance."""
        for exposure in exposures if not self.shown else ():
            exposure.shown, exposure.probability = False, 0.0
        return exposures


def draw(
    lessons: Sequence[Lesson], settings: Settings, seed: int, task_key: str, index: int
) -> Assignment:
    """Drawn by a hash, as single lessons are: a run that is continued draws the same."""
    share = settings.withhold_bundle if settings.trials and lessons else 0.0
    digest = hashlib.sha256(f"withhold/{seed}/{task_key}/{index}/bundle".encode()).digest()
    return Assignment(int.from_bytes(digest[:8], "big") / 2**64 >= share, 1.0 - share)


class Bundle:
    """The evidence on all lessons of a run's taskset together. It remembers what it has read, as
    `trial.Court` does."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._contrast = WithheldEstimator()
        self._seeds: set[tuple[str, int]] = set()
        self._since, self._last = -1, 0
        words = {
            name: getattr(run, name)
            for name in ("model_fingerprint", "adapter_id", "measure", "profile")
        }
        self._heard: TrialCheckpoint | None = TrialCheckpoint(words)

    def hear(self, s: Session) -> Effect:
        """All evidence since the bundle was last found to do harm."""
        since = trials.bundle_since(s, self.run)
        if since > self._since:
            self._contrast, self._seeds, self._since, self._last = (
                WithheldEstimator(),
                set(),
                since,
                since,
            )
            state = self._heard.begin(s, f"bundle of {self.run.taskset}") if self._heard else {}
            if state and state["since"] == since:
                self._contrast, self._last = WithheldEstimator.of(state), state["last"]
        while rows := trials.bundle_observations(s, self.run, self._last, AT_ONCE):
            if self._heard and self._heard.twins(s, {row.run_id for row in rows}):
                self._heard, self._since = None, -1  # all anew, draw by draw
                return self.hear(s)
            for row in rows:
                if (row.task_key, row.seed) not in self._seeds:
                    self._seeds.add((row.task_key, row.seed))
                    self._contrast.update(
                        (row.run_id, row.task_key), row.shown, row.probability, row.reward
                    )
            self._last = rows[-1].rollout_id
            if len(rows) < AT_ONCE:
                break
        return self._contrast.result()

    def states(self) -> dict[str, Any]:
        """What it has heard, by stream."""
        if not self._contrast.n:
            return {}
        return {
            f"bundle of {self.run.taskset}": state_of(self._contrast, self._last, since=self._since)
        }

    def judge(self, s: Session, *, move: bool = True) -> None:
        """Write down what the bundle is worth, inside the transaction that saves the rollouts;
        where it does harm, retire the lessons that have not proven themselves. `move=False` only
        writes down."""
        effect = self.hear(s)
        run = runs.get_run(s, self.run.id)
        if not effect.n:
            return
        found: dict[str, Any] = {"effect": round(effect.effect, 6), "low": round(effect.low, 6)}
        found |= {"high": round(effect.high, 6), "n": effect.n, "verdict": effect.verdict}
        if move and harmful(effect):
            found |= {"retired": self._retire(s, effect), "since": self._last}
            run.bundle = {**found, "harm": [*run.bundle.get("harm", []), found]}
        else:
            run.bundle = found | ({"harm": run.bundle["harm"]} if "harm" in run.bundle else {})
        s.add(run)
        s.flush()

    def _retire(self, s: Session, effect: Effect) -> list[list[int]]:
        """[lesson id, version] of those that went."""
        run = self.run
        words = {
            "model_fingerprint": run.model_fingerprint,
            "adapter_id": run.adapter_id,
            "measure": run.measure,
        }
        gone = []
        for lesson in db.listing(s, run.profile, SHOWN_STATUSES, run.taskset):
            if not lesson.pinned and not trials.accepted(s, lesson, words):
                reason = f"all lessons of {run.taskset} together do harm: {effect} over {effect.n} rollouts"
                moved = db.revise(s, lesson.id, author="trial", reason=reason, status="retired")
                gone.append([lesson.id or 0, moved.version])
        return gone


def harmful(effect: Effect) -> bool:
    return effect.verdict == "reject" and effect.high < 0


def in_words(bundle: dict[str, Any], what: str = "rollouts") -> str:
    """`Run.bundle` as a sentence; "" where it is empty."""
    if not bundle:
        return ""
    effect = Effect(*(bundle[name] for name in ("effect", "low", "high", "n", "verdict")))
    little = f"they bring less than {USEFUL}; nothing is changed by that"
    said = {"accept": "they help", "reject": "they do harm" if effect.high < 0 else little}
    text = f"all lessons together {effect} over {effect.n} {what}: {said.get(effect.verdict, 'undecided')}"
    gone = sum(len(harm["retired"]) for harm in bundle.get("harm", ()))
    return text + (f"; it did harm before: {gone} lessons were retired" if "harm" in bundle else "")
