"""`reflect schedule`: what it writes is read back by those who read it; nothing foreign is touched.

The schedulers that are asked here live in the test's own folder: a `crontab` that keeps a file, a
`systemctl` and a `launchctl` that record their arguments. No test reaches the machine's
own.
"""

from __future__ import annotations

import json
import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import UsageError
from reflect.night import schedule
from reflect.night.schedule import ScheduledJob, make_job

HARD = (
    'a folder\'s "100%" of $HOME & <money> ; #é'  # everything that some format gives a meaning to
)
Cli = Callable[..., str]

CRONTAB = """#!/bin/sh
case "$1" in
  -l) [ -f "$HOME/crontab" ] && exec cat "$HOME/crontab"; echo "no crontab for you" >&2; exit 1;;
  -r) exec rm "$HOME/crontab";;
  -) exec cat > "$HOME/crontab";;
esac
"""
TOLD = """#!/bin/sh
echo "$@" >> "$HOME/calls"
[ ! -f "$HOME/broken" ] || { echo "Failed to connect to bus" >&2; exit 1; }
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    for name, script in (("crontab", CRONTAB), ("systemctl", TOLD), ("launchctl", TOLD)):
        (home / "bin" / name).write_text(script)
        (home / "bin" / name).chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{home / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in [name for name in os.environ if name.startswith("REFLECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*words: str, code: int = 0) -> str:
        got = run_command(["schedule", *words])
        out, err = capsys.readouterr()
        assert got == code, err
        return out if code == 0 else err

    return run


def job(folder: Path, at: str = "03:00") -> ScheduledJob:
    """For a database in that folder, run from it."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return make_job(
            Settings(db=str(folder / "my lessons.db"), profile="o'neil"),
            str(folder / "my lessons.db"),
            at,
        )
    finally:
        os.chdir(before)


# -- each format, read by its own reader
# -------------------------------------------------------------------------------


def test_cron_runs_the_very_words(home: Path) -> None:
    one = job(home / HARD, "4:05")
    begin, line, end = schedule.cron(one).splitlines()
    assert begin.startswith("#") and end.startswith("#")
    minute, hour, *stars, command = line.split(" ", 5)
    assert (minute, hour, stars) == ("5", "4", ["*"] * 3)
    # What crond does with a command: an unescaped % would end it, and \\% is a %. Then sh runs it.
    assert "%" not in command.replace("\\%", "")
    shown = "import sys, os; print(os.getcwd()); print(sys.argv[1:])"
    program = shlex.join([sys.executable, "-P", "-m", "reflect"])
    ran = command.replace("\\%", "%").replace(program, shlex.join([sys.executable, "-c", shown]))
    Path(one.log).parent.mkdir()
    subprocess.run(["sh", "-c", ran], check=True)
    folder, words = Path(one.log).read_text().splitlines()
    assert folder == one.folder == str(home / HARD)
    assert words == str(list(one.arguments)) and "o'neil" in words


