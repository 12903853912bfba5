"""reflect connect: the hooks of a coding agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import Json, with_workspace
from reflect.cli.output import print_json, print_status
from reflect.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace

AGENTS = ("claude", "codex")


@with_workspace("profile")
def connect(
    ws: Workspace,
    agent: Annotated[str, Argument(help="claude or codex.")],
    yes: bool = Option(False, "--yes", help="Write the change. Without it, only show it."),
    remove: bool = Option(False, "--remove", help="Take the hooks out again."),
    plugin: Annotated[
        Path | None,
        Option(metavar="FOLDER", help="Write a plugin for Claude Code instead of its settings."),
    ] = None,
    json: Json = False,
) -> None:
    """Show lessons in the sessions of Claude Code or Codex, by hooks in its settings.

    Prints the change as a diff; --yes writes it. --remove restores the settings byte for byte.
    """
    if agent not in AGENTS:
        raise UnknownName(f"There is no agent {agent}.", f"Agents: {', '.join(AGENTS)}.")
    if plugin is not None:
        if agent != "claude" or remove:
            raise UsageError("--plugin goes with `reflect connect claude` only.")
        files = ws.sessions.write_plugin(plugin, overwrite=yes)
        return print_json(files) if json else print("\n".join(files))
    changes = ws.sessions.connect(agent, remove=remove, write=yes)
    if json:
        rows = [{"file": str(change.path), "diff": change.diff} for change in changes]
        return print_json({"changes": rows, "written": yes and bool(changes)})
    for change in changes:
        print(change.diff)
    if not changes:
        return print_status(f"Nothing to change: {agent} is {'not ' if remove else ''}connected.")
    if not yes:
        return print_status("Nothing is written yet. Add --yes to write this.")
    print_status(f"Written. Lessons come from {ws.path}, and imports must name it too.")
    if agent == "codex" and not remove:
        print_status("Codex asks once whether it may run the hooks: answer in its /hooks view.")
    return None
