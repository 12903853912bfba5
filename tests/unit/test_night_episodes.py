"""Nights over tasks of several turns: what training sees of a teacher's episode, and the arms that
play them."""

from __future__ import annotations

import json

import pytest
from fakes import ARITHMETIC, CALL, WorldModel

from reflect.config import Settings
from reflect.evaluation.arms import evaluate
from reflect.gate import placebo
from reflect.models.local import LocalModel
from reflect.night.sleep import sleep
from reflect.rollouts.context import TasksetContext
from reflect.store import Store
from reflect.store import lessons as db
from reflect.tasksets import (
    Environment,
    EnvironmentStep,
    Outside,
    Task,
    Taskset,
    Toolbox,
    check,
    load_taskset,
)
from reflect.training import distillation, grpo, lesson_set, loop
from reflect.training.context import NightContext, TasksetLessons
from reflect.training.distillation import Student
from reflect.training.examples import PracticeTask
from reflect.training.guards import OwnTasksets
from reflect.training.plan import make_plan
from reflect.training.teacher_data import TrainingData, harvest
from reflect.trials import comparison

SETTINGS = Settings()
CALC, SHOP = load_taskset("calc"), load_taskset("shop")
SMALL = {"budget": 0.05, "tasks_per_lesson": 2, "fewest_tasks": 4, "anchors": 8, "batch": 8}


@pytest.fixture
def lesson_store(sqlite_store: Store) -> Store:
    with sqlite_store.write() as s:
        db.add(s, when=ARITHMETIC, do=CALL, author="human", scope="calc")
        for kind, limit in SHOP.limits.items():
            db.add(
                s,
                when=f"the customer is a {kind}",
                do=f"ask price {limit}",
                author="human",
                scope="shop",
            )
    return sqlite_store


def harvested(
    store: Store, taskset: Taskset, model: WorldModel | None = None, means: dict | None = None
) -> TrainingData:
    model, plan = model or WorldModel(), make_plan(1, **SMALL)
    lessons = [x for x in lesson_set.pick(store, "default") if x.scope == taskset.name]
    subject = TasksetLessons(taskset, tuple(lessons))
    return harvest(NightContext(model, store, SETTINGS, plan, [subject]), set(), means=means)


def texts(messages) -> str:
    return "\n".join(m["content"] for m in messages)


def test_where_rewards_are_graded_what_is_as_good_as_the_mean_teaches(lesson_store):
    """The teacher asks one kind too little, so no episode has the full reward."""
    with lesson_store.write() as s:
        lesson = next(x for x in db.listing(s) if x.when.endswith(max(SHOP.limits)))
        db.revise(s, lesson.id, author="human", do=f"ask price {SHOP.limits[max(SHOP.limits)] - 1}")
    assert harvested(lesson_store, SHOP).figures["tasksets"]["shop"]["kept"] == 0
    figures = harvested(lesson_store, SHOP, means={"shop": 0.5}).figures["tasksets"]["shop"]
    assert figures["kept"] == figures["attempts"] > 0 and figures["enough"] == 0.5
    assert (
        harvested(lesson_store, SHOP, means={"shop": 0.0}).figures["tasksets"]["shop"]["kept"] == 0
    ), "nothing is no teacher"


def test_a_lucky_episode_is_one_attempt_of_the_placebo_however_many_its_answers(lesson_store):
    """Under wrong prices some of six games go well: too few to train on these alone."""
    plan, model = make_plan(1, **SMALL), WorldModel()
    data = harvested(lesson_store, SHOP, means={"shop": 0.4})
    lessons = [x for x in lesson_set.pick(lesson_store, "default") if x.scope == "shop"]
    subject = TasksetLessons(SHOP, tuple(lessons))
    made = placebo.placebo_data(NightContext(model, lesson_store, SETTINGS, plan, [subject]), data)
    assert len(made.harvest) == 10 * max(SMALL["fewest_tasks"], SMALL["tasks_per_lesson"] * 3)


@pytest.mark.parametrize(("taskset", "turns", "rule"), [(CALC, 3, CALL), (SHOP, 10, "ask price")])
def test_every_answer_of_a_good_episode_is_an_example_with_the_lessons_stripped(
    lesson_store, taskset, turns, rule
):
    data = harvested(lesson_store, taskset)
    figures = data.figures["tasksets"][taskset.name]
    assert figures["kept"] == figures["attempts"] == 2 * figures["tasks"] > 0
    assert len(data.harvest) == turns * figures["kept"]
    for i, example in enumerate(data.harvest):
        student, teacher = example.question.student, example.question.teacher
        assert (
            rule in texts(teacher)
            and "Lessons from practice" not in texts(student)
            and rule not in texts(student)
        )
        assert teacher[1:] == student and student[-1]["role"] == "user"
        assert sum(m["role"] == "assistant" for m in student) == i % turns, (
            "the conversation before it, and no more"
        )
        assert example.answer[-1] == WorldModel.end
    again = TrainingData.of(json.loads(json.dumps(data.shape())), [taskset])
    assert again == data and again.questions == data.questions


