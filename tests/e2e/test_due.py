"""`reflect sleep --if-due`: the decision from the database and the clock, and that it costs nothing
to ask."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import filelock
import pytest

import reflect
from reflect.config import Settings
from reflect.night.due import decide
from reflect.records import Adapter, Night, Trial, now
from reflect.store import Store, lessons, nights


def teach(store: Store, when: str = "the task says zub", **options: str) -> int:
    with store.write() as s:
        words = {"when": when, "do": "use reverse", "author": "human", "scope": "dialect"} | options
        return lessons.add(s, **words).id or 0


def slept(
    store: Store,
    ids: list[int],
    status: str = "promoted",
    hours: float = 24,
    kept: list[int] | None = None,
) -> Night:
    """A night over the lessons as they are now, ended so many hours ago, as `reflect.night.sleep`
    leaves it."""
    with store.write() as s:
        pairs = [[i, lessons.get(s, i).version] for i in ids]
        night = nights.start_night(
            s, key=f"{status} {pairs} {hours}", profile="default", config={}, lessons=pairs
        )
        if status == "running":
            return night
        for i, version in pairs:
            trial = Trial(
                lesson_id=i,
                version=version,
                kind="preflight",
                effect=0,
                low=0,
                high=0,
                n=8,
                verdict="accept",
            )
            trial.night_id = night.id
            nights.add_trial(s, trial)
        if status == "promoted":
            row = Adapter(
                name=night.key,
                path="x",
                manifest={},
                base_model="pocket",
                base_fingerprint="f",
                night_id=night.id,
            )
            adapter = nights.add_adapter(s, **row.model_dump(exclude={"id"}))
            night.lessons = [pair for pair in pairs if kept is None or pair[0] in kept]
            nights.promote(s, adapter.id, lesson_ids=[i for i, _ in night.lessons])
        nights.finish_night(s, night.id, status)
        night.ended = now() - timedelta(hours=hours)
        s.add(night)
        return night


def asked(store: Store, settings: Settings, **changes: float) -> tuple[bool, str]:
    due = decide(store, Settings(**{"db": settings.db, **changes}), now())
    return bool(due), due.reason


def test_new_lessons_are_due_and_no_lessons_are_not(
    sqlite_store: Store, settings: Settings
) -> None:
    assert asked(sqlite_store, settings) == (False, "Not due: there are no lessons yet.")
    teach(sqlite_store, trust="untrusted")
    assert asked(sqlite_store, settings) == (False, "Not due: there are no lessons yet.")
    teach(sqlite_store, "the task says fip")
    assert asked(sqlite_store, settings) == (True, "Due: 1 lesson is new (lessons 2).")
    assert asked(sqlite_store, settings, sleep_lessons=2) == (
        False,
        "Not due: 1 lesson is new since the last night (sleep_lessons = 2).",
    )


def test_a_lesson_without_tasks_is_never_due(sqlite_store: Store, settings: Settings) -> None:
    teach(sqlite_store, scope="weather")
    due, why = asked(sqlite_store, settings)
    assert not due and "no installed taskset belongs to any of the lessons" in why


def test_the_hours_since_the_last_night(sqlite_store: Store, settings: Settings) -> None:
    slept(sqlite_store, [teach(sqlite_store)], hours=5)
    teach(sqlite_store, "the task says fip")
    assert asked(sqlite_store, settings) == (
        False,
        "Not due: night 1 ended 5.0 hours ago (sleep_hours = 20).",
    )
    assert asked(sqlite_store, settings, sleep_hours=4.5)[0]
    assert decide(sqlite_store, settings, now() + timedelta(hours=15.1)).new == [2]


@pytest.mark.parametrize("status", ["promoted", "rejected", "nothing", "failed"])
def test_the_same_lessons_again_are_not_due(
    sqlite_store: Store, settings: Settings, status: str
) -> None:
    ids = [teach(sqlite_store), teach(sqlite_store, "the task says fip")]
    slept(sqlite_store, ids, status, hours=100, kept=ids[:1])
    due, why = asked(sqlite_store, settings)
    assert not due and f"night 1 ({status}) had the same lessons" in why
    with sqlite_store.write() as s:  # other words are another lesson
        lessons.revise(s, ids[1], author="human", do="use sort")
    assert (
        asked(sqlite_store, settings) == (True, "Due: 1 lesson is new (lessons 2).")
        or status == "failed"
    )
    assert asked(sqlite_store, settings)[0]


def test_a_rolled_back_night_is_not_slept_again_by_itself(
    sqlite_store: Store, settings: Settings
) -> None:
    slept(sqlite_store, [teach(sqlite_store)], hours=100)
    with sqlite_store.write() as s:
        nights.rollback(s)
    assert not asked(sqlite_store, settings)[0]


def test_an_interrupted_night_goes_on_at_any_hour(sqlite_store: Store, settings: Settings) -> None:
    first = teach(sqlite_store)
    slept(sqlite_store, [first], hours=1)
    slept(sqlite_store, [first, teach(sqlite_store, "the task says fip")], "running")
    assert asked(sqlite_store, settings) == (True, "Due: night 2 was interrupted, and goes on.")


def test_what_was_taken_back_leaves_the_weights_at_any_hour(
    sqlite_store: Store, settings: Settings
) -> None:
    ids = [teach(sqlite_store), teach(sqlite_store, "the task says fip")]
    slept(sqlite_store, ids, hours=1)
    with sqlite_store.write() as s:
        lessons.revise(s, ids[0], author="human", status="retired")
    assert asked(sqlite_store, settings) == (
        True,
        "Due: the weights still have revoked lessons (1).",
    )
    slept(sqlite_store, ids[1:], hours=0.5)  # the night without it
    assert not asked(sqlite_store, settings)[0]


def test_another_profile_is_another_matter(sqlite_store: Store, settings: Settings) -> None:
    slept(sqlite_store, [teach(sqlite_store)], hours=1)
    teach(sqlite_store, profile="ann")
    assert decide(sqlite_store, Settings(db=settings.db, profile="ann"), now())
    assert not decide(sqlite_store, settings, now())


def test_while_somebody_sleeps_nothing_is_due(sqlite_store: Store, settings: Settings) -> None:
    teach(sqlite_store)
    ws = reflect.open(settings.db)
    assert ws.due()
    with filelock.FileLock(settings.home_path / "sleep.lock"):
        assert ws.due().reason == "Not due: another sleep is running."
        assert ws.sleep(if_due=True).status == "not due"
    assert ws.due()


def test_asking_loads_no_model(sqlite_store: Store, settings: Settings) -> None:
    slept(sqlite_store, [teach(sqlite_store)], hours=100)
    code = (
        "import sys; from reflect.cli import run_command; code = run_command(sys.argv[1:]);"
        "print(code, sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, "sleep", "--if-due", "--db", settings.db]
    root = str(Path(reflect.__file__).parent.parent)
    done = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    output, end = done.stdout.splitlines()
    assert output == "Not due: night 1 (promoted) had the same lessons." and end == "0 []", (
        done.stderr
    )
