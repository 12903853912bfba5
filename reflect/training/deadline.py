"""Pauses a night at a deadline, at its next safe point: between steps and between batches.

Completed stages stay in the night's folder, and the next `reflect sleep` continues there. The
interrupted stage starts again, except for training, which continues with its next step. If every
deadline is shorter than the longest other stage, the night never ends.
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


def with_deadline(progress: Progress | None, until: float | None) -> Progress | None:
    """The same progress, which raises Paused after `until` (time.monotonic(), in seconds)."""
    if until is None:
        return progress

    def report(done: int, total: int, what: str) -> None:
        if time.monotonic() >= until:
            raise Paused
        if progress:
            progress(done, total, what)

    return report
