"""The machine's own schedulers: what of ours stands in them, put it in, take it out. Nothing foreign is touched.

Not covered: a crontab that another program changes in the very moment between our reading and our writing of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.export.files import write
from reflect.night import schedule
from reflect.night.schedule import KINDS, Job

PLACES = ("systemd", "cron", "launchd")  # where something can be installed from here


def default_kind() -> str:
    """launchd on a Mac; systemd where the user has a running session manager; else cron."""
    if sys.platform == "darwin":
        return "launchd"
    bus = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "systemd" / "private"
    return "systemd" if shutil.which("systemctl") and bus.exists() else "cron"


def kind_of(word: str | None) -> str:
    if word is None:
        return default_kind()
    if word not in KINDS:
        raise UnknownName(f"There is no scheduler '{word}'.", f"There are: {', '.join(KINDS)}.")
    return word


def standing(name: str) -> dict[str, str]:
    """kind -> what of this job stands there."""
    found = {}
    if files := [path for path in _units(name) if path.exists()]:
        found["systemd"] = "\n".join(f"{path}\n{path.read_text()}" for path in files)
    if shutil.which("crontab") and (block := schedule.cut(_crontab(), name)[1]):
        found["cron"] = block.decode(errors="replace")
    if _agent(name).exists():
        found["launchd"] = f"{_agent(name)}\n{_agent(name).read_text()}"
    return found


def install(job: Job, kind: str, replace: bool = False) -> None:
    """Schedule the job. UsageError when it stands somewhere already, unless it is to be replaced."""
    if kind not in PLACES:
        raise UsageError(
            "A Kubernetes schedule is not installed from here.", "Apply what `reflect schedule print` prints."
        )
    there = standing(job.name)
    if there and not replace:
        place, what = next(iter(there.items()))
        raise UsageError(
            f"A schedule for this database and profile stands already, in {place}:\n{what.rstrip()}",
            "Say --yes to replace it, or take it out: reflect schedule remove.",
        )
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    {"systemd": _install_systemd, "cron": _install_cron, "launchd": _install_launchd}[kind](job)
    for other in there:
        if other != kind:
            _remove(job.name, other)


def remove(name: str) -> list[str]:
    """Take the job out, wherever it stands. The kinds; none when there was nothing."""
    there = list(standing(name))
    for kind in there:
        _remove(name, kind)
    return there


def _remove(name: str, kind: str) -> None:
    if kind == "cron":
        _write_crontab(schedule.cut(_crontab(), name)[0])
    elif kind == "systemd":
        _try(["systemctl", "--user", "disable", "--now", f"{name}.timer"])
        for path in _units(name):
            path.unlink(missing_ok=True)
        _try(["systemctl", "--user", "daemon-reload"])
    else:
        _try(["launchctl", "bootout", f"gui/{os.getuid()}/{name}"])
        _agent(name).unlink(missing_ok=True)


# -- systemd -----------------------------------------------------------------------------------------------------------


def _units(name: str) -> list[Path]:
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    return [home / f"{name}.service", home / f"{name}.timer"]


def _install_systemd(job: Job) -> None:
    units = schedule.systemd(job)
    for path in _units(job.name):
        write(path, units[path.name].encode(), overwrite=True)
    try:
        _run(["systemctl", "--user", "daemon-reload"])
        _run(["systemctl", "--user", "enable", "--now", f"{job.name}.timer"])
    except ReflectError:
        _remove(job.name, "systemd")  # a unit that is not enabled would look like a schedule
        raise


# -- cron --------------------------------------------------------------------------------------------------------------


def _crontab() -> bytes:
    done = subprocess.run(["crontab", "-l"], capture_output=True)
    if done.returncode and b"no crontab" not in done.stderr:
        raise ReflectError(f"crontab -l failed: {_said(done.stderr)}", "See `man crontab`.")
    return b"" if done.returncode else done.stdout


def _write_crontab(crontab: bytes) -> None:
    _run(["crontab", "-"] if crontab else ["crontab", "-r"], crontab)


def _install_cron(job: Job) -> None:
    block = schedule.cron(job).encode()
    if not shutil.which("crontab"):
        raise ReflectError("There is no cron here.", "Install it, or see `reflect schedule print --kind systemd`.")
    rest = schedule.cut(_crontab(), job.name)[0]
    _write_crontab(rest + (b"" if rest.endswith(b"\n") or not rest else b"\n") + block)


# -- launchd -----------------------------------------------------------------------------------------------------------


def _agent(name: str) -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"{name}.plist"


def _install_launchd(job: Job) -> None:
    path = _agent(job.name)
    if path.exists():
        _remove(job.name, "launchd")
    write(path, schedule.launchd(job))
    try:
        _run(["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)])
    except ReflectError:
        path.unlink()
        raise


# -- other programs ----------------------------------------------------------------------------------------------------


def _run(words: Sequence[str], given: bytes = b"") -> None:
    try:
        done = subprocess.run(words, input=given, capture_output=True)
    except OSError as e:
        raise ReflectError(f"{words[0]} does not start: {e.strerror}.", "Another --kind may be here.") from e
    if done.returncode:
        raise ReflectError(
            f"`{' '.join(words)}` failed: {_said(done.stderr)}", "Nothing is scheduled. Another --kind may work here."
        )


def _try(words: Sequence[str]) -> None:
    """It may be gone already, or the session manager may not run: what counts is that our files go."""
    if shutil.which(words[0]):
        subprocess.run(words, capture_output=True)


def _said(stderr: bytes) -> str:
    return " ".join(stderr.decode(errors="replace").split()) or "it did not say why"
