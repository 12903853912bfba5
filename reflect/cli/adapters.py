"""reflect adapters: what the nights made."""

from __future__ import annotations

from typing import Annotated

import typer

from reflect.cli.common import Db, Json, Model, Profile, noun, workspace
from reflect.cli.nights import tell_gate
from reflect.cli.output import emit, say, shape, table

app = noun("Adapters: LoRA weights that hold lessons.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter's name or id.")]


@app.command("list")
def list_(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """The adapters; a star marks the active one."""
    from reflect.store import nights

    ws = workspace(db, profile)
    with ws.store.read() as s:
        rows = nights.list_adapters(s)
        active = nights.active_adapter(s, ws.settings.profile)
    now = active.id if active else None
    if json:
        return emit([shape(row) | {"active": row.id == now} for row in rows])
    cells = [
        ["*" if r.id == now else "", r.id, r.name, r.status, r.night_id, r.base_model, f"{r.created:%F %R}"]
        for r in rows
    ]
    table(cells, ["", "id", "name", "status", "night", "base", "created (UTC)"])


@app.command()
def show(name: Name, db: Db = None, json: Json = False) -> None:
    """One adapter: its files, its base, its gate."""
    from reflect.store import nights

    ws = workspace(db)
    with ws.store.read() as s:
        row = nights.get_adapter(s, name)
    if json:
        return emit(shape(row))
    print(f"adapter {row.id}: {row.name}, {row.status}, night {row.night_id or '-'}")
    print(f"base: {row.base_model} ({row.base_fingerprint[:12]})")
    print(f"folder: {ws.settings.home_path / row.path}")
    for file, digest in sorted(row.manifest.items()):
        print(f"  {digest[:12]}  {file}")
    tell_gate(row.gate)


@app.command()
def promote(
    name: Name,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Make an adapter the active one. The lessons that it holds leave the prompt."""
    adapter = workspace(db, profile, model).promote(name)
    if json:
        return emit({"active": adapter.name})
    say(f"Active: {adapter.name}. To go back: reflect adapters rollback")


@app.command()
def rollback(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Undo the last promotion: the previous adapter, and the lessons as they were."""
    left, now = workspace(db, profile).rollback()
    if json:
        return emit({"left": left.name, "active": now.name if now else None})
    say(f"Left {left.name}. Active: {now.name if now else 'the bare base'}.")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="[default: all]")] = None,
    db: Db = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Compare every file with its sha256 manifest, and the base with the model."""
    found = workspace(db, None, model).verify(name)
    if json:
        emit({key: {"ok": not wrong, "problem": wrong} for key, wrong in found.items()})
    else:
        for key, wrong in found.items():
            print(f"{key}: {wrong or 'ok'}")
    if any(found.values()):
        raise typer.Exit(1)