def test_debians_crontab_reads_it(home: Path) -> None:
    real = shutil.which("crontab", path="/usr/bin:/bin")
    if not real:
        pytest.skip("no cron is installed")
    done = subprocess.run([real, "-h"], capture_output=True, text=True)
    usage = done.stdout + done.stderr
    only_read = "-n" if "(dry run" in usage else "-T" if "-T" in usage else ""
    if not only_read:
        pytest.skip("this crontab cannot check a file without installing it")
    (home / "new").write_text(schedule.cron(job(home / HARD)))
    done = subprocess.run([real, only_read, str(home / "new")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (home / "new").write_text("61 3 * * * true\n")
    assert subprocess.run([real, only_read, str(home / "new")], capture_output=True).returncode


def test_systemd_reads_it(home: Path) -> None:
    real = shutil.which("systemd-analyze", path="/usr/bin:/bin")
    if not real:
        pytest.skip("no systemd is installed")
    one = job(home / HARD)
    units = schedule.systemd(one)
    for name, text in units.items():
        (home / name).write_text(text)
    done = subprocess.run(
        [real, "verify", *(str(home / n) for n in units)], capture_output=True, text=True
    )
    output = [line for line in done.stderr.splitlines() if one.name in line]
    assert (done.returncode, output) == (0, []), done.stderr
    when = subprocess.run(
        [real, "calendar", "*-*-* 03:00:00"], capture_output=True, text=True, check=True
    ).stdout
    assert (
        "Normalized form: *-*-* 03:00:00" in when
        and "OnCalendar=*-*-* 03:00:00" in units[f"{one.name}.timer"]
    )


def test_systemd_means_the_very_words(home: Path) -> None:
    """Read back by the rules of systemd.service(5): double quotes, \\", %% and $$."""
    one = job(home / HARD)
    lines = dict(
        x.split("=", 1)
        for x in schedule.systemd(one)[f"{one.name}.service"].splitlines()
        if "=" in x
    )
    words = shlex.split(lines["ExecStart"].replace("$$", "$").replace("%%", "%"))
    assert words[:4] == [sys.executable, "-P", "-m", "reflect"]
    assert [word.replace("\\$", "$") for word in words[4:]] == list(one.arguments)
    assert lines["WorkingDirectory"].replace("%%", "%") == one.folder


def test_launchd_and_kubernetes_mean_the_very_words(home: Path) -> None:
    one = job(home / HARD, "23:59")
    agent = plistlib.loads(schedule.launchd(one))
    assert agent["ProgramArguments"] == one.command and agent["WorkingDirectory"] == one.folder
    assert agent["StartCalendarInterval"] == {"Hour": 23, "Minute": 59}
    cron_job = yaml.safe_load(schedule.kubernetes(one))
    assert (cron_job["kind"], cron_job["spec"]["schedule"]) == ("CronJob", "59 23 * * *")
    [container] = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert [word.replace("$$", "$") for word in container["args"]] == list(one.arguments)
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"] == one.folder


def test_what_no_format_can_carry_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="control character"):
        job(home / "two\nlines")
    for write in (schedule.cron, schedule.systemd):
        with pytest.raises(UsageError, match="backslash"):
            write(job(home / "back\\slash"))
    with pytest.raises(UsageError, match="no time of day"):
        job(home, "24:00")
    with pytest.raises(UsageError, match="password"):
        make_job(Settings(), "postgresql+psycopg://ann:secret@host/team")


# -- install, status, remove
# -------------------------------------------------------------------------------------------


def test_cron_from_first_to_last(home: Path, cli: Cli) -> None:
    foreign = b'# mine\nMAILTO=""\n\n0 5 * * * echo 50\\% \xff\t \n# reflect-sleep-00000000: begin (reflect schedule)\n'
    (home / "crontab").write_bytes(foreign)
    assert "every day at 03:00" in cli("install", "--kind", "cron")
    assert (home / "crontab").read_bytes() == foreign + cli("print", "--kind", "cron").encode()
    assert (home / ".reflect").is_dir()  # the log has a place
    refused = cli("install", "--at", "4:30", "--kind", "cron", code=2)
    assert "already installed in cron" in refused and "0 3 * * *" in refused and "--yes" in refused
    cli("install", "--at", "4:30", "--kind", "cron", "--yes")
    installed = (home / "crontab").read_bytes()
    assert (
        installed.startswith(foreign)
        and installed.count(b"\n30 4 * * * ") == 1
        and b"\n0 3 " not in installed
    )
    cli("install", "--at", "4:30", "--kind", "cron", "--yes")
    assert (home / "crontab").read_bytes() == installed
    assert "30 4 * * *" in cli("status") and "Not due: there are no lessons yet." in cli("status")
    cli("install", "--kind", "cron", "--profile", "ann")  # another profile is another job
    assert (
        "reflect-sleep" in cli("remove", "--profile", "ann")
        and (home / "crontab").read_bytes() == installed
    )
    assert "is removed" in cli("remove")
    assert (home / "crontab").read_bytes() == foreign
    assert (
        cli("remove") == "Nothing was scheduled.\n"
        and json.loads(cli("status", "--json"))["installed"] == {}
    )


def test_an_empty_crontab_is_none_again(home: Path, cli: Cli) -> None:
    cli("install", "--kind", "cron")
    cli("remove")
    assert not (home / "crontab").exists()


def test_half_a_block_is_not_touched(home: Path, cli: Cli) -> None:
    cli("install", "--kind", "cron")
    half = (
        b"".join((home / "crontab").read_bytes().splitlines(keepends=True)[:-1])
        + b"0 5 * * * true\n"
    )
    (home / "crontab").write_bytes(half)
    assert "are incomplete" in cli("remove", code=2) and (home / "crontab").read_bytes() == half


def test_systemd_from_first_to_last(home: Path, cli: Cli) -> None:
    units = home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    (units / "mine.timer").write_text("[Timer]\n")
    cli("install", "--kind", "systemd")
    _service, timer = sorted(path for path in units.iterdir() if path.name.startswith("reflect"))
    assert f"--user enable --now {timer.name}" in (home / "calls").read_text()
    assert "already installed in systemd" in cli("install", "--kind", "cron", code=2)
    cli("install", "--kind", "cron", "--yes")  # moves it: never two
    assert [path.name for path in units.iterdir()] == ["mine.timer"] and "cron:" in cli("status")
    assert f"--user disable --now {timer.name}" in (home / "calls").read_text()
    cli("install", "--kind", "systemd", "--yes", "--at", "1:15")
    assert "OnCalendar=*-*-* 01:15:00" in timer.read_text() and not (home / "crontab").exists()
    cli("remove")
    assert [path.name for path in units.iterdir()] == ["mine.timer"]


def test_what_cannot_be_enabled_leaves_nothing(home: Path, cli: Cli) -> None:
    (home / "broken").touch()
    for kind in ("systemd", "launchd"):
        assert "Failed to connect to bus" in cli("install", "--kind", kind, code=1)
    assert schedule.installed(job(home).name) == {} and "Nothing is scheduled" in cli("status")
    assert not list(home.rglob("reflect-sleep*"))


def test_launchd_from_first_to_last(home: Path, cli: Cli) -> None:
    cli("install", "--kind", "launchd")
    [agent] = (home / "Library" / "LaunchAgents").iterdir()
    assert plistlib.loads(agent.read_bytes())["Label"] == agent.stem
    assert f"bootstrap gui/{os.getuid()} {agent}" in (home / "calls").read_text()
    cli("install", "--kind", "launchd", "--yes", "--at", "2:00")
    cli("remove")
    assert (
        not agent.exists()
        and f"bootout gui/{os.getuid()}/{agent.stem}" in (home / "calls").read_text()
    )


def test_the_kind_is_found(home: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert schedule.kind_of(None) == "cron"
    (home / "run" / "systemd").mkdir(parents=True)
    (home / "run" / "systemd" / "private").touch()
    assert schedule.kind_of(None) == "systemd"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert schedule.kind_of(None) == "launchd"
    assert "no scheduler 'at'" in cli("print", "--kind", "at", code=2)
    assert "not installed from here" in cli("install", "--kind", "kubernetes", code=2)


def test_the_printed_job_runs(home: Path, cli: Cli) -> None:
    """The cron line as it is, run by sh in an environment as poor as cron's."""
    command = cli("print", "--kind", "cron").splitlines()[1].split(" ", 5)[5].replace("\\%", "%")
    Path(home / ".reflect").mkdir()
    root = str(Path(schedule.__file__).parent.parent.parent)
    poor: dict[str, Any] = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": root}
    subprocess.run(["sh", "-c", command], env=poor, cwd="/", check=True)
    assert (home / ".reflect" / "sleep.log").read_text() == "Not due: there are no lessons yet.\n"
