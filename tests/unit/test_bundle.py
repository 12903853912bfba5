"""All lessons withheld together: the draw, the evidence, the verdict, what a run and a command say
of it."""

from __future__ import annotations

import json
import random

import pytest
from fakes import RuleModel, dialect
from sqlmodel import select

from reflect.cli import run_command
from reflect.config import Settings, load
from reflect.day.practice import practice
from reflect.errors import UsageError
from reflect.records import Exposure, Rollout, TaskRow, Trial
from reflect.rollouts.context import TasksetContext
from reflect.store import doctor, runs, trials
from reflect.store import lessons as db
from reflect.trials import comparison
from reflect.trials.assignment import draw, withhold
from reflect.trials.bundle import Bundle, describe
from reflect.trials.lesson_trial import LessonTrials, TrialScope
from reflect.trials.reward_version import reward_version

SETTINGS = Settings()


def lessons_of(store, n=3, **words):
    with store.write() as s:
        words = {"do": "hurry", "author": "model", "scope": "s", **words}
        return [db.add(s, **{"when": f"always {i}", **words}).id for i in range(n)]


def suite(store, effect, *, tasks=160, k=8, seed=0, measure="", settings=SETTINGS):
    """A run of simulated rollouts in which all lessons of the scope s together are worth
    `effect`."""
    rng = random.Random(f"{seed} {effect}")
    with store.write() as s:
        keys = [f"{seed}-{effect}-{i}" for i in range(tasks)]
        s.add_all(
            TaskRow(key=key, taskset="s", task_id=key, split="practice", content={}) for key in keys
        )
        run = runs.start_run(
            s,
            key=f"{seed} {effect} {measure}",
            taskset="s",
            n=tasks,
            k=k,
            seed=seed,
            model="m",
            profile="default",
            model_fingerprint="f",
            measure=measure,
        )
    bundle = Bundle(run)
    for start in range(0, tasks, 8):
        with store.write() as s:
            chosen, rows, drawn = db.listing(s, status=("candidate", "active"), scope="s"), [], []
            for key in keys[start : start + 8]:
                base = 0.5 + rng.choice([-0.2, 0.2])
                for index in range(k):
                    kept = draw(chosen, settings, seed, key, index)
                    drawn.append(kept.applied(withhold(chosen, settings, seed, key, index)))
                    reward = float(rng.random() < base + effect * bool(chosen and kept.shown))
                    row = Rollout(
                        run_id=run.id,
                        task_key=key,
                        index=index,
                        messages=[],
                        reward=reward,
                        seed=index,
                    )
                    row.bundle_shown, row.bundle_probability = kept
                    rows.append(row)
            runs.save_rollouts(s, rows, drawn)
            bundle.judge(s)
    with store.write() as s:
        return runs.finish_run(s, run.id)


def test_the_bundle_is_drawn_by_a_hash_and_leaves_single_lessons_alone(sqlite_store):
    with sqlite_store.write() as s:
        lessons = [db.add(s, when=f"w{i}", do="d", author="model", scope="s") for i in range(3)]
    drawn = [draw(lessons, SETTINGS, 1, f"task {i}", j) for i in range(500) for j in range(8)]
    assert drawn[:8] == [draw(lessons, SETTINGS, 1, "task 0", j) for j in range(8)]
    assert {one.probability for one in drawn} == {0.95}
    # 4,000 coins: 0.02 off is 5.8 standard errors, 1 of 10^8
    assert sum(not one.shown for one in drawn) / 4000 == pytest.approx(0.05, abs=0.02)
    assert (
        draw([], SETTINGS, 1, "t", 0)
        == draw(lessons, Settings(trials=False), 1, "t", 0)
        == (True, 1.0)
    )
    out = next(i for i, one in enumerate(drawn) if not one.shown)
    exposures = drawn[out].applied(withhold(lessons, SETTINGS, 1, f"task {out // 8}", out % 8))
    assert [(x.shown, x.probability) for x in exposures] == [(False, 0.0)] * 3


