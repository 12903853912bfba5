"""Several processes at one database, and processes that die in the middle of it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from test_store import VERSION_1, a_run, attempt

from reflect.records import Lesson
from reflect.store import Store, doctor, lessons, migrations, runs  # noqa: F401  (a fork need not import it again)
from reflect.store.database import REVISIONS

fork = multiprocessing.get_context("fork")


def together(work: Callable[..., None], *args: Any, processes: int = 4) -> list[int | None]:
    """Run `work(gate, number, *args)` in several processes, which wait for each other at `gate`;
    their exit codes."""
    gate = fork.Barrier(processes)
    started = [fork.Process(target=work, args=(gate, number, *args)) for number in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return [process.exitcode for process in started]


# -- writers
# -----------------------------------------------------------------------------------------------------------


def count_up(gate: Any, number: int, where: str, times: int) -> None:
    store = Store(where)
    gate.wait()
    for _ in range(times):
        with store.write() as s:
            lesson = lessons.get(s, 1)  # read, then write: what a deferred BEGIN loses
            lessons.revise(
                s, 1, author="human", tokens=lesson.tokens + 1, expect_version=lesson.version
            )


def test_concurrent_writers_lose_no_update(where: str):
    store = Store(where)
    with store.write() as s:
        lessons.add(s, when="a", do="b", author="human")
    assert together(count_up, where, 25) == [0, 0, 0, 0]
    with store.read() as s:
        lesson = lessons.get(s, 1)
        assert (lesson.tokens, lesson.version, len(lessons.history(s, 1))) == (100, 101, 101)
    assert doctor.check(store) == []


def practise(gate: Any, number: int, where: str) -> None:
    store = Store(where)
    gate.wait()
    with store.write() as s:
        run, tasks = a_run(s, "one", n=5, k=8)
    for task in tasks:
        with store.write() as s:
            runs.save_rollouts(s, [attempt(run, task, i) for i in range(8)], [[]] * 8)
    with store.write() as s:
        runs.finish_run(s, run.id)


def test_four_processes_of_one_run_store_n_times_k_rollouts(where: str):
    assert together(practise, where) == [0, 0, 0, 0]
    store = Store(where)
    with store.read() as s:
        assert len(runs.list_runs(s)) == 1 and runs.figures(s, 1).rollouts == 40
    assert doctor.check(store) == []


def test_a_store_survives_a_fork(store: Store):
    def child() -> None:
        with store.write() as s:
            lessons.add(s, when="child", do="b", author="human")

    with store.read() as s:
        assert lessons.count(s) == 0
        process = fork.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0 and lessons.count(s) == 0, "the reader's moment has not moved"
    with store.read() as s:
        assert lessons.count(s) == 1
    assert doctor.check(store) == []


def write_for_ever(where: str, done: Any) -> None:
    store = Store(where)
    for i in range(10_000):
        with store.write() as s:
            for j in range(5):
                lessons.add(s, when=f"case {i} {j}", do="word " * 50, author="human")
        done.value = i + 1


def test_a_writer_killed_at_any_moment_loses_nothing_that_was_saved(where: str):
    store = Store(where)
    before = 0
    for pause in (0.05, 0.083, 0.121, 0.164):
        done = fork.Value("i", 0)
        process = fork.Process(target=write_for_ever, args=(where, done))
        process.start()
        while not done.value:
            time.sleep(0.005)
        time.sleep(pause)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        with store.write() as s:  # a server may still be busy with the last words of the dead
            now = lessons.count(s)
        assert now % 5 == 0 and 0 <= now // 5 - before - done.value <= 1, (
            "whole transactions, and all that returned"
        )
        before = now // 5
    assert doctor.check(store) == []


# -- migrations
# --------------------------------------------------------------------------------------------------------


def open_it(gate: Any, number: int, where: str) -> None:
    gate.wait()
    with Store(where).write() as s:
        s.add(Lesson(when=f"case {number}", do="b"))


@pytest.mark.parametrize("trial", range(3))
def test_four_processes_that_start_together_make_one_good_database(where: str, trial: int):
    assert together(open_it, where) == [0, 0, 0, 0]
    with Store(where).read() as s:
        assert lessons.count(s) == 4
        assert s.connection().exec_driver_sql("SELECT * FROM alembic_version").all() == [
            (REVISIONS[-1],)
        ]


def die_at(where: str, statement: int) -> None:
    """Open a new database and die before its n-th statement: SIGKILL, as a power cut would."""
    seen = 0

    def count(*args: object) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)
    Store(where)


@pytest.mark.parametrize("before", [None, VERSION_1])
def test_a_migration_killed_at_any_statement_is_done_by_the_next_start(
    tmp_path: Path, before: Path | None
):
    path = tmp_path / "lessons.db"
    killed = 0
    for statement in range(1, 1000, 4 if before is None else 12):
        for file in tmp_path.iterdir():
            file.unlink()
        if before is not None:
            shutil.copy(before, path)
        process = fork.Process(target=die_at, args=(str(path), statement))
        process.start()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        names = {
            name for (name,) in sqlite3.connect(path).execute("SELECT name FROM sqlite_master")
        }
        assert not names or {"alembic_version", "lesson_fts_update", "trial"} <= names, (
            "all of a migration or nothing"
        )
        if process.exitcode == 0:
            break
        if statement % 12 == 1:  # the whole way each time would be slow, and says nothing new
            assert doctor.check(Store(path)) == []
    assert killed > 10 and process.exitcode == 0
    assert doctor.check(Store(path)) == []


@pytest.mark.parametrize("part", ["-wal", "-shm"])
def test_what_sqlite_leaves_beside_the_file_after_a_crash_is_taken_up(tmp_path: Path, part: str):
    """A copy taken while a writer was at work, with or without the shared-memory file."""
    store = Store(tmp_path / "lessons.db")
    with store.read() as s:  # an open connection keeps the log
        s.connection()
        with store.write() as w:
            lessons.add(w, when="a", do="b", author="human")
        for suffix in ("", "-wal", part):
            shutil.copy(f"{store.path}{suffix}", tmp_path / f"copy.db{suffix}")
    with Store(tmp_path / "copy.db").read() as s:
        assert lessons.count(s) == 1
