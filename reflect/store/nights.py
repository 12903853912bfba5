"""Nights, adapters and trials; promotion, rollback and revocation, each one transaction with the
statuses of the lessons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlmodel import Session, col, select

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import (
    SHOWN_STATUSES,
    Adapter,
    Alias,
    Lesson,
    LessonVersion,
    Night,
    Trial,
    now,
)
from reflect.store import lessons as db
from reflect.store import revoked_adapters
from reflect.store.rows import get_row, save
from reflect.types import AdapterStatus, Author, Json, LessonStatus, NightStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

Text = tuple[int, str, str]
"""(lesson id, when, do): a lesson whose text has changed counts as a new one."""

# -- nights


def start_night(
    s: Session, *, key: str, profile: str, config: Json, lessons: Sequence[Sequence[int]]
) -> Night:
    """The night of this key: the existing one, or a new one. A failed night runs again, with the
    stages it has.

    `lessons`: [lesson id, version] of everything that its adapter is to hold.
    """
    night = find_night(s, key)
    if night is None:
        pairs = [list(pair) for pair in lessons]
        night = Night(key=key, profile=profile, config=config, lessons=pairs)
    elif night.status == NightStatus.FAILED:
        night.status, night.reason, night.ended = NightStatus.RUNNING, "", None
    return save(s, night)


def save_stage(s: Session, night_id: int | None, stage: str, figures: object) -> Night:
    """Record that a stage is complete, with its figures (JSON)."""
    night = get_night(s, night_id)
    # a new dict: SQLAlchemy does not see changes inside one
    night.stages = {**night.stages, stage: figures}
    return save(s, night)


def finish_night(
    s: Session, night_id: int | None, status: str, reason: str = "", adapter_id: int | None = None
) -> Night:
    """Record how the night ended: promoted, rejected, nothing or failed, and why."""
    if NightStatus(status) == NightStatus.RUNNING:
        raise ValueError(f"a night ends, not as {status!r}")
    night = get_night(s, night_id)
    night.status, night.reason, night.ended = status, reason, now()
    night.adapter_id = adapter_id if adapter_id is not None else night.adapter_id
    return save(s, night)


def get_night(s: Session, night_id: int | None) -> Night:
    """The night, or UnknownName."""
    return get_row(s, Night, night_id, "night", "See `reflect nights list`.")


def find_night(s: Session, key: str) -> Night | None:
    """The night of this key, if there was one."""
    return s.exec(select(Night).where(Night.key == key)).first()


def list_nights(s: Session, limit: int | None = None, profile: str | None = None) -> list[Night]:
    """Newest first, of one profile or of all."""
    newest = select(Night).order_by(col(Night.id).desc()).limit(limit)
    return list(s.exec(newest.where(Night.profile == profile) if profile else newest))


def texts_by_night(s: Session, profile: str) -> dict[int, set[Text]]:
    """night id -> the texts that it read: those that it was begun with, and those that its
    preflight measured. (A promotion leaves in `Night.lessons` only what the adapter holds.)"""
    nights = list(s.exec(select(Night).where(Night.profile == profile)))
    read = {night.id or 0: {(int(i), int(n)) for i, n in night.lessons} for night in nights}
    for trial in s.exec(select(Trial).where(col(Trial.night_id).in_(list(read)))):
        read[trial.night_id or 0].add((trial.lesson_id, trial.version))
    ids = {lesson_id for pairs in read.values() for lesson_id, _ in pairs}
    rows = s.exec(select(LessonVersion).where(col(LessonVersion.lesson_id).in_(ids)))
    texts = {(row.lesson_id, row.version): (row.lesson_id, row.when, row.do) for row in rows}
    return {
        night: {texts[pair] for pair in pairs if pair in texts} for night, pairs in read.items()
    }


# -- adapters


def add_adapter(s: Session, **fields: Any) -> Adapter:
    """Record an adapter (the fields of records.Adapter). The same name with the same files is the
    same adapter; with other files it is a Conflict, because an adapter never changes. It comes
    marked with the lessons that a person has taken away."""
    new = Adapter.model_validate(fields)
    existing = s.exec(select(Adapter).where(Adapter.name == new.name)).first()
    if existing is None:
        new.revoked = revoked_adapters.taken_away(s, new)
        return save(s, new)
    if existing.manifest != new.manifest:
        raise Conflict(
            f"There is another adapter of the name {new.name}.",
            "Move one away: adapters never change.",
        )
    return existing


def set_adapter(
    s: Session, adapter_id: int | None, *, status: str | None = None, gate: Json | None = None
) -> Adapter:
    """Record the verdict of the gate. Promotion is `promote`'s."""
    adapter = get_adapter(s, adapter_id)
    adapter.status = AdapterStatus(status or adapter.status)
    adapter.gate = adapter.gate if gate is None else gate
    return save(s, adapter)


