"""Rollouts of several turns: turn by turn in one batch, whole in the record, and no environment
that ends a run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import CALL, WorldModel, killed
from sqlmodel import select

from reflect.config import Settings
from reflect.day.practice import practice
from reflect.models.base import SamplingOptions
from reflect.records import Exposure, Lesson, Rollout
from reflect.rollouts.episode import rollout_seed
from reflect.rollouts.runner import Part, run_parts
from reflect.rollouts.transcript import turns_of
from reflect.store import Store, doctor
from reflect.store import lessons as db
from reflect.tasksets import (
    Environment,
    EnvironmentStep,
    Outside,
    Score,
    Task,
    Taskset,
    Toolbox,
    check,
    load_taskset,
)
from reflect.tasksets.validation import replay
from reflect.types import Limits

SETTINGS = Settings()
CALC, SHOP = load_taskset("calc"), load_taskset("shop")


class Advice:
    def __init__(self, when: str, do: str) -> None:
        self.when, self.do = when, do


TELLS = [Advice("the task is arithmetic", CALL)]


def game(step, *, turns=None, reset=None, tools=(), state=None) -> Taskset:
    """A taskset of one task with an environment that does this."""

    class Env(Environment):
        def __init__(self):
            self.turns, self.tools = turns, tools
            self.reset, self.state = reset or self.reset, state or self.state

        def step(self, message):
            return step(self, message)

    class Game(Taskset):
        name = "game"

        def tasks(self, split, n=None, seed=0):
            return [
                Task(
                    f"{split}",
                    [{"role": "user", "content": f"What is 2 * 3 + 4 {split}?"}],
                    "number",
                    10,
                    split,
                )
            ]

        def environment(self, task):
            return Env()

    return Game()


def one(taskset: Taskset, model: WorldModel | None = None, **words) -> Rollout:
    parts = [Part(taskset.tasks("practice", 1)[0], TELLS, range(1))]
    options = SamplingOptions(**words)
    ((row,),) = run_parts(model or WorldModel(), taskset, parts, seed=1, options=options)
    return row


# -- the turns of a rollout


def test_a_rollout_holds_its_whole_conversation_and_its_tokens_add_up():
    model = WorldModel()
    row = one(CALC, model)
    task = CALC.tasks("practice", 1)[0]
    output = CALC.gold(task)
    assert [m["content"] for m in row.messages if m["role"] == "assistant"] == output
    assert [m["role"] for m in row.messages] == ["system", *["user", "assistant"] * 3]
    assert row.messages[3]["content"] == f"result: {int(output[1].split('(')[1].split(',')[0])}"
    assert (
        row.reward == 1.0
        and row.finish == "stop"
        and row.parts == {"turns": 3}
        and row.trust == "clean"
    )
    sizes = [sum(model.count_tokens(m["content"]) for m in row.messages[:n]) for n in (2, 4, 6)]
    assert row.prompt_tokens == sum(sizes)
    assert row.completion_tokens == sum(len(text.split(" ")) for text in output)
    assert (
        next(t.text() for t in turns_of(row))
        == f"turn 1: {output[0]}\n> {row.messages[3]['content']}"
    )


def test_all_rollouts_that_run_are_asked_together_each_turn_with_seeds_of_their_own():
    model = WorldModel()
    tasks = CALC.tasks("practice", 6)
    parts = [Part(task, TELLS if i % 2 else [], range(4)) for i, task in enumerate(tasks)]
    groups = run_parts(model, CALC, parts, seed=3)
    assert model.batches == [6, 3, 3]  # a request for each conversation: the guesses end at once
    assert [[row.parts["turns"] for row in group] for group in groups] == [[1] * 4, [3] * 4] * 3
    seeds = [seed for request in model.requests for seed in request.seeds]
    assert len(seeds) == len(set(seeds)) == 6 * 4 + 2 * 3 * 4
    assert groups[0][2].seed == rollout_seed(3, tasks[0].key, 2) == model.requests[0].seeds[2]
    alone = run_parts(WorldModel(), CALC, [Part(tasks[1], TELLS, [2])], seed=3)[0][0]
    assert alone.model_dump() == groups[1][2].model_dump() | {"created": alone.created}


def test_calls_of_the_api_work_as_lines_of_text_do():
    class Native(type(CALC)):
        def environment(self, task):
            env = super().environment(task)
            env.lines = False
            return env

    model = WorldModel(native=True)
    row = one(Native(), model)
    assert row.reward == 1.0 and row.parts == {"turns": 3}
    assert [m["role"] for m in row.messages][1:] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert row.messages[2]["tool_calls"][0]["function"]["name"] == "times"
    assert row.messages[3]["tool_call_id"] == row.messages[2]["tool_calls"][0]["id"]
    assert [t["function"]["name"] for t in model.requests[0].tools] == ["plus", "minus", "times"]
    assert turns_of(row)[0].words.startswith('call: times({"a":')
    assert (
        not WorldModel().requests and one(CALC).messages
    )  # and a text protocol names none in its request:
    plain = WorldModel()
    one(CALC, plain)
    assert plain.requests[0].tools == ()


# -- limits


def test_an_environment_that_never_ends_meets_the_turn_limit_and_is_recorded_so():
    endless = game(
        lambda env, message: EnvironmentStep([{"role": "user", "content": "What is 2 * 3 + 4?"}])
    )
    row = one(endless, limits=Limits(turns=7))
    assert (row.finish, row.reward, row.error) == ("turns", 0.0, None)
    assert row.feedback == "it did not end in 7 turns" and row.parts["turns"] == 7
    assert (
        one(
            game(
                lambda e, m: EnvironmentStep([{"role": "user", "content": "What is 2 * 3 + 4?"}]),
                turns=3,
            )
        ).parts["turns"]
        == 3
    )
    earned = game(
        lambda e, m: EnvironmentStep(
            [{"role": "user", "content": "What is 2 * 3 + 4?"}], reward=0.5
        )
    )
    assert (
        one(earned, limits=Limits(turns=2)).reward == 0.5
    )  # what the environment has given so far


def test_the_context_and_the_clock_end_a_rollout_before_the_model_refuses_it():
    def more(env, message):
        return EnvironmentStep([{"role": "user", "content": "What is 2 * 3 + 4? " + "word " * 100}])

    row = one(game(more), WorldModel(context=800))
    assert (row.finish, row.reward, row.error) == ("tokens", 0.0, None) and 3 < row.parts[
        "turns"
    ] < 8
    assert one(game(more), limits=Limits(tokens=300)).parts["turns"] < row.parts["turns"]
    assert one(game(more), limits=Limits(seconds=1e-9)).finish == "time"


# -- what may go wrong


def raises(*_):
    raise RuntimeError("no such file")


def quits(*_):
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("taskset", "says"),
    [
        (game(raises), "RuntimeError: no such file"),
        (game(quits), "SystemExit: 1"),
        (game(lambda e, m: None), "TypeError: step returned NoneType, not an EnvironmentStep"),
        (
            game(lambda e, m: EnvironmentStep()),
            "ValueError: the step is not done and has no messages",
        ),
        (game(lambda e, m: EnvironmentStep([{"role": "user"}])), "is not a list of messages"),
        (game(lambda e, m: EnvironmentStep(["text"])), "is not a list of messages"),
        (
            game(lambda e, m: EnvironmentStep([{"role": "user", "content": "x"}], feedback=7)),
            "TypeError",
        ),
        (game(lambda e, m: EnvironmentStep(done=True, reward="much")), "could not convert"),
        (
            game(lambda e, m: EnvironmentStep([{"role": "user", "content": "x"}]), state=raises),
            "RuntimeError",
        ),
        (game(lambda e, m: EnvironmentStep(done=True), reset=raises), "RuntimeError"),
        (
            game(lambda e, m: EnvironmentStep(done=True), reset=lambda task: []),
            "is not a list of messages",
        ),
        (game(lambda e, m: EnvironmentStep(done=True), tools=(lambda *a: 1,)), "takes *a"),
    ],
)
def test_a_broken_environment_is_data(taskset, says):
    row = one(taskset)
    assert row.error.startswith(("environment: ", "verifier: ")) and says in row.error
    assert row.reward is None


def test_a_reward_out_of_range_and_a_model_that_breaks_in_the_middle_are_data():
    assert (
        "is not between 0 and 1"
        in one(game(lambda e, m: EnvironmentStep(done=True, reward=1.5))).error
    )
    flood = game(lambda e, m: EnvironmentStep([{"role": "user", "content": "What is 2 * 3 + 4?"}]))

    class Breaks(WorldModel):
        def complete(self, request, seed):
            if len(request.messages) > 4:
                raise __import__("reflect").errors.ModelError("it fell over")
            return super().complete(request, seed)

    row = one(flood, Breaks())
    assert row.error == "model: it fell over" and row.finish == "error" and row.parts["turns"] == 2


def test_a_tool_that_raises_goes_back_to_the_model_and_into_the_record(sqlite_store):
    def times(a: int, b: int) -> int:
        raise ZeroDivisionError("no batteries")

    class Calc(type(CALC)):
        def environment(self, task):
            return Toolbox(times, lines=True)

    row = one(Calc(), limits=Limits(turns=3))
    assert row.messages[3] == {"role": "user", "content": "error: ZeroDivisionError: no batteries"}
    assert (
        row.parts["tool_errors"][0].endswith("ZeroDivisionError: no batteries")
        and row.error is None
    )
    report = practice(WorldModel(), sqlite_store, Calc(), SETTINGS, n=4, k=2, seed=1)
    assert report.errors == 0 and report.rollouts == 8


def test_bytes_from_outside_make_the_rollout_and_its_lessons_untrusted(sqlite_store):
    def times(a: int, b: int) -> Outside:
        return Outside(a * b)

    class Calc(type(CALC)):
        name = "calc"

        def environment(self, task):
            plus, minus, _ = super().environment(task).tools
            return Toolbox(plus, minus, times, lines=True)

    assert one(Calc()).trust == "untrusted"
    with sqlite_store.write() as s:
        db.add(s, when="the task is arithmetic", do=CALL, author="human", scope="calc")
    practice(WorldModel(), sqlite_store, Calc(), SETTINGS, n=8, k=4, seed=1)
    with sqlite_store.read() as s:
        rows = s.exec(select(Rollout)).all()
    assert {(r.trust, r.parts["turns"] > 1) for r in rows} == {
        ("untrusted", True),
        ("clean", False),
    }


def test_feedback_on_a_turn_is_kept_and_stands_in_the_transcript():
    def step(env, message):
        env.n = getattr(env, "n", 0) + 1
        back = [{"role": "user", "content": "What is 2 * 3 + 4?"}]
        return EnvironmentStep(
            back, env.n == 3, 0.25 if env.n == 3 else None, "too low" if env.n == 2 else ""
        )

    row = one(game(step))
    assert row.parts == {"turns": 3, "steps": [[2, "too low"]]} and row.reward == 0.25
    assert turns_of(row)[1].text().endswith("\nfeedback: too low")


def test_check_plays_the_known_good_episode():
    assert check(CALC) == check(SHOP) == []
    bad = type(SHOP)()
    bad.gold = lambda task: ["price: 9"] * 10
    assert "scores" in check(bad)[0]
    assert replay(SHOP, SHOP.tasks("practice", 1)[0], ["price: 1"] * 3) == Score(
        0.0, "the episode did not end"
    )
    assert "its verifier broke: RuntimeError" in check(game(raises))[0]


# -- the day


def test_the_day_learns_to_call_the_calculator(sqlite_store):
    class Sometimes(WorldModel):
        """It calls by itself in some of its attempts: else nothing could ever show that calling
        helps."""

        def play(self, request, rng):
            if ("plus(1, 2)" in request.messages[-1]["content"] and rng.random() < 0.2) or len(
                request.messages
            ) > 2:
                self.knows = {"": CALL}
            text = super().play(request, rng)
            self.knows = {}
            return text

    report = practice(Sometimes(), sqlite_store, CALC, SETTINGS, n=24, k=8, seed=1)
    assert report.errors == 0 and report.rewards[0] < 0.5 and report.rewards[-1] > 0.9
    with sqlite_store.read() as s:
        assert [(x.do, x.scope) for x in db.listing(s)] == [(CALL, "calc")]
        assert doctor.check(s) == []


def shop_day(store, model=None, **words):
    return practice(
        model or WorldModel(), store, SHOP, SETTINGS, **{"n": 24, "k": 5, "seed": 1, **words}
    )


def test_the_day_finds_out_what_customers_pay_and_chooses_lessons_by_the_customer(sqlite_store):
    model = WorldModel()
    report = shop_day(sqlite_store, model)
    assert report.rewards[0] < 0.55 and report.rewards[-1] > 0.9
    with sqlite_store.read() as s:
        known = {x.when.split()[-1]: x.do for x in db.listing(s, status=("candidate", "active"))}
        rows, exposures = s.exec(select(Rollout)).all(), s.exec(select(Exposure)).all()
        lessons = {x.id: x for x in s.exec(select(Lesson))}
    assert known == {kind: f"ask price {limit}" for kind, limit in SHOP.limits.items()}
    assert all(row.parts["turns"] == 10 and 0 <= row.reward <= 1 for row in rows)
    reviews = ("You keep", "You improve a language model")
    late = [
        r
        for r in model.requests
        if r.messages[0]["role"] == "system" and not any(x in str(r.messages) for x in reviews)
    ]
    assert late
    for request in late:  # the customer of the day, and no other, is in the prompt
        customer = request.messages[-1]["content"].rstrip(".").split()[-1]
        assert request.messages[0]["content"].count("- when:") == 1
        assert f"the customer is a {customer}" in request.messages[0]["content"]
    # Each lesson is drawn once for a rollout, and shown or withheld in all its turns.
    assert len({(e.rollout_id, e.lesson_id) for e in exposures}) == len(exposures)
    assert {e.probability for e in exposures} <= {0.0, 0.5, 0.9} and {
        e.shown for e in exposures
    } == {True, False}
    shown = {row.id: {i for turn in row.parts["lessons"] for i in turn} for row in rows}
    for e in exposures:
        assert (e.lesson_id in shown[e.rollout_id]) == e.shown
    for row in rows:
        assert shown[row.id] <= {e.lesson_id for e in exposures if e.rollout_id == row.id}
    assert lessons


def rows_of(store) -> str:
    with store.read() as s:
        every = [row for table in (Rollout, Lesson, Exposure) for row in s.exec(select(table))]
    return json.dumps(
        [row.model_dump(exclude={"created", "updated"}) for row in every], default=str
    )


def test_a_run_that_is_killed_in_the_middle_of_its_episodes_ends_with_the_same_rows(
    sqlite_store, tmp_path
):
    model = WorldModel()
    shop_day(sqlite_store, model, n=9, k=2)
    whole = rows_of(sqlite_store)
    for at in (5, 14):  # in the first episodes, and in those of the next wave
        other = Store(str(tmp_path / f"killed-{at}.db"))
        with pytest.raises(KeyboardInterrupt):
            shop_day(other, killed(WorldModel(), at), n=9, k=2)
        shop_day(other, n=9, k=2)
        assert rows_of(other) == whole


def test_the_limits_are_words_of_a_run_only_where_there_are_turns(sqlite_store):
    first = shop_day(sqlite_store, n=4, k=2)
    again = practice(
        WorldModel(), sqlite_store, SHOP, replace(SETTINGS, max_turns=5), n=4, k=2, seed=1
    )
    assert again.run_id != first.run_id
    with sqlite_store.read() as s:
        cut = [r for r in s.exec(select(Rollout)) if r.run_id == again.run_id]
    assert {(r.finish, r.reward) for r in cut} == {("turns", 0.0)}


# -- the docs

DOCS = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("text", BLOCKS, ids=["stock", "dig"])
def test_the_tasksets_that_the_docs_show(text, tmp_path, monkeypatch, sqlite_store):
    assert len(text.splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    (name,) = re.findall(r'^    name = "(\w+)"', text, re.MULTILINE)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / f"{name}.py").write_text(text)
    taskset = load_taskset(name)
    assert check(taskset) == []

    class Says(WorldModel):
        def play(self, request, rng):
            task = next(t for t in taskset.tasks("practice") if t.messages[-1] in request.messages)
            return taskset.gold(task)[sum(m["role"] == "assistant" for m in request.messages)]

    report = practice(Says(), sqlite_store, taskset, SETTINGS, n=3, k=2, seed=1)
    assert report.reward == 1.0 and report.errors == 0
