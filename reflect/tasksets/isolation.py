"""Score rollouts under limits: a verifier that hangs, loops or eats the memory costs its own
rollout, and nothing else.

    score = scoring.verify(taskset, task, text)

The named verifiers on a text of ordinary length, and those of the shipped tasks, run here and now.
`code` has the sandbox's limits. Everything else (a verifier of the user's, a regular expression, a
text without end) runs in a worker: a forked process that scores one rollout after another and is
ended, with all that it started, when it needs longer than `seconds` for one of them. A worker lives
as long as its `batch`, so it knows the taskset as it is.

Why fork, though other threads run here: a fresh interpreter could not load every taskset (one that
a notebook made), and would not know what it has remembered. The child runs the verifier alone: it
closes all files, leaves without cleaning up, and uses one thread of torch, as the workers of
torch's own DataLoader do; libc and Python make their own locks usable again. What is left is a
verifier that needs a lock of some other library which another thread held at that moment: it runs
into the limit, and its rollout is stored with that error.

Not covered: a verifier is the user's own code and no prisoner: it may read, write and reach what
the user may, and what it keeps in `self` does not come back. A graphics card that this process has
opened cannot be used in a worker.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict, TypeVar, cast

import psutil
from pydantic import TypeAdapter

from reflect.config import shipped
from reflect.sandbox import bubblewrap
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import HUMAN, JUDGE, TWIN, Score, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

AT_ONCE = 4  # rollouts that are scored at the same time, where that takes a process each
PATIENCE = 0.05  # seconds to wait for a worker that is busy before another is made
SHORT = 20_000  # characters of a text, or of an answer, that the named verifiers read in no time
QUICK = (
    "exact",
    "number",
    "contains",
)  # their time grows with the text alone; a pattern's has no bound
MIB = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")
SCORE = TypeAdapter(Score)


class Reply(TypedDict, total=False):
    """What a worker answers: the result, or the name and message of the exception."""

    result: object
    error: tuple[str, str]


@dataclass(frozen=True)
class VerifierLimits:
    """Limits for scoring one rollout."""

    seconds: float = 10.0
    memory: int = 4096
    """MiB that it may take beyond the memory of this process."""


_limits = VerifierLimits()
_pool: list[_Worker] = []  # idle workers of the open batch
_open = 0  # nested batches
_busy = 0  # workers that are scoring in it
_turn = threading.Condition()  # guards the three; notified when a worker is idle again


def limit(seconds: float, memory: int) -> None:
    """The limits from now on: settings `verify_seconds` and `verify_memory`."""
    global _limits
    _limits = VerifierLimits(seconds, memory)


def verify(taskset: Taskset, task: Task, text: str) -> Score:
    """`taskset.verify` under the limits. Raises what the verifier raised (an exception of that
    name, here a subclass of Broke), TimeoutError, or ChildProcessError where its process ended. A
    pass on the twin is worth nothing."""
    inline = not _is_apart(taskset, "verify", task, text)
    score = (
        taskset.verify(task, text)
        if inline
        else SCORE.validate_python(_call(taskset, "verify", task, text))
    )
    return replace(score, reward=0.0) if score.parts.get(TWIN) else score


def audit(taskset: Taskset, task: Task, text: str) -> float | None:
    """`taskset.audit` under the limits; raises as `verify` does."""
    inline = not _is_apart(taskset, "audit", task, text)
    return (
        taskset.audit(task, text)
        if inline
        else cast("float | None", _call(taskset, "audit", task, text))
    )


def flagged(score: Score) -> bool:
    """Was the rollout fitted to tests that contradict its task? Then nothing is learned from it."""
    return bool(score.parts.get(TWIN))


def require(tasks: Iterable[Task]) -> None:
    """SandboxError, before anything has run, where a task needs a sandbox and there is none."""
    if any(task.verifier == "code" for task in tasks):
        bubblewrap.require()


def each(
    taskset: Taskset, tasks: Iterable[Task], work: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result]:
    """`work`, which scores rollouts of these tasks, for each item, in order: a few at once where
    scoring takes a process, else one after another."""
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


def _call(taskset: Taskset, name: str, task: Task, text: str) -> object:
    """The result of the method, from a worker of this taskset: an idle one, or a new one."""
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
    """An idle worker of that taskset; None where a new one must be made. While the others are
    quick, it is worth waiting for one of them: forking takes milliseconds."""
    global _busy

    def idle() -> _Worker | None:
        return next((worker for worker in _pool if worker.taskset is taskset), None)

    with _turn:
        _turn.wait_for(lambda: idle() or not _busy, PATIENCE)
        worker = idle()
        if worker:
            _pool.remove(worker)
        _busy += 1
        return worker


class _Worker:
    """A forked process that runs methods of one taskset, one call after another.

    A call goes in as a pickle, its reply comes back as one line of JSON, both by one socket with a
    deadline.
    """

    def __init__(self, taskset: Taskset, limits: VerifierLimits) -> None:
        self.taskset, self.limits = taskset, limits
        self.socket, child_end = socket.socketpair()
        with warnings.catch_warnings(), child_end:
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # about forking while threads run: see above
            self.pid = os.fork()
            if self.pid == 0:
                _serve(taskset, child_end, limits)

    def ask(self, call: tuple[str, Task, str], end: float) -> Reply:
        """The reply to that call. TimeoutError at `end` (monotonic time), ChildProcessError when
        the process ended."""
        reply = bytearray()
        try:
            self.socket.settimeout(max(end - time.monotonic(), 0.001))
            self.socket.sendall(pickle.dumps(call))
            while not reply.endswith(b"\n"):
                self.socket.settimeout(max(end - time.monotonic(), 0.001))
                chunk = self.socket.recv(MIB)
                if not chunk:
                    raise EOFError
                reply += chunk
        except TimeoutError:
            seconds = f"{self.limits.seconds:g} s (verify_seconds)"
            raise TimeoutError(
                f"it did not score the attempt within {seconds}, and was ended"
            ) from None
        except (ConnectionError, EOFError) as e:
            raise ChildProcessError("it ended its own process") from e
        return cast("Reply", json.loads(reply))

    def end(self) -> None:
        """End the process and all that it started."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)
        self.socket.close()
        os.waitpid(self.pid, 0)


