"""The day end to end: what is stored, what is learned, and that a kill changes nothing."""

import json
from dataclasses import replace

import pytest
from fakes import OPS, FixedModel, RuleModel, dialect, killed
from sqlmodel import select

from reflect.cli.report import notices
from reflect.config import Settings
from reflect.day.practice import practice
from reflect.errors import UsageError
from reflect.records import Exposure, Lesson, LessonVersion, Reflection, Rollout, Run, Trial
from reflect.rollouts.episode import rollout_seed
from reflect.rollouts.runner import Part, run_parts
from reflect.store import Store, nights
from reflect.store import lessons as db
from reflect.tasksets.task import Score

SETTINGS = Settings()


def day(store, model=None, **words):
    words = {"n": 20, "k": 4, "seed": 1, **words}
    return practice(model or RuleModel(), store, dialect.TASKSET, SETTINGS, **words)


def rows_of(store) -> str:
    """Everything that a day stores, without times and the checkpoints of its trials."""
    with store.read() as s:
        every = [
            row
            for table in (Rollout, Reflection, Lesson, LessonVersion, Exposure, Run, Trial)
            for row in s.exec(select(table))
        ]
    left_out = {"created", "updated", "started", "ended", "checkpoints"}
    dumped = [(type(row).__name__, row.model_dump(exclude=left_out)) for row in every]
    return json.dumps(dumped, indent=1, default=str)


def test_the_day_learns_the_verbs(sqlite_store):
    report = day(sqlite_store, n=30, k=8)
    assert report.rollouts == 240 and report.errors == 0
    assert report.rewards[0] < 0.5 and report.rewards[-1] > 0.9
    with sqlite_store.read() as s:
        known = {x.when.split()[-1]: x.do for x in db.listing(s)}
    assert known == {verb: f"use {op}" for verb, op in dialect.TASKSET.meanings.items()}
    assert report.outcomes["added"] == 6
    assert report.reflections == sum(change["kind"] != "trial" for change in report.changes)
    assert 0 < report.withheld < 120


def test_every_lesson_can_be_traced_to_the_rollouts_that_taught_it(sqlite_store):
    report = day(sqlite_store, n=8, k=8)
    with sqlite_store.read() as s:
        lesson = db.listing(s)[0]
        version = db.history(s, lesson.id)[0]
        reflection = s.get(Reflection, version.reflection_id)
        rollouts = s.exec(select(Rollout).where(Rollout.run_id == report.run_id)).all()
        group = [r for r in rollouts if r.task_key == reflection.task_key]
    assert version.author == "model"
    assert len(group) == 8 and {r.reward for r in group} == {0.0, 1.0}
    assert lesson.when.split()[-1] in group[0].messages[0]["content"]
    assert {"lesson": lesson.id, "outcome": "added"}.items() <= reflection.edits[0].items()
    assert reflection.raw.startswith("NOTE") and reflection.prompt_version and reflection.pack_hash


def test_what_was_shown_is_recorded_and_is_what_the_prompt_held(sqlite_store):
    day(sqlite_store)
    with sqlite_store.read() as s:
        exposures = s.exec(select(Exposure)).all()
        rollouts = s.exec(select(Rollout)).all()
        versions = {(v.lesson_id, v.version): v for v in s.exec(select(LessonVersion))}
    assert {e.shown for e in exposures} == {True, False}
    assert {e.probability for e in exposures} <= {0.0, 0.5, 0.9}
    for row in rollouts:
        system = row.messages[0]["content"] if row.messages[0]["role"] == "system" else ""
        seen = [
            (versions[e.lesson_id, e.version], e.shown) for e in exposures if e.rollout_id == row.id
        ]
        assert bool(system) == any(shown for _, shown in seen)
        assert all((f"when: {v.when} do: {v.do}" in system) == shown for v, shown in seen)


