"""What was made of the evidence so far, so that a run does not hear all of it again.

The evidence on a lesson, or on the lessons of a taskset together, is a stream of rollouts. A run
that ends leaves behind how far it has heard each stream and what it made of it (`Run.checkpoints`,
with one run for each model, adapter, measure and profile). It is a memory and no record: without
it, or where two runs had the same seed and so hold the same draws, the stream is heard from its
beginning.

Not covered: groups of a run that was still going when another one ended count as new ones after
that; the estimate stays unbiased, and loses a little of its precision.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from reflect.records import Run
from reflect.stats.confidence import WithheldEstimator
from reflect.store import runs, trials

AT_ONCE = 10_000  # rollouts that are read at once


class TrialCheckpoint:
    """The streams by their names, for one model, adapter, measure and profile. `words`: as in a
    Run."""

    def __init__(self, words: dict[str, Any]) -> None:
        self.words = words
        self._states: dict[str, Any] | None = None
        self._alone: set[int] = set()  # runs that share their seed with no other

    def begin(self, s: Session, stream: str) -> dict[str, Any]:
        """What is known of a stream; {} where it is to be heard from its beginning."""
        if self._states is None:
            holders = trials.holders(s, self.words)
            self._states = {
                name: state for run in holders for name, state in (run.checkpoints or {}).items()
            }
        found: dict[str, Any] = self._states.get(stream, {})
        return found

    def twins(self, s: Session, run_ids: set[int]) -> bool:
        """Does one of the runs share its seed with another? Then it may hold draws that were
        heard."""
        new = run_ids - self._alone
        if new and trials.twins(s, new):
            return True
        self._alone |= new
        return False


def save_checkpoint(s: Session, run: Run, states: dict[str, Any]) -> None:
    """Put down what a run that ends has heard, in the place of what others have left behind."""
    words = {
        name: getattr(run, name)
        for name in ("model_fingerprint", "adapter_id", "measure", "profile")
    }
    kept: dict[str, Any] = {}
    for holder in trials.holders(s, words):
        kept |= holder.checkpoints or {}
        runs.note(s, holder.id, checkpoints=None)
    standing = trials.streams(s, run.profile)
    heard = sorted(
        (kept | states).items()
    )  # in an order that does not depend on what was heard first
    states = {name: state for name, state in heard if name in standing or not name[0].isdigit()}
    if states:
        runs.note(s, run.id, checkpoints=states)


def state_of(contrast: WithheldEstimator, last: int, **more: Any) -> dict[str, Any]:
    return {"last": last, **contrast.state(), **more}
