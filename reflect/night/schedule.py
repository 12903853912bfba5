"""A night at a fixed hour, by the scheduler of the machine: systemd, cron, launchd or Kubernetes.
There is no daemon: each runs `reflect sleep --if-due`. Entries of other programs are never changed.

Not covered: a path with a control character, and for cron and systemd one with a backslash, is
refused; a crontab that another program changes between our reading and writing it.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from reflect.errors import ReflectError, UsageError, ensure_known
from reflect.export.files import write
from reflect.reading import expand_home
from reflect.store.dialect import without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.config import Settings

KINDS = ("systemd", "cron", "launchd", "kubernetes")
UNITS = """\
[Unit]
Description={title}

[Service]
Type=oneshot
WorkingDirectory={folder}
ExecStart={command}
Nice=10
TimeoutStopSec=30
""", """\
[Unit]
Description={title}

[Timer]
OnCalendar=*-*-* {hour:02}:{minute:02}:00
Persistent=true

[Install]
WantedBy=timers.target
"""  # fmt: skip


@dataclass(frozen=True)
class ScheduledJob:
    """One scheduled sleep. Database and profile give the `name`: each pair has at most one job."""

    name: str
    profile: str
    arguments: tuple[str, ...]  # of `reflect`
    folder: str  # working directory: reflect.toml, ./tasks and ./prompts are read there
    log: str
    hour: int
    minute: int

    @property
    def command(self) -> list[str]:
        """The command that the scheduler runs; -P: no modules from the working directory."""
        return [sys.executable, "-P", "-m", "reflect", *self.arguments]

    @property
    def title(self) -> str:
        """The title of the job."""
        return f"reflect: the night of profile {self.profile}"


def make_job(
    settings: Settings,
    db: str,
    at: str = "03:00",
    model: str | None = None,
    sessions: bool = False,
) -> ScheduledJob:
    """The daily job at `at` (HH:MM) for this profile and database `db` (a full path or a URL).
    `sessions`: it imports sessions of coding agents first."""
    if "://" in db and without_password(db) != db:
        hint = "Put the password into ~/.pgpass (PGPASSFILE), and leave it out of the URL."
        raise UsageError("The schedule would contain the database's password in plain text.", hint)
    time = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at.strip())
    if not time:
        raise UsageError(f"'{at}' is no time of day.", "Write --at 03:00.")
    arguments: tuple[str, ...] = ("sleep", "--if-due", "--db", db, "--profile", settings.profile)
    arguments += ("--model", model) if model else ()
    arguments += ("--sessions",) if sessions else ()
    folder, log = str(Path.cwd()), str(settings.home_path.resolve() / "sleep.log")
    letters = "".join((*arguments, folder, sys.executable, log))
    # Cs: bytes that are not UTF-8
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in letters):
        problem = "A path with a line break or another control character cannot be scheduled."
        raise UsageError(problem, "Rename it.")
    name = f"reflect-sleep-{hashlib.sha256(f'{db} {settings.profile}'.encode()).hexdigest()[:8]}"
    return ScheduledJob(name, settings.profile, arguments, folder, log, int(time[1]), int(time[2]))


# -- formats: each escapes a space, a quote, a percent sign and a dollar sign in its own way


def cron(job: ScheduledJob) -> str:
    """The crontab block: a line between two markers. cron ends a command at an unescaped %."""
    folder, log = shlex.quote(job.folder), shlex.quote(job.log)
    line = f"cd {folder} && {shlex.join(job.command)} >> {log} 2>&1"
    _refuse_backslash(line, "cron")
    begin, end = _markers(job.name)
    return f"{begin}{job.minute} {job.hour} * * * {line.replace('%', chr(92) + '%')}\n{end}"


def systemd(job: ScheduledJob) -> dict[str, str]:
    """file name -> text of service and timer; the timer starts a night missed while powered off."""
    _refuse_backslash("".join((*job.command, job.folder)), "systemd")
    program, *arguments = (
        '"' + word.replace("%", "%%").replace('"', '\\"') + '"' for word in job.command
    )
    values = {
        "title": job.title.replace("%", "%%"),
        "folder": job.folder.replace("%", "%%"),
        # a $ is a variable everywhere but in the program's own name
        "command": " ".join([program, *(word.replace("$", "$$") for word in arguments)]),
    }
    service, timer = (unit.format(**values, hour=job.hour, minute=job.minute) for unit in UNITS)
    return {f"{job.name}.service": service, f"{job.name}.timer": timer}


def launchd(job: ScheduledJob) -> bytes:
    """The property list of a launch agent."""
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


def kubernetes(job: ScheduledJob) -> str:
    """A CronJob. A $ in an argument is doubled, because $(NAME) is a variable there."""
    container = {
        "name": "sleep",
        "image": "reflect",
        "command": ["reflect"],
        "args": [word.replace("$", "$$") for word in job.arguments],
        "workingDir": job.folder,
        "volumeMounts": [{"name": "work", "mountPath": job.folder}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "reflect"}}],
    }
    schedule = {
        "schedule": f"{job.minute} {job.hour} * * *",
        "concurrencyPolicy": "Forbid",
        "jobTemplate": {"spec": {"backoffLimit": 1, "template": {"spec": pod}}},
    }
    cron_job = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": job.name},
        "spec": schedule,
    }
    return (
        "# Change the image (it must contain reflect) and the volume claim "
        "(the folder of the database and adapters).\n"
        "# The schedule is in the time zone of the cluster.\n"
    ) + str(yaml.safe_dump(cron_job, sort_keys=False, allow_unicode=True))


def text(job: ScheduledJob, kind: str) -> str:
    """The output of `reflect schedule print`."""
    if kind == "systemd":
        units = systemd(job).items()
        return "\n".join(f"# ~/.config/systemd/user/{name}\n{unit}" for name, unit in units)
    if kind == "launchd":
        return launchd(job).decode()
    return (cron if kind == "cron" else kubernetes)(job)


def _refuse_backslash(text: str, kind: str) -> None:
    if "\\" in text:
        problem = f"Versions of {kind} read a path with a backslash differently."
        raise UsageError(problem, "Rename it.")


# -- install, status, remove


def kind_of(name: str | None) -> str:
    """A known scheduler; default: launchd on a Mac, systemd with a user manager, else cron."""
    if name is not None:
        ensure_known("scheduler", name, KINDS)
    if name is not None or sys.platform == "darwin":
        return name or "launchd"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    manager = (runtime / "systemd" / "private").exists()
    return "systemd" if shutil.which("systemctl") and manager else "cron"


def installed(name: str) -> dict[str, str]:
    """kind -> the installed text of this job."""
    texts = {}
    for kind in ("systemd", "launchd"):
        if paths := [path for path in _files(name, kind) if path.exists()]:
            texts[kind] = "\n".join(f"{path}\n{path.read_text()}" for path in paths)
    if shutil.which("crontab") and (block := _cut(_crontab(), name)[1]):
        texts["cron"] = block.decode(errors="replace")
    return texts


def install(job: ScheduledJob, kind: str, replace: bool = False) -> None:
    """Schedule the job. UsageError if it is installed already, unless `replace` is set."""
    if kind == "kubernetes":
        hint = "Apply the output of `reflect schedule print`."
        raise UsageError("A Kubernetes schedule is not installed from here.", hint)
    present = installed(job.name)
    if present and not replace:
        place, content = next(iter(present.items()))
        raise UsageError(
            "A schedule for this database and profile is already installed in "
            f"{place}:\n{content.rstrip()}",
            "Add --yes to replace it, or remove it: reflect schedule remove.",
        )
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    if kind == "cron":
        _install_cron(job)
    else:
        _install_files(job, kind, kind in present)
    for other in present:
        if other != kind:
            _remove(job.name, other)


def remove(name: str) -> list[str]:
    """Remove the job wherever it is installed. Returns the kinds, [] if there was none."""
    kinds = list(installed(name))
    for kind in kinds:
        _remove(name, kind)
    return kinds


def _install_cron(job: ScheduledJob) -> None:
    block = cron(job).encode()
    if not shutil.which("crontab"):
        hint = "Install it, or see `reflect schedule print --kind systemd`."
        raise ReflectError("cron is not installed.", hint)
    rest = _cut(_crontab(), job.name)[0]
    _run(["crontab", "-"], rest + (b"" if rest.endswith(b"\n") or not rest else b"\n") + block)


def _install_files(job: ScheduledJob, kind: str, replace: bool) -> None:
    """Write and load the files of systemd or launchd; remove them if the job does not load."""
    units = [unit.encode() for unit in systemd(job).values()]
    data = units if kind == "systemd" else [launchd(job)]
    if replace:
        _remove(job.name, kind)
    paths = _files(job.name, kind)
    for path, content in zip(paths, data, strict=True):
        write(path, content, overwrite=True)
    try:
        if kind == "systemd":
            _run(["systemctl", "--user", "daemon-reload"])
            _run(["systemctl", "--user", "enable", "--now", f"{job.name}.timer"])
        else:
            _run(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(paths[0])])
    except ReflectError:
        _remove(job.name, kind)
        raise


def _remove(name: str, kind: str) -> None:
    if kind == "cron":
        rest = _cut(_crontab(), name)[0]
        _run(["crontab", "-"] if rest else ["crontab", "-r"], rest)
        return
    # Failures are ignored: the job may not be loaded, or the service manager may not run. The files
    # are removed anyway.
    stop = ["systemctl", "--user", "disable", "--now", f"{name}.timer"]
    bootout = ["launchctl", "bootout", f"gui/{os.getuid()}/{name}"]
    _run(stop if kind == "systemd" else bootout, check=False)
    for path in _files(name, kind):
        path.unlink(missing_ok=True)
    if kind == "systemd":
        _run(["systemctl", "--user", "daemon-reload"], check=False)


def _files(name: str, kind: str) -> list[Path]:
    if kind == "launchd":
        return [expand_home() / "Library" / "LaunchAgents" / f"{name}.plist"]
    home = Path(os.environ.get("XDG_CONFIG_HOME") or expand_home() / ".config") / "systemd" / "user"
    return [home / f"{name}.service", home / f"{name}.timer"]


def _markers(name: str) -> tuple[str, str]:
    return f"# {name}: begin (reflect schedule)\n", f"# {name}: end\n"


def _cut(crontab: bytes, name: str) -> tuple[bytes, bytes]:
    """(the crontab without our block, our block), bytes kept; UsageError for half a block."""
    begin, end = (line.encode() for line in _markers(name))
    lines = crontab.splitlines(keepends=True)
    if begin not in lines and end not in lines:
        return crontab, b""
    if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(end) < lines.index(begin):
        problem = f"The lines around {name} in your crontab are incomplete."
        raise UsageError(problem, "Fix them with `crontab -e`.")
    first, last = lines.index(begin), lines.index(end)
    return b"".join(lines[:first] + lines[last + 1 :]), b"".join(lines[first : last + 1])


def _crontab() -> bytes:
    done = subprocess.run(["crontab", "-l"], capture_output=True)
    if done.returncode and b"no crontab" not in done.stderr:
        raise ReflectError(f"crontab -l failed: {_message(done.stderr)}", "See `man crontab`.")
    return b"" if done.returncode else done.stdout


def _run(command: Sequence[str], stdin: bytes = b"", check: bool = True) -> None:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True)
    except OSError as e:
        if check:
            problem = f"{command[0]} does not start: {e.strerror}."
            raise ReflectError(problem, "Try another --kind.") from e
        return
    if check and done.returncode:
        message = f"`{' '.join(command)}` failed: {_message(done.stderr)}"
        raise ReflectError(message, "Nothing is scheduled. Try another --kind.")


def _message(stderr: bytes) -> str:
    return " ".join(stderr.decode(errors="replace").split()) or "no error message"
