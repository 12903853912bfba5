"""Profiles: namespaces (a person, a team, a product) over one base, each with its own lessons and
active adapter."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, func, select

from reflect.records import Adapter, Alias, Lesson, Night, Rule, Run


@dataclass(frozen=True)
class ProfileView:
    """One profile at a glance. `last_night` is its newest, whatever came of it."""

    name: str
    lessons: dict[str, int]  # status -> how many, for the statuses that occur
    active: Adapter | None  # None is the bare base
    last_night: Night | None


def listing(s: Session) -> list[ProfileView]:
    """Every profile that anything in the database belongs to, by name."""
    columns = (Lesson.profile, Alias.profile, Night.profile, Run.profile, Rule.profile)
    names = {name for column in columns for name in s.exec(select(column).distinct())}
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    tally = select(Lesson.profile, Lesson.status, func.count()).group_by(
        col(Lesson.profile), col(Lesson.status)
    )
    for name, status, n in s.exec(tally):
        counts[name][status] = n
    aliases = select(Alias, Adapter).join(Adapter, col(Alias.adapter_id) == col(Adapter.id))
    active = {alias.profile: adapter for alias, adapter in s.exec(aliases)}
    newest = select(func.max(col(Night.id))).group_by(col(Night.profile))
    nights = {
        night.profile: night for night in s.exec(select(Night).where(col(Night.id).in_(newest)))
    }
    return [
        ProfileView(name, counts[name], active.get(name), nights.get(name))
        for name in sorted(names)
    ]