def test_the_share_is_a_setting(tmp_path):
    file = tmp_path / "reflect.toml"
    file.write_text("withhold_bundle = 0.2\n")
    assert load(file).withhold_bundle == 0.2
    with pytest.raises(UsageError, match=r"withhold_bundle = 1.5 is too large"):
        load(file, withhold_bundle=1.5)


def test_a_day_withholds_bundles_and_their_rollouts_are_no_evidence_on_one_lesson(sqlite_store):
    settings = Settings(withhold_bundle=0.2)
    with sqlite_store.write() as s:
        for verb, op in dialect.TASKSET.meanings.items():
            db.add(s, when=f"the task says {verb}", do=f"use {op}", author="model", scope="dialect")
    report = practice(RuleModel(), sqlite_store, dialect.TASKSET, settings, n=24, k=8, seed=1)
    with sqlite_store.read() as s:
        rows = {row.id: row for row in s.exec(select(Rollout))}
        out = [row for row in rows.values() if not row.bundle_shown]
        assert (
            0.1 * len(rows) < len(out) < 0.3 * len(rows)
        )  # 192 coins: 3.5 standard errors either way
        assert {row.bundle_probability for row in rows.values()} == {0.8}
        for row in out:
            assert "Lessons from practice" not in json.dumps(row.messages)
        result = s.exec(select(Exposure)).all()
        assert {x.probability for x in result if not rows[x.rollout_id].bundle_shown} == {0.0}
        assert {x.probability for x in result if rows[x.rollout_id].bundle_shown} <= {0.5, 0.9}
        holds = TrialScope("rule-1", None, reward_version(dialect.TASKSET))
        received = [LessonTrials(holds).update(s, db.get(s, i)) for i in range(1, 7)]
        counted = [
            len(trials.observations(s, i, version, **holds.columns()))
            for i, (version, _) in enumerate(received, 1)
        ]
        assert [contrast.n for _, contrast in received] == counted
        assert report.reward == 1.0, (
            "the rewards shown are those of rollouts that saw their lessons"
        )
        run = runs.get_run(s, report.run_id)
    assert run.bundle == report.bundle and run.bundle["n"] == 192 and run.bundle["effect"] > 0.3
    assert run.bundle["low"] <= run.bundle["effect"] <= run.bundle["high"]
    again = practice(RuleModel(), sqlite_store, dialect.TASKSET, settings, n=24, k=8, seed=1)
    assert again.bundle == report.bundle and doctor.check(sqlite_store) == []


def test_evidence_adds_up_over_runs_and_begins_anew_with_another_verifier(sqlite_store):
    lessons_of(sqlite_store)
    first = suite(sqlite_store, 0.1, tasks=16)
    second = suite(sqlite_store, 0.1, tasks=16, seed=1)
    other = suite(sqlite_store, 0.1, tasks=16, seed=2, measure="another")
    assert [run.bundle["n"] for run in (first, second, other)] == [128, 256, 128]


def test_a_bundle_that_does_harm_is_retired_but_for_what_is_proven_or_pinned(sqlite_store):
    """By the theorem a harmless bundle is taken for a harmful one in at most 2.5 % of suites."""
    plain, proven, pinned = lessons_of(sqlite_store)
    (general,) = lessons_of(sqlite_store, 1, scope="")
    with sqlite_store.write() as s:
        db.revise(s, proven, author="trial", status="active")
        db.revise(s, pinned, author="human", pinned=True)
        s.add(
            Trial(
                lesson_id=proven,
                version=1,
                kind="withhold",
                effect=0.2,
                low=0.1,
                high=0.3,
                n=90,
                verdict="accept",
                model_fingerprint="f",
                moved=2,
            )
        )
    run = suite(sqlite_store, -0.35)
    with sqlite_store.read() as s:
        status = {x.id: x.status for x in db.listing(s)}
        newest = db.history(s, plain)[-1]
        assert status == {
            plain: "retired",
            proven: "active",
            pinned: "candidate",
            general: "candidate",
        }
        assert newest.author == "trial" and newest.reason.startswith(
            "all lessons of s together do harm: -0."
        )
        assert (
            run.bundle["harm"][0]["retired"] == [[plain, 2]] and run.bundle["harm"][0]["high"] < 0
        )
        assert (
            trials.bundle_since(s, run)
            == run.bundle["harm"][-1]["since"]
            >= run.bundle["harm"][0]["since"]
            > 0
        )
        assert run.bundle["n"] < 160 * 8 - 1, "the evidence spoke of another bundle: it began anew"
    assert "it did harm before: 1 lessons were retired" in describe(run.bundle)
    fresh = lessons_of(sqlite_store, 1, when="new")
    suite(sqlite_store, 0.3, tasks=24, seed=5)
    with sqlite_store.read() as s:
        assert db.get(s, fresh[0]).status == "candidate", "old evidence does not touch a new lesson"
    with sqlite_store.write() as s:
        assert run.id in runs.prune(s, keep=0).kept
    assert doctor.check(sqlite_store) == []