def test_a_run_killed_anywhere_ends_with_the_same_rows(sqlite_store, tmp_path):
    model = RuleModel()
    day(sqlite_store, model)
    whole = rows_of(sqlite_store)
    assert model.calls >= 5
    for at in range(model.calls):
        other = Store(str(tmp_path / f"killed-{at}.db"))
        with pytest.raises(KeyboardInterrupt):
            day(other, killed(RuleModel(), at))
        again = RuleModel()
        report = day(other, again)
        assert again.calls == model.calls - at, "nothing is sampled twice"
        assert rows_of(other) == whole
        assert report.rollouts == 80


def test_a_kill_between_two_transactions_changes_nothing_either(
    sqlite_store, tmp_path, monkeypatch
):
    from reflect.day import practice as module

    day(sqlite_store)
    whole = rows_of(sqlite_store)
    other = Store(str(tmp_path / "killed.db"))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    for name in ("reflect_on", "edit_lessons", "run_parts"):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(module, name, killed)
            day(other)
    day(other)
    assert rows_of(other) == whole


def test_the_same_words_again_are_the_same_run_and_no_seed_continues_or_begins(sqlite_store):
    first = day(sqlite_store)
    model = RuleModel()
    assert day(sqlite_store, model).run_id == first.run_id
    assert model.calls == 0
    with pytest.raises(KeyboardInterrupt):
        day(sqlite_store, killed(RuleModel(), 1), seed=None, n=16)
    going_on = day(sqlite_store, seed=None, n=16)
    assert going_on.seed != 1 and going_on.run_id == first.run_id + 1
    assert (
        day(sqlite_store, seed=None, n=16).run_id == first.run_id + 2
    )  # that one is done: a new seed
    assert day(sqlite_store, k=3).run_id == first.run_id + 3  # other words: another run


def test_without_learning_nothing_is_reflected_on_and_without_lessons_none_is_shown(sqlite_store):
    day(sqlite_store)
    with sqlite_store.read() as s:
        before = db.count(s)
    report = day(sqlite_store, seed=2, learn=False, use_lessons=False)
    with sqlite_store.read() as s:
        rollouts = s.exec(select(Rollout).where(Rollout.run_id == report.run_id)).all()
        assert db.count(s) == before
    assert report.reflections == 0
    assert all(row.messages[0]["role"] == "user" for row in rollouts)


class Verifier(type(dialect.TASKSET)):
    """A user's verifier that breaks on some answers and is ill-behaved on others."""

    def verify(self, task, text):
        if "sort" in text:
            raise RuntimeError("no such file")
        return Score(7.0) if "swap" in text else super().verify(task, text)


def test_a_bad_rollout_is_data_and_not_a_crash(sqlite_store):
    report = practice(RuleModel(), sqlite_store, Verifier(), SETTINGS, n=8, k=8, seed=1)
    assert report.rollouts == 64 and 0 < report.errors < 64
    with sqlite_store.read() as s:
        errors = {r.error: r.reward for r in s.exec(select(Rollout)) if r.error}
    assert errors == {
        "verifier: RuntimeError: no such file": None,
        "verifier: ValueError: the reward 7.0 is not between 0 and 1": None,
    }


def test_a_prompt_that_the_model_cannot_take_fails_alone(sqlite_store):
    class Long(type(dialect.TASKSET)):
        def tasks(self, split, n=None, seed=0):
            first, *rest = super().tasks(split, n, seed)
            words = [{"role": "user", "content": "word " * 3000 + first.messages[0]["content"]}]
            return [type(first)("long", words, first.verifier, first.answer), *rest]

    report = practice(RuleModel(), sqlite_store, Long(), SETTINGS, n=8, k=4, seed=1)
    assert report.errors == 4 and report.rollouts == 32
    with sqlite_store.read() as s:
        broken = [r for r in s.exec(select(Rollout)) if r.error]
    assert all(r.error.startswith("model: ") and r.messages[-1]["role"] == "user" for r in broken)
    assert report.reflections > 0


