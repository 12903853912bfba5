"""reflect runs: the days so far."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflect.cli.common import BaseUrl, Db, Json, Profile, noun, workspace
from reflect.cli.output import print_json, progress, shape, table
from reflect.cli.run import in_words, spent_in_words, tell_report
from reflect.errors import UsageError

if TYPE_CHECKING:
    from reflect.records import Run

app = noun("Runs: the practice so far.")


@app.command("list")
def list_(
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, help="Maximum number of runs.")
    ] = 50,
    db: Db = None,
    json: Json = False,
) -> None:
    """The runs, newest first."""
    from reflect.store import runs

    with workspace(db).store.read() as s:
        rows = runs.list_runs(s, limit=limit)
    if json:
        return print_json([told(row) for row in rows])
    cells = [
        [r.id, r.taskset, r.n, r.k, r.seed, r.status, r.model, r.adapter_id, f"{r.started:%F %R}"]
        for r in rows
    ]
    table(cells, ["id", "taskset", "n", "k", "seed", "status", "model", "adapter", "started (UTC)"])


@app.command()
def show(
    run_id: Annotated[int, typer.Argument(metavar="ID", help="A run's id.")],
    rollouts: Annotated[
        bool, typer.Option("--rollouts", help="Print every rollout in full.")
    ] = False,
    db: Db = None,
    json: Json = False,
) -> None:
    """One run: its figures, what it changed, and with --rollouts every attempt."""
    from reflect.rollouts.transcript import words_of
    from reflect.store import runs
    from reflect.trials import bundle

    with workspace(db).store.read() as s:
        run = runs.get_run(s, run_id)
        attempts = runs.rollouts(s, run_id)
        keys = list(dict.fromkeys(row.task_key for row in attempts))
        tasks = {key: runs.task(s, key) for key in keys}
        reviews = runs.reflections(s, run_id)
        figures = runs.figures(s, run_id)
    if json:
        data = {**figures._asdict(), "reflections": [shape(review) for review in reviews]}
        return print_json(
            told(run) | data | ({"attempts": [shape(row) for row in attempts]} if rollouts else {})
        )
    about = f"{run.taskset}, seed {run.seed}, {run.status}, model {run.model}, adapter {run.adapter_id or '-'}"
    print(f"run {run.id}: {about}")
    asked = f" of {run.n * run.k}" if run.k else ""  # a run from traffic has what came
    print(f"{figures.rollouts}{asked} rollouts, {figures.errors} broken, {len(reviews)} reviews")
    if reviewed := run.config.get("reflector"):
        print(f"reviewed by {reviewed}")
    if spent := run.spent:
        print(spent_in_words(spent))
    if text := bundle.in_words(run.bundle):
        print(f"bundle {run.taskset}: {text}")
    table(
        [
            [tasks[key].task_id, *_counts([row.reward for row in attempts if row.task_key == key])]
            for key in keys
        ],
        ["task", "mean", "rewards"],
    )
    for review in reviews:
        for change in review.edits:
            if text := in_words(change):
                print(text)
    for row in attempts if rollouts else ():
        print(f"\n-- {tasks[row.task_key].task_id}, attempt {row.index + 1}, reward {row.reward}")
        for message in row.messages:
            print(f"{message['role']}: {words_of(message)}")
        print(f"feedback: {row.feedback or row.error or '-'}")
        for turn, text in row.parts.get("steps", []):
            print(f"feedback on turn {turn}: {text}")


def told(run: Run) -> dict[str, Any]:
    """A run as JSON, without what it remembers for the next one (see
    `reflect.trials.checkpoints`)."""
    row = shape(run)
    row.pop("checkpoints")
    spent, traffic = row.pop("spent"), row.pop("from_traffic")
    config = (
        row["config"]
        | ({"spent": spent} if spent else {})
        | ({"from_traffic": True} if traffic else {})
    )
    return row | {"config": config}


def _counts(rewards: list[float | None]) -> tuple[float | None, str]:
    scored = [x for x in rewards if x is not None]
    return (sum(scored) / len(scored) if scored else None), " ".join(
        "x" if x is None else f"{x:g}" for x in rewards
    )


@app.command()
def resume(
    run_id: Annotated[
        int | None, typer.Argument(metavar="ID", help="[default: the newest unfinished run]")
    ] = None,
    db: Db = None,
    base_url: BaseUrl = None,
    json: Json = False,
) -> None:
    """Finish a run that was interrupted."""
    ws = workspace(db, base_url=base_url)
    with progress() as tell:
        report = ws.resume(run_id, progress=tell)
    return print_json(asdict(report)) if json else tell_report(report)


@app.command()
def prune(
    keep: Annotated[
        int, typer.Option(min=0, help="Number of newest runs to keep in any case.")
    ] = 20,
    days: Annotated[
        int, typer.Option(min=0, help="Delete unrewarded traffic older than this many days.")
    ] = 30,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete them; without it, only list them.")
    ] = False,
    db: Db = None,
    profile: Profile = None,
    json: Json = False,
) -> None:
    """Delete old runs with their rollouts, unless a lesson or an open trial rests on them; and old
    traffic."""
    from reflect.store import exchanges as exchanges_
    from reflect.store import runs

    ws = workspace(db, profile)
    mine = ws.settings.profile
    with ws.store.write() if yes else ws.store.read() as s:
        found = runs.prunable(s, keep, mine)
        if yes:
            runs.delete_runs(s, found.gone)
        exchanges = (
            exchanges_.forget(s, mine, days) if yes else exchanges_.unrewarded(s, mine, days)
        )
    if json:
        return print_json(found._asdict() | {"exchanges": exchanges, "deleted": yes})
    done = "deleted" if yes else "would be deleted"
    print(f"{len(found.gone)} runs {done}")
    if exchanges:
        print(f"{exchanges} exchanges without a reward in {days} days {done}")
    if found.kept:
        print(f"{len(found.kept)} older ones stay: open trials rest on their rollouts")
    if not yes and (found.gone or exchanges):
        raise UsageError("Nothing was deleted.", "Say --yes to delete them.")
