"""Removes the files of killed nights; called by every night and by `reflect doctor`.

A file is removed only if no night can need it: it was not renamed to its final name, its night has
ended, or it is the adapter of an ended night and has no record. Files that this database does not
know may belong to another database.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from reflect.adapters import registry
from reflect.errors import NightBusy
from reflect.night.workdir import NightDir, night_lock
from reflect.store import Store, nights
from reflect.types import NightStatus

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.config import Settings


def find(store: Store, settings: Settings) -> list[Path]:
    """The leftover files; only valid while no night runs."""
    home = registry.home(settings)
    with store.read() as s:
        ended = [x.key for x in nights.list_nights(s) if x.status != NightStatus.RUNNING]
        recorded = {adapter.name for adapter in nights.list_adapters(s)}
    folder = settings.home_path / "nights"
    candidates = [
        *(NightDir(settings, key).folder for key in ended),
        *(home / name for name in map(registry.name_of, ended) if name not in recorded),
        *home.glob(f"{registry.UNFINISHED}*"),
        *folder.glob("*/*.tmp"),
        *folder.glob("*/.*.json.*"),
    ]
    paths = [path for path in candidates if path.exists()]
    return sorted(path for path in paths if not any(other in path.parents for other in paths))


def remove_leftovers(store: Store, settings: Settings) -> list[Path]:
    """Remove the leftover files, unless a night runs. Returns the removed paths."""
    if not settings.home_path.is_dir():
        return []
    try:
        with night_lock(settings):
            paths = find(store, settings)
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return paths
    except NightBusy:
        return []
