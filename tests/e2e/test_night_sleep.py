"""Whole nights with the pocket model on a real database: promotion, refusal, repetition, damage,
sudden death."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import filelock
import pytest

from reflect.adapters import activation, registry
from reflect.config import Settings
from reflect.errors import AdapterCorrupt, AdapterMismatch, NightBusy, UnknownName, UsageError
from reflect.models import POCKET
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.night.sleep import sleep
from reflect.store import Store, doctor, lessons, nights
from reflect.tasksets import load_taskset
from reflect.training.plan import NightOptions

SMALL = {
    "budget": 0.25,
    "batch": 20,
    "anchors": 40,
    "tasks_per_lesson": 8,
    "fewest_tasks": 16,
    "gate_tasks": 16,
}


def teach(
    store: Store, taskset: str = "dialect", *, wrong: bool = False, trust: str = "clean"
) -> list[int]:
    """Lessons about the first three verbs of a set; returns their ids. `wrong`: each names another
    verb's operation."""
    meanings = load_taskset(taskset).meanings
    verbs, operations = list(meanings)[:3], list(meanings.values())[3 if wrong else 0 :]
    texts = [
        (f"the task says {verb}", f"use {op}") for verb, op in zip(verbs, operations, strict=False)
    ]
    with store.write() as s:
        return [
            lessons.add(s, when=when, do=do, author="human", scope=taskset, trust=trust).id
            for when, do in texts
        ]


def statuses(store: Store) -> list[str]:
    with store.read() as s:
        return [lesson.status for lesson in lessons.listing(s)]


def answers(model: LocalModel, n: int = 12) -> list[str]:
    """Greedy, without lessons, as the model is set now."""
    tasks = load_taskset("dialect").tasks("practice", n)
    return [
        c[0].text
        for c in model.sample(
            [Request(task.messages, temperature=0.0, max_tokens=30) for task in tasks]
        )
    ]


def state(store: Store) -> dict:
    """What a night leaves behind, but for times."""
    with store.read() as s:
        return {
            "lessons": [(x.id, x.version, x.status) for x in lessons.listing(s)],
            "nights": [
                (x.key, x.status, x.reason, x.stages, x.lessons) for x in nights.list_nights(s)
            ],
            "adapters": [(x.name, x.status, x.manifest, x.gate) for x in nights.list_adapters(s)],
            "trials": [(x.lesson_id, x.kind, x.effect, x.verdict) for x in nights.trials(s)],
        }


