"""One thread that writes to the database for all requests.

What is queued is written in one transaction, because the flush to disk takes the time. If one of
the writes fails, each of them is repeated in a transaction of its own, so that only the faulty one
fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from reflect.errors import ReflectError, ServeError
from reflect.serve.worker import WorkerThread, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from reflect.store import Store

Result = TypeVar("Result")
Job = tuple[Callable[["Session"], Any], "Future[Any]"]


class Writer:
    """Writes what is submitted, in order."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed: ServeError | None = None
        self._batch: list[Job] = []
        self._worker = WorkerThread("exchanges", self._run, self._close)

    @property
    def failure(self) -> str:
        """Why the thread ended, "" while it runs."""
        return self._worker.failure

    def submit(self, write: Callable[[Session], Result]) -> Future[Result]:
        """The result of `write`, done when it is committed. `write` may be called twice, each time
        in a new session. A ReflectError that it raises before it changes anything is its own."""
        waiter: Future[Result] = Future()
        with self._lock:
            if self._closed is None:
                self._queue.put((write, waiter))
                return waiter
        resolve(waiter, self._closed)
        return waiter

    def stop(self) -> None:
        """Write what is queued, and end the thread."""
        with self._lock:
            self._closed = self._closed or ServeError("The server is stopping.")
            self._queue.put(None)
        self._worker.join(30)

    def _close(self, e: ServeError) -> None:
        """Fail everything that waits, and everything that comes."""
        with self._lock:
            self._closed = e
        rest = list(self._batch)
        while not self._queue.empty():
            if job := self._queue.get():
                rest.append(job)
        for _, waiter in rest:
            resolve(waiter, e)

    def _run(self) -> None:
        stopped = False
        while not stopped and (first := self._queue.get()) is not None:
            self._batch = [first]
            while not stopped and not self._queue.empty():
                job = self._queue.get()
                stopped = job is None
                self._batch += [] if job is None else [job]
            self._write(self._batch)
            self._batch = []

    def _write(self, batch: Sequence[Job]) -> None:
        error, faulty = self._write_together(batch)
        if faulty and len(batch) > 1:
            for i, job in enumerate(batch):
                error, faulty = self._write_together([job])
                if error and not faulty:  # no transaction is possible now: do not wait once per job
                    batch = batch[i:]
                    break
                if error:
                    resolve(job[1], error)
                    error = None
        for _, waiter in batch:
            if error:
                resolve(waiter, error)

    def _write_together(self, batch: Sequence[Job]) -> tuple[Exception | None, bool]:
        """(the error of the transaction, whether one of the writes raised it)."""
        faulty = False
        outcomes: list[Any] = []
        try:
            with self.store.write() as s:
                faulty = True
                for write, _ in batch:
                    try:
                        outcomes.append(write(s))
                    except ReflectError as e:  # raised by checks, before it changed anything
                        outcomes.append(e)
                faulty = False
        except Exception as e:  # such as a full disk: the requests fail, the server goes on
            return e, faulty
        for (_, waiter), outcome in zip(batch, outcomes, strict=True):
            resolve(waiter, outcome)
        return None, False
