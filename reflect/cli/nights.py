"""reflect nights: the sleep so far."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reflect.cli.common import Db, Json, noun, workspace
from reflect.cli.output import print_json, shape, table

app = noun("Nights: the sleep so far.")
ARMS = ("base_out", "base_in", "adapter_out", "adapter_in")


@app.command("list")
def list_(db: Db = None, json: Json = False) -> None:
    """The nights."""
    from reflect.store import nights

    with workspace(db).store.read() as s:
        rows = nights.list_nights(s)
    if json:
        return print_json([shape(row) for row in rows])
    cells = [
        [r.id, r.profile, r.status, len(r.lessons), r.adapter_id, f"{r.started:%F %R}", r.reason]
        for r in rows
    ]
    table(cells, ["id", "profile", "status", "lessons", "adapter", "started (UTC)", "reason"])


@app.command()
def show(
    night_id: Annotated[int, typer.Argument(metavar="ID", help="A night's id.")],
    db: Db = None,
    json: Json = False,
) -> None:
    """One night: its plan, its lessons, the figures of its stages, the gate."""
    from reflect.store import nights

    with workspace(db).store.read() as s:
        night = nights.get_night(s, night_id)
    if json:
        return print_json(shape(night))
    print(f"night {night.id}: {night.status}. {night.reason}")
    print(
        "lessons: "
        + (
            ", ".join(f"{lesson_id} (version {version})" for lesson_id, version in night.lessons)
            or "-"
        )
    )
    print("plan: " + ", ".join(f"{name} {value}" for name, value in night.config.items()))
    tell_gate(night.stages.get("gate", {}))


def tell_gate(gate: dict[str, Any]) -> None:
    """The gate's report on stdout: the four arms, then each check."""
    if gate.get("arms"):
        arms = [
            [name, *(rewards[arm]["reward"] for arm in ARMS)]
            for name, rewards in gate["arms"].items()
        ]
        table(arms, ["taskset", *ARMS])
    for check in gate.get("checks", []):
        print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['text']}")
