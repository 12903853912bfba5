"""reflect init: a working folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from reflect.cli.output import print_status


def init(
    folder: Annotated[Path, Argument(help="The folder; created if missing.")] = Path("."),
    prompts: bool = Option(False, "--prompts", help="Also copy the prompt templates."),
) -> None:
    """Make a working folder: settings, tasks, a database.

    Existing files stay as they are.
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
            print_status(f"{path} exists already.")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text())
            print(path)
    database = folder / "lessons.db"
    new = not database.exists()
    Store(database)
    if new:
        print(database)
    enter = "" if folder == Path(".") else f"cd {folder} && "
    print_status(f"Next: {enter}reflect run example.jsonl")


def example_tasks() -> str:
    """20 letter questions to practise and 10 to measure with, one JSON object per line."""
    from reflect.tasksets import load_taskset

    letters = load_taskset("letters")
    tasks = [*letters.tasks("practice", 20), *letters.tasks("holdout", 10)]
    return "".join(json.dumps(task.shape()) + "\n" for task in tasks)
