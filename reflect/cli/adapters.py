"""reflect adapters: the adapters that nights trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from reflect.cli.common import Json, Yes, noun, with_workspace
from reflect.cli.output import join, print_json, print_status, print_table, to_dict
from reflect.cli.report import print_gate
from reflect.errors import UsageError

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.adapters.model_card import Form
    from reflect.records import Adapter, Night
    from reflect.workspace.workspace import Workspace

app = noun("Adapters: LoRA weights that hold lessons.")
Name = Annotated[str, Argument(metavar="NAME", help="Name or id of an adapter.")]
COLUMNS = ", id, name, profile, status, night, base, created (UTC), lessons, revoked"


@app.command("list")
@with_workspace()
def list_(
    ws: Workspace,
    profile: str | None = Option(None, metavar="NAME", help="Profile. [default: all]"),
    json: Json = False,
) -> None:
    """List the adapters and the lessons in their weights; a star marks the active one of each
    profile.

    "revoked": lessons in its weights that were revoked since; such an adapter cannot be promoted.
    """
    from reflect.store import nights, profiles, revoked_adapters

    with ws.store.read() as s:
        pairs = [(row, _night(s, row)) for row in nights.list_adapters(s)]
        active = {view.active.id for view in profiles.listing(s) if view.active}
    if profile is not None:
        pairs = [(row, night) for row, night in pairs if night and night.profile == profile]
    if json:
        return print_json(
            [adapter_json(row, night) | {"active": row.id in active} for row, night in pairs]
        )
    cells = []
    for row, night in pairs:
        star, owner = "*" if row.id in active else "", night.profile if night else None
        lessons = join(revoked_adapters.still_holds(row, night)) or None
        about = [star, row.id, row.name, owner, row.status, row.night_id, row.base_model]
        cells.append([*about, f"{row.created:%F %R}", lessons, join(row.revoked) or None])
    print_table(cells, COLUMNS)


@app.command()
@with_workspace()
def show(ws: Workspace, name: Name, json: Json = False) -> None:
    """Show one adapter: its lessons, files, base and gate."""
    from reflect.store import lessons, nights, revoked_adapters

    with ws.store.read() as s:
        row = nights.get_adapter(s, name)
        night = _night(s, row)
        kept = revoked_adapters.still_holds(row, night)
        versions = {pair[0]: pair[1] for pair in (night.lessons if night else ())}
        texts = [lessons.version(s, i, versions[i]) for i in kept if i in versions]
    if json:
        return print_json(adapter_json(row, night))
    profile = night.profile if night else "-"
    about = f"{row.status}, profile {profile}, night {row.night_id or '-'}"
    print(f"adapter {row.id}: {row.name}, {about}")
    print(f"base: {row.base_model} ({row.base_fingerprint[:12]})")
    print(f"folder: {ws.settings.home_path / row.path}")
    for file, digest in sorted(row.manifest.items()):
        print(f"  {digest[:12]}  {file}")
    for text in texts:
        version = f"{text.version}{', REVOKED' if text.lesson_id in row.revoked else ''}"
        print(f"lesson {text.lesson_id} (version {version}): when: {text.when} do: {text.do}")
    if others := sorted(set(row.revoked) - set(kept)):
        print(f"also trained on, and revoked: lesson {join(others)}")
    print_gate(row.gate)


def _night(s: Session, row: Adapter) -> Night | None:
    from reflect.store import nights

    return nights.get_night(s, row.night_id) if row.night_id else None


def adapter_json(row: Adapter, night: Night | None) -> dict[str, object]:
    """An adapter as JSON, with its profile and the ids of the lessons in its weights."""
    from reflect.store import revoked_adapters

    profile = night.profile if night else None
    return to_dict(row) | {"profile": profile, "lessons": revoked_adapters.still_holds(row, night)}


@app.command()
@with_workspace("model profile")
def promote(ws: Workspace, name: Name, json: Json = False) -> None:
    """Make an adapter the active one. The lessons in its weights leave the prompt."""
    adapter = ws.adapters.promote(name)
    if json:
        return print_json({"active": adapter.name})
    print_status(f"Active: {adapter.name}. To undo: reflect adapters rollback")


@app.command()
@with_workspace("profile")
def rollback(ws: Workspace, json: Json = False) -> None:
    """Undo the last promotion: the previous adapter, and the lessons as they were."""
    left, now = ws.adapters.rollback()
    if json:
        return print_json({"left": left.name, "active": now.name if now else None})
    print_status(f"Left {left.name}. Active: {now.name if now else 'the bare base'}.")


@app.command()
@with_workspace("profile")
def push(ws: Workspace, json: Json = False) -> None:
    """Load the active adapter on the server at `serve_url` (vLLM, reflect serve).

    It is loaded under its own name; its predecessor stays loaded, older ones are unloaded. Every
    promotion and rollback pushes; this command retries a failed push.
    """
    pushed = ws.adapters.push()
    if json:
        return print_json(pushed)
    if pushed.loaded:
        print(f"+ {pushed.loaded}")
    for name in pushed.unloaded:
        print(f"- {name}")
    print_status(f"{pushed.server} answers with {pushed.active or 'the bare base'}.")


@app.command()
@with_workspace("model")
def verify(
    ws: Workspace,
    name: str | None = Argument(None, metavar="NAME", help="[default: all]"),
    json: Json = False,
) -> None:
    """Compare every file with its sha256 manifest, and the base with the model."""
    problems = ws.adapters.verify(name)
    if json:
        print_json({key: {"ok": not text, "problem": text} for key, text in problems.items()})
    else:
        for key, text in problems.items():
            print(f"{key}: {text or 'ok'}")
    if any(problems.values()):
        raise typer.Exit(1)


@app.command()
@with_workspace("model")
def export(
    ws: Workspace,
    name: Name,
    out: Annotated[
        Path | None, Option("--out", "-o", metavar="FOLDER", help="A new folder. [default: ./NAME]")
    ] = None,
    merge: bool = Option(False, "--merge", help="Merge the adapter into the base model."),
    gguf: bool = Option(False, "--gguf", help="Write a GGUF file for llama.cpp and Ollama."),
    mlx: bool = Option(False, "--mlx", help="Write the adapter for mlx_lm."),
    yes: Yes = False,
) -> None:
    """Export an adapter as a PEFT folder with a model card; prints the folder.

    The card lists the lessons, the gate's results, the training plan, and the sha256 of each file.
    A damaged adapter, or one trained on a revoked lesson, is refused.
    """
    if gguf and mlx:
        raise UsageError("An export has one form.", "Give --gguf or --mlx, not both.")
    form: Form = "gguf" if gguf else "mlx" if mlx else "peft"
    print(ws.adapters.export(name, out, merge=merge, form=form, overwrite=yes))