def get_adapter(s: Session, id_or_name: int | str | None) -> Adapter:
    """An adapter by its name or id (a number as text is taken for an id when no adapter has that
    name)."""
    adapter = s.exec(select(Adapter).where(Adapter.name == str(id_or_name))).first()
    if adapter is None and re.fullmatch(r"\d{1,18}", str(id_or_name)):
        adapter = s.get(Adapter, int(id_or_name or 0))
    if adapter is None:
        raise UnknownName(f"There is no adapter {id_or_name}.", "See `reflect adapters list`.")
    return adapter


def list_adapters(s: Session, limit: int | None = None) -> list[Adapter]:
    """Newest first."""
    return list(s.exec(select(Adapter).order_by(col(Adapter.id).desc()).limit(limit)))


def of_profile(s: Session, profile: str) -> list[Adapter]:
    """The adapters that the nights of a profile made, oldest first."""
    return [adapter for adapter, _ in revoked_adapters.of_profile(s, profile)]


def active_adapter(s: Session, profile: str = "default") -> Adapter | None:
    """The adapter that this profile answers with, None for the bare base."""
    alias = s.get(Alias, profile)
    return s.get(Adapter, alias.adapter_id) if alias and alias.adapter_id is not None else None


# -- promotion


class Rollback(NamedTuple):
    """The adapter that was left, and the one that is active now (None is the bare base)."""

    left: Adapter
    now: Adapter | None


def promote(
    s: Session,
    adapter_id: int | str | None,
    profile: str = "default",
    lesson_ids: Sequence[int] | None = None,
    night_id: int | None = None,
) -> list[Lesson]:
    """Make the adapter the active one. What it holds leaves the prompt, what the last one held and
    it does not returns.

    `lesson_ids`: the lessons that it holds; None takes those of its night. A lesson whose text has
    changed since the night read it is not in the weights, and stays in the prompt; one that was
    retired or quarantined stays that. Promoting an adapter that the active one was built upon steps
    back to it. Returns the lessons that became distilled. UsageError for one that the gate
    rejected, that is another profile's, or that knows a lesson which was taken away.
    """
    adapter = get_adapter(s, adapter_id)
    night = get_night(s, adapter.night_id if night_id is None else night_id)
    if night.profile != profile:
        raise UsageError(
            f"The adapter {adapter.name} belongs to the profile {night.profile}, not {profile}.",
            f"Add --profile {night.profile}.",
        )
    if adapter.status == AdapterStatus.REJECTED:
        raise UsageError(
            f"The adapter {adapter.name} did not pass the gate.",
            f"See `reflect nights show {night.id}`.",
        )
    revoked_adapters.refuse(adapter)
    active = active_adapter(s, profile)
    if adapter.id in _below(s, active):
        while (active := active_adapter(s, profile)) is not None and active.id != adapter.id:
            rollback(s, profile)
        return []
    trained = {int(lesson_id): int(version) for lesson_id, version in night.lessons}
    ids = list(trained) if lesson_ids is None else list(lesson_ids)
    same = [lesson for lesson in (db.get(s, i) for i in ids) if _still_says(s, lesson, trained)]
    shown = [x for x in same if x.profile == profile and x.status in SHOWN_STATUSES]
    distilled = [
        _by_night(s, lesson, LessonStatus.DISTILLED, "in", adapter, night) for lesson in shown
    ]
    for lesson in db.listing(s, profile, LessonStatus.DISTILLED):
        if lesson.id not in {one.id for one in same}:
            _by_night(s, lesson, LessonStatus.ACTIVE, "not in", adapter, night)
    if active is None or active.id != adapter.id:
        adapter.replaced = active.id if active else None
    adapter.status = AdapterStatus.PROMOTED
    s.add(adapter)
    _point(s, profile, adapter.id)
    return distilled


def _by_night(
    s: Session, lesson: Lesson, status: LessonStatus, where: str, adapter: Adapter, night: Night
) -> Lesson:
    reason = f"{where} the weights of {adapter.name}"
    return db.revise(
        s, lesson.id, author=Author.NIGHT, reason=reason, status=status, night_id=night.id
    )


