"""Public suites as tasksets, each with the package of its extra, and the business of sixty days."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys

import pytest

from reflect.errors import UnknownName, UsageError
from reflect.tasksets import load_taskset, suites
from reflect.tasksets.validation import SILENCE, check, replay

PACKAGES = {
    "bfcl": "bfcl_eval",
    "ifbench": "ifbench",
    "sokoban": "gym_sokoban",
    "textarena": "textarena",
    "world": "textworld_express",
}
SMALL = "bfcl:multi_turn_base ifbench:count sokoban:6x6-1 world:simonsays".split()
SMALL += [
    f"textarena:{name}-v0" for name in "GuessTheNumber Mastermind FrozenLake LightsOut".split()
]


def installed(suite: str) -> None:
    if importlib.util.find_spec(PACKAGES[suite]) is None:
        pytest.skip(f"pip install 'second-nature[{suite}]'")
    if suite == "world" and shutil.which("java") is None:
        pytest.skip("no java")


@pytest.mark.parametrize("name", SMALL)
def test_the_known_good_answers_of_a_suite_score_1(name: str) -> None:
    installed(name.partition(":")[0])
    assert check(load_taskset(name), 3) == []


@pytest.mark.slow
@pytest.mark.parametrize("suite", suites.SUITES)
def test_every_taskset_of_a_suite_is_sound(suite: str) -> None:
    installed(suite)
    for name, about in suites.listing(suite):
        assert about
        assert [name, check(load_taskset(name), 20)] == [name, []]


@pytest.mark.parametrize("suite", suites.SUITES)
def test_a_missing_package_is_one_sentence_with_the_extra(
    suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = suites.listing(suite)[0][0]
    module = importlib.import_module(f"reflect.tasksets.suites.{suite}")
    for cached in ("package", "generator"):
        if hasattr(module, cached):
            getattr(module, cached).cache_clear()
    for package in list(sys.modules):
        if package.partition(".")[0] in (PACKAGES[suite], "nltk"):
            monkeypatch.delitem(sys.modules, package)
    monkeypatch.setitem(sys.modules, PACKAGES[suite], None)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, find=importlib.util.find_spec: None if name == PACKAGES[suite] else find(name),
    )
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UsageError, match=r"needs the package .* not installed") as error:
        load_taskset(name)
    assert f"second-nature[{suite}]" in error.value.hint


@pytest.mark.parametrize("suite", suites.SUITES)
def test_an_unknown_name_of_a_suite_is_one_sentence(suite: str) -> None:
    with pytest.raises(UnknownName, match=f"no taskset '{suite}:nothing'"):
        load_taskset(f"{suite}:nothing")
    with pytest.raises(UnknownName, match=f"{suite} is a suite of many tasksets"):
        load_taskset(suite)


def test_a_rule_of_form_that_is_broken_is_named() -> None:
    installed("ifbench")
    taskset = load_taskset("ifbench:count")
    scores = [taskset.verify(task, "no") for task in taskset.tasks("practice")]
    wrong = [score for score in scores if score.reward == 0]
    assert len(wrong) > len(scores) / 2
    assert all(score.feedback.startswith("not satisfied: count:") for score in wrong)
    assert all(set(score.parts.values()) <= {0.0, 1.0} for score in scores)


def test_a_rule_that_needs_the_network_is_left_out_and_none_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed("ifbench")
    from reflect.tasksets.suites import ifbench

    nltk = importlib.import_module("nltk")
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("a download"))
    assert not ifbench.satisfied("One. Two.", "ratio:sentence_type", {})
    assert not ifbench.satisfied("One. Two.", "words:start_verb", {})
    kinds = {kind for item in ifbench.items().values() for kind, _ in item.rules}
    assert len(ifbench.items()) >= 150
    assert not kinds & ifbench.FROM_NETWORK
    assert "spacy" not in sys.modules


def test_calls_are_judged_by_the_state_that_they_leave() -> None:
    installed("bfcl")
    taskset = load_taskset("bfcl:multi_turn_base")
    task = next(task for task in taskset.tasks("practice", seed=1) if "cd(folder" in task.text)
    gold = list(taskset.gold(task))
    first = next(i for i, text in enumerate(gold) if text == "done")
    assert replay(taskset, task, ["done"]).feedback == "request 1: it ended without a call"
    assert replay(taskset, task, ["call: pwd()", "done"]).reward == 0
    assert replay(taskset, task, gold[:-1]).reward == 0, "the last request is not yet closed"
    other_order = [*gold[:first], "call: pwd()", *gold[first:]]
    assert replay(taskset, task, other_order).reward == 1, (
        "more calls that change nothing are allowed"
    )
    evil = "call: __import__('os').system('true')"
    assert "no tool" in replay_text(taskset, task, evil)


def replay_text(taskset, task, text: str) -> str:
    environment = taskset.environment(task)
    environment.reset(task)
    return str(environment.step({"role": "assistant", "content": text}).messages)


def test_no_scene_of_calls_is_on_both_sides() -> None:
    installed("bfcl")
    from reflect.tasksets.suites.bfcl import conversations

    rows = conversations("multi_turn_base")
    taskset = load_taskset("bfcl:multi_turn_base")
    scenes = {
        side: {str(rows[key]["initial_config"]) for key in taskset.keys(side)}
        for side in ("practice", "holdout")
    }
    assert len(rows) > 150
    assert not scenes["practice"] & scenes["holdout"]


def test_a_box_is_pushed_and_never_through_a_wall() -> None:
    from reflect.tasksets.suites.sokoban import Position, Room, drawn, moved, solve

    floor = frozenset((1, column) for column in range(1, 5))
    room = Room(3, 6, floor, frozenset({(1, 4)}))
    start = Position((1, 1), frozenset({(1, 2)}))
    assert drawn(room, start) == "######\n#@$ .#\n######"
    assert moved(room, start, "left") is None
    assert solve(room, start) == ["right", "right"]
    end = moved(room, moved(room, start, "right"), "right")
    assert drawn(room, end) == "######\n#  @*#\n######"
    assert moved(room, end, "right") is None, "the wall holds the box"
    assert solve(room, Position((1, 4), frozenset({(1, 3)}))) == []


def test_rooms_and_games_leave_the_global_random_numbers_alone() -> None:
    import random

    for name in ("sokoban:6x6-1", "textarena:Mastermind-v0"):
        installed(name.partition(":")[0])
        random.seed(3)
        expected = random.random()
        random.seed(3)
        taskset = load_taskset(name)
        task = taskset.tasks("practice", 2)[1]
        replay(taskset, task, taskset.gold(task))
        assert random.random() == expected


def test_episodes_of_a_game_in_parallel_do_not_disturb_each_other() -> None:
    installed("world")
    taskset = load_taskset("world:simonsays")
    tasks = taskset.tasks("practice", 2)
    golds = [taskset.gold(task) for task in tasks]
    episodes = [taskset.environment(task) for task in tasks]
    rewards = [0.0, 0.0]
    for turn in range(max(map(len, golds))):
        for i, (episode, gold) in enumerate(zip(episodes, golds, strict=True)):
            if turn < len(gold):
                rewards[i] = episode.step({"role": "assistant", "content": gold[turn]}).reward
    assert rewards == [1, 1]


def test_a_thing_with_a_capital_letter_can_be_taken() -> None:
    installed("world")
    taskset = load_taskset("world:twc")
    task = taskset.task("practice", 100)  # a wet blue T-shirt
    assert any("T-shirt" in action for action in taskset.gold(task))
    assert replay(taskset, task, taskset.gold(task)).reward == 1


# -- the business


def test_a_business_is_paid_once_at_the_end() -> None:
    taskset = load_taskset("business")
    task = taskset.tasks("holdout", 1)[0]
    environment = taskset.environment(task)
    environment.reset(task)
    steps = [environment.step({"content": text}) for text in taskset.gold(task)]
    assert len(steps) == 60
    assert [step.reward for step in steps[:-1]] == [None] * 59
    assert steps[-1].reward == 1
    assert steps[-1].done


@pytest.mark.parametrize(
    ("text", "feedback", "reward"),
    [
        ("buy: 20 price: 12", "", 0.0),  # bankrupt: nobody buys at 12
        ("buy: 5", "there is no order", 0.0),
        ("buy: 21 price: 3", "there is no order", 0.0),
        ("buy: 2 price: 13", "there is no order", 0.0),
        ("", "there is no order", 0.0),
    ],
)
def test_a_business_that_sells_nothing_is_bankrupt(text: str, feedback: str, reward: float) -> None:
    taskset = load_taskset("business")
    score = replay(taskset, taskset.tasks("practice", 1)[0], [text] * 60)
    assert score.reward == reward
    assert score.feedback.startswith(feedback)


def test_goods_are_sold_oldest_first_and_spoil_after_three_days() -> None:
    taskset = load_taskset("business")
    module = sys.modules[type(taskset).__module__]
    ledger = module.Ledger(module.Town((5,) * 7, (9,) * 7, rent=0, cost=1), cash=20, first=0)
    assert ledger.trade(8, 9) == (1, 0)  # one customer at the highest price
    assert ledger.trade(0, 12) == (0, 0)
    assert ledger.trade(2, 12) == (0, 7), "what is left of the first eight"
    assert ledger.trade(0, 1) == (2, 0)
    assert ledger.cash == 20 - 8 + 9 - 2 + 2


def test_no_plan_of_a_town_earns_more_than_the_best_one() -> None:
    import random

    for number in (1, 2, 3):
        taskset = load_taskset(f"business:{number}" if number > 1 else "business")
        task = taskset.tasks("practice", 1)[0]
        rng = random.Random(number)
        plan = [re.findall(r"\d+", text) for text in taskset.gold(task)]
        for _ in range(30):
            other = [
                (int(order) + rng.randint(-2, 2), int(price) + rng.randint(-1, 1))
                for order, price in plan
            ]
            score = replay(
                taskset, task, [f"buy: {max(0, order)} price: {price}" for order, price in other]
            )
            assert score.reward < 1


@pytest.mark.parametrize("name", ["business:0", "business:101", "business:x"])
def test_a_town_that_does_not_exist(name: str) -> None:
    with pytest.raises(UnknownName, match="no taskset business"):
        load_taskset(name)


def test_silence_ends_a_business_without_reward() -> None:
    taskset = load_taskset("business")
    assert replay(taskset, taskset.tasks("practice", 1)[0], SILENCE).reward == 0
