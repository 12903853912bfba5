"""reflect run: the day."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import BaseUrl, Db, Json, JudgeModel, Model, Profile, workspace
from reflect.cli.output import clock, print_json, print_status, progress
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.day.report import Report
    from reflect.workspace.workspace import Workspace

SIGNS = {
    "added": "+",
    "superseded": "~",
    "revised": "~",
    "merged": "~",
    "retired": "-",
    "quarantined": "?",
}
SIGNS |= {"accepted": "+", "rejected": "-"}  # by a trial
SIGNS |= {"alarm": "!"}  # so much would have been lost that nothing was changed


def run(
    taskset: Annotated[
        str,
        typer.Argument(
            help="A taskset's name, or a file (.jsonl, .yaml, .py).", show_default=False
        ),
    ] = "",
    n: Annotated[
        int | None, typer.Option("-n", "--tasks", min=1, help="Tasks to practise. [default: 40]")
    ] = None,
    k: Annotated[
        int | None, typer.Option("-k", "--rollouts", min=1, help="Attempts at each. [default: 8]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of tasks and rollouts. [default: a new one]")
    ] = None,
    lessons: Annotated[
        bool, typer.Option("--lessons/--no-lessons", help="Show lessons in the prompt.")
    ] = True,
    reflect: Annotated[
        bool,
        typer.Option("--reflect/--no-reflect", help="Reflect on the rollouts and edit lessons."),
    ] = True,
    approval: Annotated[
        bool | None,
        typer.Option("--approval/--no-approval", help="New lessons wait for your approval."),
    ] = None,
    review: Annotated[bool | None, typer.Option("--review/--no-review", hidden=True)] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Sampling temperature. [default: 1.0]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum tokens of one answer. [default: 96]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and do nothing.")
    ] = False,
    from_traffic: Annotated[
        bool,
        typer.Option(
            "--from-traffic", help="Reflect on rewarded traffic of reflect serve; practise nothing."
        ),
    ] = False,
    db: Db = None,
    model: Model = None,
    base_url: BaseUrl = None,
    reflector: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model that reflects. [default: the same]")
    ] = None,
    judge: JudgeModel = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Practise a taskset: rollouts, rewards, reflection, lessons.

    The same command continues an interrupted run.
    """
    given: dict[str, Any] = {"n": n, "k": k, "temperature": temperature, "max_tokens": max_tokens}
    given |= {"require_approval": approval, "review": review}
    given |= {"judge": judge, "base_url": base_url, "reflector": reflector}
    ws = workspace(db, profile, model, **given)
    if bool(taskset) == from_traffic:
        raise UsageError("Name a taskset, or say --from-traffic.", "See: reflect tasks list")
    if from_traffic:
        return learn_from_traffic(ws, dry_run, json)
    if dry_run:
        tasks = ws.taskset(taskset).tasks("practice", ws.settings.n, seed or 0)
        plan = {
            "taskset": taskset,
            "tasks": len(tasks),
            "rollouts": len(tasks) * ws.settings.k,
            "db": ws.path,
        }
        plan |= {"model": ws.settings.model, "lessons": lessons, "reflect": reflect}
        return (
            print_json(plan)
            if json
            else print(
                f"Would practise {plan['tasks']} tasks of {taskset}, {plan['rollouts']} rollouts by {plan['model']}, "
                f"into {plan['db']}."
            )
        )
    with progress() as tell:
        report = ws.run(taskset, seed=seed, learn=reflect, use_lessons=lessons, progress=tell)
    return print_json(asdict(report)) if json else tell_report(report)


def learn_from_traffic(ws: Workspace, dry_run: bool, json: bool) -> None:
    """`reflect run --from-traffic`."""
    from reflect.store import exchanges

    if dry_run:
        with ws.store.read() as s:
            plan = {"exchanges": exchanges.count(s, ws.settings.profile), "db": ws.path}
            plan["waiting"] = len(exchanges.waiting(s, ws.settings.profile))
        told = f"Would review {plan['waiting']} rewarded exchanges of {plan['exchanges']}, in {plan['db']}."
        return print_json(plan) if json else print(told)
    from reflect.day.traffic import learn

    with progress() as tell:
        reports = learn(ws.reflector or ws.model, ws.store, ws.settings, progress=tell)
    if json:
        return print_json([asdict(report) for report in reports])
    for report in reports:
        tell_report(report)
    with ws.store.read() as s:
        if left := len(exchanges.waiting(s, ws.settings.profile)):
            print_status(
                f"{left} more wait: of one task so many are not reviewed at once. The same command goes on."
            )
    if not reports:
        print_status(
            "No rewarded exchange waits: POST /v1/feedback tells a server what an answer was worth."
        )


def tell_report(report: Report) -> None:
    """The report on stdout, changes of lessons first."""
    from reflect.trials import bundle

    size = f"{report.n} tasks x {report.k} =" if report.k else f"{report.n} groups from traffic,"
    for change in report.changes:
        if text := in_words(change):
            print(text)
    print(
        f"run {report.run_id}, {report.taskset}: {size} {report.rollouts} rollouts, "
        f"reward {report.reward:.2f} (wave by wave {' '.join(f'{x:.2f}' for x in report.rewards)}), "
        f"{report.reflections} reviews, {clock(report.seconds)}"
    )
    if text := bundle.in_words(report.bundle):
        print(f"bundle {report.taskset}: {text}")
    if report.spent:
        print_status(spent_in_words(report.spent))
    if report.ungraded:
        print_status(
            f"{report.ungraded} rollouts wait for a person's grade: reflect grade list --run {report.run_id}"
        )
    if report.errors:
        print_status(f"{report.errors} rollouts broke: reflect runs show {report.run_id}")


def spent_in_words(spent: dict[str, Any]) -> str:
    """`Run.spent` as a line."""
    cost = f", cost {spent['cost']:.4f}" if spent["cost"] else ""
    return f"spent: {spent['requests']} requests, {spent['tokens_in']} tokens in, {spent['tokens_out']} out{cost}"


def in_words(change: dict[str, Any]) -> str:
    """`+ lesson 3: when ... do ...`, with a line for each lesson that went by it; "" for an edit
    without effect."""
    sign = SIGNS.get(change["outcome"])
    if not sign:
        return ""
    if change["outcome"] == "alarm":
        return f"{sign} {change['reason']}"
    text = f"when: {change['when']} do: {change['do']}" if change["do"] else change["why"]
    if change["kind"] == "trial":
        text = f"{change['why']} ({text})"
    lines = [f"{sign} lesson {change['lesson']} {change['outcome']}: {text}"]
    lines += [
        f"- lesson {gone} retired: lesson {change['lesson']} stands for it"
        for gone in change.get("gone", ())
    ]
    return "\n".join(lines)
