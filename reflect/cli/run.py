"""reflect run: practise a taskset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from reflect.cli.common import DryRun, Json, with_workspace
from reflect.cli.output import print_json, print_status, progress
from reflect.cli.report import print_report
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.workspace.workspace import Workspace


@with_workspace(
    "n k temperature max_tokens proposals require_approval review model base_url reflector judge"
    " profile lease"
)
def run(
    ws: Workspace,
    taskset: Annotated[
        str, Argument(help="A taskset's name, or a file (.jsonl, .yaml, .py).")
    ] = "",
    seed: int | None = Option(None, help="Seed of tasks and rollouts. [default: a new one]"),
    lessons: bool = Option(True, help="Show lessons in the prompt."),
    reflect: bool = Option(True, help="Reflect on the rollouts and edit lessons."),
    join: bool = Option(
        False, "--join", help="Share one run with other processes that use the same database."
    ),
    dry_run: DryRun = False,
    from_traffic: bool = Option(
        False,
        "--from-traffic",
        help="Reflect on rewarded traffic of reflect serve; practise nothing.",
    ),
    json: Json = False,
) -> None:
    """Practise a taskset: rollouts, rewards, reflection, lessons.

    The same command continues an interrupted run.
    """
    if bool(taskset) == from_traffic:
        raise UsageError("Name a taskset, or say --from-traffic.", "See: reflect tasks list")
    if from_traffic and join:
        raise UsageError("--join shares the run of a taskset, not --from-traffic.")
    if from_traffic:
        return learn_from_traffic(ws, dry_run, json)
    if dry_run:
        return print_plan(ws, taskset, seed, {"lessons": lessons, "reflect": reflect}, json)
    with progress() as bar:
        report = ws.run(
            taskset, seed=seed, learn=reflect, use_lessons=lessons, join=join, progress=bar
        )
    print_report(report, json)


def print_plan(
    ws: Workspace, taskset: str, seed: int | None, flags: dict[str, bool], json: bool
) -> None:
    """`reflect run --dry-run`."""
    tasks = len(ws.taskset(taskset).tasks("practice", ws.settings.n, seed or 0))
    rollouts, model = tasks * ws.settings.k, ws.settings.model
    if json:
        plan = {"taskset": taskset, "tasks": tasks, "rollouts": rollouts, "db": ws.path}
        return print_json(plan | {"model": model} | flags)
    size = f"{tasks} tasks of {taskset}, {rollouts} rollouts by {model}"
    print(f"Would practise {size}, into {ws.path}.")
    tokens = f"max_tokens = {ws.settings.max_tokens}, reflect_tokens = {ws.settings.reflect_tokens}"
    print(f"Most tokens of an answer and of a reflection: {tokens}.")


def learn_from_traffic(ws: Workspace, dry_run: bool, json: bool) -> None:
    """`reflect run --from-traffic`."""
    from reflect.store import exchanges

    profile = ws.settings.profile
    if dry_run:
        count, waiting = ws.context.read(exchanges.count, profile), _waiting(ws)
        if json:
            return print_json({"exchanges": count, "db": ws.path, "waiting": waiting})
        return print(f"Would reflect on {waiting} rewarded exchanges of {count}, in {ws.path}.")
    from reflect.day.traffic import learn

    with progress() as bar:
        reports = learn(ws.reflector or ws.model, ws.store, ws.settings, progress=bar)
    if json:
        return print_json(reports)
    for report in reports:
        print_report(report, json)
    if left := _waiting(ws):
        limit = "the number of exchanges of one task in a run is limited"
        print_status(f"{left} more wait: {limit}. Run the same command again.")
    if not reports:
        hint = "POST /v1/feedback gives the reward of an answer to the server."
        print_status(f"No rewarded exchange waits: {hint}")


def _waiting(ws: Workspace) -> int:
    from reflect.store import exchanges

    return len(ws.context.read(exchanges.waiting, ws.settings.profile))
