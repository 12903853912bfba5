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
from typing import TYPE_CHECKING, Any

from reflect.errors import ModelError, ReflectError
from reflect.models.memory import out_of_memory

if TYPE_CHECKING:
    from reflect.models.base import Completion, Request
    from reflect.models.continuous_batch import ContinuousBatch
    from reflect.models.generation import GenerationRow
    from reflect.models.local import LocalModel

ROWS = 64  # maximum rows in one batch
PREFILL = 4096  # maximum prompt tokens read between two steps: a long prefill delays running rows
GATHER = 4  # steps between two prefills: new prompts are read together
ALLOW = 128  # answer tokens that a new row must have room for
TURN = 8  # steps of one adapter while other adapters wait

OnText = Callable[[int, str], None]
"""Called in the engine's thread with (index of the answer, its text so far)."""


class Busy(ReflectError):
    """The queue is full."""


class EngineJob:
    """One submitted request. `done` holds its completions; call `cancel` to stop computing it."""

    def __init__(self, request: Request, on_text: OnText | None) -> None:
        self.request = request
        self.on_text = on_text
        self.done: Future[list[Completion]] = Future()
        self.cancelled = False
        self.rows: list[GenerationRow] = []
        self.unfinished = 0  # rows without a result

    def cancel(self) -> None:
        """Stop computing this request."""
        self.cancelled = True


class Engine:
    """Decodes submitted requests. `submit` can be called from any thread; `model` is used by the
    engine's thread only: other code reaches it through `call`."""

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
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_text: OnText | None = None) -> EngineJob:
        """Queue a request. Without an adapter name it gets the bare base. Raises Busy when the
        queue is full."""
        job = EngineJob(replace(request, adapter=request.adapter or None), on_text)
        with self._wake:
            waiting = len(self._submitted) + len({id(other) for other, _ in list(self._waiting)})
            if not self._open or waiting >= self.queue:
                raise Busy("Too many requests are waiting.", "Try again in a moment.")
            self._submitted.append(job)
            self._wake.notify()
        return job

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Run `work` in the engine's thread, between two steps."""
        result: Future[Any] = Future()
        with self._wake:
            self._calls.append((work, result))
            self._wake.notify()
        return result

    def uses(self, adapter: str) -> bool:
        """True when an unfinished request needs this adapter. Engine's thread only."""
        return adapter in self._needed_adapters()

    def close(self) -> None:
        """Stop at once; unfinished requests fail."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join(timeout=10)

    # Everything below runs in the engine's thread.

    def _loop(self) -> None:
        while self._receive():
            self._drop_cancelled()
            for adapter in self._needed_adapters():
                e = self._error_of_turn(adapter)
                if e and not (out_of_memory(e) and self._shrink_batch(adapter)):
                    self._fail(adapter, e)
        for job in {*self._jobs.values(), *(job for job, _ in self._waiting), *self._submitted}:
            self._finish(job, ModelError("The server has stopped."))

    def _receive(self) -> bool:
        """Wait for work, run the calls and queue the rows. False when the engine is closed."""
        with self._wake:
            while self._open and not (
                self._submitted or self._calls or self._waiting or self._jobs
            ):
                self._wake.wait()
            calls, submitted = list(self._calls), list(self._submitted)
            self._calls.clear()
            self._submitted.clear()
        for work, result in calls:
            try:
                result.set_result(work())
            except BaseException as e:
                result.set_exception(e)
        for job in submitted:
            try:
                if job.request.adapter is not None:
                    self.model.adapter_set.known(job.request.adapter)
                job.rows = self.model.rows(job.request)
                job.unfinished = len(job.rows)
                self._waiting += [(job, row) for row in job.rows]
            except Exception as e:
                self._finish(job, e)
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

    def _error_of_turn(self, adapter: str | None) -> Exception | None:
        """Run a turn; its error without the traceback, which would keep tensors alive."""
        try:
            self._run_turn(adapter)
        except Exception as e:
            return e.with_traceback(None)
        return None

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
        try:
            answers = self.model.sample([job.request for job in jobs])
            for job, completions in zip(jobs, answers, strict=True):
                job.done.set_result(completions)
        except Exception as e:
            for job in jobs:
                self._finish(job, e)

    def _send_text(self, row: GenerationRow) -> None:
        job = self._jobs.get(id(row))
        if job and job.on_text and not job.cancelled:
            index = next(i for i, other in enumerate(job.rows) if other is row)
            job.on_text(index, self.model.partial_text(row))

    def _fail(self, adapter: str | None, e: Exception) -> None:
        """Fail all running requests of this adapter, and their waiting rows."""
        if (batch := self._batches.get(adapter)) is not None:
            batch.clear()
        jobs = {job for job in self._jobs.values() if job.request.adapter == adapter}
        if out_of_memory(e) and jobs:
            rows = [row for job in jobs for row in job.rows]
            e = self.model.memory_error(max(rows, key=lambda row: len(row.prompt)))
        self._jobs = {key: job for key, job in self._jobs.items() if job not in jobs}
        self._waiting = deque((job, row) for job, row in self._waiting if job not in jobs)
        for job in jobs:
            self._finish(job, e)

    def _finish(self, job: EngineJob, e: Exception | None = None) -> None:
        if job.done.done():
            return
        if e is None:
            job.done.set_result([self.model.completion(row, job.request) for row in job.rows])
        elif isinstance(e, ReflectError):
            job.done.set_exception(e)
        else:
            job.done.set_exception(ModelError(f"The model failed: {e}."))
