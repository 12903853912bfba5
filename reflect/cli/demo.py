"""reflect demo: a whole day and night, printed as they happen. Every figure is measured."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from reflect.cli.common import Json, Seed, open_workspace
from reflect.cli.output import print_json, print_status


def demo(
    tasksets: Annotated[
        list[str] | None,
        Option(
            "--taskset", metavar="NAME", help="Taskset; repeatable. [default: letters, dialect]"
        ),
    ] = None,
    nights: int = Option(
        1, min=1, max=20, help="Number of days and nights, each with new lessons."
    ),
    seed: Seed = 0,
    folder: Annotated[
        Path | None,
        Option("--dir", help="Keep the workspace in this folder. [default: a temporary one]"),
    ] = None,
    model: str = Option("pocket", "--model", "-m", metavar="NAME", help="Another model."),
    json: Json = False,
) -> None:
    """A whole day and night on the built-in model.

    It fails, reflects on its rollouts, writes lessons, sleeps, and solves the tasks without the
    lessons afterwards.

    With --json the story goes to stderr and the figures to stdout.
    """
    from reflect.cli.demo_story import play

    tell = print_status if json else functools.partial(print, flush=True)
    with tempfile.TemporaryDirectory(prefix="reflect-demo-") as temporary:
        home = folder or Path(temporary)
        db, state = str(home / "lessons.db"), str(home / ".reflect")
        ws = open_workspace(db=db, profile="default", model=model, home=state)
        names = [ws.taskset(name).name for name in tasksets or []]
        figures = play(ws, names, nights=nights, seed=seed, tell=tell)
    if folder:
        tell(f"The workspace is in {folder}: reflect lessons --db {folder / 'lessons.db'}")
    if json:
        print_json(figures)
    if not figures["promoted"]:
        raise typer.Exit(1)
