"""A night with nobody there: signals, deadlines, a second sleeper, leftovers, its cost and its room
on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import filelock
import pytest
import torch
from test_night_distill import data, short, weights

import reflect
from reflect.adapters import registry
from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import NightError
from reflect.models.local import LocalModel
from reflect.night import disk_space
from reflect.night.sleep import sleep
from reflect.night.workdir import NightDir
from reflect.records import Adapter
from reflect.store import Store, doctor, lessons, nights
from reflect.tasksets import load_taskset
from reflect.training import deadline as deadline_
from reflect.training import loop
from reflect.training.plan import NightOptions, make_plan

ROOT = Path(reflect.__file__).parent.parent
TINY = {
    "budget": 0.1,
    "batch": 8,
    "anchors": 16,
    "tasks_per_lesson": 4,
    "fewest_tasks": 16,
    "gate_tasks": 8,
}


@pytest.fixture
def short_settings(settings: Settings) -> Settings:
    """Answers of at most 32 tokens."""
    return replace(settings, max_tokens=32)


@pytest.fixture
def lesson_store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as s:
        for verb, operation in list(load_taskset("dialect").meanings.items())[:3]:
            lessons.add(
                s,
                when=f"the task says {verb}",
                do=f"use {operation}",
                author="human",
                scope="dialect",
            )
    return sqlite_store


def start(settings: Settings, *words: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "reflect", *words, "--db", settings.db]
    # Processes that a shell starts in the background inherit that SIGINT is ignored.
    handle = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=env, preexec_fn=handle
    )


def wait_for(process: subprocess.Popen, there: Path) -> None:
    """Until the file is there."""
    deadline = time.monotonic() + 120
    while not there.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert there.exists() and process.poll() is None


# -- signals
# -----------------------------------------------------------------------------------------------------------


def test_a_night_that_is_told_to_stop_stops_and_lets_nobody_in_before(
    lesson_store: Store, short_settings: Settings
) -> None:
    """A real night is stopped in the middle; while it works, a second one is refused, or finds
    nothing due."""
    process = start(short_settings, "sleep", "--budget", "10m")
    wait_for(process, short_settings.home_path / "sleep.lock")
    wait_for(process, short_settings.home_path / "nights")  # its preflight is written down
    second = start(short_settings, "sleep")
    third = start(short_settings, "sleep", "--if-due")
    said = [one.communicate(timeout=60) for one in (second, third)]
    assert second.returncode == 1 and "Another sleep is running" in said[0][1]
    assert third.returncode == 0 and said[1][0] == "Not due: another sleep is running.\n"

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)  # a tenth of the night's budget
    assert process.returncode == 143, err
    assert "Terminated" in err and "the same command continues" in err and "Traceback" not in err
    assert (
        reflect.open(short_settings.db).due().reason == "Due: night 1 was interrupted, and goes on."
    )
    with lesson_store.read() as s:
        assert [night.status for night in nights.list_nights(s)] == ["running"] and doctor.check(
            s
        ) == []


def test_a_process_that_cannot_stop_is_ended() -> None:
    """It swallows the exception and works on: the hard end comes after the patience, or with the
    second signal."""
    code = (
        "import sys, time; from reflect.cli import signals; signals.PATIENCE = float(sys.argv[1]); signals.listen()\n"
        "while True:\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt: print('swallowed', flush=True)\n"
    )
    for patience, number, twice in (("0.3", signal.SIGTERM, False), ("60", signal.SIGINT, True)):
        words = [sys.executable, "-c", code, patience]
        heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, text=True, preexec_fn=heed, env=env
        )
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "swallowed\n"
        assert process.stdout.readline() == "ready\n"
        if twice:
            process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_a_signal_at_the_very_end_leaves_no_traceback() -> None:
    """The work is done and Python cleans up: the process ends, with its answer on stdout and no
    other words."""
    code = (
        "import atexit, os, signal, sys; from reflect.cli import main\n"
        "atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[1])))\n"
        "main(['--version'])\n"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        words = [sys.executable, "-c", code, str(int(number))]
        heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            words, capture_output=True, text=True, preexec_fn=heed, env=env, check=False
        )
        assert done.stdout.strip() and not done.stderr and done.returncode == -number


# -- the deadline
# ------------------------------------------------------------------------------------------------------


class Clock:
    """A time that is over when training has reported its step 13, three after a checkpoint."""

    steps: list[int]

    def __init__(self) -> None:
        self.steps = []

    def __le__(self, now: float) -> bool:
        return bool(self.steps) and self.steps[-1] >= 12

    def progress(self, done: int, total: int, what: str) -> None:
        self.steps.append(done)


def test_training_that_pauses_goes_on_with_the_very_next_step(
    tiny: LocalModel, tmp_path: Path
) -> None:
    d, plan, clock = data(tiny), short(budget=0.2), Clock()
    whole = loop.train(tiny, "whole", d, plan, tmp_path / "a")
    with pytest.raises(deadline_.Paused):
        loop.train(
            tiny, "parts", d, plan, tmp_path / "b", deadline_.with_deadline(clock.progress, clock)
        )  # type: ignore[arg-type]
    assert clock.steps == list(range(13))
    assert loop.train(tiny, "parts", d, plan, tmp_path / "b", clock.progress) == whole
    assert clock.steps == list(range(plan.steps + 1)), "no step is done twice, none is left out"
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(tiny, "whole"), weights(tiny, "parts"), strict=True)
    )


def test_a_night_whose_time_is_over_goes_on_later(
    pocket: LocalModel, lesson_store: Store, short_settings: Settings
) -> None:
    paused = sleep(
        pocket,
        lesson_store,
        short_settings,
        until=time.monotonic(),
        options=NightOptions().changed(TINY),
    )
    assert paused.status == "paused" and paused.reason == (
        "The deadline came in stage preflight: `reflect sleep` continues night 1."
    )
    with lesson_store.read() as s:
        assert nights.get_night(s, paused.night_id).status == "running"
    with filelock.FileLock(short_settings.home_path / "sleep.lock", timeout=0):
        pass  # nobody holds it any more


def test_a_deadline_is_a_length_of_time(
    lesson_store: Store, short_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["sleep", "--deadline", "dawn", "--db", short_settings.db]) == 2
    assert "'dawn' is no length of time" in capsys.readouterr().err


# -- leftovers
# ---------------------------------------------------------------------------------------------------------


def test_the_doctor_removes_what_no_night_will_read(
    lesson_store: Store, short_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with lesson_store.write() as s:
        ended, going = (
            nights.start_night(s, key=k * 32, profile="default", config={}, lessons=[])
            for k in "ab"
        )
        nights.finish_night(s, ended.id, "nothing")
    home = registry.home(short_settings)
    garbage = [
        home / f"{registry.UNFINISHED}x",
        home / registry.name_of(ended.key),
        NightDir(short_settings, ended.key).folder,
    ]
    kept = [
        home / registry.name_of(going.key),
        NightDir(short_settings, going.key).folder,
        home / "by-hand",
    ]
    kept.append(short_settings.home_path / "nights" / "of-another-database")
    for folder in (*garbage, *kept):
        folder.mkdir(parents=True)
        (folder / "file.json").write_text("{}")
    temporary = NightDir(short_settings, going.key).folder / "training.tmp"
    temporary.write_bytes(b"half")
    with filelock.FileLock(
        short_settings.home_path / "sleep.lock"
    ):  # never under a night that runs
        assert run_command(["doctor", "--db", short_settings.db, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [] and all(
        path.exists() for path in garbage
    )
    assert run_command(["doctor", "--db", short_settings.db, "--json"]) == 0
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert sorted(removed) == sorted(map(str, [*garbage, temporary]))
    assert not any(path.exists() for path in (*garbage, temporary)) and all(
        (path / "file.json").exists() for path in kept
    )


# -- what it costs
# -----------------------------------------------------------------------------------------------------


def slept(store: Store, settings: Settings, base: str, seconds: float, plan: dict) -> None:
    """A night of this plan as the database keeps it (test_night_sleep asks after a real one)."""
    registry.home(settings).joinpath("night-1").mkdir(parents=True)
    stages = {"preflight": {"tasksets": {"dialect": {}}, "lessons": {"1": {}, "2": {}, "3": {}}}}
    with store.write() as s:
        night = nights.start_night(
            s, key="1" * 32, profile="default", config=plan, lessons=[[1, 1]]
        )
        row = Adapter(
            name="night-1",
            path="x",
            manifest={},
            base_model="pocket",
            base_fingerprint=base,
            night_id=night.id,
        )
        adapter = nights.add_adapter(s, **row.model_dump(exclude={"id"}))
        nights.finish_night(s, night.id, "rejected", adapter_id=adapter.id)
        night.stages, night.started = stages, night.ended - timedelta(seconds=seconds)  # type: ignore[operator]


def test_a_dry_run_says_what_it_costs(
    pocket: LocalModel, lesson_store: Store, short_settings: Settings
) -> None:
    first = sleep(
        pocket, lesson_store, short_settings, dry_run=True, options=NightOptions().changed(TINY)
    )
    assert first.cost["measured"] == 0 and first.cost["seconds"] > 0
    assert "by a few answers and one training step just now" in first.reason
    assert not pocket.adapters, "the measured step leaves nothing"
    for flag in ("steps", "learning-rate", "rank", "batch", "samples", "temperature", "anchors"):
        assert f"--{flag}" in first.reason, "each value of the plan is printed with its flag"
    assert (
        first.cost["tasks"] == 16
        and first.cost["trained"] == (12 + 5) * 8
        and "22 MB of disk" in first.reason
    )
    slept(lesson_store, short_settings, pocket.fingerprint, 50.0, first.plan)
    same = sleep(
        pocket, lesson_store, short_settings, dry_run=True, options=NightOptions().changed(TINY)
    )
    assert (
        same.cost["measured"] == 1
        and "about 50 s, at the speed of the last 1 night here" in same.reason
    )
    more = sleep(
        pocket,
        lesson_store,
        short_settings,
        dry_run=True,
        options=NightOptions().changed(TINY | {"gate_tasks": 200}),
    )
    work = [report.cost["answers"] + report.cost["trained"] for report in (more, same)]
    assert more.cost["seconds"] == pytest.approx(50.0 * work[0] / work[1], abs=0.06)
    registry.home(short_settings).joinpath(
        "night-1"
    ).rmdir()  # its folder is on another machine, so it was slept there
    assert (
        sleep(
            pocket, lesson_store, short_settings, dry_run=True, options=NightOptions().changed(TINY)
        ).cost["measured"]
        == 0
    )


def test_the_nights_of_another_base_say_nothing(
    pocket: LocalModel, lesson_store: Store, short_settings: Settings
) -> None:
    plan = sleep(
        pocket, lesson_store, short_settings, dry_run=True, options=NightOptions().changed(TINY)
    ).plan
    slept(lesson_store, short_settings, "another base", 50.0, plan)
    assert (
        sleep(
            pocket, lesson_store, short_settings, dry_run=True, options=NightOptions().changed(TINY)
        ).cost["measured"]
        == 0
    )


def test_too_little_disk_is_said_before_the_work(
    tiny: LocalModel, lesson_store: Store, short_settings: Settings
) -> None:
    """No disk holds adapters of this rank."""
    plan = make_plan(10**6, rank=10**15)
    assert disk_space.needed(tiny.network, plan) > 10**17
    before = tiny.network.state_dict().keys()
    with pytest.raises(NightError, match=r"A night needs [\d,]+ MB of disk, and .* has [\d,]+ MB"):
        sleep(tiny, lesson_store, short_settings, NightOptions(plan={"rank": 10**15}))
    with lesson_store.read() as s:
        assert nights.list_nights(s) == [] and tiny.network.state_dict().keys() == before
