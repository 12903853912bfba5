"""reflect demo: a whole day and a whole night, told while they happen. Every figure is measured in
that run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from reflect.cli.common import Json, Seed, workspace
from reflect.cli.output import print_json, print_status


def demo(
    tasksets: Annotated[
        list[str] | None,
        typer.Option(
            "--taskset",
            metavar="NAME",
            help="Another taskset; may be given often. [default: letters, dialect]",
        ),
    ] = None,
    nights: Annotated[
        int, typer.Option(min=1, max=20, help="Number of days and nights, each with new lessons.")
    ] = 1,
    seed: Seed = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Keep the workspace in this folder. [default: a temporary one]"),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="Another model.")
    ] = "pocket",
    json: Json = False,
) -> None:
    """A whole day and night on the built-in model.

    It fails, reflects on its rollouts, writes lessons, sleeps, and solves the tasks without the
    lessons afterwards.

    With --json the story goes to stderr and the figures to stdout.
    """
    from reflect.cli.demo_story import live

    tell = print_status if json else functools.partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="reflect-demo-") as temporary:
        home = folder or Path(temporary)
        ws = workspace(str(home / "lessons.db"), "default", model, home=str(home / ".reflect"))
        found = [
            ws.taskset(name) for name in tasksets or []
        ]  # its errors come before anything begins
        figures = live(ws, [taskset.name for taskset in found], nights=nights, seed=seed, tell=tell)
    if folder:
        tell(f"The workspace is in {folder}: reflect lessons --db {folder / 'lessons.db'}")
    if json:
        print_json(figures)
    if not figures["promoted"]:
        raise typer.Exit(1)
