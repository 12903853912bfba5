"""reflect adapters: what the nights made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import Db, Json, Model, Profile, complain, noun, workspace
from reflect.cli.nights import tell_gate
from reflect.cli.output import print_json, print_status, shape, table

if TYPE_CHECKING:
    from reflect.records import Adapter, Night

app = noun("Adapters: LoRA weights that hold lessons.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name or id of an adapter.")]


@app.command("list")
def list_(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """List the adapters and the lessons in their weights; a star marks the active one of each
    profile.

    "revoked": lessons in its weights that were revoked since; such an adapter cannot be promoted.
    """
    from reflect.store import nights, profiles

    ws = workspace(db, profile)
    with ws.store.read() as s:
        rows = [
            (row, nights.get_night(s, row.night_id) if row.night_id else None)
            for row in nights.list_adapters(s)
        ]
        active = {view.active.id for view in profiles.listing(s) if view.active}
    rows = [
        (row, night)
        for row, night in rows
        if profile is None or (night and night.profile == profile)
    ]
    if json:
        return print_json([told(row, night) | {"active": row.id in active} for row, night in rows])
    cells = []
    for row, night in rows:
        more = told(row, night)
        star = "*" if row.id in active else ""
        start = [star, row.id, row.name, more["profile"], row.status, row.night_id, row.base_model]
        cells.append([*start, f"{row.created:%F %R}", ids(more["lessons"]), ids(row.revoked)])
    table(
        cells,
        [
            "",
            "id",
            "name",
            "profile",
            "status",
            "night",
            "base",
            "created (UTC)",
            "lessons",
            "revoked",
        ],
    )


@app.command()
def show(name: Name, db: Db = None, json: Json = False) -> None:
    """Show one adapter: its lessons, files, base and gate."""
    from reflect.store import lessons, nights

    ws = workspace(db)
    with ws.store.read() as s:
        row = nights.get_adapter(s, name)
        night = nights.get_night(s, row.night_id) if row.night_id else None
        more = told(row, night)
        read = dict(night.lessons if night else ())
        texts = [lessons.version(s, i, read[i]) for i in more["lessons"] if i in read]
    if json:
        return print_json(more)
    print(
        f"adapter {row.id}: {row.name}, {row.status}, profile {more['profile'] or '-'}, night {row.night_id or '-'}"
    )
    print(f"base: {row.base_model} ({row.base_fingerprint[:12]})")
    print(f"folder: {ws.settings.home_path / row.path}")
    for file, digest in sorted(row.manifest.items()):
        print(f"  {digest[:12]}  {file}")
    for text in texts:
        gone = ", REVOKED" if text.lesson_id in row.revoked else ""
        print(
            f"lesson {text.lesson_id} (version {text.version}{gone}): when: {text.when} do: {text.do}"
        )
    if others := sorted(set(row.revoked) - set(more["lessons"])):
        print(f"taught as well, and revoked: lesson {ids(others)}")
    tell_gate(row.gate)


def told(row: Adapter, night: Night | None) -> dict[str, Any]:
    """An adapter as JSON, with its profile and the ids of the lessons that it holds."""
    from reflect.store import revoked_adapters

    return shape(row) | {
        "profile": night.profile if night else None,
        "lessons": revoked_adapters.still_holds(row, night),
    }


def ids(lesson_ids: Sequence[int]) -> str | None:
    return ", ".join(map(str, lesson_ids)) or None


@app.command()
def promote(
    name: Name,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Make an adapter the active one. The lessons in its weights leave the prompt."""
    ws = workspace(db, profile, model)
    adapter = ws.promote(name)
    complain(ws)
    if json:
        return print_json({"active": adapter.name})
    print_status(f"Active: {adapter.name}. To go back: reflect adapters rollback")


@app.command()
def rollback(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Undo the last promotion: the previous adapter, and the lessons as they were."""
    ws = workspace(db, profile)
    left, now = ws.rollback()
    complain(ws)
    if json:
        return print_json({"left": left.name, "active": now.name if now else None})
    print_status(f"Left {left.name}. Active: {now.name if now else 'the bare base'}.")


@app.command()
def push(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Load the active adapter on the server at `serve_url` (vLLM, reflect serve).

    It is loaded under its own name; its predecessor stays loaded, older ones are unloaded. Every
    promotion and rollback pushes; this command retries a failed push.
    """
    pushed = workspace(db, profile).adapters.push()
    if json:
        return print_json(asdict(pushed))
    for sign, names in (("+", [pushed.loaded] if pushed.loaded else []), ("-", pushed.unloaded)):
        for name in names:
            print(f"{sign} {name}")
    print_status(f"{pushed.server} answers with {pushed.active or 'the bare base'}.")


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="[default: all]")] = None,
    db: Db = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """Compare every file with its sha256 manifest, and the base with the model."""
    found = workspace(db, None, model).adapters.verify(name)
    if json:
        print_json({key: {"ok": not wrong, "problem": wrong} for key, wrong in found.items()})
    else:
        for key, wrong in found.items():
            print(f"{key}: {wrong or 'ok'}")
    if any(found.values()):
        raise typer.Exit(1)


@app.command()
def export(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="A new folder. [default: its name, here]"
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Merge the adapter into the base and export the whole model."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Replace an existing export.")] = False,
    db: Db = None,
    model: Model = None,
) -> None:
    """Export an adapter as a PEFT folder with a model card; prints the folder.

    The card lists the lessons, the gate's results, the training plan, and the sha256 of each file.
    A damaged adapter, or one trained on a revoked lesson, is refused.
    """
    print(workspace(db, None, model).adapters.export(name, out, merge=merge, overwrite=yes))
