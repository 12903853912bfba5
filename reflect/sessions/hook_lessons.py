"""The small files from which the hook reads its lessons: one for each scope, and one for lessons
without a scope.

`refresh` writes them anew from the database. Commands that change lessons call it, so that the hook
need not open a database, which takes longer than a prompt should wait.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import quote

from reflect.prompts import sanitize_line
from reflect.reading import expand_home
from reflect.records import SHOWN_STATUSES
from reflect.sessions.hook import digest, write
from reflect.store import lessons, trials
from reflect.types import LessonStatus

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.config import Settings
    from reflect.records import Lesson
    from reflect.store import Store
    from reflect.types import Json

MOST = 200  # lessons in one file: the proven ones first, then the newest
CHARS = 3  # of a token, where a lesson has no count of its own
NAMES = ("lesson_limit", "lesson_budget", "trials", "withhold_bundle")


def folder_of(settings: Settings) -> Path:
    """The folder of the hooks and imports of a profile in a database."""
    db = settings.db if "://" in settings.db else str(expand_home(settings.db).resolve())
    name = f"{quote(settings.profile, safe='')}-{digest(db)[:8]}"
    return settings.home_path / "sessions" / name


def refresh(store: Store, settings: Settings) -> int:
    """Write the lessons that prompts may show. Returns how many files there are."""
    folder = folder_of(settings) / "lessons"
    folder.mkdir(parents=True, exist_ok=True)
    with store.read() as s:
        rows = lessons.listing(s, settings.profile, SHOWN_STATUSES)
        proven = trials.proven_effects(s, [row.id or 0 for row in rows])
    scopes: dict[str, list[Lesson]] = {"": []}
    for row in rows:
        if any(tag.startswith("task:") for tag in row.tags):  # for one practice task only
            continue
        scopes.setdefault(row.scope, []).append(row)
    values = {name: value for name, value in asdict(settings).items() if name in NAMES}
    for scope, mine in scopes.items():
        best = sorted(mine, key=lambda row: (-proven.get(row.id or 0, 0.0), -(row.id or 0)))[:MOST]
        content = {
            "written": time.time(),
            "settings": values,
            "lessons": [
                _lesson(row, settings, proven.get(row.id or 0, 0.0))
                for row in sorted(best, key=lambda row: row.id or 0)
            ],
        }
        write(folder / f"{digest(scope)}.json", json.dumps(content))
    current = {f"{digest(scope)}.json" for scope in scopes}
    for file in folder.glob("*.json"):
        if file.name not in current:
            file.unlink(missing_ok=True)
    return len(current)


def refresh_if_used(store: Store, settings: Settings) -> None:
    """Refresh the files where hooks are connected; otherwise do nothing."""
    if (folder_of(settings) / "lessons").is_dir():
        refresh(store, settings)


def _lesson(row: Lesson, settings: Settings, proven: float) -> Json:
    on_trial = row.status == LessonStatus.CANDIDATE and not row.pinned
    share = settings.withhold_candidate if on_trial else settings.withhold_active
    return {
        "id": row.id,
        "version": row.version,
        "when": sanitize_line(row.when),
        "do": sanitize_line(row.do),
        "tokens": row.tokens or len(row.when + row.do) // CHARS + 1,
        "share": share if settings.trials else 0.0,
        "proven": proven,
    }
