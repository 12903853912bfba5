"""reflect prompt: the exact prompt of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer import Argument

from reflect.cli.common import Json, TasksetName, with_workspace
from reflect.cli.output import print_json

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("model profile")
def prompt(
    ws: Workspace,
    taskset: TasksetName,
    task: str | None = Argument(None, help="A task's id. [default: the first holdout task]"),
    json: Json = False,
) -> None:
    """Print the exact messages that the model receives for a task."""
    result = ws.prompt(taskset, task)
    if not json:
        return print(result)
    data: dict[str, object] = {"taskset": result.taskset, "task": result.task.id}
    data |= {"messages": result.messages, "lessons": [lesson.id for lesson in result.lessons]}
    print_json(data | {"tokens": sum(ws.count_tokens(m["content"]) for m in result.messages)})
