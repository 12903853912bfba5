"""merge: lessons that say the same become one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from reflect.cli.common import Db, Json, Model, Profile, workspace
from reflect.cli.lessons.common import Scope
from reflect.cli.output import print_json, print_status
from reflect.cli.run import in_words


def merge(
    scope: Scope = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Ask the model and print the changes without making them."),
    ] = False,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Make one lesson of those that say the same. The model is asked about near duplicates only.

    Pinned and proven words stay as they are. Each change can be taken back: reflect lessons undo
    ID.
    """
    ws = workspace(db, profile, model)
    found = ws.lessons.merge(scope=scope, dry_run=dry_run)
    if json:
        return print_json(asdict(found))
    lines = [text for change in found.changes if (text := in_words(change))]
    print("\n".join(lines) or "Nothing to merge.")
    for family in found.asked:
        for problem in family.problems:
            print_status(f"lessons {', '.join(map(str, family.lessons))}: {problem}")
    for change in found.changes:
        if change["outcome"] == "refused":
            print_status(
                f"refused: {change['kind']} {change.get('ids') or change['id']}: {change['reason']}"
            )
    for name, row in sorted(found.standing.items()):
        room = f"a prompt holds {ws.settings.lesson_limit} lessons and {ws.settings.lesson_budget} tokens"
        print_status(
            f"{name or 'everywhere'}: {row['lessons']} lessons, {row['tokens']} tokens stand; {room}"
        )
    if dry_run:
        print_status("Nothing was changed.")
