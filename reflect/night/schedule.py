"""A night at a fixed hour, by the scheduler that the machine has: this file writes what systemd, cron, launchd and
Kubernetes read. `reflect sleep --if-due` does the rest; there is no daemon of our own.

Each format has its own way to say "a space is no separator, and a percent sign is a percent sign"; each function names
it. Not covered: a path with a control character, and for cron and systemd one with a backslash, is refused.
"""

from __future__ import annotations

import hashlib
import json
import plistlib
import re
import shlex
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from reflect.config import Settings
from reflect.errors import UsageError
from reflect.store.dialect import without_password

KINDS = ("systemd", "cron", "launchd", "kubernetes")


@dataclass(frozen=True)
class Job:
    """One scheduled sleep. `name` follows from database and profile, so that each has one job at most."""

    name: str
    profile: str
    words: tuple[str, ...]  # of `reflect`
    folder: str  # where it runs: reflect.toml, ./tasks and ./prompts are read there
    log: str
    hour: int
    minute: int

    @property
    def command(self) -> list[str]:
        # -P: a file called json.py in the working folder must not be imported
        return [sys.executable, "-P", "-m", "reflect", *self.words]

    @property
    def title(self) -> str:
        return f"reflect: the night of profile {self.profile}"


def make_job(settings: Settings, db: str, at: str = "03:00", model: str | None = None) -> Job:
    """The job that sleeps for this database (`db`: a full path, or a URL) and profile at that time of day, HH:MM."""
    if "://" in db and without_password(db) != db:
        raise UsageError(
            "The schedule would hold the database's password in plain text.",
            "Put the password into ~/.pgpass (PGPASSFILE), and leave it out of the URL.",
        )
    time = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at.strip())
    if not time:
        raise UsageError(f"'{at}' is no time of day.", "Write --at 03:00.")
    words = ("sleep", "--if-due", "--db", db, "--profile", settings.profile, *(("--model", model) if model else ()))
    folder, log = str(Path.cwd()), str(settings.home_path.resolve() / "sleep.log")
    letters = "".join((*words, folder, sys.executable, log))
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in letters):  # Cs: bytes that are no UTF-8
        raise UsageError("A path with a line break or another control character cannot be scheduled.", "Rename it.")
    return Job(name_of(db, settings.profile), settings.profile, words, folder, log, int(time[1]), int(time[2]))


def name_of(db: str, profile: str) -> str:
    return f"reflect-sleep-{hashlib.sha256(f'{db} {profile}'.encode()).hexdigest()[:8]}"


# -- cron --------------------------------------------------------------------------------------------------------------


def cron(job: Job) -> str:
    """The block for a crontab: a line between two markers. cron ends a command at a bare %, then a shell reads it."""
    line = f"cd {shlex.quote(job.folder)} && {shlex.join(job.command)} >> {shlex.quote(job.log)} 2>&1"
    _no_backslash(line, "cron")
    begin, end = markers(job.name)
    return f"{begin}\n{job.minute} {job.hour} * * * {line.replace('%', chr(92) + '%')}\n{end}\n"


def markers(name: str) -> tuple[str, str]:
    return f"# {name}: begin (reflect schedule)", f"# {name}: end"


def cut(crontab: bytes, name: str) -> tuple[bytes, bytes]:
    """(the crontab without our block, the block or b""). Every other byte stays. UsageError for half a block."""
    begin, end = (f"{line}\n".encode() for line in markers(name))
    lines = crontab.splitlines(keepends=True)
    if lines.count(begin) != lines.count(end) or lines.count(begin) > 1:
        raise UsageError(f"The lines around {name} in your crontab are not whole.", "Mend them with `crontab -e`.")
    if begin not in lines:
        return crontab, b""
    first, last = lines.index(begin), lines.index(end)
    if last < first:
        raise UsageError(f"The lines around {name} in your crontab are not whole.", "Mend them with `crontab -e`.")
    return b"".join(lines[:first] + lines[last + 1 :]), b"".join(lines[first : last + 1])


# -- systemd -----------------------------------------------------------------------------------------------------------


def systemd(job: Job) -> dict[str, str]:
    """file name -> text of the service and of its timer, which makes up for a night when the machine was off."""
    _no_backslash("".join((*job.command, job.folder)), "systemd")
    program, *words = job.command
    # A $ is a variable everywhere but in the program's own name; a % is a specifier everywhere.
    command = " ".join([_systemd_word(program), *(_systemd_word(word).replace("$", "$$") for word in words)])
    service = f"""\
[Unit]
Description={job.title.replace("%", "%%")}

[Service]
Type=oneshot
WorkingDirectory={job.folder.replace("%", "%%")}
ExecStart={command}
Nice=10
TimeoutStopSec=30
"""
    timer = f"""\
[Unit]
Description={job.title.replace("%", "%%")}

[Timer]
OnCalendar=*-*-* {job.hour:02}:{job.minute:02}:00
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {f"{job.name}.service": service, f"{job.name}.timer": timer}


def _systemd_word(word: str) -> str:
    return '"' + word.replace("%", "%%").replace('"', '\\"') + '"'


def _no_backslash(text: str, kind: str) -> None:
    if "\\" in text:
        raise UsageError(f"A path with a backslash cannot be written for {kind} so that all versions agree.", "Rename.")


# -- launchd, Kubernetes -----------------------------------------------------------------------------------------------


def launchd(job: Job) -> bytes:
    """The property list of a launch agent; XML, escaped by plistlib."""
    return plistlib.dumps(
        {
            "Label": job.name,
            "ProgramArguments": job.command,
            "WorkingDirectory": job.folder,
            "StartCalendarInterval": {"Hour": job.hour, "Minute": job.minute},
            "StandardOutPath": job.log,
            "StandardErrorPath": job.log,
            "ProcessType": "Background",
        }
    )


def kubernetes(job: Job) -> str:
    """A CronJob. Strings are JSON, which YAML reads; a $ in an argument is doubled, for $(NAME) is a variable there."""
    folder, words = (json.dumps(x, ensure_ascii=False) for x in (job.folder, [w.replace("$", "$$") for w in job.words]))
    return f"""\
# Change: the image (one with reflect in it) and the volume claim, which holds the folder of the database and adapters.
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {job.name}
spec:
  schedule: "{job.minute} {job.hour} * * *"  # in the time zone of the cluster
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      backoffLimit: 1
      template:
        spec:
          restartPolicy: Never
          terminationGracePeriodSeconds: 30
          containers:
            - name: sleep
              image: reflect
              command: ["reflect"]
              args: {words}
              workingDir: {folder}
              volumeMounts:
                - name: work
                  mountPath: {folder}
          volumes:
            - name: work
              persistentVolumeClaim:
                claimName: reflect
"""


def text(job: Job, kind: str) -> str:
    """What `reflect schedule print` prints."""
    if kind == "systemd":
        return "\n".join(f"# ~/.config/systemd/user/{name}\n{unit}" for name, unit in systemd(job).items())
    return {"cron": cron, "launchd": lambda job: launchd(job).decode(), "kubernetes": kubernetes}[kind](job)
