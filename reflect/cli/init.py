"""reflect init: a folder to work in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from reflect.cli.output import print_status


def init(
    folder: Annotated[Path, typer.Argument(help="The folder; made when missing.")] = Path("."),
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Also copy the prompt templates, to edit them.")
    ] = False,
) -> None:
    """Make a working folder: settings, tasks, a database.

    What is there already stays as it is.
    """
    from reflect.cli.settings_text import toml
    from reflect.config import shipped
    from reflect.store import Store

    files = {"reflect.toml": toml, "example.jsonl": example_tasks}
    for template in sorted(shipped("prompts").glob("*.jinja")) if prompts else ():
        files[f"prompts/{template.name}"] = template.read_text
    for name, text in files.items():
        path = folder / name
        if path.exists():
            print_status(f"{path} is there already.")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text())
            print(path)
    database = folder / "lessons.db"
    new = not database.exists()
    Store(database)
    if new:
        print(database)
    print_status(
        f"Next: {'' if folder == Path('.') else f'cd {folder} && '}reflect run example.jsonl"
    )


def example_tasks() -> str:
    """20 letter questions to practise and 10 to measure with, one JSON object per line."""
    from reflect.tasksets import load_taskset

    letters = load_taskset("letters")
    tasks = [*letters.tasks("practice", 20), *letters.tasks("holdout", 10)]
    return "".join(json.dumps(task.shape()) + "\n" for task in tasks)
