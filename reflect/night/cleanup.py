"""Files of killed nights that no night will read again. Every night removes them; so does `reflect
doctor`.

Only what is provably garbage: a folder or file without its last rename, the workshop of a night
that has ended, and the adapter of such a night that was never recorded. What this database knows
nothing of may be another one's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from reflect.adapters import registry
from reflect.config import Settings
from reflect.errors import NightBusy
from reflect.night.workdir import NightDir, night_lock
from reflect.store import Store, nights


def find(store: Store, settings: Settings) -> list[Path]:
    """The leftover files; only valid while no night runs."""
    home = registry.home(settings)
    with store.read() as s:
        ended = [night.key for night in nights.list_nights(s) if night.status != "running"]
        recorded = {adapter.name for adapter in nights.list_adapters(s)}
    workshops = [NightDir(settings, key).folder for key in ended]
    unrecorded = [home / name for name in map(registry.name_of, ended) if name not in recorded]
    unfinished = [
        *home.glob(f"{registry.UNFINISHED}*"),
        *(settings.home_path / "nights").glob("*/*.tmp"),
    ]
    found = [path for path in (*workshops, *unrecorded, *unfinished) if path.exists()]
    return sorted(path for path in found if not any(other in path.parents for other in found))


def remove_leftovers(store: Store, settings: Settings) -> list[Path]:
    """Remove the leftover files, unless a night runs. Returns what was removed."""
    if not settings.home_path.is_dir():
        return []
    try:
        with night_lock(settings):
            found = find(store, settings)
            for path in found:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return found
    except NightBusy:
        return []