def test_the_anchors_hold_every_turn(lesson_store):
    data = harvested(lesson_store, SHOP)
    held = [x.question for x in (*data.anchors, *data.probes)]
    depth = {
        sum(m["role"] == "assistant" for m in q.student)
        for q in held
        if "keep a shop" in texts(q.student)
    }
    assert depth and max(depth) > 1 and all(q.student == q.teacher for q in held)


def test_only_good_whole_and_trusted_episodes_are_imitated(lesson_store):
    class Web(type(CALC)):
        def environment(self, task):
            def times(a: int, b: int) -> Outside:
                return Outside(a * b)

            plus, minus, _ = super().environment(task).tools
            return Toolbox(plus, minus, times, lines=True)

    assert harvested(lesson_store, Web()).harvest == []

    class Guesses(WorldModel):
        def play(self, request, rng):
            return "answer: 1"

    assert harvested(lesson_store, CALC, Guesses()).figures["tasksets"]["calc"]["kept"] == 0


def test_the_stages_of_a_night_train_on_the_turns(lesson_store, tiny: LocalModel) -> None:
    data = harvested(lesson_store, CALC)
    plan = make_plan(1, method="sft", **SMALL | {"budget": 0.07, "batch": 4})
    tiny.new_adapter("x", rank=2, alpha=32, seed=0)
    student = Student(tiny, "x", data, plan)
    rows = distillation.sft(student, 0, 6).rows + distillation.distill(student, 0, 6).rows
    assert len(rows) >= 6 and all(len(row.teacher) > len(row.student) > 10 for row in rows)
    figures = loop.fit(tiny, "x", list(tiny.adapter_parameters("x")), data, plan, None)
    first, last = figures["stages"]["sft"]["nll"]
    assert last < first


def test_a_placebo_of_episodes_has_no_lesson_in_its_prompts(lesson_store):
    lessons = tuple(x for x in lesson_set.pick(lesson_store, "default") if x.scope == "shop")
    subject = TasksetLessons(SHOP, lessons)
    ctx = NightContext(WorldModel(), lesson_store, SETTINGS, make_plan(1, **SMALL), [subject])
    shuffled = placebo.placebo_data(ctx, harvested(lesson_store, SHOP))
    assert len(shuffled.harvest) >= 10
    assert all("Lessons" not in texts(x.question.student) for x in shuffled.harvest)
    assert all("Lessons" in texts(x.question.teacher) for x in shuffled.harvest)


def test_games_that_a_night_is_not_about_take_no_part_in_it(lesson_store):
    model, subject = WorldModel(), TasksetLessons(SHOP, ())
    ctx = NightContext(model, lesson_store, SETTINGS, make_plan(1), [subject])

    def guarded(items: list[TasksetLessons]) -> set[str]:
        return {t.name for t in OwnTasksets().tasksets(ctx, items)}

    assert guarded([]).isdisjoint({"calc", "shop"}) and "shop" in guarded([subject])
    harvested(lesson_store, CALC, model)
    assert not any("keep a shop" in texts(request.messages) for request in model.requests)


# -- the arms and the trial


def test_the_four_arms_play_episodes(lesson_store):
    model = WorldModel()
    model.knows["night-1"] = "\n".join(
        f"when: the customer is a {kind} do: ask price {limit}"
        for kind, limit in SHOP.limits.items()
    )
    model.active = "night-1"
    with lesson_store.write() as s:
        for lesson in db.listing(s, scope="shop"):
            db.revise(s, lesson.id, author="night", status="distilled")
    context = TasksetContext(model, lesson_store, SHOP, Settings())
    arms = evaluate(context, arms=("base", "lessons", "adapter", "both"), n=12)
    assert arms["lessons"].reward == arms["adapter"].reward == arms["both"].reward == 1.0
    assert (
        arms["base"].reward < 0.7 and arms["base"].lesson_tokens == arms["both"].lesson_tokens == 0
    )
    line = max(
        model.count_tokens(f"- when: the customer is a {kind} do: ask price 5")
        for kind in SHOP.limits
    )
    assert 0 < arms["lessons"].lesson_tokens <= line, "one lesson a day"
    assert (
        arms["lessons"].lengths == [20] * 12 and arms["lessons"].cut == arms["lessons"].errors == 0
    )
    assert all(answer.startswith("price: ") for answer in arms["lessons"].answers)


def test_a_planned_comparison_holds_one_lesson_back_through_whole_episodes(lesson_store):
    model = WorldModel()
    with lesson_store.read() as s:
        lesson = db.listing(s, scope="shop")[0]
    plan = comparison.plan(
        TasksetContext(model, lesson_store, SHOP, SETTINGS), lesson.id, n=24, k=2
    )
    trial = comparison.compare(TasksetContext(model, lesson_store, SHOP, SETTINGS), plan)
    assert trial.verdict == "accept" and trial.effect > 0.05
    shown = [r for r in model.requests if lesson.when in texts(r.messages[:1])]
    assert 0 < len(shown) < len(model.requests) / 2


