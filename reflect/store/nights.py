"""Nights, adapters, trials; promotion and rollback, each one transaction with the statuses of the
lessons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlmodel import Session, col, select

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import SHOWN_STATUSES, Adapter, Alias, Lesson, LessonVersion, Night, Trial, now
from reflect.store import lessons as db
from reflect.store import revoked_adapters
from reflect.types import AdapterStatus, NightStatus

# -- nights
# ------------------------------------------------------------------------------------------------------------


def start_night(
    s: Session, *, key: str, profile: str, config: dict[str, Any], lessons: Sequence[Sequence[int]]
) -> Night:
    """The night of this key: the one that stands, or a new one. A failed night runs again, with the
    stages it has.

    `lessons`: [lesson id, version] of everything that its adapter is to hold.
    """
    night = s.exec(select(Night).where(Night.key == key)).first()
    if night is None:
        night = Night(
            key=key, profile=profile, config=config, lessons=[list(pair) for pair in lessons]
        )
    elif night.status == "failed":
        night.status, night.reason, night.ended = "running", "", None
    s.add(night)
    s.flush()
    return night


def save_stage(s: Session, night_id: int | None, stage: str, figures: Any) -> Night:
    """Record that a stage is complete, with its figures (JSON)."""
    night = get_night(s, night_id)
    night.stages = {
        **night.stages,
        stage: figures,
    }  # a new dict: SQLAlchemy does not see changes inside one
    s.add(night)
    s.flush()
    return night


def finish_night(
    s: Session, night_id: int | None, status: str, reason: str = "", adapter_id: int | None = None
) -> Night:
    """How the night ended: promoted, rejected, nothing or failed, and why."""
    if NightStatus(status) == NightStatus.RUNNING:
        raise ValueError(f"a night ends, not as {status!r}")
    night = get_night(s, night_id)
    night.status, night.reason, night.ended = status, reason, now()
    night.adapter_id = adapter_id if adapter_id is not None else night.adapter_id
    s.add(night)
    s.flush()
    return night


def get_night(s: Session, night_id: int | None) -> Night:
    """The night, or UnknownName."""
    night = s.get(Night, night_id) if night_id is not None else None
    if night is None:
        raise UnknownName(f"There is no night {night_id}.", "See `reflect nights list`.")
    return night


def find_night(s: Session, key: str) -> Night | None:
    """The night of this key, if there was one."""
    return s.exec(select(Night).where(Night.key == key)).first()


def list_nights(s: Session, limit: int | None = None, profile: str | None = None) -> list[Night]:
    """Newest first, of one profile or of all."""
    found = select(Night).order_by(col(Night.id).desc()).limit(limit)
    return list(s.exec(found.where(Night.profile == profile) if profile else found))


# -- adapters
# ----------------------------------------------------------------------------------------------------------


def add_adapter(s: Session, **fields: Any) -> Adapter:
    """Record an adapter (the fields of records.Adapter). The same name with the same files is the
    same adapter; with other files it is a Conflict, for an adapter never changes. It comes marked
    with what a person has taken away."""
    new = Adapter.model_validate(fields)
    standing = s.exec(select(Adapter).where(Adapter.name == new.name)).first()
    if standing is None:
        new.revoked = revoked_adapters.taken_away(s, new)
        s.add(new)
        s.flush()
        return new
    if standing.manifest != new.manifest:
        raise Conflict(
            f"There is another adapter of the name {new.name}.",
            "Move one away: adapters never change.",
        )
    return standing


def set_adapter(
    s: Session, adapter_id: int | None, *, status: str | None = None, gate: Any = None
) -> Adapter:
    """Record the verdict of the gate. Promotion is `promote`'s."""
    adapter = get_adapter(s, adapter_id)
    adapter.status = AdapterStatus(status or adapter.status)
    adapter.gate = adapter.gate if gate is None else gate
    s.add(adapter)
    s.flush()
    return adapter