def _serve(taskset: Taskset, connection: socket.socket, limits: VerifierLimits) -> NoReturn:
    """The child: it never returns, and never cleans up what belongs to its parent."""
    try:
        gc.freeze()  # a collection would copy the memory that both processes share
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        _close_files_except(connection.fileno())
        sys.stdout = sys.stderr
        size = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory * MIB, resource.RLIM_INFINITY))
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # the threads of the parent do not exist here
        calls = connection.makefile("rb")
        while True:
            name, task, text = pickle.load(calls)
            signal.setitimer(
                signal.ITIMER_REAL, limits.seconds + 1
            )  # in case the parent has ended by then
            reply = json.dumps(_reply(getattr(taskset, name), task, text))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(reply.encode() + b"\n")
    finally:
        os._exit(1)


def _reply(method: Callable[[Task, str], Score | float | None], task: Task, text: str) -> Reply:
    try:
        result = method(task, text)
        if isinstance(result, Score):
            parts = {str(part): float(value) for part, value in result.parts.items()}
            return {
                "result": {
                    "reward": float(result.reward),
                    "feedback": str(result.feedback),
                    "parts": parts,
                }
            }
        return {"result": None if result is None else float(result)}
    except BaseException as e:  # the user's code: sys.exit too
        return {"error": (type(e).__name__, str(e)[:2000])}


def _close_files_except(number: int) -> None:
    """Close every file but this one and stderr, to which stdout goes."""
    for low, high in pairwise([2, number, os.sysconf("SC_OPEN_MAX")]):
        os.closerange(low + 1, high)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
