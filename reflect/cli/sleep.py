"""reflect sleep: train lessons into weights."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from reflect.cli.common import DryRun, Json, Seed, with_workspace
from reflect.cli.output import duration, print_json, print_status, progress
from reflect.cli.report import harvest_notices
from reflect.cli.sessions import learn_from_sessions
from reflect.errors import UsageError
from reflect.reading import shortened
from reflect.sessions.signals import TOKEN_CAP

if TYPE_CHECKING:
    from reflect.night.sleep import NightReport
    from reflect.workspace.workspace import Workspace

MOST_MINUTES = 10_000.0  # a week
UNITS = {"s": 1 / 60, "": 1.0, "m": 1.0, "h": 60.0}


def minutes(text: str) -> float:
    """ "90s", "10m", "1.5h", or a number of minutes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smh]?)", text.strip())
    length = float(match[1]) * UNITS[match[2]] if match else MOST_MINUTES + 1
    if length > MOST_MINUTES:
        message = f"{shortened(text)} is no length of time of at most 10000 minutes."
        raise UsageError(message, "Write 90s, 10m or 1.5h.")
    return length


@with_workspace("model judge profile sampler base_url")
def sleep(
    ws: Workspace,
    tasksets: Annotated[
        list[str] | None, Argument(help="Tasksets on which lessons are practised.")
    ] = None,
    budget: str | None = Option(
        None, metavar="TIME", help="Training time budget, e.g. 90s or 10m. [default: 30s]"
    ),
    method: str = Option(
        "staged", help="Training method: staged, sft, distill, grpo or staged+grpo."
    ),
    divergence: str | None = Option(
        None,
        help="Distillation divergence: forward, reverse or jsd. [default: reverse after a warm "
        "start, else forward]",
    ),
    steps: int | None = Option(None, min=1, help="Training steps. [default: by the budget]"),
    learning_rate: float | None = Option(
        None, "--learning-rate", min=1e-7, max=1.0, help="Learning rate. [default: by model size]"
    ),
    rank: int | None = Option(None, min=1, max=512, help="LoRA rank. [default: by model size]"),
    batch: int | None = Option(None, min=2, max=4096, help="Rows of one training step."),
    samples: int | None = Option(
        None, min=1, max=64, help="Attempts of the teacher at each practice task."
    ),
    temperature: float | None = Option(
        None, min=0.0, max=10.0, help="Temperature of sampled attempts."
    ),
    answer_tokens: int | None = Option(
        None, "--answer-tokens", min=1, help="Most tokens of an answer; at most max_tokens."
    ),
    anchors: int | None = Option(
        None, min=0, max=100_000, help="Prompts outside the night that must keep their answers."
    ),
    continued: bool = Option(False, "--continue", help="Start from the active adapter's weights."),
    seed: Seed = 0,
    if_due: bool = Option(
        False, "--if-due", help="Sleep only if a night is due; otherwise print why not."
    ),
    deadline: str | None = Option(
        None, metavar="TIME", help="Pause after this time, e.g. 2h. The next sleep continues."
    ),
    sessions: bool = Option(
        False,
        "--sessions",
        help="First import the sessions of coding agents, judge them and reflect on them.",
    ),
    token_cap: int = Option(
        TOKEN_CAP, "--token-cap", min=1, help="With --sessions: tokens of their reading, in all."
    ),
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Distil lessons into LoRA weights, behind a gate.

    Trains an adapter, evaluates it, and promotes it if it is as good as the lessons in the prompt.
    The lessons in its weights then leave the prompt. A finished night is not repeated; an
    interrupted one continues.
    --if-due is for schedules: see `reflect schedule`.
    """
    from reflect.training.plan import NightOptions

    options = NightOptions(
        method=method,
        divergence=divergence,
        budget=minutes(budget) if budget else None,
        seed=seed,
        continued=continued,
        steps=steps,
        learning_rate=learning_rate,
        plan={
            name: value
            for name, value in {
                "rank": rank,
                "batch": batch,
                "samples": samples,
                "temperature": temperature,
                "answer_tokens": answer_tokens,
                "anchors": anchors,
            }.items()
            if value is not None
        },
    )
    until = minutes(deadline) if deadline else None
    if sessions:
        learn_from_sessions(ws, token_cap, dry_run)
    with progress() as bar:
        report = ws.sleep(
            *(tasksets or []),
            options=options,
            dry_run=dry_run,
            if_due=if_due,
            deadline=until,
            progress=bar,
        )
    print_night(ws, report, json)


def print_night(ws: Workspace, report: NightReport, json: bool) -> None:
    """The report of a night; exit 1 if it failed."""
    from reflect.training.plan import plan_summary

    if report.status == "helped":
        return  # a worker process: the first process prints
    if json:
        print_json(report)
    elif report.status == "not due":
        print(report.reason)
    else:
        night = f"night {report.night_id}: " if report.night_id else ""
        again = "slept before; nothing was done" if report.again else duration(report.seconds)
        print(f"{night}{report.status} ({again})")
        if summary := plan_summary(report.plan):
            print_status(f"plan: {summary}")
        if report.reason:
            print(report.reason)
        for text in filter(None, [report.sampler, *harvest_notices(report.stages)]):
            print_status(text)
        for lesson in map(ws.lessons.get, report.distilled):
            text = f"when: {lesson.when} do: {lesson.do}"
            print(f"- lesson {lesson.id} left the prompt: it is in the weights. {text}")
        for lesson in map(ws.lessons.get, report.returned):
            print(
                f"+ lesson {lesson.id} is in the prompt again. when: {lesson.when} do: {lesson.do}"
            )
    if report.status == "failed":
        raise typer.Exit(1)
