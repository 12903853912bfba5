"""reflect schedule: nights at a fixed hour, by the scheduler of the machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from reflect.cli.common import Db, Json, Model, Profile, workspace
from reflect.cli.output import emit, say

app = typer.Typer(
    help="Nights at a fixed hour, by systemd, cron, launchd or Kubernetes.", no_args_is_help=True, rich_markup_mode=None
)
At = Annotated[str, typer.Option(metavar="HH:MM", help="When, in local time.")]
Kind = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="systemd, cron, launchd or kubernetes. [default: what this machine has]"),
]


def job_of(db: str | None, profile: str | None, model: str | None = None, at: str = "03:00") -> tuple[Any, Any]:
    """(workspace, job)."""
    from reflect.night import schedule

    ws = workspace(db, profile, model)
    where = ws.settings.db if "://" in ws.settings.db else ws.path
    return ws, schedule.make_job(ws.settings, where, at, model)


@app.command("print")
def print_(at: At = "03:00", kind: Kind = None, db: Db = None, model: Model = None, profile: Profile = None) -> None:
    """Print what `install` would put in place, or what `kubectl apply -f -` takes."""
    from reflect.night import schedule, scheduler

    _, job = job_of(db, profile, model, at)
    print(schedule.text(job, scheduler.kind_of(kind)), end="")


@app.command()
def install(
    at: At = "03:00",
    kind: Kind = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace the schedule that stands.")] = False,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
) -> None:
    """Sleep every night at that time, when a night is due (`reflect sleep --if-due`)."""
    from reflect.night import scheduler

    _, job = job_of(db, profile, model, at)
    where = scheduler.kind_of(kind)
    scheduler.install(job, where, yes)
    print(f"{where}: {job.name}, every day at {job.hour:02}:{job.minute:02}")
    if where == "systemd":
        say(f"What it says: journalctl --user -u {job.name}")
        say("It runs while you are logged in; at all times after: loginctl enable-linger")
    else:
        say(f"What it says: {job.log}")


@app.command()
def status(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """What is scheduled for this database and profile, and whether a night is due now."""
    from reflect.night import scheduler

    ws, job = job_of(db, profile)
    found, due = scheduler.standing(job.name), ws.due()
    if json:
        return emit({"name": job.name, "installed": found, "due": due.due, "reason": due.reason})
    for kind, what in found.items():
        print(f"{kind}: {job.name}\n{what.rstrip()}")
    if not found:
        print("Nothing is scheduled: reflect schedule install")
    print(due.reason)


@app.command()
def remove(db: Db = None, profile: Profile = None) -> None:
    """Take the schedule of this database and profile out again. Nothing else is touched."""
    from reflect.night import scheduler

    _, job = job_of(db, profile)
    gone = scheduler.remove(job.name)
    print(f"{', '.join(gone)}: {job.name} is removed" if gone else "Nothing was scheduled.")
