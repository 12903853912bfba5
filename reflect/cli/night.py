"""reflect night: a night whose training runs on another machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from reflect.cli.common import Json, Seed, with_workspace
from reflect.cli.output import print_json, print_status, progress
from reflect.cli.sleep import minutes, print_night

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

app = typer.Typer(
    help="A night that trains on another machine: export, work there, import.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Folder = Annotated[Path, Argument(metavar="DIR", help="Folder of the job.")]


@app.command()
@with_workspace("model judge profile")
def export(
    ws: Workspace,
    folder: Folder,
    tasksets: Annotated[
        list[str] | None, Argument(help="Tasksets on which lessons are practised.")
    ] = None,
    budget: str | None = Option(
        None, metavar="TIME", help="Training time budget, e.g. 90s or 10m. [default: as in sleep]"
    ),
    method: str = Option("staged", help="Training method: staged, sft or distill."),
    divergence: str | None = Option(
        None, help="Distillation divergence: forward, reverse or jsd. [default: as in sleep]"
    ),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Begin a night, and write its training as a job into a new folder."""
    from reflect.training.plan import NightOptions

    length = minutes(budget) if budget else None
    options = NightOptions(method=method, divergence=divergence, budget=length, seed=seed)
    with progress() as bar:
        report = ws.export_night(folder, *(tasksets or []), options=options, progress=bar)
    print_night(ws, report, json)


@app.command()
@with_workspace("model")
def work(ws: Workspace, folder: Folder, json: Json = False) -> None:
    """Train the job in a folder. Needs the base model, and no database."""
    with progress() as bar:
        result = ws.work_on_night(folder, progress=bar)
    if names := ", ".join(result["differs"]):
        print_status(f"Other versions than at the export: {names}. See {folder}/requirements.txt.")
    if json:
        return print_json(result)
    print(f"{result['adapter']}: trained, {result['steps']} steps. Take {folder} home, and there:")
    print(f"reflect night import {folder}")


@app.command("import")
@with_workspace("model judge profile")
def import_(ws: Workspace, folder: Folder, json: Json = False) -> None:
    """Check the result of a job, put it through the gate, and promote it if it passes."""
    with progress() as bar:
        report = ws.import_night(folder, progress=bar)
    print_night(ws, report, json)