def test_a_reflection_that_fails_or_rambles_is_recorded(sqlite_store):
    class Rambling(RuleModel):
        def review(self, prompt):
            return "I believe that things went well."

    report = day(sqlite_store, Rambling(), n=4)
    assert report.outcomes == {"problem": report.reflections}
    assert report.unreadable == report.reflections
    (text,) = notices(replace(report, equal=0))
    assert text.startswith(f"{report.reflections} of {report.reflections} reflections gave no edit")
    assert report.unreadable_answer[:40] in text and "--reflector NAME" in text
    assert "no edit in the answer" in report.changes[0]["reason"]


def test_a_run_says_why_it_could_learn_nothing(sqlite_store):
    class Cut(FixedModel):
        def complete(self, request, seed):
            return replace(super().complete(request, seed), finish="length")

    report = day(sqlite_store, Cut(), n=4)
    assert (report.equal, report.cut) == (4, 16)
    texts = notices(report)
    assert any("earned the same reward" in text and "--temperature" in text for text in texts)
    assert any("16 of 16 answers were cut off at max_tokens" in text for text in texts)
    report = day(sqlite_store, n=30, k=8, seed=9)
    assert notices(report) == [], "a run that learns has nothing to say"


def test_a_taskset_without_practice_tasks_and_a_run_of_nothing_are_usage_errors(sqlite_store):
    class Empty(type(dialect.TASKSET)):
        def tasks(self, split, n=None, seed=0):
            return []

    with pytest.raises(UsageError, match="no practice tasks"):
        practice(RuleModel(), sqlite_store, Empty(), SETTINGS, n=8, k=4)
    with pytest.raises(UsageError, match="at least one"):
        day(sqlite_store, n=0)


def test_the_day_after_a_night_builds_on_what_the_weights_hold(sqlite_store):
    model = RuleModel()
    known = dict(list(dialect.TASKSET.meanings.items())[:3])
    model.weights["night-1"], model.active = known, "night-1"
    with sqlite_store.write() as s:
        adapter = nights.add_adapter(
            s,
            name="night-1",
            path="night-1",
            manifest={},
            base_model="rule",
            base_fingerprint="rule-1",
        )
        for verb, op in known.items():
            lesson = db.add(
                s, when=f"the task says {verb}", do=f"use {op}", author="model", scope="dialect"
            )
            db.revise(s, lesson.id, author="night", status="distilled")
    report = day(sqlite_store, model, n=30, k=8)
    assert model.active == "night-1"
    with sqlite_store.read() as s:
        assert {r.adapter_id for r in s.exec(select(Rollout))} == {adapter.id}
        lessons = {x.when.split()[-1]: (x.do, x.status, x.version) for x in db.listing(s)}
    assert report.rewards[0] > 0.5 and report.rewards[-1] > 0.9
    assert lessons == {
        verb: (f"use {op}", "distilled", 2)
        if verb in known
        else (f"use {op}", lessons[verb][1], lessons[verb][2])
        for verb, op in dialect.TASKSET.meanings.items()
    }
    assert {status for _, status, _ in lessons.values()} == {"distilled", "active"}, (
        "the new ones are proven by now"
    )
    assert all(f"the task says {verb}" not in prompt for verb in known for prompt in model.prompts)


def test_progress_counts_to_the_end(sqlite_store):
    steps = []
    day(sqlite_store, progress=lambda *step: steps.append(step))
    assert steps[0] == (0, 20, "rollouts") and steps[-1] == (20, 20, "done")
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)


def test_rollout_seeds_depend_on_run_task_and_index_only():
    task = dialect.TASKSET.tasks("practice", 1)[0]
    alone, among = (
        run_parts(RuleModel(), dialect.TASKSET, [Part(task, (), range(k))], seed=5)[0]
        for k in (2, 6)
    )
    assert [r.messages for r in alone] == [r.messages for r in among[:2]]
    assert len({rollout_seed(a, b, c) for a in (1, 2) for b in "xy" for c in (0, 1)}) == 8
    assert set(OPS) >= {r.messages[-1]["content"].split()[2].strip(".") for r in among}
