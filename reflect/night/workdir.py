"""The key of a night, the lock that allows one night at a time, and the folder of its results."""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reflect import prompts
from reflect.errors import NightBusy
from reflect.export.files import write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reflect.config import Settings
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Split
    from reflect.training.context import NightContext
    from reflect.types import Json

SPLITS: tuple[Split, ...] = ("practice", "holdout")


def night_key(ctx: NightContext) -> str:
    """Content hash, 32 hex digits, of lesson texts, tasks, base, plan and prompt template."""
    settings = ctx.settings
    content = {
        "profile": settings.profile,
        "base": ctx.model.fingerprint,
        "plan": ctx.plan.shape(),
        "prompt": prompts.version("system"),
        "settings": [settings.max_tokens, settings.lesson_budget, settings.lesson_limit],
        "lessons": sorted({(x.id, x.scope, x.when, x.do) for x in ctx.lessons}),
        "tasks": [[item.taskset.name, _tasks_hash(item.taskset)] for item in ctx.tasksets],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _tasks_hash(taskset: Taskset) -> str:
    keys = [task.key for split in SPLITS for task in taskset.tasks(split)]
    return hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:16]


@contextmanager
def night_lock(settings: Settings) -> Iterator[None]:
    """One sleep at a time in one home folder; otherwise NightBusy. The system releases the lock
    when the process dies. A forked child would share the descriptor and keep the lock, so a night
    starts no process that could outlive it."""
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
    """Whether a night runs in this home folder now."""
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

    def once(self, stage: str, make: Callable[[], Json]) -> Json:
        """The result of `make`, or the one that it returned before the night was interrupted."""
        path = self.folder / f"{stage}.json"
        if not path.exists():
            write(path, json.dumps(make()).encode(), overwrite=True)
        result: Json = json.loads(path.read_text())
        return result

    def clear(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