# -- a whole night


class Relay(Taskset):
    """Three requests of dialect one after the other in one episode; the reward is the share that
    was answered right. The pocket model was trained on such chats, so it can play this, and sleep
    over it."""

    name = "dialect"  # its lessons
    stepwise = True  # each request speaks of another verb
    inner = load_taskset("dialect")

    def tasks(self, split, n=None, seed=0):
        rows = self.inner.tasks(split, None, seed)
        groups = [rows[i : i + 3] for i in range(0, len(rows) - 2, 3)][:n]
        return [
            Task(
                "+".join(t.id for t in group),
                group[0].messages,
                "taskset",
                [t.answer for t in group],
                split,
            )
            for group in groups
        ]

    def gold(self, task):
        return [f"answer: {answer}" for answer in task.answer]

    def environment(self, task):
        every = {t.id: t for split in ("practice", "holdout") for t in self.inner.tasks(split)}
        return Leg([every[one] for one in task.id.split("+")])


class Leg(Environment):
    def __init__(self, legs):
        self.legs, self.n, self.right = legs, 0, 0.0

    def step(self, message):
        self.right += Relay.inner.verify(self.legs[self.n], message["content"]).reward
        self.n += 1
        if self.n == len(self.legs):
            return EnvironmentStep(done=True, reward=self.right / self.n)
        return EnvironmentStep(self.legs[self.n].messages)


@pytest.mark.slow
def test_a_night_over_episodes_moves_lessons_into_the_weights(pocket: LocalModel, tmp_path) -> None:
    settings = Settings(db=str(tmp_path / "lessons.db"))
    store, relay = Store(settings.db), Relay()
    assert check(relay) == []
    with store.write() as s:
        for verb, op in relay.inner.meanings.items():
            db.add(s, when=f"the task says {verb}", do=f"use {op}", author="human", scope="dialect")
    report = sleep(
        pocket, store, settings, tasksets=[relay], budget=0.6, tasks_per_lesson=8, gate_tasks=24
    )
    print([check["text"] for check in report.stages["gate"]["checks"]])
    arms = {name: arm["reward"] for name, arm in report.stages["gate"]["arms"]["dialect"].items()}
    print(arms, report.stages["harvest"], round(report.seconds))
    assert report.status == "promoted", report.reason
    assert arms["base"] < 0.4 and arms["lessons"] > 0.8 and arms["adapter"] > 0.8


# -- rewards alone


class Even(Taskset):
    """Three turns; the reward at the end is the share of even words in all that was said."""

    name = "evens"

    def tasks(self, split, n=None, seed=0):
        return [
            Task(f"t{i}", [{"role": "user", "content": f"w{i}"}], "taskset", "") for i in range(6)
        ][:n]

    def environment(self, task):
        class Env(Environment):
            words: list[int] = []  # noqa: RUF012

            def step(self, message):
                found = [int(word[1:]) for word in message["content"].split() if word[1:].isdigit()]
                self.words = [*self.words, *found]
                self.n = getattr(self, "n", 0) + 1
                good = sum(number % 2 == 0 for number in self.words) / max(1, len(self.words))
                return EnvironmentStep(
                    [{"role": "user", "content": "w1 w1"}],
                    self.n == 3,
                    good if self.n == 3 else None,
                )

        return Env()


def test_every_turn_of_an_episode_has_the_advantage_of_the_whole(tiny: LocalModel) -> None:
    data = TrainingData(
        [],
        [],
        [],
        4,
        tasks=[PracticeTask("evens", t) for t in Even().tasks("practice")],
        tasksets={"evens": Even()},
    )
    plan = make_plan(1, method="grpo", group=4, batch=8)
    tiny.new_adapter("x", rank=1, alpha=32, seed=0)
    step = grpo.grpo(Student(tiny, "x", data, plan), 0, 8)
    assert step == grpo.grpo(Student(tiny, "x", data, plan), 0, 8)
    assert 8 <= step.rollouts <= 8 * grpo.ROUNDS and 0 < step.figures["reward"] < 1
    assert (
        len(step.rows) >= 3 * 4
    )  # 3 turns of 4 episodes in a group, at least one group with variance
    by_length = {len(row.student) for row in step.rows}
    assert len(by_length) >= 3, "each turn with the conversation before it"
    advantages = [row.advantage for row in step.rows]
    assert sum(map(abs, advantages)) > 0 and len(set(advantages)) <= len(step.rows) // 3 + 1
    plan = make_plan(1, method="grpo", group=4, batch=8, budget=0.05)
    assert loop.fit(tiny, "x", list(tiny.adapter_parameters("x")), data, plan, None)["rollouts"] > 0
