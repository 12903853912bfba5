"""Evidence is heard once: a run goes on from what the last one made of it, and finds what hearing
all of it finds."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import RuleModel, dialect

from reflect.config import Settings
from reflect.day.practice import practice
from reflect.records import Run
from reflect.store import Store, lessons, runs, trials
from reflect.trials.bundle import Bundle
from reflect.trials.lesson_trial import LessonTrials, TrialScope

SETTINGS = Settings(require_approval=True, withhold_bundle=0.2)


@pytest.fixture
def lesson_store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as s:
        for verb in list(dialect.TASKSET.meanings)[:3]:
            when = f"the task says {verb}"
            lessons.add(
                s, when=when, do="use sort", author="human", scope="dialect", status="active"
            )
    return sqlite_store


def day(store: Store, seed: int, **words: Any) -> int:
    return practice(
        RuleModel(), store, dialect.TASKSET, SETTINGS, **{"n": 12, "k": 4, "seed": seed, **words}
    ).run_id


def found(
    store: Store, run_id: int, monkeypatch: pytest.MonkeyPatch | None = None
) -> tuple[list[str], list[int]]:
    """(what is found on each lesson and on the bundle, rollouts that were read for it)."""
    read: list[int] = []
    if monkeypatch:
        for name in ("observations", "bundle_observations"):
            real = getattr(trials, name)
            monkeypatch.setattr(
                trials,
                name,
                lambda *a, real=real, **k: (lambda x: read.append(len(x)) or x)(real(*a, **k)),
            )
    with store.read() as s:
        run = runs.get_run(s, run_id)
        lesson_trials = LessonTrials(TrialScope(run.model_fingerprint, run.adapter_id, run.measure))
        effects = [
            str(lesson_trials.update(s, lesson)[1].result()) for lesson in lessons.listing(s)
        ]
        return [*effects, str(Bundle(run).update(s))], read


def forget(store: Store) -> None:
    with store.write() as s:
        for run in runs.list_runs(s):
            runs.note(s, run.id, checkpoints=None)


def test_what_is_remembered_is_what_was_heard(
    lesson_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        last = day(lesson_store, seed)
    with lesson_store.read() as s:
        holding = [run.id for run in runs.list_runs(s) if run.checkpoints]
    assert holding == [last], "one run holds it"
    effects, read = found(lesson_store, last, monkeypatch)
    assert sum(read) == 0, "nothing is heard again"
    forget(lesson_store)
    again, read = found(lesson_store, last, monkeypatch)
    assert again == effects and sum(read) > 100


def test_a_run_of_the_same_seed_counts_once(lesson_store: Store) -> None:
    for seed in (0, 1, 2):
        day(lesson_store, seed)
    last = day(lesson_store, 1, n=16)  # the draws of its first tasks are those of the run before
    effects, _ = found(lesson_store, last)
    forget(lesson_store)
    assert found(lesson_store, last)[0] == effects


def test_another_model_and_another_profile_remember_for_themselves(lesson_store: Store) -> None:
    day(lesson_store, 0)
    with lesson_store.read() as s:
        (run,) = runs.list_runs(s)
        words = {
            "model_fingerprint": run.model_fingerprint,
            "adapter_id": None,
            "measure": run.measure,
        }
        assert [x.id for x in trials.holders(s, words)] == [run.id]
        assert not trials.holders(s, words | {"model_fingerprint": "another"})
        assert not trials.holders(s, words | {"profile": "another"})
        assert not trials.twins(s, {run.id or 0}) and isinstance(run, Run)
