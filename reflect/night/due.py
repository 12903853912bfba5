"""Whether a night is due, decided from the database and the clock without a model: cheap enough for
an hourly check.

Not covered: a night of the same profile of a shared database on another computer, which has a lock
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reflect.errors import UnknownName
from reflect.records import SHOWN_STATUSES, Night
from reflect.store import Store, nights
from reflect.store import lessons as lessons_db
from reflect.training import lesson_set

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.tasksets.base import Taskset


@dataclass(frozen=True)
class Due:
    """Whether a night should start, and why. Its truth value is `due`."""

    due: bool
    reason: str
    new: list[int] = field(default_factory=list)
    """Lessons in prompts whose present text no night has read."""
    gone: list[int] = field(default_factory=list)
    """Revoked lessons that are still in the weights."""

    def __bool__(self) -> bool:
        return self.due


def decide(
    store: Store, settings: Settings, now: datetime, tasksets: Sequence[Taskset] = ()
) -> Due:
    """Whether a night should start or continue at `now`, if none is running.

    Due: an interrupted night; at least `sleep_lessons` new lessons when the last night ended at
    least `sleep_hours` ago; or, at any time, a revoked lesson in the weights. Not due: the last
    night had the same lesson texts, so that its result would be the same.
    """
    lessons = lesson_set.pick(store, settings.profile)
    if not lessons:
        return Due(False, "Not due: there are no lessons yet.")
    try:
        items = lesson_set.lessons_by_taskset(store, settings.profile, lessons, tasksets)
    except UnknownName as e:
        return Due(False, f"Not due: {e.message[0].lower()}{e.message[1:]}")
    current = {lesson.id: lesson for item in items for lesson in item.lessons}
    texts = {(lesson.id or 0, lesson.when, lesson.do) for lesson in current.values()}
    with store.read() as s:
        all_nights = nights.list_nights(s, profile=settings.profile)
        read = nights.texts_by_night(s, settings.profile)
        gone = _gone(s, settings.profile)
    running = next((night for night in all_nights if night.status == "running"), None)
    if running is not None:
        return Due(True, f"Due: night {running.id} was interrupted, and goes on.", gone=gone)
    ended = [night for night in all_nights if night.ended is not None]
    known = set().union(*(read[n.id or 0] for n in ended if n.status != "failed"))
    new = sorted(x[0] for x in texts if current[x[0]].status in SHOWN_STATUSES and x not in known)
    last = max(ended, key=lambda night: night.ended or now, default=None)
    same = last is not None and read[last.id or 0] == texts
    return Due(*_judge(settings, now, last, same, new, gone), new, gone)


def _judge(
    settings: Settings,
    now: datetime,
    last: Night | None,
    same: bool,
    new: list[int],
    gone: list[int],
) -> tuple[bool, str]:
    if same and last is not None:
        return False, f"Not due: night {last.id} ({last.status}) had the same lessons."
    if gone:
        return True, f"Due: the weights still have revoked lessons ({_ids(gone)})."
    if len(new) < max(1, settings.sleep_lessons):
        minimum = f"sleep_lessons = {settings.sleep_lessons}"
        return False, f"Not due: {_count(len(new))} new since the last night ({minimum})."
    if last is not None and last.ended is not None:
        hours = (now - last.ended).total_seconds() / 3600
        if hours < settings.sleep_hours:
            minimum = f"sleep_hours = {settings.sleep_hours:g}"
            return False, f"Not due: night {last.id} ended {hours:.1f} hours ago ({minimum})."
    return True, f"Due: {_count(len(new))} new (lessons {_ids(new)})."


def _gone(s: Session, profile: str) -> list[int]:
    """Lessons in the weights that left since, or were revoked from the newest adapter."""
    active = nights.active_adapter(s, profile)
    ids: set[int] = set()
    if active is not None and active.night_id is not None:
        trained = [int(i) for i, _ in nights.get_night(s, active.night_id).lessons]
        ids |= {i for i in trained if lessons_db.get(s, i).status in ("retired", "quarantined")}
    mine = {night.id for night in nights.list_nights(s, profile=profile)}
    newest = next((x for x in nights.list_adapters(s) if x.night_id in mine), None)
    return sorted(ids | set(newest.revoked if newest else []))


def _count(n: int) -> str:
    return "1 lesson is" if n == 1 else f"{n or 'no'} lessons are"


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
