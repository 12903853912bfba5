"""reflect sleep: the night."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from reflect.cli.common import Db, Json, JudgeModel, Model, Profile, Seed, complain, workspace
from reflect.cli.output import clock, print_json, progress
from reflect.errors import UsageError

UNITS = {"s": 1 / 60, "": 1.0, "m": 1.0, "h": 60.0}


def minutes(text: str) -> float:
    """ "90s", "10m", "1.5h", or a number of minutes."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", text.strip())
    if not match:
        raise UsageError(f"'{text}' is no length of time.", "Write 90s, 10m or 1.5h.")
    return float(match[1]) * UNITS[match[2]]


def sleep(
    tasksets: Annotated[
        list[str] | None, typer.Argument(help="Tasksets on which lessons are practised.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Training time budget, e.g. 90s or 10m. [default: 30s]"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Training method: staged, sft, distill, grpo or staged+grpo. [default: staged]"
        ),
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(
            help="Distillation divergence: forward, reverse or jsd. [default: reverse, after a warm start]"
        ),
    ] = None,
    continued: Annotated[
        bool, typer.Option("--continue", help="Start from the active adapter's weights.")
    ] = False,
    seed: Seed = 0,
    if_due: Annotated[
        bool,
        typer.Option("--if-due", help="Sleep only if a night is due; otherwise print why not."),
    ] = False,
    deadline: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Pause after this time, e.g. 2h. The next sleep continues."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and do nothing.")
    ] = False,
    db: Db = None,
    model: Model = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Distil lessons into LoRA weights, behind a gate.

    Trains an adapter, evaluates it, and promotes it if it is as good as the lessons in the prompt.
    The lessons in its weights then leave the prompt. A finished night is not repeated; an
    interrupted one continues.
    --if-due is for schedules: see `reflect schedule`.
    """
    dials: dict[str, Any] = {
        "budget": minutes(budget) if budget else None,
        "method": method,
        "divergence": divergence,
    }
    dials |= {"seed": seed, "continued": continued}
    dials = {name: value for name, value in dials.items() if value is not None}
    until = minutes(deadline) if deadline else None
    ws = workspace(db, profile, model, judge=judge)
    with progress() as tell:
        report = ws.sleep(
            *(tasksets or []),
            dry_run=dry_run,
            if_due=if_due,
            deadline=until,
            progress=tell,
            **dials,
        )
    if report.status == "helped":
        return  # a worker process: the first process prints
    complain(ws)
    if json:
        print_json(asdict(report))
    elif report.status == "not due":
        print(report.reason)
    else:
        where = f"night {report.night_id}: " if report.night_id else ""
        again = (
            " (slept before; nothing was done)" if report.again else f" ({clock(report.seconds)})"
        )
        print(f"{where}{report.status}{again}")
        if report.reason:
            print(report.reason)
        for sign, ids, became in (
            ("-", report.distilled, "left the prompt: the weights hold it"),
            ("+", report.returned, "is back in the prompt"),
        ):
            for lesson in map(ws.lessons.get, ids):
                print(f"{sign} lesson {lesson.id} {became}. when: {lesson.when} do: {lesson.do}")
    if report.status == "failed":
        raise typer.Exit(1)
