"""Threads of the server, and results that cross between threads."""

from __future__ import annotations

import threading
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from reflect.errors import ServeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

Result = TypeVar("Result")


def resolve(waiter: Future[Result], outcome: Result | BaseException) -> None:
    """Give a waiter its result or its error. A waiter that was cancelled, because its client has
    left, is skipped."""
    with suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)


class WorkerThread:
    """A thread that must run as long as the server. `failure` says why it ended, else it is "".

    `on_failure` gets the error in the thread that ends; it must fail everything that waits.
    """

    def __init__(
        self, name: str, work: Callable[[], None], on_failure: Callable[[ServeError], None]
    ) -> None:
        self.failure = ""
        self._name, self._work, self._on_failure = name, work, on_failure
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout=seconds)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as e:
            self.failure = f"The thread '{self._name}' ended with {type(e).__name__}: {e}."
            self._on_failure(ServeError(self.failure, "Start the server again."))
