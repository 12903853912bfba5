"""reflect grade: grades given by people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from reflect.cli.common import DefaultList, Json, RunId, noun, with_workspace
from reflect.cli.output import print_json, print_status, progress
from reflect.cli.report import print_report

if TYPE_CHECKING:
    from reflect.workspace.grades import GradedRow
    from reflect.workspace.workspace import Workspace

By = Annotated[
    str | None, Option("--by", metavar="NAME", help="Name of the grader. [default: your user name]")
]


class GiveByDefault(DefaultList):
    """`reflect grade 12 0.5` is `reflect grade give 12 0.5`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A rollout's id in place of a command means `give`."""
        return super().parse_args(ctx, ["give", *args] if args and args[0].isdigit() else args)


app = noun(
    "Grades by people, where no program can score. `reflect grade ID REWARD` is `reflect grade "
    "give ID REWARD`.",
    GiveByDefault,
)


@app.command("list")
@with_workspace("profile")
def list_(
    ws: Workspace,
    run: int | None = Option(
        None, metavar="ID", help="Run. [default: the newest with ungraded rollouts]"
    ),
    every: bool = Option(False, "--all", help="Include rollouts that have a reward."),
    out: Annotated[
        Path | None, Option(metavar="FILE", help="Write a file with one JSON object per line.")
    ] = None,
    json: Json = False,
) -> None:
    """List the rollouts of a run that wait for a grade."""
    run_id = run or ws.grades.newest()
    if out:
        count = ws.grades.save(run_id, out, every)
        if json:
            return print_json({"file": str(out), "rollouts": count})
        return print(f"{out}: {count} rollouts of run {run_id}")
    rows = ws.grades.waiting(run_id, every)
    if json:
        return print_json(rows)
    task = None
    for row in rows:
        if row["task"] != task:
            task = row["task"]
            print(f"-- {task}: {row['prompt']}")
        reward = "" if row["reward"] is None else f", reward {row['reward']:g}"
        print(f"rollout {row['rollout']}, attempt {row['attempt']}{reward}: {row['text']}")
    if not rows:
        return print_status(f"Nothing in run {run_id} waits for a grade.")
    print_status(f"Run {run_id}: {len(rows)} to grade.")
    print_status('Grade one: reflect grade ID REWARD --feedback "..."')


@app.command()
@with_workspace()
def give(
    ws: Workspace,
    rollout: Annotated[int, Argument(metavar="ID", help="A rollout's id.")],
    reward: Annotated[float, Argument(help="From 0 (bad) to 1 (good).")],
    feedback: str | None = Option(None, help="What is good or missing. The reflection reads it."),
    by: By = None,
    json: Json = False,
) -> None:
    """Grade one rollout. Its earlier grades stay in its record."""
    row = ws.grades.give(rollout, reward, feedback, by)
    return print_json(row) if json else _print_grades([row])


@app.command()
@with_workspace()
def load(
    ws: Workspace,
    file: Annotated[
        Path, Argument(help="A file from `reflect grade list --out FILE`, with rewards.")
    ],
    by: By = None,
    json: Json = False,
) -> None:
    """Grade from a file: all rows, or none if a row is malformed."""
    rows = ws.grades.load(file, by)
    return print_json(rows) if json else _print_grades(rows)


@app.command()
@with_workspace()
def review(ws: Workspace, run: RunId, json: Json = False) -> None:
    """Reflect on a graded run, as `reflect run` does: rollouts, grades and feedback become lesson
    edits."""
    with progress() as bar:
        report = ws.grades.review(run, progress=bar)
    print_report(report, json)


def _print_grades(rows: list[GradedRow]) -> None:
    for row in rows:
        again = f", graded {len(row['grades'])} times" if len(row["grades"]) > 1 else ""
        print(f"rollout {row['rollout']}: reward {row['reward']:g}{again}")
    print_status("Then: reflect grade review RUN" if rows else "No row has a reward.")
