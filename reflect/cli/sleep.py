"""reflect sleep: the night."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from reflect.cli.common import Db, Json, JudgeModel, Model, Profile, Seed, complain, workspace
from reflect.cli.output import clock, emit, progress
from reflect.errors import UsageError

UNITS = {"s": 1 / 60, "": 1.0, "m": 1.0, "h": 60.0}


def minutes(text: str) -> float:
    """ "90s", "10m", "1.5h", or a number of minutes."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)", text.strip())
    if not match:
        raise UsageError(f"'{text}' is no length of time.", "Write 90s, 10m or 1.5h.")
    return float(match[1]) * UNITS[match[2]]


def sleep(
    tasksets: Annotated[list[str] | None, typer.Argument(help="Where lessons are practised.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="TIME", help="Of training: 90s, 10m. [default: 30s]")] = None,
    method: Annotated[
        str | None, typer.Option(help="staged, sft, distill, grpo or staged+grpo. [default: staged]")
    ] = None,
    divergence: Annotated[
        str | None,
        typer.Option(help="Of distillation: forward, reverse or jsd. [default: reverse, after a warm start]"),
    ] = None,
    continued: Annotated[
        bool, typer.Option("--continue", help="Start from the active adapter's weights, not from none.")
    ] = False,
    seed: Seed = 0,
    if_due: Annotated[bool, typer.Option("--if-due", help="Only when it is time; else say why not.")] = False,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="Pause after so long: 90s, 10m, 2h. The next sleep goes on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    db: Db = None,
    model: Model = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Turn lessons into weights, if the gate lets them.

    Trains an adapter, judges it, promotes it when it is as good as the lessons.
    The lessons that it holds leave the prompt. The same night again does nothing; a killed one is continued.
    With --if-due it is made for schedules: see `reflect schedule`.
    """
    dials: dict[str, Any] = {"budget": minutes(budget) if budget else None, "method": method, "divergence": divergence}
    dials |= {"seed": seed, "continued": continued}
    dials = {name: value for name, value in dials.items() if value is not None}
    until = minutes(deadline) if deadline else None
    ws = workspace(db, profile, model, judge=judge)
    with progress() as tell:
        report = ws.sleep(*(tasksets or []), dry_run=dry_run, if_due=if_due, deadline=until, progress=tell, **dials)
    if report.status == "helped":
        return  # one of several processes: the first one speaks
    complain(ws)
    if json:
        emit(asdict(report))
    elif report.status == "not due":
        print(report.reason)
    else:
        where = f"night {report.night_id}: " if report.night_id else ""
        again = " (slept before; nothing was done)" if report.again else f" ({clock(report.seconds)})"
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
