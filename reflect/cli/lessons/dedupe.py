"""reflect lessons merge: merge lessons that say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from reflect.cli.common import Json, with_workspace
from reflect.cli.lessons.common import Scope
from reflect.cli.output import join, print_json, print_status
from reflect.cli.report import change_line

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace("model profile")
def merge(
    ws: Workspace,
    scope: Scope = None,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Ask the model and print the changes without making them."
    ),
    json: Json = False,
) -> None:
    """Merge lessons that say the same. The model is asked about near duplicates only.

    The text of pinned and proven lessons is kept. Each change can be undone: reflect lessons undo
    ID.
    """
    result = ws.lessons.merge(scope=scope, dry_run=dry_run)
    if json:
        return print_json(result)
    lines = filter(None, map(change_line, result.changes))
    print("\n".join(lines) or "Nothing to merge.")
    for family in result.asked:
        for problem in family.problems:
            print_status(f"lessons {join(family.lessons)}: {problem}")
    for change in result.changes:
        if change["outcome"] == "refused":
            edit = f"{change['kind']} {change.get('ids') or change['id']}"
            print_status(f"refused: {edit}: {change['reason']}")
    settings = ws.settings
    room = f"a prompt holds {settings.lesson_limit} lessons and {settings.lesson_budget} tokens"
    for name, row in sorted(result.standing.items()):
        size = f"{row['lessons']} lessons, {row['tokens']} tokens in use"
        print_status(f"{name or 'everywhere'}: {size}; {room}")
    if dry_run:
        print_status("Nothing was changed.")
