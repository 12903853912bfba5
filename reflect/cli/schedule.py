"""reflect schedule: nights at a fixed hour, by the scheduler of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from reflect.cli.common import Db, Json, Model, Profile, workspace
from reflect.cli.output import print_json, print_status

if TYPE_CHECKING:
    from reflect.night.schedule import ScheduledJob
    from reflect.workspace.workspace import Workspace

app = typer.Typer(
    help="Nights at a fixed hour, by systemd, cron, launchd or Kubernetes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
At = Annotated[str, typer.Option(metavar="HH:MM", help="Start time, in local time.")]
Kind = Annotated[
    str | None,
    typer.Option(metavar="KIND", help="systemd, cron, launchd or kubernetes. [default: detected]"),
]


def job_of(
    db: str | None, profile: str | None, model: str | None = None, at: str = "03:00"
) -> tuple[Workspace, ScheduledJob]:
    from reflect.night import schedule

    ws = workspace(db, profile, model)
    where = ws.settings.db if "://" in ws.settings.db else ws.path
    return ws, schedule.make_job(ws.settings, where, at, model)


@app.command("print")
def print_(
    at: At = "03:00", kind: Kind = None, db: Db = None, model: Model = None, profile: Profile = None
) -> None:
    """Print what `install` would write, or a manifest for `kubectl apply -f -`."""
    from reflect.night import schedule

    _, job = job_of(db, profile, model, at)
    print(schedule.text(job, schedule.kind_of(kind)), end="")


@app.command()
def install(
    at: At = "03:00",
    kind: Kind = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace an installed schedule.")] = False,
    db: Db = None,
    model: Model = None,
    profile: Profile = None,
) -> None:
    """Sleep every night at that time, when a night is due (`reflect sleep --if-due`)."""
    from reflect.night import schedule

    _, job = job_of(db, profile, model, at)
    where = schedule.kind_of(kind)
    schedule.install(job, where, yes)
    print(f"{where}: {job.name}, every day at {job.hour:02}:{job.minute:02}")
    if where == "systemd":
        print_status(f"Its output: journalctl --user -u {job.name}")
        print_status("It runs while you are logged in; at all times after: loginctl enable-linger")
    else:
        print_status(f"Its output: {job.log}")


@app.command()
def status(db: Db = None, profile: Profile = None, json: Json = False) -> None:
    """Show the schedule of this database and profile, and whether a night is due now."""
    from reflect.night import schedule

    ws, job = job_of(db, profile)
    found, due = schedule.installed(job.name), ws.due()
    if json:
        return print_json(
            {"name": job.name, "installed": found, "due": due.due, "reason": due.reason}
        )
    for kind, what in found.items():
        print(f"{kind}: {job.name}\n{what.rstrip()}")
    if not found:
        print("Nothing is scheduled: reflect schedule install")
    print(due.reason)


@app.command()
def remove(db: Db = None, profile: Profile = None) -> None:
    """Remove the schedule of this database and profile. Other entries are not changed."""
    from reflect.night import schedule

    _, job = job_of(db, profile)
    gone = schedule.remove(job.name)
    print(f"{', '.join(gone)}: {job.name} is removed" if gone else "Nothing was scheduled.")