def test_a_bundle_that_brings_little_changes_nothing_and_is_told(sqlite_store):
    ids = lessons_of(sqlite_store)
    run = suite(sqlite_store, 0.0, settings=Settings(withhold_bundle=0.5), tasks=64)
    assert run.bundle["verdict"] in ("reject", "undecided") and "harm" not in run.bundle
    text = describe({"effect": 0.0, "low": -0.04, "high": 0.04, "n": 9, "verdict": "reject"})
    assert "bring less than 0.05; nothing is changed" in text
    with sqlite_store.read() as s:
        assert {db.get(s, i).status for i in ids} == {"candidate"}


# -- the command
# -------------------------------------------------------------------------------------------------------


def output_of(capsys, *words):
    capsys.readouterr()
    code = run_command([*words])
    return code, *capsys.readouterr()


def test_the_commands_show_the_bundle(sqlite_store, capsys):
    with sqlite_store.write() as s:
        for verb, op in dialect.TASKSET.meanings.items():
            db.add(s, when=f"the task says {verb}", do=f"use {op}", author="model", scope="dialect")
    path = str(sqlite_store.path)
    code, _, err = output_of(capsys, "trial", "--bundle", "dialect", "--db", path)
    assert code == 0 and "Nothing is known" in err
    practice(RuleModel(), sqlite_store, dialect.TASKSET, SETTINGS, n=24, k=8, seed=1)
    code, out, _ = output_of(capsys, "trial", "--db", path)
    assert code == 0 and out.startswith("bundle dialect: all lessons together +")
    code, out, _ = output_of(capsys, "trial", "--bundle", "dialect", "--db", path, "--json")
    row = json.loads(out)
    assert (row["taskset"], row["n"], row["run"]) == ("dialect", 192, 1) and row["low"] < row[
        "effect"
    ] < row["high"]
    assert isinstance(json.loads(output_of(capsys, "trial", "--db", path, "--json")[1]), list)
    assert "bundle dialect: all lessons" in output_of(capsys, "runs", "show", "1", "--db", path)[1]
    assert output_of(capsys, "trial", "1", "--bundle", "dialect", "--db", path)[0] == 2


def test_a_planned_comparison_of_all_lessons_with_none(sqlite_store):
    with pytest.raises(UsageError, match="has a lesson"):
        comparison.compare_bundle(
            TasksetContext(RuleModel(), sqlite_store, dialect.TASKSET, SETTINGS), n=4, k=2
        )
    with sqlite_store.write() as s:
        for verb, op in dialect.TASKSET.meanings.items():
            db.add(s, when=f"the task says {verb}", do=f"use {op}", author="model", scope="dialect")
    effect = comparison.compare_bundle(
        TasksetContext(RuleModel(), sqlite_store, dialect.TASKSET, SETTINGS), n=8, k=4
    )
    assert effect.verdict == "accept" and effect.low > 0 and effect.n <= 32
    with sqlite_store.read() as s:
        assert s.exec(select(Trial)).all() == [] and {x.status for x in db.listing(s)} == {
            "candidate"
        }
