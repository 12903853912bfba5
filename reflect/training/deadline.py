"""A night that must stop by a given time stops at its next safe point: between steps and between
batches of answers.

What is done stays in the night's folder, and the next `reflect sleep` goes on from there. The stage
in which it stopped begins anew, but for training, which goes on with the very next step. A deadline
that is always shorter than the longest of the other stages would thus never see the night end.
"""

from __future__ import annotations

import time

from reflect.types import NightStage, Progress, StopReason


class Paused(BaseException):
    """The night stopped early, for `reason`, in `stage` (set by the night; None outside of a
    stage). Not an Exception, so that code which handles errors does not catch it."""

    def __init__(
        self, reason: StopReason = StopReason.DEADLINE, stage: NightStage | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.stage = reason, stage


def heed(progress: Progress | None, until: float | None) -> Progress | None:
    """The same progress, which every stage reports at its safe points, raising Paused after `until`
    (monotonic s)."""
    if until is None:
        return progress

    def tell(done: int, total: int, what: str) -> None:
        if time.monotonic() >= until:
            raise Paused
        if progress:
            progress(done, total, what)

    return tell
