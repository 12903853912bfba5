"""SIGINT and SIGTERM: stop at once, exit 130 or 143, and in ten seconds at the latest.

A signal becomes an exception between two steps of Python, transactions are rolled back and the lock
is let go. All that reflect writes stays whole under `kill -9` too; so where one long step of the
model (or a library that swallows the exception) would keep the process, it is ended the hard way. A
second signal ends it the hard way at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

PATIENCE = 8.0  # seconds between the signal and the hard end
STOPS = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []


def listen() -> None:
    """Handle the signals from now on. Ignored signals stay ignored, as in background jobs of a
    shell."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def finish() -> None:
    """The work is done: from now on a signal just ends the process, with no exception in what
    Python still does."""
    for number in STOPS:
        if signal.getsignal(number) == _stop:
            signal.signal(number, signal.SIG_DFL)


def exit_code() -> int:
    """128 + the signal that stopped this process, as shells count; 130 where it was none."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        os._exit(exit_code())
    end = threading.Timer(PATIENCE, os._exit, [exit_code()])
    end.daemon = True
    end.start()
    raise KeyboardInterrupt
