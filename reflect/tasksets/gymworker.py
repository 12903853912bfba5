"""Generate the items of reasoning-gym's generators in a process of their own: `python -m
reflect.tasksets.gymworker`.

Five of its generators order sets of texts, whose order Python draws anew in each process unless
PYTHONHASHSEED is set, so that the same seed gave other questions every time; some print while they
work. Here the hash seed is 0, each item begins with the same global random state, and nothing but
answers reaches stdout.

It reads pickled (name, settings, index) and writes pickled entries, or the text of an error.
"""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any, TypedDict, cast

from reflect.errors import ReflectError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Entry(TypedDict):
    """One item of a generator."""

    question: str
    answer: str | None
    metadata: dict[str, object]


class Worker:
    """One such process, started at the first item. It is ended when an answer does not arrive
    completely."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0  # a forked child must not end the process that its parent still uses

    def entry(self, name: str, settings: Mapping[str, object], index: int) -> Entry:
        """Item `index` of a generator. ReflectError where it cannot be made."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            command = [sys.executable, "-m", "reflect.tasksets.gymworker"]
            env = os.environ | {
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }
            pipe, self.owner = subprocess.PIPE, os.getpid()
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env
            )
        assert self.process.stdin and self.process.stdout
        try:
            pickle.dump((name, dict(settings), index), self.process.stdin)
            self.process.stdin.flush()
            entry = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as e:
            self.end()
            raise ReflectError(f"The generator {name} ended its process at item {index}.") from e
        except BaseException:  # interrupted: a later answer would belong to this question
            self.end()
            raise
        if isinstance(entry, str):
            raise ReflectError(f"The generator {name} gave no item {index}: {entry}.")
        return cast("Entry", entry)

    def end(self) -> None:
        """Stop the process at once."""
        if self.process and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    import reasoning_gym

    made: dict[str, Any] = {}
    while True:
        try:
            name, settings, index = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            key = repr((name, sorted(settings.items())))
            if key not in made:
                random.seed(0)
                made[key] = reasoning_gym.create_dataset(name, **settings)
            random.seed(index)
            found = made[key][index]
            data = pickle.dumps(
                {part: found.get(part) for part in ("question", "answer", "metadata")}
            )
        except Exception as e:
            data = pickle.dumps(f"{type(e).__name__}: {e}")
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    main()
