"""One thread that decodes for all requests: rows join the running batch of their adapter between
two steps.

Only one adapter is active in the network at a time, so adapters take turns of a few steps. A
request keeps the adapter that it began with. Rows are admitted by current KV-cache use, because
the answer length is unknown in advance. When the rows outgrow the memory, the newest ones return to
the queue and start again later; a row with the same seed gets the same answer. A model whose layers
do not let rows join (see `LocalModel.continuous_batch`) answers one batch after another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from reflect.errors import ModelError, ReflectError
from reflect.models.growing_text import PartialText
from reflect.models.memory import out_of_memory
from reflect.serve.worker import WorkerThread, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.models.base import Completion, Request
    from reflect.models.continuous_batch import ContinuousBatch
    from reflect.models.generation import GenerationRow
    from reflect.models.local import LocalModel

ROWS = 64  # maximum rows in one batch
PREFILL = 4096  # maximum prompt tokens read between two steps: a long prefill delays running rows
GATHER = 4  # steps between two prefills: new prompts are read together
ALLOW = 128  # answer tokens that a new row must have room for
TURN = 8  # steps of one adapter while other adapters wait

Result = TypeVar("Result")
OnText = Callable[[int, str], None]
"""Called in the engine's thread with (index of the answer, its text so far)."""


class Busy(ReflectError):
    """The queue is full, or the server ends."""


class EngineJob:
    """One submitted request. `done` holds its completions; call `cancel` to stop computing it."""

    def __init__(
        self, request: Request, rows: Sequence[GenerationRow], on_text: OnText | None
    ) -> None:
        self.request = request
        self.on_text = on_text
        self.done: Future[list[Completion]] = Future()
        self.cancelled = False
        self.rows = rows
        self.texts = [PartialText(row) for row in rows] if on_text else []
        self.unfinished = len(rows)  # rows without a result

    def cancel(self) -> None:
        """Stop computing this request."""
        self.cancelled = True


