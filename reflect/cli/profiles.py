"""reflect profiles: who shares this database and this base."""

from __future__ import annotations

from reflect.cli.common import Db, Json, noun, workspace
from reflect.cli.output import print_json, table

app = noun("Profiles: namespaces with their own lessons and adapter over one base.")
STATUSES = ("active", "candidate", "distilled", "quarantined", "retired")


@app.command("list")
def list_(db: Db = None, json: Json = False) -> None:
    """The profiles: lessons by status, active adapter, last night. --profile NAME on a command
    makes a new one."""
    from reflect.store import profiles

    with workspace(db).store.read() as s:
        rows = profiles.listing(s)
    if json:
        return print_json([
            {
                "profile": row.name,
                "lessons": {status: row.lessons.get(status, 0) for status in STATUSES},
                "active": row.active.name if row.active else None,
                "revoked": row.active.revoked if row.active else [],
                "last_night": {
                    "id": row.last_night.id,
                    "status": row.last_night.status,
                    "started": row.last_night.started,
                }
                if row.last_night
                else None,
            }
            for row in rows
        ])  # fmt: skip
    cells = [
        [
            row.name,
            *(row.lessons.get(status, 0) for status in STATUSES),
            row.active.name if row.active else None,
            f"{row.last_night.id} {row.last_night.status} {row.last_night.started:%F %R}"
            if row.last_night
            else None,
        ]
        for row in rows
    ]
    table(cells, ["profile", *STATUSES, "adapter", "last night (UTC)"])
