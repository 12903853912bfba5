"""reflect run: the day."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import Db, Json, JudgeModel, Model, Profile, workspace
from reflect.cli.output import clock, emit, progress, say

if TYPE_CHECKING:
    from reflect.day.summary import Report

SIGNS = {"added": "+", "superseded": "~", "revised": "~", "merged": "~", "retired": "-", "quarantined": "?"}
SIGNS |= {"accepted": "+", "rejected": "-"}  # by a trial
SIGNS |= {"alarm": "!"}  # so much would have been lost that nothing was changed


def run(
    taskset: Annotated[str, typer.Argument(help="A taskset's name, or a file (.jsonl, .yaml, .py).")],
    n: Annotated[int | None, typer.Option("-n", "--tasks", min=1, help="Tasks to practise. [default: 40]")] = None,
    k: Annotated[int | None, typer.Option("-k", "--rollouts", min=1, help="Attempts at each. [default: 8]")] = None,
    seed: Annotated[int | None, typer.Option(help="Which tasks and attempts. [default: a new one]")] = None,
    lessons: Annotated[bool, typer.Option("--lessons/--no-lessons", help="Show lessons in the prompt.")] = True,
    reflect: Annotated[bool, typer.Option("--reflect/--no-reflect", help="Review the attempts, edit lessons.")] = True,
    review: Annotated[
        bool | None, typer.Option("--review/--no-review", help="What is learned waits for your approval.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Of the attempts. [default: 1.0]")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one attempt. [default: 96]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    db: Db = None,
    model: Model = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Practise a taskset: attempts, rewards, review, lessons.

    The same words continue a run that was interrupted.
    """
    given = {"n": n, "k": k, "judge": judge, "review": review, "temperature": temperature, "max_tokens": max_tokens}
    ws = workspace(db, profile, model, **given)
    if dry_run:
        tasks = ws.taskset(taskset).tasks("practice", ws.settings.n, seed or 0)
        plan = {"taskset": taskset, "tasks": len(tasks), "rollouts": len(tasks) * ws.settings.k, "db": ws.path}
        plan |= {"model": ws.settings.model, "lessons": lessons, "reflect": reflect}
        return (
            emit(plan)
            if json
            else print(
                f"Would practise {plan['tasks']} tasks of {taskset}, {plan['rollouts']} rollouts by {plan['model']}, "
                f"into {plan['db']}."
            )
        )
    with progress() as tell:
        report = ws.run(taskset, seed=seed, learn=reflect, use_lessons=lessons, progress=tell)
    return emit(asdict(report)) if json else tell_report(report)


def tell_report(report: Report) -> None:
    """The report on stdout, changes of lessons first."""
    from reflect.day import bundle

    for change in report.changes:
        if text := in_words(change):
            print(text)
    print(
        f"run {report.run_id}, {report.taskset}: {report.n} tasks x {report.k} = {report.rollouts} rollouts, "
        f"reward {report.reward:.2f} (wave by wave {' '.join(f'{x:.2f}' for x in report.rewards)}), "
        f"{report.reflections} reviews, {clock(report.seconds)}"
    )
    if text := bundle.in_words(report.bundle):
        print(f"bundle {report.taskset}: {text}")
    if report.ungraded:
        say(f"{report.ungraded} rollouts wait for a person's grade: reflect grade list --run {report.run_id}")
    if report.errors:
        say(f"{report.errors} rollouts broke: reflect runs show {report.run_id}")


def in_words(change: dict[str, Any]) -> str:
    """`+ lesson 3: when ... do ...`, with a line for each lesson that went by it; "" for an edit without effect."""
    sign = SIGNS.get(change["outcome"])
    if not sign:
        return ""
    if change["outcome"] == "alarm":
        return f"{sign} {change['reason']}"
    text = f"when: {change['when']} do: {change['do']}" if change["do"] else change["why"]
    if change["kind"] == "trial":
        text = f"{change['why']} ({text})"
    lines = [f"{sign} lesson {change['lesson']} {change['outcome']}: {text}"]
    lines += [f"- lesson {gone} retired: lesson {change['lesson']} stands for it" for gone in change.get("gone", ())]
    return "\n".join(lines)
