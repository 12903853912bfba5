"""Preflight, harvest and anchors of a night on a pretrained model, by a scripted model that follows
the lessons in its prompt and knows nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ScriptedAdapters

from reflect.config import Settings
from reflect.lessons.selection import fires
from reflect.models.base import Completion, Request
from reflect.records import Run
from reflect.rollouts.context import TasksetContext
from reflect.store import Store, nights, runs, trials
from reflect.store import lessons as db
from reflect.tasksets import load_taskset
from reflect.training.context import NightContext, TasksetLessons
from reflect.training.guards import Pretrained, guards_of
from reflect.training.plan import make_plan
from reflect.training.preflight import UNSTORED, preflight
from reflect.training.teacher_data import harvest
from reflect.trials import comparison
from reflect.trials.lesson_trial import TrialScope
from reflect.trials.reward_version import reward_version

FACTS = {"closes": "16:30", "opens": "7:45", "lunch": "8 crowns"}
LESSON = re.compile(r"- when: (.*) do: (.*)")


class Follower(ScriptedAdapters):
    """Says what the lesson that is about the question says; without lessons a sentence, or to some
    instructions a text that is cut off."""

    own_tasksets = ()
    end = 2

    def __init__(self) -> None:
        super().__init__(4000)
        self.asked: list[str] = []

    def encode(self, messages: list[dict[str, str]], answer: str | None = None) -> list[int]:
        text = "".join(m["content"] for m in messages) + (answer or "")
        return [*text.encode(), *([self.end] if answer is not None else [])]

    def complete(self, request: Request, seed: int) -> Completion:
        question = request.messages[-1]["content"]
        lessons = LESSON.findall("\n".join(m["content"] for m in request.messages[:-1]))
        self.asked.append(question)
        about = fires([when for when, _ in lessons], question)
        texts = [do for (_, do), fired in zip(lessons, about, strict=True) if fired]
        text = texts[0].replace("say that ", "") if texts else "I do not know."
        if text.startswith("it is in "):
            text = "I do not follow this one."
        long = question.startswith(("Name", "Give"))
        tokens = tuple(text.encode())
        return Completion(text, 9, len(tokens), "length" if long else "stop", seed, tokens)


@pytest.fixture
def night(sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NightContext:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": text.format(word), "answer": answer, "verifier": "contains", "split": split}
        for split, texts in {
            "practice": ("When is it that the office {}?", "Tell me of the office: {}?", "The office {}, how?"),
            "holdout": ("About the office, {} please", "What of {} in the office?"),
        }.items()
        for text in texts
        for word, answer in FACTS.items()
    ]  # fmt: skip
    Path("office.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    taskset = load_taskset("office.jsonl")
    with sqlite_store.write() as s:
        for word, answer in FACTS.items():
            when = f"asked when or how the office {word}"
            db.add(s, when=when, do=f"say that {answer} is right", author="human",
                   scope="office.jsonl", status="active", tokens=12)  # fmt: skip
        lessons = tuple(db.listing(s, "default"))
    plan = make_plan(10**8, len(lessons), anchors=64)
    settings = Settings(model="scripted", max_tokens=64)
    item = TasksetLessons(taskset, lessons)
    return NightContext(Follower(), sqlite_store, settings, plan, [item])  # type: ignore[arg-type]


def test_each_lesson_has_the_effect_of_its_own_questions(night: NightContext) -> None:
    figures = preflight(night)
    assert {e["n"] for e in figures["lessons"].values()} == {3}, "one question in three is its own"
    assert all(e["verdict"] == "accept" for e in figures["lessons"].values())
    (taskset,) = figures["tasksets"].values()
    assert (taskset["base"], taskset["lessons"], taskset["attempts"]) == (0.0, 1.0, 18)
    data = harvest(night, set(taskset["failed"]), {"office.jsonl": 1.0}, figures[UNSTORED])
    assert len(data.harvest) == 9 + 9 * night.plan.samples and data.harvest[0].weight == 2.0
    assert data.figures["tasksets"]["office.jsonl"]["reused"] == 9
    assert all("Lessons" not in str(x.question.student) for x in data.harvest)


def test_what_the_day_has_scored_is_not_sampled_again(night: NightContext) -> None:
    (item,), model = night.tasksets, night.model
    scope = TrialScope(model.fingerprint, None, reward_version(item.taskset))
    with night.store.write() as s:
        for lesson in item.lessons:
            trial = trials.new_trial(scope.trial(lesson, 1, "withhold"))
            trial.effect, trial.low, trial.high, trial.n, trial.verdict = (
                0.9,
                0.5,
                1.0,
                40,
                "accept",
            )
            nights.add_trial(s, trial)
        run = Run(key="r", taskset="office.jsonl", n=9, k=2, seed=0, model="scripted",
                  model_fingerprint=scope.model_fingerprint, measure=scope.measure)  # fmt: skip
        s.add(run)
        s.flush()
        tasks = item.taskset.tasks("practice")
        runs.save_tasks(s, "office.jsonl", tasks)
        for task in tasks:
            for index, shown in enumerate((True, False)):
                text = f"{task.answer} is right" if shown else "I do not know."
                s.add(_rollout(run, task.key, index, text, float(shown)))
        s.flush()
        for row in runs.rollouts(s, run.id):
            s.add_all(_exposures(row, [x.id for x in item.lessons], row.index == 0))
    figures = preflight(night)
    assert model.asked == [], "preflight has the trials' own evidence"
    (taskset,) = figures["tasksets"].values()
    assert (taskset["base"], taskset["lessons"], taskset["reused"]) == (0.0, 1.0, 18)
    assert figures["worth"] == [1, 2, 3] and {e["n"] for e in figures["lessons"].values()} == {40}
    with night.store.write() as s:  # another text: its evidence is of the old one
        db.revise(s, 1, author="human", do="say that 16:30 is right, always")
        lessons = tuple(db.listing(s, "default"))
    night = NightContext(
        model, night.store, night.settings, night.plan, [TasksetLessons(item.taskset, lessons)]
    )
    figures = preflight(night)
    assert len(model.asked) == 2 * 3, "only the questions of the changed lesson"
    assert figures["worth"] == [1, 2, 3]


def _rollout(run: Run, key: str, index: int, text: str, reward: float):
    from reflect.records import Rollout

    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    return Rollout(
        run_id=run.id, task_key=key, index=index, messages=messages, reward=reward, seed=index
    )


def _exposures(row, lesson_ids: list[int], shown: bool):
    from reflect.records import Exposure

    return [
        Exposure(rollout_id=row.id, lesson_id=i, version=1, shown=shown, probability=0.5)
        for i in lesson_ids
    ]


def test_anchors_are_what_the_base_answers_in_full(night: NightContext) -> None:
    guards = guards_of(night)
    assert type(guards) is Pretrained
    (item,) = night.tasksets
    rows = rows_of(night)
    found = guards.anchors(night, [rows], [])
    questions = [str(x.question.student[-1]["content"]) for x in [*found.anchors, *found.probes]]
    assert not any(q.startswith(("Name", "Give")) for q in questions), "cut off, so no anchor"
    assert "street" not in found.followed and {"opens", "closes", "phone"} <= set(found.followed)
    assert not any("dialect" in t.name or t.name == "letters" for t in guards.tasksets(night, []))
    neighbours = guards.neighbours(item, rows, "practice", 0)
    assert len(neighbours) == len(rows) and not any("office" in t.text for t in neighbours)
    assert {t.text for t in neighbours} & set(questions), "hard negatives are among the anchors"
    assert not set(questions) & {t.text for t in guards.neighbours(item, rows, "holdout", 0)}
    ruled = guards.ruled(night, item, rows, "holdout")
    assert all(
        m in t.lessons[0][1].casefold() for (t, _), m in zip(ruled.rows, ruled.marks, strict=True)
    )
    for taskset, tasks in guards.following(night, {"followed": found.followed}, 24):
        kinds = {task.id.partition("-")[0] for task, _ in tasks}
        assert taskset.name == "office.jsonl" or kinds == set(found.followed)


def rows_of(night: NightContext):
    from reflect.training.lesson_set import practice_rows

    return practice_rows(night, night.tasksets[0])


def test_a_planned_trial_takes_the_questions_of_its_lesson(night: NightContext) -> None:
    (item,) = night.tasksets
    ctx = TasksetContext(night.model, night.store, item.taskset, night.settings)
    plan = comparison.plan(ctx, 2, n=20, k=1)
    assert len(plan.tasks) == 3 and all("opens" in task.text for task, _ in plan.tasks)


def test_the_plan_follows_the_size_of_the_model() -> None:
    pocket, small, large = make_plan(2.4e6, 12), make_plan(1.35e8, 12), make_plan(8e9, 12)
    assert not pocket.reuse and pocket.batch == 32 and "reuse" not in pocket.shape()
    assert small.reuse and small.stages[0] == ("sft", 86, 1e-3) and small.answer_tokens == 64
    assert large.rank == 32 and large.answer_tokens == 256
    assert make_plan(1.35e8, 12, steps=30, learning_rate=5e-4).stages[0] == ("sft", 27, 5e-4)
    assert make_plan(1.35e8, 12, samples=5, anchors=7).anchors == 7


def test_a_night_that_is_not_due_loads_no_torch() -> None:
    code = "import sys, reflect.night.sleep; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
