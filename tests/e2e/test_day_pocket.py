"""The day with the real pocket model: it fails, reviews its attempts, writes itself the lesson, and
gets better."""

import pytest

from reflect.config import Settings
from reflect.day.practice import practice
from reflect.evaluation.arms import evaluate, following
from reflect.records import SHOWN_STATUSES
from reflect.rollouts.context import TasksetContext
from reflect.store import Store
from reflect.store import lessons as db
from reflect.tasksets import load_taskset

SETTINGS = Settings()


@pytest.mark.parametrize("name", ["letters", "dialect"])
def test_a_day_of_practice_shows_on_holdout(pocket, tmp_path, name):
    store, taskset = Store(str(tmp_path / "lessons.db")), load_taskset(name)
    report = practice(pocket, store, taskset, SETTINGS, n=32, k=8, seed=1)
    assert report.rollouts == 256 and report.errors == 0
    assert report.rewards[-1] > report.rewards[0]
    arms = evaluate(TasksetContext(pocket, store, taskset, SETTINGS), n=48)
    assert arms["base"].reward <= 0.4
    assert arms["lessons"].reward >= 0.9
    with store.read() as s:
        shown = [x for x in db.listing(s) if x.status in SHOWN_STATUSES]
    if name == "letters":
        assert any("spell" in lesson.do for lesson in shown)
    else:
        known = {x.when.split()[-1]: x.do for x in shown}
        assert known == {verb: f"use {op}" for verb, op in taskset.meanings.items()}


@pytest.mark.parametrize(("name", "n", "k"), [("calc", 16, 8), ("shop", 24, 3)])
def test_a_day_of_games_shows_on_holdout(pocket, tmp_path, name, n, k):
    store, taskset = Store(str(tmp_path / "lessons.db")), load_taskset(name)
    report = practice(pocket, store, taskset, SETTINGS, n=n, k=k, seed=1)
    assert report.rollouts == n * k and report.errors == 0
    arms = evaluate(TasksetContext(pocket, store, taskset, SETTINGS), n=16)
    assert arms["base"].reward <= 0.5 and arms["lessons"].reward >= arms["base"].reward + 0.2
    with store.read() as s:
        shown = [x for x in db.listing(s) if x.status in SHOWN_STATUSES]
    assert all(x.do.startswith("call the" if name == "calc" else "ask price") for x in shown)


def test_the_same_seed_is_the_same_day(pocket, tmp_path):
    days = []
    for i in range(2):
        store = Store(str(tmp_path / f"{i}.db"))
        report = practice(pocket, store, load_taskset("dialect"), SETTINGS, n=10, k=4, seed=3)
        days.append((report.rewards, report.changes))
    assert days[0] == days[1]


def test_it_follows_new_lessons_from_the_prompt(pocket):
    taskset = load_taskset("dialect")
    assert following(pocket, taskset.following(64), taskset).reward >= 0.9
