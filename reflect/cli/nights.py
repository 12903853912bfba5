"""reflect nights: the nights so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument

from reflect.cli.common import Json, noun, with_workspace
from reflect.cli.output import join, print_json, print_table
from reflect.cli.report import harvest_notices, print_gate

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

app = noun("Nights: the sleep so far.")


@app.command("list")
@with_workspace()
def list_(ws: Workspace, json: Json = False) -> None:
    """List the nights."""
    from reflect.store import nights

    rows = ws.context.read(nights.list_nights)
    if json:
        return print_json(rows)
    cells = [
        [r.id, r.profile, r.status, len(r.lessons), r.adapter_id, f"{r.started:%F %R}", r.reason]
        for r in rows
    ]
    print_table(cells, "id, profile, status, lessons, adapter, started (UTC), reason")


@app.command()
@with_workspace()
def show(
    ws: Workspace,
    night_id: Annotated[int, Argument(metavar="ID", help="A night's id.")],
    json: Json = False,
) -> None:
    """Show one night: its plan, its lessons, the figures of its stages, the gate."""
    from reflect.store import nights

    night = ws.context.read(nights.get_night, night_id)
    if json:
        return print_json(night)
    print(f"night {night.id}: {night.status}. {night.reason}")
    lessons = join(f"{lesson_id} (version {version})" for lesson_id, version in night.lessons)
    print(f"lessons: {lessons or '-'}")
    print(f"plan: {join(f'{name} {value}' for name, value in night.config.items())}")
    for text in harvest_notices(night.stages):
        print(text)
    print_gate(night.stages.get("gate", {}))
