"""reflect prompt: exactly what the model will see."""

from __future__ import annotations

from typing import Annotated

import typer

from reflect.cli.common import Db, Json, Model, Profile, workspace
from reflect.cli.output import print_json


def prompt(
    taskset: Annotated[str, typer.Argument(help="A taskset's name, or a file of tasks.")],
    task: Annotated[
        str | None, typer.Argument(help="A task's id. [default: the first holdout task]")
    ] = None,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Exactly what the model will see of a task."""
    ws = workspace(db, profile, model)
    found = ws.prompt(taskset, task)
    if not json:
        return print(found)
    tokens = sum(ws.count_tokens(m["content"]) for m in found.messages)
    lessons = [lesson.id for lesson in found.lessons]
    data = {"taskset": found.taskset, "task": found.task.id, "messages": found.messages}
    print_json(data | {"lessons": lessons, "tokens": tokens})
