"""reflect runs: the runs so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from typer import Argument, Option

from reflect.cli.common import Json, RunId, noun, with_workspace
from reflect.cli.output import print_json, print_table, progress, to_dict
from reflect.cli.report import print_changes, print_report, spending_line
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.records import Run
    from reflect.workspace.workspace import Workspace

app = noun("Runs: the practice so far.")


@app.command("list")
@with_workspace()
def list_(
    ws: Workspace,
    limit: int = Option(50, "-n", "--limit", min=1, help="Maximum number of runs."),
    json: Json = False,
) -> None:
    """List the runs, newest first."""
    from reflect.store import runs

    rows = ws.context.read(runs.list_runs, limit=limit)
    if json:
        return print_json([run_json(row) for row in rows])
    cells = [
        [r.id, r.taskset, r.n, r.k, r.seed, r.status, r.model, r.adapter_id, f"{r.started:%F %R}"]
        for r in rows
    ]
    print_table(cells, "id, taskset, n, k, seed, status, model, adapter, started (UTC)")


@app.command()
@with_workspace()
def show(
    ws: Workspace,
    run_id: RunId,
    rollouts: bool = Option(False, "--rollouts", help="Print every rollout in full."),
    json: Json = False,
) -> None:
    """Show one run: its figures, its changes of lessons, and with --rollouts every rollout."""
    from reflect.rollouts.transcript import words_of
    from reflect.store import runs
    from reflect.trials import bundle

    with ws.store.read() as s:
        run = runs.get_run(s, run_id)
        rows = runs.rollouts(s, run_id)
        keys = list(dict.fromkeys(row.task_key for row in rows))
        names = {key: runs.task(s, key).task_id for key in keys}
        reflections = runs.reflections(s, run_id)
        figures = runs.figures(s, run_id)
    if json:
        data = run_json(run) | figures._asdict() | {"reflections": reflections}
        return print_json(data | ({"attempts": rows} if rollouts else {}))
    model = f"model {run.model}, adapter {run.adapter_id or '-'}"
    print(f"run {run.id}: {run.taskset}, seed {run.seed}, {run.status}, {model}")
    planned = f" of {run.planned}" if run.k else ""  # not known of a run from traffic
    counts = f"{figures.errors} failed, {len(reflections)} reflections"
    print(f"{figures.rollouts}{planned} rollouts, {counts}")
    if reflector := run.config.get("reflector"):
        print(f"reflected on by {reflector}")
    if run.spent:
        print(spending_line(run.spent))
    if text := bundle.describe(run.bundle):
        print(f"bundle {run.taskset}: {text}")
    cells = [
        [names[key], *_rewards([row.reward for row in rows if row.task_key == key])] for key in keys
    ]
    print_table(cells, "task, mean, rewards")
    for reflection in reflections:
        print_changes(reflection.edits)
    for row in rows if rollouts else ():
        print(f"\n-- {names[row.task_key]}, attempt {row.index + 1}, reward {row.reward}")
        for message in row.messages:
            print(f"{message['role']}: {words_of(message)}")
        print(f"feedback: {row.feedback or row.error or '-'}")
        for turn, text in row.parts.get("steps", []):
            print(f"feedback on turn {turn}: {text}")


def run_json(run: Run) -> dict[str, object]:
    """A run as JSON, without its tasks and checkpoints (see `reflect.trials.checkpoints`)."""
    row = to_dict(run)
    row.pop("checkpoints")
    row.pop("task_keys")
    spent, traffic = row.pop("spent"), row.pop("from_traffic")
    extra = ({"spent": spent} if spent else {}) | ({"from_traffic": True} if traffic else {})
    return row | {"config": run.config | extra}


def _rewards(rewards: Sequence[float | None]) -> tuple[float | None, str]:
    scored = [x for x in rewards if x is not None]
    text = " ".join("x" if x is None else f"{x:g}" for x in rewards)
    return sum(scored) / len(scored) if scored else None, text


@app.command()
@with_workspace("base_url")
def resume(
    ws: Workspace,
    run_id: int | None = Argument(None, metavar="ID", help="[default: the newest unfinished run]"),
    restart: bool = Option(
        False,
        "--restart",
        help="Close it as abandoned, and begin another run with its settings, and with the tasks, "
        "the model and the adapter as they are now.",
    ),
    json: Json = False,
) -> None:
    """Finish a run that was interrupted. Refused if its tasks or its model have changed."""
    with progress() as bar:
        report = ws.resume(run_id, restart=restart, progress=bar)
    print_report(report, json)


@app.command()
@with_workspace()
def abandon(ws: Workspace, run_id: RunId, json: Json = False) -> None:
    """Close an unfinished run. Its rollouts stay."""
    run = ws.abandon(run_id)
    if json:
        return print_json(run_json(run))
    print(f"run {run.id} is closed as abandoned")


@app.command()
@with_workspace("profile")
def prune(
    ws: Workspace,
    keep: int = Option(20, min=0, help="Number of newest runs to keep in any case."),
    days: int = Option(
        30, min=0, max=36_500, help="Delete unrewarded traffic older than this many days."
    ),
    yes: bool = Option(False, "--yes", help="Delete them; without it, only list them."),
    json: Json = False,
) -> None:
    """Delete old runs with their rollouts, unless a lesson or an open trial uses them; and old
    traffic."""
    from reflect.store import exchanges, runs

    profile = ws.settings.profile
    with ws.store.write() if yes else ws.store.read() as s:
        plan = runs.prunable(s, keep, profile)
        if yes:
            runs.delete_runs(s, plan.gone)
        traffic = (exchanges.forget if yes else exchanges.unrewarded)(s, profile, days)
    if json:
        return print_json(plan._asdict() | {"exchanges": traffic, "deleted": yes})
    deleted = "deleted" if yes else "would be deleted"
    print(f"{len(plan.gone)} runs {deleted}")
    if traffic:
        print(f"{traffic} exchanges without a reward in {days} days {deleted}")
    if plan.kept:
        print(f"{len(plan.kept)} older ones stay: open trials use their rollouts")
    if not yes and (plan.gone or traffic):
        raise UsageError("Nothing was deleted.", "Say --yes to delete them.")
