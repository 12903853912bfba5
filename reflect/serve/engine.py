"""One thread that decodes for everybody: requests join the running batch of their adapter between
two steps.

Adapters take turns of a few steps, for the network has one on at a time; a request keeps the one
that it began with. Rows are let in by what they hold now, for nobody knows how long an answer gets.
When they outgrow the memory, the newest go back to the queue and begin again later: with its seed a
row says the same once more. A model whose layers do not let rows join (see `models.running`)
answers batch after batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from reflect.errors import ModelError, ReflectError
from reflect.models.base import Completion, Request
from reflect.models.memory import out_of_memory

ROWS = 64  # most rows in one batch
PREFILL = 4096  # most prompt tokens that are read between two steps, so that those who run go on
GATHER = 4  # steps after which newcomers are read: together, for each reading holds up all who run
ALLOW = 128  # tokens of answer for which a newcomer must find room
TURN = 8  # steps of one adapter while others wait


class Busy(ReflectError):
    """The queue is full."""


class EngineJob:
    """One request on its way. `done` is its result; `cancel` when nobody waits for it any more."""

    def __init__(self, request: Request, tell: Callable[[int, str], None] | None) -> None:
        self.request = request
        self.tell = tell  # (which answer, its text so far), in the engine's thread
        self.done: Future[list[Completion]] = Future()
        self.gone = False
        self.rows: list[Any] = []
        self.left = 0  # rows that are not done

    def cancel(self) -> None:
        self.gone = True


class Engine:
    """`submit` from any thread. `model` belongs to the engine's thread from now on: see `call`."""

    def __init__(self, model: Any, queue: int) -> None:
        self.model = model
        self.queue = queue  # most requests that wait
        self.steps = 0
        self._wake = threading.Condition()
        self._fresh: deque[EngineJob] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting: deque[tuple[EngineJob, Any]] = deque()  # (job, row)
        self._batches: dict[str | None, Any] = {}  # adapter -> Running
        self._read: dict[
            str | None, int
        ] = {}  # adapter -> the step at which newcomers were read last
        self._most = 0  # tokens of a batch, as the memory was then
        self._jobs: dict[int, EngineJob] = {}  # id of a row in a batch -> its job
        self._open = True
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, tell: Callable[[int, str], None] | None = None) -> EngineJob:
        """Busy when too many wait already. A request that names no adapter gets the bare base."""
        job = EngineJob(replace(request, adapter=request.adapter or None), tell)
        with self._wake:
            if (
                not self._open
                or len(self._fresh) + len({id(one) for one, _ in list(self._waiting)}) >= self.queue
            ):
                raise Busy("Too many requests are waiting.", "Try again in a moment.")
            self._fresh.append(job)
            self._wake.notify()
        return job

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Do something with the model between two steps."""
        done: Future[Any] = Future()
        with self._wake:
            self._calls.append((work, done))
            self._wake.notify()
        return done

    def uses(self, adapter: str) -> bool:
        """Does a request that is not done need this adapter? In the engine's thread."""
        waits = any(job.request.adapter == adapter for job, _ in self._waiting)
        return waits or bool(adapter in self._batches and self._batches[adapter].rows)

    def close(self) -> None:
        """Stop at once; what was not done fails."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join(timeout=10)

    # -- the engine's thread

    def _loop(self) -> None:
        while self._take():
            self._forget()
            for adapter in self._turns():
                if (why := self._tried(adapter)) is not None and not (
                    out_of_memory(why) and self._halve(adapter)
                ):
                    self._fail(adapter, why)
        for job in {*self._jobs.values(), *(job for job, _ in self._waiting), *self._fresh}:
            self._finish(job, ModelError("The server has stopped."))

    def _take(self) -> bool:
        """Wait until there is something to do; False when the engine is closed."""
        with self._wake:
            while self._open and not (self._fresh or self._calls or self._waiting or self._jobs):
                self._wake.wait()
            calls, fresh = list(self._calls), list(self._fresh)
            self._calls.clear()
            self._fresh.clear()
        for work, done in calls:
            try:
                done.set_result(work())
            except BaseException as e:
                done.set_exception(e)
        for job in fresh:
            try:
                if job.request.adapter is not None:
                    self.model.loras.known(job.request.adapter)
                job.rows = self.model.rows(job.request)
                job.left = len(job.rows)
                self._waiting += [(job, row) for row in job.rows]
            except Exception as e:
                self._finish(
                    job, e if isinstance(e, ReflectError) else ModelError(f"The model broke: {e}.")
                )
        return self._open

    def _forget(self) -> None:
        """Let go of the rows that nobody waits for."""
        for key, job in list(self._jobs.items()):
            if job.gone:
                for batch in self._batches.values():
                    for row in [row for row in batch.rows if id(row) == key]:
                        batch.drop(row)
                del self._jobs[key]
        if any(job.gone for job, _ in self._waiting):
            self._waiting = deque((job, row) for job, row in self._waiting if not job.gone)

    def _turns(self) -> list[str | None]:
        """The adapters that somebody needs, those that run first."""
        running = [name for name, batch in self._batches.items() if batch.rows]
        return list(dict.fromkeys([*running, *(job.request.adapter for job, _ in self._waiting)]))

    def _tried(self, adapter: str | None) -> Exception | None:
        """A turn; what went wrong in it, without the tensors that the traceback holds."""
        try:
            self._turn(adapter)
        except Exception as e:
            return e.with_traceback(None)
        return None

    def _turn(self, adapter: str | None) -> None:
        self.model.use(adapter)
        if adapter not in self._batches and (batch := self.model.running()) is not None:
            self._batches[adapter] = batch
        if adapter not in self._batches:
            return self._whole(adapter)
        batch = self._batches[adapter]
        if not batch.rows or self.steps - self._read.get(adapter, 0) >= GATHER:
            self._read[adapter], self._most = self.steps, self.model.cache_tokens()
            batch.join(self._joining(adapter, batch))
        for _ in range(TURN if len(self._turns()) > 1 else 1):
            self._fit(batch)
            told = [row for row in batch.rows if self._jobs[id(row)].tell]
            done = batch.step()
            self.steps += 1
            for row in told:
                self._tell(row)
            for row in done:
                job = self._jobs.pop(id(row))
                job.left -= 1
                if not job.left:
                    self._finish(job)
            if not batch.rows:
                return

    def _joining(self, adapter: str | None, batch: Any) -> list[Any]:
        """Rows of the queue, in order, for which there is room."""
        joining: list[Any] = []
        read: set[tuple[int, ...]] = set()
        for job, row in list(self._waiting):
            if job.request.adapter != adapter:
                continue
            read.add(tuple(row.prompt))
            held = batch.tokens([*joining, row], ALLOW)
            full = (
                len(batch.rows) + len(joining) >= ROWS
                or held > self._most
                or sum(map(len, read)) > PREFILL
            )
            if full and (batch.rows or joining):
                break
            joining.append(row)
            self._jobs[id(row)] = job
        taken = {id(row) for row in joining}
        self._waiting = deque((job, row) for job, row in self._waiting if id(row) not in taken)
        return joining

    def _fit(self, batch: Any) -> None:
        """Send the newest rows back while the next step of all is more than the memory holds."""
        while len(batch.rows) > 1 and batch.tokens() > self._most:
            newest = next(
                key for key in reversed(self._jobs) if any(id(row) == key for row in batch.rows)
            )
            row = next(row for row in batch.rows if id(row) == newest)
            batch.drop(row)
            self._again(row)

    def _halve(self, adapter: str | None) -> bool:
        """After an error of too little memory: all rows of this adapter begin again, half as many
        at a time. False when it was one row alone."""
        keys = [key for key, job in self._jobs.items() if job.request.adapter == adapter]
        rows = {id(row): row for key in keys for row in self._jobs[key].rows}
        if len(keys) < 2:
            return False
        batch = self._batches.pop(adapter)
        joining = [rows[key] for key in keys if all(id(row) != key for row in batch.rows)]
        self.model.spare(batch.tokens(joining))
        for key in reversed(keys):
            self._again(rows[key])
        return True

    def _again(self, row: Any) -> None:
        """Back to the head of the queue."""
        row.tokens, row.ended = [], False
        self._waiting.appendleft((self._jobs.pop(id(row)), row))

    def _whole(self, adapter: str | None) -> None:
        """Answer all that wait for this adapter at once."""
        jobs = list(
            {id(job): job for job, _ in self._waiting if job.request.adapter == adapter}.values()
        )
        self._waiting = deque((job, row) for job, row in self._waiting if job not in jobs)
        try:
            for job, done in zip(
                jobs, self.model.sample([job.request for job in jobs]), strict=True
            ):
                job.done.set_result(done)
        except Exception as e:
            for job in jobs:
                self._finish(
                    job, e if isinstance(e, ReflectError) else ModelError(f"The model broke: {e}.")
                )

    def _tell(self, row: Any) -> None:
        job = self._jobs.get(id(row))
        if job and job.tell and not job.gone:
            index = next(i for i, one in enumerate(job.rows) if one is row)
            job.tell(index, self.model.said(row))

    def _fail(self, adapter: str | None, e: Exception) -> None:
        """Whoever is in this batch is told: of a broken adapter, or of too little memory for one
        answer alone."""
        if (batch := self._batches.get(adapter)) is not None:
            batch.clear()
        jobs = {job for job in self._jobs.values() if job.request.adapter == adapter}
        if out_of_memory(e) and jobs:
            e = self.model.too_long(
                max((row for job in jobs for row in job.rows), key=lambda row: len(row.prompt))
            )
        why = e if isinstance(e, ReflectError) else ModelError(f"The model broke: {e}.")
        self._jobs = {key: job for key, job in self._jobs.items() if job not in jobs}
        self._waiting = deque((job, row) for job, row in self._waiting if job not in jobs)
        for job in jobs:
            self._finish(job, why)

    def _finish(self, job: EngineJob, why: Exception | None = None) -> None:
        if job.done.done():
            return
        if why is not None:
            job.done.set_exception(why)
        else:
            job.done.set_result([self.model.completion(row, job.request) for row in job.rows])
