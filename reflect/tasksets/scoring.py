"""Score rollouts under limits: a verifier that hangs, loops or eats the memory costs its own rollout, and nothing else.

    score = scoring.verify(taskset, task, text)

The named verifiers on a text of ordinary length, and those of the shipped tasks, run here and now. `code` has the
sandbox's limits. Everything else (a verifier of the user's, a regular expression, a text without end) runs in a worker:
a forked process that scores one rollout after another and is ended, with all that it started, when it needs longer than
`seconds` for one of them. A worker lives as long as its `batch`, so it knows the taskset as it is.

Why fork, though other threads run here: a fresh interpreter could not load every taskset (one that a notebook made),
and would not know what it has remembered. The child runs the verifier alone: it closes all files, leaves without
cleaning up, and uses one thread of torch, as the workers of torch's own DataLoader do; libc and Python make their own
locks usable again. What is left is a verifier that needs a lock of some other library which another thread held at
that moment: it runs into the limit, and its rollout is stored with that error.

Not covered: a verifier is the user's own code and no prisoner: it may read, write and reach what the user may, and what
it keeps in `self` does not come back. A graphics card that this process has opened cannot be used in a worker.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from reflect.config import shipped
from reflect.tasksets import sandbox
from reflect.tasksets.base import HUMAN, JUDGE, TWIN, Score, Task, Taskset

AT_ONCE = 4  # rollouts that are scored at the same time, where that takes a process each
PATIENCE = 0.05  # seconds to wait for a worker that is busy before another is made
SHORT = 20_000  # characters of a text, or of an answer, that the named verifiers read in no time
QUICK = ("exact", "number", "contains")  # their time grows with the text alone; a pattern's has no bound
MIB = 1 << 20

One = TypeVar("One")
Got = TypeVar("Got")


@dataclass(frozen=True)
class Limits:
    """Of scoring one rollout. `memory`: MiB that it may take beyond what this process has."""

    seconds: float = 10.0
    memory: int = 4096


_limits = Limits()
_pool: list[_Worker] = []  # idle workers of the open batch
_open = 0  # batches within each other
_busy = 0  # workers that score something in it
_turn = threading.Condition()  # guards the three, and tells of a worker that is idle again


def limit(seconds: float, memory: int) -> None:
    """The limits from now on: settings `verify_seconds` and `verify_memory`."""
    global _limits
    _limits = Limits(seconds, memory)


def verify(taskset: Taskset, task: Task, text: str) -> Score:
    """`taskset.verify` under the limits. Raises what the verifier raised (an exception of that name, here a subclass
    of Broke), TimeoutError, or ChildProcessError where its process ended. A pass on the twin is worth nothing."""
    inline = not _is_apart(taskset, "verify", task, text)
    score = taskset.verify(task, text) if inline else Score(**_call(taskset, "verify", task, text))
    return replace(score, reward=0.0) if score.parts.get(TWIN) else score


def audit(taskset: Taskset, task: Task, text: str) -> float | None:
    """`taskset.audit` under the limits; raises as `verify` does."""
    inline = not _is_apart(taskset, "audit", task, text)
    return taskset.audit(task, text) if inline else _call(taskset, "audit", task, text)


def flagged(score: Score) -> bool:
    """Was the rollout fitted to tests that contradict its task? Then nothing is learned from it."""
    return bool(score.parts.get(TWIN))


def require(tasks: Iterable[Task]) -> None:
    """SandboxError, before anything has run, where a task needs a sandbox and there is none."""
    if any(task.verifier == "code" for task in tasks):
        sandbox.require()


def each(taskset: Taskset, tasks: Iterable[Task], work: Callable[[One], Got], items: Sequence[One]) -> list[Got]:
    """`work`, which scores rollouts of these tasks, for each item, in order: a few at once where scoring takes a
    process, else one after another."""
    if not any(task.verifier == "code" or _is_apart(taskset, "verify", task, "") for task in tasks):
        return [work(item) for item in items]
    with batch(), ThreadPoolExecutor(AT_ONCE) as threads:
        try:
            return list(threads.map(work, items))
        finally:
            threads.shutdown(cancel_futures=True)


@contextmanager
def batch() -> Iterator[None]:
    """Keep workers until this ends, for the rollouts that are scored in it."""
    global _open
    with _turn:
        _open += 1
    try:
        yield
    finally:
        with _turn:
            _open -= 1
            idle = [_pool.pop() for _ in range(len(_pool))] if not _open else []
        for worker in idle:
            worker.end()


class Broke(Exception):
    """What a verifier raised in its worker; the name of the class is that of the exception."""


def _is_apart(taskset: Taskset, name: str, task: Task, text: str) -> bool:
    """Must it run in a worker?"""
    method = getattr(getattr(taskset, name), "__func__", getattr(taskset, name))
    if method is Taskset.audit or task.verifier in (JUDGE, HUMAN):
        return False  # a judge is a model, which only this process has
    if method is Taskset.verify and task.verifier not in (*QUICK, "regex"):
        return False  # it has limits of its own, or needs what only this process has
    if len(text) > SHORT or len(str(task.answer)) > SHORT:
        return True
    if method is Taskset.verify:
        return task.verifier not in QUICK
    code = getattr(method, "__code__", None)
    return code is None or not Path(code.co_filename).is_relative_to(shipped("tasks"))


# -- workers -----------------------------------------------------------------------------------------------------------


def _call(taskset: Taskset, name: str, task: Task, text: str) -> Any:
    """What the method says, from a worker of this taskset: an idle one, or a new one."""
    global _busy
    worker, keep = _idle(taskset), False
    end = time.monotonic() + _limits.seconds  # its start is a part of it
    try:
        worker = worker or _Worker(taskset, _limits)
        reply = worker.ask((name, task, text), end)
        keep = True
    finally:
        with _turn:
            _busy -= 1
            keep = keep and _open > 0 and len(_pool) < AT_ONCE
            if keep and worker:
                _pool.append(worker)
            _turn.notify_all()
        if worker and not keep:
            worker.end()
    if "error" in reply:
        kind, message = reply["error"]
        if kind == "MemoryError":
            message = f"it took more than {worker.limits.memory} MiB (verify_memory)"
        raise type(kind, (Broke,), {})(message)
    return reply["result"]


def _idle(taskset: Taskset) -> _Worker | None:
    """An idle worker of that taskset; None where a new one must be made. While the others are quick, it is worth
    waiting for one of them: forking takes milliseconds."""
    global _busy

    def mine() -> list[_Worker]:
        return [worker for worker in _pool if worker.taskset is taskset]

    with _turn:
        _turn.wait_for(lambda: mine() or not _busy, PATIENCE)
        found = next(iter(mine()), None)
        if found:
            _pool.remove(found)
        _busy += 1
        return found


class _Worker:
    """A forked process that runs methods of one taskset, one call after another."""

    def __init__(self, taskset: Taskset, limits: Limits) -> None:
        self.taskset, self.limits = taskset, limits
        there, self.asks = os.pipe()
        self.hears, back = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: see above
            self.pid = os.fork()
        if self.pid == 0:
            _serve(taskset, there, back, limits)
        os.close(there)
        os.close(back)

    def ask(self, call: tuple[str, Task, str], end: float) -> dict[str, Any]:
        """{"result": ...} or {"error": [kind, message]} of that call. TimeoutError at `end`, ChildProcessError."""
        asked = pickle.dumps(call)
        try:
            _send(self.asks, len(asked).to_bytes(8) + asked, end)
            return json.loads(_take(self.hears, int.from_bytes(_take(self.hears, 8, end)), end))
        except TimeoutError:
            seconds = f"{self.limits.seconds:g} s (verify_seconds)"
            raise TimeoutError(f"it did not score the attempt within {seconds}, and was ended") from None
        except (BrokenPipeError, EOFError) as e:
            raise ChildProcessError("it ended its own process") from e

    def end(self) -> None:
        """End the process and all that it started."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        os.close(self.asks)
        os.close(self.hears)
        os.waitpid(self.pid, 0)


