"""Withholding, evidence and verdicts on a real store, and in a day of a model that works by
rule."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from fakes import RuleModel, dialect
from sqlalchemy import insert
from sqlmodel import select

from reflect.config import Settings, load
from reflect.day.practice import practice
from reflect.day.reflection import Group
from reflect.errors import UsageError
from reflect.records import Exposure, Rollout, TaskRow, Trial
from reflect.store import doctor, nights, runs, trials
from reflect.store import lessons as db
from reflect.trials.assignment import withhold
from reflect.trials.lesson_trial import LessonTrials, TrialScope
from reflect.trials.reward_version import reward_version

SETTINGS = Settings()
HERE = TrialScope("rule-1")


def lesson_of(store, status="candidate", **words):
    words = {"when": "always", "do": "hurry", "author": "model", "scope": "s", **words}
    with store.write() as s:
        return db.add(s, status=status, **words)


def practised(
    store, lesson_id, effect, *, tasks=40, k=8, seed=0, fingerprint="rule-1", settings=SETTINGS
):
    """A run of simulated rollouts in which the lesson is worth `effect`; it is judged after every
    8 tasks."""
    rng, lesson_trials = random.Random(f"{seed} {effect}"), LessonTrials(TrialScope(fingerprint))
    with store.write() as s:
        name = f"{fingerprint}-{lesson_id}-{seed}-{effect}"
        keys = [f"{name}-{i}" for i in range(tasks)]
        s.add_all(
            TaskRow(key=key, taskset="s", task_id=key, split="practice", content={}) for key in keys
        )
        run = runs.start_run(
            s,
            key=name,
            taskset="s",
            n=tasks,
            k=k,
            seed=seed,
            profile="default",
            model="m",
            model_fingerprint=fingerprint,
        )
    for start in range(0, tasks, 8):
        with store.write() as s:
            lesson, rows, drawn = db.get(s, lesson_id), [], []
            before = lesson.status
            for key in keys[start : start + 8]:
                base = 0.5 + rng.choice([-0.2, 0.2])
                for index in range(k):
                    exposures = withhold([lesson], settings, seed, key, index)
                    reward = float(rng.random() < base + effect * exposures[0].shown)
                    rows.append(
                        Rollout(
                            run_id=run.id,
                            task_key=key,
                            index=index,
                            messages=[],
                            reward=reward,
                            seed=rng.getrandbits(60),
                        )
                    )
                    drawn.append(exposures)
            runs.save_rollouts(s, rows, drawn)
            lesson_trials.judge(s, [lesson_id], run.id)
            if lesson.status != before:
                break
    with store.write() as s:
        runs.finish_run(s, run.id)
    return run


# -- withholding
# -------------------------------------------------------------------------------------------------------


def test_withholding_is_drawn_by_a_hash_with_the_chance_that_is_logged(sqlite_store):
    lessons = [
        lesson_of(sqlite_store),
        lesson_of(sqlite_store, "active"),
        lesson_of(sqlite_store, "active", pinned=True),
    ]
    drawn = [withhold(lessons, SETTINGS, 1, f"task {i}", j) for i in range(250) for j in range(8)]
    assert drawn[:8] == [withhold(lessons, SETTINGS, 1, "task 0", j) for j in range(8)]
    assert drawn != [
        withhold(lessons, SETTINGS, 2, f"task {i}", j) for i in range(250) for j in range(8)
    ]
    for at, probability in enumerate([0.5, 0.9, 0.9]):
        rows = [exposures[at] for exposures in drawn]
        assert {row.probability for row in rows} == {probability}
        # 2,000 coins: 0.05 off is more than 4.4 standard errors, 1 of 100,000
        assert sum(row.shown for row in rows) / 2000 == pytest.approx(probability, abs=0.05)
    both = sum(exposures[0].shown and exposures[1].shown for exposures in drawn) / 2000
    assert both == pytest.approx(0.45, abs=0.05), "each lesson is drawn on its own"
    off = withhold(lessons, Settings(trials=False), 1, "task", 0)
    assert all(row.shown and row.probability == 1.0 for row in off)


def test_the_settings_are_read_as_words_and_shares(monkeypatch, tmp_path):
    file = tmp_path / "reflect.toml"
    file.write_text("trials = false\nwithhold_candidate = 0.25\n")
    assert (load(file).trials, load(file).withhold_candidate) == (False, 0.25)
    monkeypatch.setenv("REFLECT_TRIALS", "true")
    assert load(file).trials
    monkeypatch.setenv("REFLECT_TRIALS", "maybe")
    with pytest.raises(UsageError, match="trials = 'maybe' is not bool"):
        load(file)
    monkeypatch.delenv("REFLECT_TRIALS")
    with pytest.raises(UsageError, match="too large"):
        load(file, withhold_active=1.0)


# -- verdicts
# ----------------------------------------------------------------------------------------------------------


def test_a_lesson_that_helps_becomes_active_and_one_that_harms_is_retired(sqlite_store):
    for effect, status, verdict, words in (
        (0.3, "active", "accept", "it helps"),
        (-0.3, "retired", "reject", ""),
    ):
        lesson = lesson_of(sqlite_store)
        run = practised(sqlite_store, lesson.id, effect)
        with sqlite_store.read() as s:
            head, newest = db.get(s, lesson.id), db.history(s, lesson.id)[-1]
            ((trial, version),) = trials.moves(s, run.id)
        assert (
            head.status == status and newest.author == "trial" and newest.reason.startswith(words)
        )
        assert (
            f"over {trial.n} rollouts" in newest.reason
            and f"{trial.effect:+.2f} (" in newest.reason
        )
        assert (trial.verdict, trial.kind, trial.version, trial.moved) == (
            verdict,
            "withhold",
            1,
            2,
        )
        assert version.version == 2 and trial.low <= effect <= trial.high
        assert trial.model_fingerprint == "rule-1" and trial.n < 320
    assert doctor.check(sqlite_store) == []


class Hackable(dialect.Dialect):
    """Pays for the word sort as much as for the right answer; the audit does not."""

    def verify(self, task, text):
        score = super().verify(task, text)
        return replace(score, reward=1.0) if "means sort" in text else score

    def audit(self, task, text):
        return super().verify(task, text).reward


def test_a_reward_hack_is_rejected_and_a_lesson_that_holds_under_the_audit_is_not(sqlite_store):
    """With 95 % intervals a verdict is wrong in at most 1 of 20 seeds; this is one seed."""
    taskset = Hackable()
    verb = next(
        v for v, op in taskset.meanings.items() if op == "swap"
    )  # of two that pay, a review takes "sort"
    other = next(v for v, op in taskset.meanings.items() if op == "largest")
    hack = lesson_of(sqlite_store, when=f"the task says {verb}", do="use sort", scope=taskset.name)
    good = lesson_of(
        sqlite_store,
        when=f"the task says {other}",
        do=f"use {taskset.meanings[other]}",
        scope=taskset.name,
    )
    assert practice(RuleModel(), sqlite_store, taskset, SETTINGS, n=240, k=8, seed=1).errors == 0
    with sqlite_store.read() as s:
        verdicts = [version for version in db.history(s, hack.id) if version.author == "trial"]
        assert {version.status for version in verdicts} == {
            "retired"
        }  # a review may ask for it again, in vain
        assert "not the hidden metric" in verdicts[0].reason
        assert db.get(s, hack.id).status != "active" and db.get(s, good.id).status == "active"
        assert all("audit" not in str(row.raw) for row in runs.reflections(s, 1))


def test_a_pinned_lesson_is_measured_and_stays(sqlite_store):
    lesson = lesson_of(sqlite_store, "active", pinned=True, author="human")
    practised(sqlite_store, lesson.id, -0.45, tasks=80)
    with sqlite_store.read() as s:
        (trial,) = s.exec(select(Trial))
        assert db.get(s, lesson.id).status == "active" and db.get(s, lesson.id).version == 1
    assert trial.verdict == "reject" and trial.moved is None and trial.n == 640


def test_only_the_evidence_on_this_text_model_and_adapter_counts(sqlite_store):
    lesson = lesson_of(sqlite_store)
    half = Settings(trials=True, withhold_candidate=0.5)
    practised(sqlite_store, lesson.id, 0.1, tasks=4, settings=half)

    def heard(holds=HERE):
        with sqlite_store.read() as s:
            version, contrast = LessonTrials(holds).update(s, db.get(s, lesson.id))
        return version, contrast.n

    assert heard() == (1, 32)
    assert heard(TrialScope("other")) == heard(TrialScope("rule-1", 1)) == (1, 0)
    with sqlite_store.write() as s:
        db.revise(s, lesson.id, author="model", tags=["a"])
    assert heard() == (1, 32), "new tags are the same lesson"
    with sqlite_store.write() as s:
        db.revise(s, lesson.id, author="model", do="take your time")
    assert heard() == (3, 0)
    practised(sqlite_store, lesson.id, 0.1, tasks=2, seed=1)
    assert heard() == (3, 16)
    with sqlite_store.write() as s:
        db.revise(s, lesson.id, author="trial", status="retired")
        db.revise(s, lesson.id, author="model", status="candidate")
    assert heard() == (3, 16), "a model that brings it back brings its evidence back"
    with sqlite_store.write() as s:
        db.revise(s, lesson.id, author="human", status="active")
    assert heard() == (6, 0), "a person's decision is a new trial"


def test_the_same_draw_counts_once(sqlite_store):
    """Two runs of one seed hold the same rollouts: copies count once."""
    lesson = lesson_of(sqlite_store)
    first = practised(sqlite_store, lesson.id, 0.0, tasks=4)
    with sqlite_store.write() as s:
        copy = runs.start_run(
            s,
            key="copy",
            taskset="s",
            n=4,
            k=8,
            seed=0,
            profile="default",
            model="m",
            model_fingerprint="rule-1",
        )
        for row in runs.rollouts(s, first.id):
            (exposure,) = [e for e in runs.exposures(s, lesson.id) if e.rollout_id == row.id]
            words = row.model_dump(exclude={"id", "run_id"}) | {"run_id": copy.id}
            shown = {"version": 1, "shown": exposure.shown, "probability": 0.5}
            runs.save_rollouts(
                s, [Rollout(**words)], [[Exposure(rollout_id=0, lesson_id=lesson.id, **shown)]]
            )
    with sqlite_store.read() as s:
        assert len(runs.exposures(s, lesson.id)) == 64
        assert LessonTrials(HERE).update(s, db.get(s, lesson.id))[1].n == 32


def test_rollouts_without_a_choice_are_no_evidence_and_broken_ones_earn_nothing(sqlite_store):
    lesson = lesson_of(sqlite_store)
    practised(sqlite_store, lesson.id, 0.0, tasks=2, settings=Settings(trials=False))
    with sqlite_store.read() as s:
        assert LessonTrials(HERE).update(s, lesson)[1].n == 0 and s.exec(select(Trial)).all() == []
    practised(sqlite_store, lesson.id, 0.0, tasks=1, seed=1)
    with sqlite_store.write() as s:
        for row in s.exec(select(Rollout).where(Rollout.run_id == 2)):
            row.reward, row.error = None, "model: gone"
    with sqlite_store.read() as s:
        assert {o.reward for o in trials.observations(s, lesson.id, 1, "rule-1", None)} == {0.0}


def test_a_hundred_thousand_rollouts_are_read_in_seconds(sqlite_store):
    lesson = lesson_of(sqlite_store)
    with sqlite_store.write() as s:
        s.add(TaskRow(key="t", taskset="s", task_id="t", split="practice", content={}))
        run = runs.start_run(
            s,
            key="big",
            taskset="s",
            n=1,
            k=100_000,
            seed=0,
            profile="default",
            model="m",
            model_fingerprint="rule-1",
        )
        rng, c = random.Random(0), s.connection()
        words = [{"role": "user", "content": "word " * 50}]
        same = {
            "run_id": run.id,
            "task_key": "t",
            "messages": words,
            "model": "m",
            "feedback": "",
            "parts": {},
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "finish": "stop",
            "trust": "clean",
            "bundle_shown": True,
            "bundle_probability": 1.0,
        }
        own = (
            {"id": i + 1, "index": i, "reward": float(rng.random() < 0.5), "seed": i}
            for i in range(100_000)
        )
        s.execute(insert(Rollout), [same | row for row in own])
        c.exec_driver_sql(
            "INSERT INTO exposure (rollout_id, lesson_id, version, shown, probability) VALUES (?, ?, 1, ?, 0.5)",
            [(i + 1, lesson.id, rng.random() < 0.5) for i in range(100_000)],
        )
    lesson_trials, began = LessonTrials(HERE), time.process_time()
    with sqlite_store.read() as s:
        _version, contrast = lesson_trials.update(s, db.get(s, lesson.id))
        cold = time.process_time() - began
        again = lesson_trials.update(s, db.get(s, lesson.id))[1]
        warm = time.process_time() - began - cold
    assert contrast.n == 100_000 and again is contrast
    assert cold < 5 and warm < 0.5  # 0.8 s and 0.002 s on an idle core


# -- in a day
# ----------------------------------------------------------------------------------------------------------


def day(store, model=None, settings=SETTINGS, **words):
    words = {"n": 32, "k": 8, "seed": 1, **words}
    return practice(model or RuleModel(), store, dialect.TASKSET, settings, **words)


def all_lessons(store, wrong=0):
    """A lesson for each verb; the first `wrong` of them name another operation."""
    with store.write() as s:
        return [
            db.add(
                s,
                when=f"the task says {verb}",
                do=f"use {op if i >= wrong else min(set(dialect.OPS) - {op})}",
                author="model",
                scope="dialect",
            )
            for i, (verb, op) in enumerate(dialect.TASKSET.meanings.items())
        ]


def test_a_day_samples_once_a_wave_and_each_prompt_once(sqlite_store):
    class Counting(RuleModel):
        def sample(self, requests):
            texts = [json.dumps([*request.messages]) for request in requests]
            assert len(texts) == len(set(texts))
            return super().sample(requests)

    model = Counting()
    report = day(sqlite_store, model, n=16)
    assert model.calls <= 2 * 2  # two waves: rollouts and reviews
    with sqlite_store.read() as s:
        rows = runs.rollouts(s, report.run_id)
    assert report.withheld > 0
    assert [(row.task_key, row.index) for row in rows] == [
        (key, i) for key in dict.fromkeys(row.task_key for row in rows) for i in range(8)
    ]


def test_a_day_proves_its_lessons(sqlite_store):
    report = day(sqlite_store, n=48)
    assert report.outcomes["accepted"] >= 5
    with sqlite_store.read() as s:
        active = {x.when.split()[-1]: x.do for x in db.listing(s, status="active")}
    assert all(f"use {dialect.TASKSET.meanings[name]}" == do for name, do in active.items())
    assert doctor.check(sqlite_store) == []


def knowing():
    """A model that knows every verb by its weights, and writes no edits."""
    model = RuleModel(reviews=False)
    model.weights["night-1"], model.active = dict(dialect.TASKSET.meanings), "night-1"
    return model


def test_a_day_throws_out_a_planted_lesson(sqlite_store):
    lessons = all_lessons(sqlite_store, wrong=1)
    with sqlite_store.write() as s:
        nights.add_adapter(
            s, name="night-1", path="x", manifest={}, base_model="rule", base_fingerprint="rule-1"
        )
    report = day(sqlite_store, knowing(), n=40)
    with sqlite_store.read() as s:
        head, newest = db.get(s, lessons[0].id), db.history(s, lessons[0].id)[-1]
        assert [db.get(s, lesson.id).status for lesson in lessons[1:]] == ["candidate"] * 5
    assert report.outcomes == {"rejected": 1}
    assert (head.status, newest.author) == ("retired", "trial") and newest.reason.startswith(
        "it brings less than 0.05: -0."
    )
    (change,) = report.changes
    assert (change["kind"], change["lesson"], change["version"]) == ("trial", head.id, 2)
    assert day(sqlite_store, knowing(), n=40).changes == [change], (
        "the same words again report the same"
    )


def test_no_reflection_is_spent_where_the_lessons_do_it_all(sqlite_store):
    all_lessons(sqlite_store)
    report = day(sqlite_store, n=16)
    assert report.withheld > 20 and report.reflections == 0
    assert report.reward == 1.0 == report.rewards[-1]
    with sqlite_store.read() as s:
        assert runs.figures(s, report.run_id).reward == 1.0
        assert min(row.reward for row in runs.rollouts(s, report.run_id)) == 0.0


def test_a_review_reads_the_attempts_that_saw_the_lessons_unless_all_of_them_failed():
    rows = [
        Rollout(run_id=1, task_key="t", index=i, messages=[], reward=float(i in (1, 2)))
        for i in range(4)
    ]

    def read(missed):
        return [row.index for row in Group(None, [], [], rows, frozenset(missed)).attempts]

    assert read({1}) == [0, 2, 3], "one of them succeeded"
    assert read({1, 2}) == read(()) == read(range(4)) == [0, 1, 2, 3]


def test_without_learning_rollouts_count_but_no_verdict_falls(sqlite_store):
    all_lessons(sqlite_store)
    report = day(sqlite_store, n=32, learn=False)
    with sqlite_store.read() as s:
        assert s.exec(select(Trial)).all() == [] and {x.status for x in db.listing(s)} == {
            "candidate"
        }
        assert (
            LessonTrials(TrialScope("rule-1", None, reward_version(dialect.TASKSET)))
            .update(s, db.get(s, 1))[1]
            .n
            > 16
        )
    assert report.outcomes == {}
    day(sqlite_store, n=32, seed=2)
    with sqlite_store.read() as s:
        assert {x.status for x in db.listing(s)} == {"active"}


def test_a_pruned_run_leaves_its_trials(sqlite_store):
    lesson = lesson_of(sqlite_store)
    run = practised(sqlite_store, lesson.id, 0.3)
    with sqlite_store.write() as s:
        assert runs.prune(s, keep=0) == ([1], [])
    with sqlite_store.read() as s:
        (trial,) = s.exec(select(Trial))
        assert trial.run_id is None and trial.verdict == "accept" and run.id == 1
    assert doctor.check(sqlite_store) == []
