"""reflect mcp: lessons for an agent over the Model Context Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer import Option

from reflect.cli.common import with_workspace
from reflect.cli.output import print_status

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("model profile")
def mcp(
    ws: Workspace,
    taskset: str = Option(
        "traffic", metavar="NAME", help="Taskset of the tasks: the scope of their lessons."
    ),
) -> None:
    """Serve the lessons to an agent on stdin and stdout (Model Context Protocol).

    The agent reads lessons, proposes some, which wait in quarantine, and reports outcomes. `reflect
    serve` has the same server at /mcp.
    """
    from reflect.cli import signals
    from reflect.mcp import serve_stdio

    where = f"profile {ws.settings.profile}, database {ws.path}"
    print_status(f"Serving lessons on stdin and stdout: {where}. Ctrl-C stops it.")
    # Every call is one transaction, and the thread that reads stdin cannot be stopped.
    signals.finish()
    serve_stdio(ws, taskset)
