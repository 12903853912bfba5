"""reflect schedule: nights at a fixed hour, by the scheduler of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from reflect.cli.common import Json, Yes, with_workspace
from reflect.cli.output import join, print_json, print_status

if TYPE_CHECKING:
    from reflect.night.schedule import ScheduledJob
    from reflect.workspace.workspace import Workspace

app = typer.Typer(
    help="Nights at a fixed hour, by systemd, cron, launchd or Kubernetes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
At = Annotated[str, Option(metavar="HH:MM", help="Start time, in local time.")]
Kind = Annotated[
    str | None,
    Option(metavar="KIND", help="systemd, cron, launchd or kubernetes. [default: detected]"),
]
Model = Annotated[
    str | None,
    Option("--model", "-m", metavar="NAME", help="Model. [default: that of the settings]"),
]
Sessions = Annotated[
    bool,
    Option(
        "--sessions",
        help="First import sessions of coding agents and reflect on them, within a token cap.",
    ),
]


def job_of(
    ws: Workspace, at: str = "03:00", model: str | None = None, sessions: bool = False
) -> ScheduledJob:
    """The scheduled night of this database and profile."""
    from reflect.night import schedule

    db = ws.settings.db if "://" in ws.settings.db else ws.path
    return schedule.make_job(ws.settings, db, at, model, sessions)


@app.command("print")
@with_workspace("profile")
def print_(
    ws: Workspace,
    at: At = "03:00",
    kind: Kind = None,
    model: Model = None,
    sessions: Sessions = False,
) -> None:
    """Print what `install` would write, or a manifest for `kubectl apply -f -`."""
    from reflect.night import schedule

    print(schedule.text(job_of(ws, at, model, sessions), schedule.kind_of(kind)), end="")


@app.command()
@with_workspace("profile")
def install(
    ws: Workspace,
    at: At = "03:00",
    kind: Kind = None,
    yes: Yes = False,
    model: Model = None,
    sessions: Sessions = False,
) -> None:
    """Sleep every night at that time, when a night is due (`reflect sleep --if-due`)."""
    from reflect.night import schedule

    job, scheduler = job_of(ws, at, model, sessions), schedule.kind_of(kind)
    schedule.install(job, scheduler, yes)
    print(f"{scheduler}: {job.name}, every day at {job.hour:02}:{job.minute:02}")
    if scheduler != "systemd":
        return print_status(f"Its output: {job.log}")
    print_status(f"Its output: journalctl --user -u {job.name}")
    print_status("It runs while you are logged in; to run it always: loginctl enable-linger")


@app.command()
@with_workspace("profile")
def status(ws: Workspace, json: Json = False) -> None:
    """Show the schedule of this database and profile, and whether a night is due now."""
    from reflect.night import schedule

    name = job_of(ws).name
    installed, due = schedule.installed(name), ws.due()
    if json:
        data = {"name": name, "installed": installed, "due": due.due, "reason": due.reason}
        return print_json(data)
    for kind, entry in installed.items():
        print(f"{kind}: {name}\n{entry.rstrip()}")
    if not installed:
        print("Nothing is scheduled: reflect schedule install")
    print(due.reason)


@app.command()
@with_workspace("profile")
def remove(ws: Workspace) -> None:
    """Remove the schedule of this database and profile. Other entries are not changed."""
    from reflect.night import schedule

    name = job_of(ws).name
    kinds = schedule.remove(name)
    print(f"{join(kinds)}: {name} is removed" if kinds else "Nothing was scheduled.")