def test_a_night_moves_lessons_from_the_prompt_into_the_weights(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    ids = teach(sqlite_store)
    before = answers(pocket)
    texts: list[str] = []
    report = sleep(
        pocket,
        sqlite_store,
        settings,
        progress=lambda done, total, what: texts.append(what),
        options=NightOptions().changed(SMALL),
    )
    assert (report.status, report.distilled) == ("promoted", ids), report.reason
    assert set(statuses(sqlite_store)) == {"distilled"}
    assert pocket.active == report.adapter
    assert {what.split(":")[0] for what in texts} == {
        "preflight",
        "harvest",
        "train",
        "placebo",
        "gate",
    }
    gate = report.stages["gate"]
    assert gate["recovered"] >= 0.8
    assert gate["arms"]["dialect"]["adapter"]["reward"] > gate["arms"]["dialect"]["base"]["reward"]
    assert answers(pocket) != before
    with sqlite_store.read() as s:
        assert {t.kind for t in nights.trials(s, ids[0])} == {"preflight", "probe"}
        assert doctor.check(s) == []
    assert not list((settings.home_path / "nights").iterdir())

    again = sleep(pocket, sqlite_store, settings, options=NightOptions().changed(SMALL))
    assert again.again and again.night_id == report.night_id and again.status == "promoted"
    planned = sleep(
        pocket, sqlite_store, settings, dry_run=True, options=NightOptions().changed(SMALL)
    )  # the same work takes as long as it took
    assert planned.cost["measured"] == 1 and 0.5 < planned.cost["seconds"] / report.seconds < 1.5

    with sqlite_store.write() as s:
        nights.rollback(s)
    assert activation.activate(pocket, sqlite_store, settings) is None
    assert pocket.active is None and answers(pocket) == before
    assert set(statuses(sqlite_store)) == {"candidate"}


def test_the_next_night_holds_the_old_lessons_and_the_new(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    teach(sqlite_store)
    first = sleep(pocket, sqlite_store, settings, options=NightOptions().changed(SMALL))
    teach(sqlite_store, "dialect:2")
    # Of one of the new verbs the bare model guesses most lists right: eight tasks would not prove
    # its lesson.
    second = sleep(
        pocket,
        sqlite_store,
        settings,
        options=NightOptions().changed(
            SMALL | {"tasks_per_lesson": 24, "budget": 0.4, "anchors": 80, "gate_tasks": 24}
        ),
    )
    assert (first.status, second.status) == ("promoted", "promoted"), second.reason
    assert set(statuses(sqlite_store)) == {"distilled"}
    names = [check["name"] for check in second.stages["gate"]["checks"]]
    assert "earlier lessons of dialect" in names
    with sqlite_store.write() as s:
        assert nights.rollback(s).now.name == first.adapter
    activation.activate(pocket, sqlite_store, settings)
    assert pocket.active == first.adapter
    assert statuses(sqlite_store) == ["distilled"] * 3 + ["candidate"] * 3


def test_a_lesson_that_does_not_help_stays_in_the_prompt(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    teach(sqlite_store, wrong=True)
    report = sleep(pocket, sqlite_store, settings, options=NightOptions().changed(SMALL))
    assert report.status == "nothing", (report.reason, report.stages)
    assert set(statuses(sqlite_store)) == {"candidate"}
    assert sleep(pocket, sqlite_store, settings, options=NightOptions().changed(SMALL)).again


def test_without_lessons_there_is_nothing_to_do(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    assert sleep(pocket, sqlite_store, settings).status == "nothing"
    teach(sqlite_store, trust="untrusted")
    assert sleep(pocket, sqlite_store, settings).status == "nothing"


def test_a_dry_run_writes_nothing(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    teach(sqlite_store)
    before = state(sqlite_store)
    report = sleep(pocket, sqlite_store, settings, dry_run=True)
    assert report.status == "planned" and "3 lessons of dialect" in report.reason
    assert state(sqlite_store) == before


def test_what_cannot_be_slept_is_said(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    from tests.fakes import RuleModel

    with pytest.raises(UsageError, match="no weights"):
        sleep(RuleModel(), sqlite_store, settings)
    with sqlite_store.write() as s:
        lessons.add(s, when="it rains", do="stay", author="human", scope="weather")
    with pytest.raises(UnknownName, match="No installed taskset belongs to any of the lessons"):
        sleep(pocket, sqlite_store, settings)
    with pytest.raises(UnknownName, match="hypnosis"):
        teach(sqlite_store)
        sleep(pocket, sqlite_store, settings, NightOptions(method="hypnosis"))


def test_only_one_sleeps_at_a_time(
    pocket: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    settings.home_path.mkdir(parents=True)
    with filelock.FileLock(settings.home_path / "sleep.lock"), pytest.raises(NightBusy):
        sleep(pocket, sqlite_store, settings)


def test_a_damaged_or_foreign_adapter_is_refused(
    pocket: LocalModel, tiny: LocalModel, sqlite_store: Store, settings: Settings
) -> None:
    pocket.new_adapter("one", rank=2, alpha=32, seed=0)
    folder = registry.publish(pocket, "one", settings, {"lessons": []})
    adapter = registry.row(pocket, "one", settings)
    pocket.drop_adapter("one")
    activation.load(pocket, adapter, settings)
    assert pocket.adapters == ["one"]
    with pytest.raises(AdapterMismatch, match="another base"):
        activation.load(tiny, adapter, settings)
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    at = random.Random(1).randrange(len(whole))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(AdapterCorrupt, match=r"adapter_model.safetensors differs"):
        registry.verify(adapter, settings)
    file.write_bytes(whole)
    (folder / "extra.bin").write_bytes(b"?")
    with pytest.raises(AdapterCorrupt, match=r"extra.bin"):
        registry.verify(adapter, settings)
    (folder / "extra.bin").unlink()
    registry.verify(adapter, settings, pocket.fingerprint)


def test_an_unfinished_folder_is_never_an_adapter(pocket: LocalModel, settings: Settings) -> None:
    left = registry.home(settings) / f"{registry.UNFINISHED}night-1"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    assert not registry.exists("night-1", settings)
    registry.remove_leftovers(settings)
    assert list(registry.home(settings).iterdir()) == []


# -- sudden death
# ------------------------------------------------------------------------------------------------------

# A night counts its events (reports of progress, and renamed, removed and new files), and kills
# itself at the event of that number. Its memory is fixed: the size of a batch depends on it.
NIGHT = textwrap.dedent(
    """
    import os, signal, sys, torch
    torch.set_num_threads(1)
    from reflect.config import Settings
    from reflect.models import load_model, memory
    from reflect.night.sleep import sleep
    from reflect.store import Store
    from reflect.training.plan import NightOptions
    memory.free = lambda *args, **options: 4 * 2**30
    last, events = int(sys.argv[3]), 0
    def event(*args):
        global events
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)
    settings, model = Settings(db=sys.argv[1], threads=1), load_model("pocket")
    kinds = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
    sys.addaudithook(lambda name, args: event() if name in kinds else None)
    sleep(model, Store(settings.db), settings, progress=event, options=NightOptions().changed(eval(sys.argv[2])))
    print(events)
    """
)


def run_night(db: Path, last: int = 0) -> int:
    """The number of events of a whole night; 0 if it killed itself at the event `last`."""
    command = [sys.executable, "-c", NIGHT, str(db), repr(SMALL), str(last)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return 0 if done.returncode else int(done.stdout)


def kill_often(db: Path, kills: int, events: int, rng: random.Random) -> int:
    """Kill the night at random events; returns how many times it was killed."""
    killed = 0
    for _ in range(kills):
        killed += not run_night(db, rng.randint(1, events))
        with Store(str(db)).read() as s:
            assert doctor.check(s) == []
            recorded = {adapter.name for adapter in nights.list_adapters(s)}
        folder = db.parent / ".reflect" / "adapters"
        complete = {path.name for path in folder.glob("night-*")}
        assert recorded <= complete
        assert all((folder / name / registry.CARD).exists() for name in complete)
    return killed


def compare_with_undisturbed(tmp_path: Path, kills: int, seed: int) -> None:
    if not (POCKET / "config.json").is_file():
        pytest.skip("the pocket model has not been trained yet")
    calm, killed = tmp_path / "calm" / "lessons.db", tmp_path / "killed" / "lessons.db"
    for db in (calm, killed):
        teach(Store(str(db)))
    events = run_night(calm)
    assert kill_often(killed, kills, events, random.Random(seed)) > 0
    run_night(killed)
    assert state(Store(str(killed))) == state(Store(str(calm)))
    left = [
        path
        for path in (killed.parent / ".reflect").rglob("*")
        if "unfinished" in path.name or path.suffix == ".tmp"
    ]
    assert left == []


@pytest.mark.slow
def test_a_night_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    compare_with_undisturbed(tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_a_night_that_is_killed_twenty_times(tmp_path: Path) -> None:
    compare_with_undisturbed(tmp_path, kills=20, seed=2)
