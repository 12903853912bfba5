"""reflect profiles: the namespaces that share this database and this base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.cli.common import Json, noun, with_workspace
from reflect.cli.output import print_json, print_table

if TYPE_CHECKING:
    from reflect.store.profiles import ProfileView
    from reflect.workspace.workspace import Workspace

app = noun("Profiles: namespaces with their own lessons and adapter over one base.")
STATUSES = ("active", "candidate", "distilled", "quarantined", "retired")


@app.command("list")
@with_workspace()
def list_(ws: Workspace, json: Json = False) -> None:
    """List the profiles: lessons by status, active adapter, last night. --profile NAME on a command
    makes a new one."""
    from reflect.store import profiles

    rows = ws.context.read(profiles.listing)
    if json:
        return print_json([profile_json(row) for row in rows])
    cells = []
    for row in rows:
        night, adapter = row.last_night, row.active.name if row.active else None
        last = f"{night.id} {night.status} {night.started:%F %R}" if night else None
        cells.append([row.name, *lesson_counts(row).values(), adapter, last])
    print_table(cells, f"profile, {', '.join(STATUSES)}, adapter, last night (UTC)")


def lesson_counts(row: ProfileView) -> dict[str, int]:
    """Status -> number of lessons, for every status."""
    return {status: row.lessons.get(status, 0) for status in STATUSES}


def profile_json(row: ProfileView) -> dict[str, object]:
    """A profile as JSON."""
    night = row.last_night
    return {
        "profile": row.name,
        "lessons": lesson_counts(row),
        "active": row.active.name if row.active else None,
        "revoked": row.active.revoked if row.active else [],
        "last_night": night
        and {name: getattr(night, name) for name in ("id", "status", "started")},
    }