def get_adapter(s: Session, id_or_name: int | str | None) -> Adapter:
    """An adapter by its name or id (a number as text is taken for an id when no adapter has that
    name)."""
    found = s.exec(select(Adapter).where(Adapter.name == str(id_or_name))).first()
    if found is None and id_or_name is not None and str(id_or_name).isdecimal():
        found = s.get(Adapter, int(id_or_name))
    if found is None:
        raise UnknownName(f"There is no adapter {id_or_name}.", "See `reflect adapters list`.")
    return found


def list_adapters(s: Session, limit: int | None = None) -> list[Adapter]:
    """Newest first."""
    return list(s.exec(select(Adapter).order_by(col(Adapter.id).desc()).limit(limit)))


def of_profile(s: Session, profile: str) -> list[Adapter]:
    """The adapters that the nights of a profile made, oldest first."""
    found = (
        select(Adapter)
        .join(Night, col(Night.id) == col(Adapter.night_id))
        .where(Night.profile == profile)
    )
    return list(s.exec(found.order_by(col(Adapter.id))))


def active_adapter(s: Session, profile: str = "default") -> Adapter | None:
    """The adapter that this profile answers with, None for the bare base."""
    alias = s.get(Alias, profile)
    return s.get(Adapter, alias.adapter_id) if alias and alias.adapter_id is not None else None


# -- promotion
# ---------------------------------------------------------------------------------------------------------


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
            f"The adapter {adapter.name} holds lessons of the profile {night.profile}, not of {profile}.",
            f"Say --profile {night.profile}.",
        )
    if adapter.status == "rejected":
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
    taught = {int(lesson_id): int(version) for lesson_id, version in night.lessons}
    ids = list(taught) if lesson_ids is None else list(lesson_ids)
    held = [lesson for lesson in (db.get(s, i) for i in ids) if _still_says(s, lesson, taught)]
    distilled = []
    for lesson in held:
        if lesson.profile == profile and lesson.status in SHOWN_STATUSES:
            reason = f"in the weights of {adapter.name}"
            distilled.append(
                db.revise(
                    s,
                    lesson.id,
                    author="night",
                    reason=reason,
                    status="distilled",
                    night_id=night.id,
                )
            )
    for lesson in db.listing(s, profile, "distilled"):
        if lesson.id not in {one.id for one in held}:
            reason = f"not in the weights of {adapter.name}"
            db.revise(
                s, lesson.id, author="night", reason=reason, status="active", night_id=night.id
            )
    if active is None or active.id != adapter.id:
        adapter.replaced = active.id if active else None
    adapter.status = "promoted"
    s.add(adapter)
    _point(s, profile, adapter.id)
    return distilled


def rollback(s: Session, profile: str = "default") -> Rollback:
    """Back to the adapter that the active one replaced, or where that is marked (see `marks`) to
    what that replaced.

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
    last = (
        {row.lesson_id: row for row in db.versions_of_night(s, left.night_id)}
        if left.night_id
        else {}
    )
    for (
        row
    ) in last.values():  # the newest touch of each lesson; a rollback signs with the night's id too
        if row.author == "night" and row.parent is not None:
            _take_back(s, row, left)
    left.status = "rolled_back"
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


def _still_says(s: Session, lesson: Lesson, taught: dict[int, int]) -> bool:
    """Is the lesson's text what the night read?"""
    if lesson.id not in taught:
        return True
    read = db.version(s, lesson.id, taught[lesson.id])
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
    s.add(alias)
    s.flush()


# -- trials
# ------------------------------------------------------------------------------------------------------------


def add_trial(s: Session, trial: Trial) -> Trial:
    """Record the measured effect of a lesson version."""
    s.add(trial)
    s.flush()
    return trial


def trials(s: Session, lesson_id: int | None = None) -> list[Trial]:
    """Of one lesson or of all, oldest first."""
    found = select(Trial).order_by(col(Trial.id))
    return list(
        s.exec(found.where(Trial.lesson_id == lesson_id) if lesson_id is not None else found)
    )
