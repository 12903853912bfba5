"""Checkpoints of trial estimates, so that a run reads only new rollouts.

The evidence on a lesson, or on the lessons of a taskset together, is a stream of rollouts. A run
that ends saves how far it has read each stream and the estimate so far (`Run.checkpoints`, of one
run for each model, adapter, measure and profile). It is a cache and no record: without it, or if
two runs have the same seed and so hold the same draws, the stream is read from its beginning.

Not covered: groups of a run that was still going when another one ended count as new ones after
that; the estimate stays unbiased, and loses a little of its precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.stats.confidence import EstimatorState
from reflect.store import runs, trials

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.records import Run

PAGE = 10_000  # rollouts in one query
COLUMNS = ("model_fingerprint", "adapter_id", "measure", "profile")

States = dict[str, EstimatorState]  # of streams, by their names


def columns_of(run: Run, names: tuple[str, ...] = COLUMNS) -> dict[str, object]:
    """These columns of a run, by name."""
    return {name: getattr(run, name) for name in names}


class TrialCheckpoint:
    """The saved streams of one model, adapter, measure and perhaps profile (`columns` of a Run)."""

    def __init__(self, columns: dict[str, object]) -> None:
        self._columns = columns
        self._states: States | None = None
        self._alone: set[int] = set()  # runs that share their seed with no other

    def load(self, s: Session, stream: str) -> EstimatorState | None:
        """The saved state of a stream; None if it is to be read from its beginning."""
        if self._states is None:
            self._states = {}
            for run in trials.holders(s, self._columns):
                self._states |= run.checkpoints or {}
        return self._states.get(stream)

    def twins(self, s: Session, run_ids: set[int]) -> bool:
        """Does one of the runs share its seed with another? Then it may repeat draws."""
        new = run_ids - self._alone
        if new and trials.twins(s, new):
            return True
        self._alone |= new
        return False


def save_checkpoint(s: Session, run: Run, states: States) -> None:
    """Save the states of a run that ends, and move to it what other runs have saved."""
    saved: States = {}
    for holder in trials.holders(s, columns_of(run)):
        saved |= holder.checkpoints or {}
        runs.note(s, holder.id, checkpoints=None)
    current = trials.streams(s, run.profile)
    merged = sorted((saved | states).items())  # the order does not depend on what was read first
    states = {name: x for name, x in merged if name in current or not name[0].isdigit()}
    if states:
        runs.note(s, run.id, checkpoints=states)