def _serve(taskset: Taskset, asks: int, says: int, limits: Limits) -> NoReturn:
    """The child: it never returns, and never cleans up what belongs to its parent."""
    try:
        gc.freeze()  # a collection would copy what both share
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        _only(asks, says)
        sys.stdout = sys.stderr
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if _has_proc() else 0
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory * MIB, resource.RLIM_INFINITY))
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # those of the parent are not here
        while True:
            name, task, text = pickle.loads(_take(asks, int.from_bytes(_take(asks, 8))))
            signal.setitimer(signal.ITIMER_REAL, limits.seconds + 1)  # should the parent be gone by then
            said = json.dumps(_reply(getattr(taskset, name), task, text)).encode()
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(says, len(said).to_bytes(8) + said)
    finally:
        os._exit(1)


def _reply(method: Callable[[Task, str], Any], task: Task, text: str) -> dict[str, Any]:
    try:
        found = method(task, text)
        if isinstance(found, Score):
            parts = {str(part): float(value) for part, value in found.parts.items()}
            return {"result": {"reward": float(found.reward), "feedback": str(found.feedback), "parts": parts}}
        return {"result": None if found is None else float(found)}
    except BaseException as e:  # somebody's code: sys.exit too
        return {"error": [type(e).__name__, str(e)[:2000]]}


def _only(*keep: int) -> None:
    """Close every file but these and stderr, to which stdout goes."""
    for low, high in pairwise([2, *sorted(keep), os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low + 1, high)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)


def _has_proc() -> bool:
    return os.path.exists("/proc/self/statm")


def _send(fd: int, data: bytes, end: float = 0.0) -> None:
    left = memoryview(data)
    while left:
        _wait(fd, select.POLLOUT, end)
        left = left[os.write(fd, left[:4096]) :]  # as much as a pipe that is ready takes at once


def _take(fd: int, size: int, end: float = 0.0) -> bytes:
    data = b""
    while len(data) < size:
        _wait(fd, select.POLLIN, end)
        more = os.read(fd, min(size - len(data), 1 << 20))
        if not more:
            raise EOFError
        data += more
    return data


def _wait(fd: int, event: int, end: float) -> None:
    """Until the pipe is ready. TimeoutError at `end` (a monotonic time; 0: never)."""
    if not end:
        return
    ready = select.poll()
    ready.register(fd, event)
    if not ready.poll(max(0, (end - time.monotonic()) * 1000)):
        raise TimeoutError