def rollback(s: Session, profile: str = "default") -> Rollback:
    """Back to the adapter that the active one replaced, or where that is marked (see
    `revoked_adapters`) to what that replaced.

    The lessons that a promotion touched get back exactly what they were; where a person has changed
    one since, that text stays and only the status goes back. UsageError when nothing is promoted.
    """
    left = _step_back(s, profile)
    while (now_on := active_adapter(s, profile)) is not None and now_on.revoked:
        _step_back(s, profile)
    return Rollback(left, now_on)


def _step_back(s: Session, profile: str) -> Adapter:
    left = active_adapter(s, profile)
    if left is None:
        raise UsageError(
            "No adapter is active: there is nothing to roll back.", "See `reflect adapters list`."
        )
    versions = db.versions_of_night(s, left.night_id) if left.night_id else []
    # the newest version of each lesson; a rollback signs with the night's id too
    for row in {row.lesson_id: row for row in versions}.values():
        if row.author == Author.NIGHT and row.parent is not None:
            _take_back(s, row, left)
    left.status = AdapterStatus.ROLLED_BACK
    s.add(left)
    _point(s, profile, left.replaced)
    return left


def _take_back(s: Session, done: LessonVersion, left: Adapter) -> None:
    lesson = db.get(s, done.lesson_id)
    before = db.content(db.version(s, lesson.id, done.parent or 0))
    if lesson.version != done.version:  # changed since: leave the text
        if lesson.status != done.status:
            return
        before = {"status": before["status"]}
    db.restore(s, lesson, before, f"rollback of {left.name}", left.night_id)


def _still_says(s: Session, lesson: Lesson, trained: dict[int, int]) -> bool:
    """Is the lesson's text what the night read?"""
    if lesson.id not in trained:
        return True
    read = db.version(s, lesson.id, trained[lesson.id])
    return (read.when, read.do) == (lesson.when, lesson.do)


def _below(s: Session, adapter: Adapter | None) -> list[int]:
    """The ids of the adapters that rollback would reach one after the other."""
    ids: list[int] = []
    while adapter is not None and adapter.replaced is not None and adapter.replaced not in ids:
        ids.append(adapter.replaced)
        adapter = s.get(Adapter, adapter.replaced)
    return ids


def _point(s: Session, profile: str, adapter_id: int | None) -> None:
    alias = s.get(Alias, profile) or Alias(profile=profile)
    alias.adapter_id, alias.updated = adapter_id, now()
    save(s, alias)


# -- revocation


class Revoked(NamedTuple):
    """A revocation: a lesson left prompts and weights, in one transaction."""

    lesson: Lesson
    marked: list[Adapter]
    """All adapters that hold it."""
    left: Adapter | None
    """The adapter that the profile answered with, where it held the lesson."""
    now: Adapter | None
    """The adapter that it answers with; None is the bare base."""
    returned: list[Lesson]
    """Other lessons, in the prompt again because their adapter was left."""


def revoke(s: Session, lesson_id: int | None, reason: str = "") -> Revoked:
    """Forget a lesson everywhere: retired for good, its adapters marked, the profile back on
    weights without it.

    Those are the newest adapter below the active one that holds nothing of what was taken away,
    else the bare base.
    """
    profile = db.get(s, lesson_id).profile
    # Pinned, as a rejected lesson is: no review brings it back.
    lesson = db.revise(
        s, lesson_id, author=Author.HUMAN, reason=reason, status=LessonStatus.RETIRED, pinned=True
    )
    marked = revoked_adapters.mark(s, lesson)  # also where it was retired long ago
    active = active_adapter(s, profile)
    if active is None or lesson.id not in active.revoked:
        return Revoked(lesson, marked, None, active, [])
    distilled = {row.id for row in db.listing(s, profile, LessonStatus.DISTILLED)}
    left, now_on = rollback(s, profile)
    returned = [row for row in db.listing(s, profile, SHOWN_STATUSES) if row.id in distilled]
    return Revoked(lesson, marked, left, now_on, returned)


def leave_marked(s: Session, profile: str = "default") -> Rollback | None:
    """Off an adapter that knows what was taken away; None where the active one does not. For when
    there is nothing left from which a night could make another."""
    active = active_adapter(s, profile)
    return rollback(s, profile) if active is not None and active.revoked else None


# -- trials


def add_trial(s: Session, trial: Trial) -> Trial:
    """Record the measured effect of a lesson version."""
    return save(s, trial)


def trials(s: Session, lesson_id: int | None = None) -> list[Trial]:
    """Of one lesson or of all, oldest first."""
    rows = select(Trial).order_by(col(Trial.id))
    return list(s.exec(rows.where(Trial.lesson_id == lesson_id) if lesson_id is not None else rows))
