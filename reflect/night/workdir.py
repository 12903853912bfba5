"""Where a night works: its key, the lock that keeps a second one out, and a folder for what its
stages made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from reflect import prompts
from reflect.config import Settings
from reflect.errors import NightBusy
from reflect.models.base import Model
from reflect.tasksets.base import Taskset
from reflect.training.lesson_set import TasksetLessons
from reflect.training.plan import Plan


def night_key(
    model: Model, settings: Settings, subjects: Sequence[TasksetLessons], plan: Plan
) -> str:
    """Content hash, 32 hex digits: the texts of the lessons, their tasks, the base, the plan, the
    prompt template."""
    content = {
        "profile": settings.profile,
        "base": model.fingerprint,
        "plan": plan.shape(),
        "prompt": prompts.version("system"),
        "settings": [settings.max_tokens, settings.lesson_budget, settings.lesson_limit],
        "lessons": sorted(
            {(x.id, x.scope, x.when, x.do) for subject in subjects for x in subject.lessons}
        ),
        "tasks": [[subject.taskset.name, _tasks_hash(subject.taskset)] for subject in subjects],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _tasks_hash(taskset: Taskset) -> str:
    keys = [task.key for split in ("practice", "holdout") for task in taskset.tasks(split)]  # type: ignore[arg-type]
    return hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:16]


@contextmanager
def night_lock(settings: Settings) -> Iterator[None]:
    """One sleep at a time in one home folder. The system releases the lock when its holder dies,
    however it dies.

    The trainer is the holder itself: a night starts no other process that could outlive it. A child
    that forked off would share the descriptor, and so hold the lock for as long as it lives.
    """
    import filelock

    settings.home_path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(settings.home_path / "sleep.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as e:
        raise NightBusy(
            "Another sleep is running.", "Wait until it is done: `reflect nights`."
        ) from e
    try:
        yield
    finally:
        lock.release()


def is_running(settings: Settings) -> bool:
    """Does somebody sleep in this home folder now?"""
    if not (settings.home_path / "sleep.lock").exists():
        return False
    try:
        with night_lock(settings):
            return False
    except NightBusy:
        return True


class NightDir:
    """The folder of one night. A file in it is visible only when it is complete."""

    def __init__(self, settings: Settings, key: str) -> None:
        self.folder = settings.home_path / "nights" / key

    def once(self, what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns, or returned before this night was interrupted."""
        path = self.folder / f"{what}.json"
        if not path.exists():
            text = json.dumps(make())
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            with temporary.open("w") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        made: dict[str, Any] = json.loads(path.read_text())
        return made

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
