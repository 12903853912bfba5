"""reflect grade: what a person says of a rollout."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from reflect.cli.common import Db, DefaultList, Json, Profile, workspace
from reflect.cli.output import print_json, print_status, progress
from reflect.cli.run import tell_report

By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", help="Name of the grader. [default: your user name]"),
]


class GiveByDefault(DefaultList):
    """`reflect grade 12 0.5` is `reflect grade give 12 0.5`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["give", *args] if args and args[0].isdigit() else args)


app = typer.Typer(
    help="Grades by people, where no program can score. `reflect grade ID REWARD` is `reflect grade give ID REWARD`. "
    "Default verb: list.",
    cls=GiveByDefault,
    rich_markup_mode=None,
)


@app.command("list")
def list_(
    run: Annotated[
        int | None,
        typer.Option(metavar="ID", help="Run. [default: the newest with ungraded rollouts]"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Include rollouts that have a reward.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a file with one JSON object per line."),
    ] = None,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """The attempts of a run that wait for a grade."""
    grades = workspace(db, profile).grades
    run_id = run or grades.newest()
    if out:
        count = grades.save(run_id, out, every)
        return (
            print_json({"file": str(out), "rollouts": count})
            if json
            else print(f"{out}: {count} rollouts of run {run_id}")
        )
    rows = grades.waiting(run_id, every)
    if json:
        return print_json(rows)
    task = None
    for row in rows:
        if row["task"] != task:
            task = row["task"]
            print(f"-- {task}: {row['prompt']}")
        given = "" if row["reward"] is None else f", reward {row['reward']:g}"
        print(f"rollout {row['rollout']}, attempt {row['attempt']}{given}: {row['text']}")
    print_status(
        f"Run {run_id}: {len(rows)} to grade."
        if rows
        else f"Nothing in run {run_id} waits for a grade."
    )
    if rows:
        print_status('Grade one: reflect grade ID REWARD --feedback "..."')


@app.command()
def give(
    rollout: Annotated[int, typer.Argument(metavar="ID", help="A rollout's id.")],
    reward: Annotated[float, typer.Argument(help="From 0 (bad) to 1 (good).")],
    feedback: Annotated[
        str | None, typer.Option(help="What is good, what is missing. The review reads it.")
    ] = None,
    by: By = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Grade one attempt. What it was given before stays in its record."""
    _tell([workspace(db).grades.give(rollout, reward, feedback, by)], json, one=True)


@app.command()
def load(
    file: Annotated[
        Path,
        typer.Argument(help="What `reflect grade list --out FILE` wrote, with rewards filled in."),
    ],
    by: By = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Grade from a file, all of it or, when a line is malformed, nothing."""
    _tell(workspace(db).grades.load(file, by), json)


@app.command()
def review(
    run: Annotated[int, typer.Argument(metavar="RUN", help="A run's id.")],
    db: Db = None,
    json: Json = False,
) -> None:
    """Review a graded run, as `reflect run` would have: edits of lessons from its attempts, grades
    and feedback."""
    with progress() as tell:
        report = workspace(db).grades.review(run, progress=tell)
    return print_json(asdict(report)) if json else tell_report(report)


def _tell(done: list[dict[str, Any]], json: bool, one: bool = False) -> None:
    if json:
        return print_json(done[0] if one else done)
    for row in done:
        again = f", graded {len(row['grades'])} times" if len(row["grades"]) > 1 else ""
        print(f"rollout {row['rollout']}: reward {row['reward']:g}{again}")
    print_status("Then: reflect grade review RUN" if done else "No row has a reward.")
