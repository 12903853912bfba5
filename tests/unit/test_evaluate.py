"""The arms of a comparison: paired tasks, honest intervals, clear refusals."""

import pytest
from fakes import RuleModel, dialect

from reflect.config import Settings
from reflect.errors import UnknownName, UsageError
from reflect.evaluation.arms import ArmResult, evaluate, following, paired_difference, run_arm
from reflect.rollouts.context import TasksetContext
from reflect.stats.bootstrap import bootstrap
from reflect.store import Store
from reflect.store import lessons as db
from reflect.types import Arm

MEANINGS = dialect.TASKSET.meanings


@pytest.fixture
def lesson_store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as s:
        for i, (verb, op) in enumerate(MEANINGS.items()):
            lesson = db.add(
                s, when=f"the task says {verb}", do=f"use {op}", author="model", scope="dialect"
            )
            if i < 3:
                db.revise(s, lesson.id, author="human", status="active")
                db.revise(s, lesson.id, author="night", status="distilled")
    return sqlite_store


def slept() -> RuleModel:
    """A model with an adapter on that knows the first three verbs."""
    model = RuleModel()
    model.weights["night-1"] = dict(list(MEANINGS.items())[:3])
    model.active = "night-1"
    return model


def context(store, model=None):
    return TasksetContext(model or RuleModel(), store, dialect.TASKSET, Settings())


def test_the_four_arms(lesson_store):
    model = slept()
    arms = evaluate(context(lesson_store, model), arms=tuple(Arm), n=30)
    assert [arm.n for arm in arms.values()] == [30] * 4
    assert arms["lessons"].reward == 1.0  # candidate and distilled lessons, on the bare weights
    assert arms["both"].reward == 1.0  # half from the weights, half from the prompt
    assert arms["base"].reward < 0.4 and 0.5 <= arms["adapter"].reward < 0.8
    assert arms["base"].lesson_tokens == arms["adapter"].lesson_tokens == 0
    assert 0 < arms["both"].lesson_tokens < arms["lessons"].lesson_tokens
    assert model.active == "night-1"
    assert set(arms["base"].shape()) >= {"reward", "n", "ci95"}
    assert "<" not in str(arms["base"].shape())


def test_the_statuses_of_the_lessons_arm_can_be_named(lesson_store):
    arms = evaluate(context(lesson_store), arms=("lessons",), n=30, statuses=("distilled",))
    assert 0.5 <= arms["lessons"].reward < 0.8


def test_pairs_are_tighter_than_means(lesson_store):
    arms = evaluate(context(lesson_store), n=60)
    mean, low, high = paired_difference(arms["lessons"], arms["base"])
    assert mean == pytest.approx(arms["lessons"].reward - arms["base"].reward)
    assert 0 < low <= mean <= high
    assert paired_difference(arms["base"], arms["base"]) == (0.0, 0.0, 0.0)


def test_bad_words_are_refused(lesson_store):
    with pytest.raises(UnknownName, match="no arm 'best'"):
        evaluate(context(lesson_store), arms=("best",))
    with pytest.raises(UsageError, match="No adapter"):
        evaluate(context(lesson_store), arms=("base", "adapter"))
    with pytest.raises(UsageError, match="no holdout tasks"):
        evaluate(context(lesson_store), n=0)


def test_following_reads_the_lessons_that_tasks_bring():
    taskset = dialect.TASKSET
    assert following(RuleModel(), taskset.following(20), taskset).reward == 1.0
    assert following(slept(), taskset.following(20), taskset).reward == 1.0


def test_a_rollout_that_breaks_counts_as_nothing_and_is_counted():
    rows = [(task, ()) for task in dialect.TASKSET.tasks("holdout", 5)]
    result = run_arm(RuleModel(context=10), dialect.TASKSET, rows)
    assert (result.reward, result.n, result.errors) == (0.0, 5, 5)


def test_the_interval_covers_and_repeats():
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap(values)
    assert bootstrap(values) == (low, high)
    assert 0.19 < low < 0.25 and 0.35 < high < 0.41
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    assert bootstrap([]) == (0.0, 0.0)
    assert ArmResult(0.3, 100, (low, high)).shape()["ci95"] == [round(low, 4), round(high, 4)]