class Engine:
    """Decodes submitted requests. `submit` can be called from any thread, and tokenises in it. The
    network and the adapters of `model` are used by the engine's thread only: other code reaches
    them through `call`."""

    def __init__(self, model: LocalModel, queue: int) -> None:
        self.model = model
        self.queue = queue  # maximum number of waiting requests
        self.steps = 0
        self._wake = threading.Condition()
        self._submitted: deque[EngineJob] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._waiting: deque[tuple[EngineJob, GenerationRow]] = deque()
        self._batches: dict[str | None, ContinuousBatch] = {}  # by adapter
        self._prefilled: dict[str | None, int] = {}  # adapter -> step of the last prefill
        self._capacity = 0  # maximum tokens in a batch, measured at the last prefill
        self._jobs: dict[int, EngineJob] = {}  # id of a row in a batch -> its job
        self._open = True
        self._worker = WorkerThread("engine", self._loop, self._end)

    @property
    def failure(self) -> str:
        """Why the thread ended, "" while it runs."""
        return self._worker.failure

    def check_queue(self) -> None:
        """Raise Busy when the queue is full. Requests of clients that have left do not count."""
        if not self._open:
            raise Busy(self.failure or "The server is stopping.")
        jobs = {id(job) for job, _ in list(self._waiting) if not job.cancelled}
        if len(jobs) + sum(not job.cancelled for job in list(self._submitted)) >= self.queue:
            raise Busy("Too many requests are waiting.", "Try again in a moment.")

    def submit(
        self,
        request: Request,
        on_text: OnText | None = None,
        rows: Sequence[GenerationRow] | None = None,
    ) -> EngineJob:
        """Queue a request. Without an adapter name it gets the bare base. `rows`: of the request,
        if they are made already. Raises Busy when the queue is full, ContextTooLong."""
        if rows is None:
            rows = self.model.rows(request)
        job = EngineJob(replace(request, adapter=request.adapter or None), rows, on_text)
        with self._wake:
            self.check_queue()
            self._submitted.append(job)
            self._wake.notify()
        return job

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Run `work` in the engine's thread, between two steps, unless its waiter is cancelled."""
        result: Future[Result] = Future()
        with self._wake:
            if self._open:
                self._calls.append((work, result))
                self._wake.notify()
                return result
        resolve(result, ModelError(self.failure or "The server has stopped."))
        return result

    def uses(self, adapter: str) -> bool:
        """True when an unfinished request needs this adapter. Engine's thread only."""
        return adapter in self._needed_adapters()

    def close(self) -> None:
        """Stop at once; unfinished requests fail."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._worker.join(10)

    # Everything below runs in the engine's thread.

    def _loop(self) -> None:
        while self._receive():
            self._drop_cancelled()
            for adapter in self._needed_adapters():
                e = _error(partial(self._run_turn, adapter))
                if e and not (out_of_memory(e) and self._shrink_batch(adapter)):
                    self._fail(adapter, e)
        self._end(ModelError("The server has stopped."))

    def _end(self, e: ReflectError) -> None:
        """Fail everything that waits, and everything that comes."""
        with self._wake:
            self._open = False
            waiting = [job for job, _ in self._waiting]
            jobs = {*self._jobs.values(), *waiting, *self._submitted}
            calls = [result for _, result in self._calls]
        for job in jobs:
            resolve(job.done, e)
        for result in calls:
            resolve(result, e)

    def _receive(self) -> bool:
        """Wait for work, run the calls and queue the rows. False when the engine is closed."""
        with self._wake:
            while self._open and not (
                self._submitted or self._calls or self._waiting or self._jobs
            ):
                self._wake.wait()
        while self._calls:
            work, result = self._calls.popleft()
            if not result.cancelled():
                try:
                    resolve(result, work())
                except BaseException as e:
                    resolve(result, e)
        while self._submitted:
            job = self._submitted.popleft()
            name = job.request.adapter
            known = partial(self.model.known_adapter, name or "")
            if name is not None and (problem := _error(known)):
                self._finish(job, problem)
            else:
                self._waiting += [(job, row) for row in job.rows]
        return self._open

    def _drop_cancelled(self) -> None:
        for key, job in list(self._jobs.items()):
            if job.cancelled:
                for batch in self._batches.values():
                    for row in [row for row in batch.rows if id(row) == key]:
                        batch.drop(row)
                del self._jobs[key]
        if any(job.cancelled for job, _ in self._waiting):
            self._waiting = deque((job, row) for job, row in self._waiting if not job.cancelled)

    def _needed_adapters(self) -> list[str | None]:
        """The adapters of unfinished requests, running ones first."""
        running = [name for name, batch in self._batches.items() if batch.rows]
        return list(dict.fromkeys([*running, *(job.request.adapter for job, _ in self._waiting)]))

    def _run_turn(self, adapter: str | None) -> None:
        self.model.use(adapter)
        batch = self._batches.get(adapter) or self.model.continuous_batch()
        if batch is None:
            return self._answer_at_once(adapter)
        self._batches[adapter] = batch
        if not batch.rows or self.steps - self._prefilled.get(adapter, 0) >= GATHER:
            self._prefilled[adapter], self._capacity = self.steps, self.model.cache_tokens()
            batch.join(self._admit(adapter, batch))
        for _ in range(TURN if len(self._needed_adapters()) > 1 else 1):
            self._send_back_newest(batch)
            streamed = [row for row in batch.rows if self._jobs[id(row)].on_text]
            finished = batch.step()
            self.steps += 1
            for row in streamed:
                self._send_text(row)
            for row in finished:
                job = self._jobs.pop(id(row))
                job.unfinished -= 1
                if not job.unfinished:
                    self._finish(job)
            if not batch.rows:
                return

    def _admit(self, adapter: str | None, batch: ContinuousBatch) -> list[GenerationRow]:
        """Rows of the queue, in order, that fit the batch. At least one when it is empty."""
        rows: list[GenerationRow] = []
        prompts: set[tuple[int, ...]] = set()
        for job, row in list(self._waiting):
            if job.request.adapter != adapter:
                continue
            prompts.add(tuple(row.prompt))
            full = len(batch.rows) + len(rows) >= ROWS or sum(map(len, prompts)) > PREFILL
            full = full or batch.tokens([*rows, row], ALLOW) > self._capacity
            if full and (batch.rows or rows):
                break
            rows.append(row)
            self._jobs[id(row)] = job
        admitted = set(map(id, rows))
        self._waiting = deque((job, row) for job, row in self._waiting if id(row) not in admitted)
        return rows

    def _send_back_newest(self, batch: ContinuousBatch) -> None:
        """Send the newest rows back to the queue until the next step fits the memory."""
        while len(batch.rows) > 1 and batch.tokens() > self._capacity:
            rows = {id(row): row for row in batch.rows}
            row = rows[next(key for key in reversed(self._jobs) if key in rows)]
            batch.drop(row)
            self._requeue(row)

    def _shrink_batch(self, adapter: str | None) -> bool:
        """After an out-of-memory error: all rows of this adapter start again, half as many at a
        time. False when it was one row alone."""
        keys = [key for key, job in self._jobs.items() if job.request.adapter == adapter]
        rows = {id(row): row for key in keys for row in self._jobs[key].rows}
        if len(keys) < 2:
            return False
        batch = self._batches.pop(adapter)
        running = set(map(id, batch.rows))
        self.model.shrink_batch(batch.tokens([rows[key] for key in keys if key not in running]))
        for key in reversed(keys):
            self._requeue(rows[key])
        return True

    def _requeue(self, row: GenerationRow) -> None:
        """Reset the row and put it at the head of the queue."""
        row.tokens, row.ended = [], False
        self._waiting.appendleft((self._jobs.pop(id(row)), row))

    def _answer_at_once(self, adapter: str | None) -> None:
        """Answer all waiting requests of this adapter in one `sample` call."""
        jobs = list(dict.fromkeys(j for j, _ in self._waiting if j.request.adapter == adapter))
        self._waiting = deque((job, row) for job, row in self._waiting if job not in jobs)
        for job in jobs:
            for row in job.rows:
                row.stopped = partial(_stopped, job, row.stopped)
        error = None
        try:
            self.model.decode_rows([row for job in jobs for row in job.rows])
        except Exception as e:
            error = e
        for job in jobs:
            self._finish(job, error)

    def _send_text(self, row: GenerationRow) -> None:
        job = self._jobs.get(id(row))
        if job is None or job.on_text is None or job.cancelled:
            return
        index = next(i for i, other in enumerate(job.rows) if other is row)
        try:
            job.on_text(index, job.texts[index].read(self.model))
        except Exception as e:  # its client's event loop has ended, or its text cannot be read
            job.cancel()
            self._finish(job, e)

    def _fail(self, adapter: str | None, e: BaseException) -> None:
        """Fail all running requests of this adapter, and their waiting rows."""
        if (batch := self._batches.get(adapter)) is not None:
            batch.clear()
        jobs = {job for job in self._jobs.values() if job.request.adapter == adapter}
        # The adapter cannot be used at all if no request of it runs.
        jobs = jobs or {job for job, _ in self._waiting if job.request.adapter == adapter}
        if out_of_memory(e) and jobs:
            rows = [row for job in jobs for row in job.rows]
            e = self.model.memory_error(max(rows, key=lambda row: len(row.prompt)))
        self._jobs = {key: job for key, job in self._jobs.items() if job not in jobs}
        self._waiting = deque((job, row) for job, row in self._waiting if job not in jobs)
        for job in jobs:
            self._finish(job, e)

    def _finish(self, job: EngineJob, e: BaseException | None = None) -> None:
        """Give the job its completions, or the error."""
        completions: list[Completion] = []

        def complete() -> None:
            completions.extend(self.model.completion(row, job.request) for row in job.rows)

        e = e or _error(complete)
        if e is None:
            return resolve(job.done, completions)
        resolve(
            job.done, e if isinstance(e, ReflectError) else ModelError(f"The model failed: {e}.")
        )


def _error(work: Callable[[], object]) -> BaseException | None:
    """The error of `work` without its traceback, which would keep tensors alive; None if it
    succeeds."""
    try:
        work()
    except BaseException as e:
        return e.with_traceback(None)
    return None


def _stopped(
    job: EngineJob, stopped: Callable[[list[int]], bool] | None, tokens: list[int]
) -> bool:
    """True at the end of an answer, or when its client has left."""
    return job.cancelled or (stopped is not None and stopped(tokens))
