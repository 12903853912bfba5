"""Does every generator of reasoning-gym score its own answers 1.0 through our path? One after the
other, each within a time limit; what fails is ids_by_cause with its cause."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from reflect.errors import ReflectError
from reflect.tasksets import reasoning_gym
from reflect.tasksets.reasoning_gym import Generator
from reflect.tasksets.task import Score, Split, Task
from reflect.tasksets.validation import SIDES, apart

if TYPE_CHECKING:
    from collections.abc import Iterator

# for one generator: the slowest takes a second for each item, and one in three falls on its side
SECONDS = 120.0


class Checked(NamedTuple):
    """One generator: [] when all is well, else what is wrong in sentences; `samples` of each side,
    as there were."""

    name: str
    problems: list[str]
    practice: int
    holdout: int


class TimeUp(BaseException):
    """No Exception: what a generator catches must not be this."""


def check_all(samples: int = 20, seconds: float = SECONDS) -> Iterator[Checked]:
    """Every generator with `samples` items of each side, at most `seconds` each."""
    for name, _ in reasoning_gym.listing():
        yield check_one(name.removeprefix("gym:"), samples, seconds)


def check_one(spec: str, samples: int = 20, seconds: float = SECONDS) -> Checked:
    """One generator: its answers score 1, an empty one does not, the splits are apart, the order is
    the seed's."""
    sides: dict[Split, list[Task]] = {"practice": [], "holdout": []}
    problems: list[str] = []
    try:
        with time_limit(seconds):
            found = Generator(spec, {})
            for side in SIDES:
                sides[side] = found.tasks(side, samples)
            problems = causes(found, [*sides["practice"], *sides["holdout"]]) + apart(sides)
            for side, rows in sides.items():
                if len(rows) < samples:
                    problems.append(f"{side}: it makes only {len(rows)} different questions")
                if found.tasks(side, 3) != rows[:3]:
                    problems.append(f"{side}: the order depends on more than the seed")
    except TimeUp:
        reasoning_gym.worker.end()
        problems = [f"not done within {seconds:g} seconds"]
    except ReflectError as e:
        problems = [str(e)]
    return Checked(f"gym:{spec}", problems, len(sides["practice"]), len(sides["holdout"]))


def causes(found: Generator, tasks: list[Task]) -> list[str]:
    """Why its own answers do not score 1, each cause once, with what reasoning-gym itself says of
    them."""
    without = [task for task in tasks if task.answer is None]
    if without:
        counts = f"{len(without)} of {len(tasks)} items"
        return [f"{counts} come without an answer or a solution, so there is none to try"]
    ids_by_cause: dict[str, list[str]] = {}
    for task in tasks:
        try:
            ours = found.verify(task, found.gold(task))
            theirs = found.bare(task)
        except Exception as e:  # somebody's scorer
            ids_by_cause.setdefault(f"its scorer broke: {type(e).__name__}: {e}", []).append(
                task.id
            )
            continue
        if ours != Score(1.0):
            cause = f"its own answer scores {ours.reward:g} through our path, "
            cause += f"{theirs:g} through reasoning-gym itself"
            ids_by_cause.setdefault(cause, []).append(task.id)
        elif found.verify(task, "").reward >= 1.0:
            ids_by_cause.setdefault("an empty answer scores 1", []).append(task.id)
    return [
        f"{len(ids)} of {len(tasks)} items: {cause} (first {ids[0]})"
        for cause, ids in ids_by_cause.items()
    ]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeUp after so many seconds. Where no signal can be had (outside the main thread, on
    Windows): no limit."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def ring(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
