"""Options that many commands share, and groups whose default verb is `list`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reflect.cli.output import print_status
from reflect.workspace.workspace import Workspace

Db = Annotated[
    str | None,
    typer.Option("--db", metavar="FILE", help="The lessons database. [default: lessons.db]"),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="pocket, hf:ORG/NAME, a path, or openai:NAME. [default: pocket]",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="The server of openai:NAME, with /v1."),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile", metavar="NAME", help="Profile: its own lessons and adapter. [default: default]"
    ),
]
JudgeModel = Annotated[
    str | None,
    typer.Option(
        "--judge", metavar="NAME", help="Model that grades by a rubric. [default: the model itself]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same figures.")]


def workspace(
    db: str | None, profile: str | None = None, model: str | None = None, **settings: Any
) -> Workspace:
    from reflect import config

    return Workspace(config.load(db=db, profile=profile, model=model, **settings))


class DefaultList(TyperGroup):
    """`reflect lessons --json` is `reflect lessons list --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def noun(help: str) -> typer.Typer:
    """A group of verbs on one noun."""
    return typer.Typer(help=f"{help} Default verb: list.", cls=DefaultList, rich_markup_mode=None)


def complain(ws: Workspace) -> None:
    """Print the warnings of the workspace on stderr."""
    for text in ws.complaints:
        print_status(f"Warning: {text}")
