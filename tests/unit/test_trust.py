"""What a reward means, choosing by what was measured, outside bytes and their quarantine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import RuleModel, dialect
from sqlmodel import select
from test_bundle import output_of
from test_trial import Hackable, lesson_of, practised

from reflect.config import Settings
from reflect.day.practice import practice
from reflect.errors import BadTaskFile
from reflect.lessons.apply_edits import Evidence, apply_edits
from reflect.lessons.edit_format import Edit
from reflect.lessons.release import OUTSIDE
from reflect.lessons.selection import TRIED, lessons_for, select_lessons
from reflect.records import Lesson, Reflection, Rollout, Trial
from reflect.rollouts.context import TasksetContext
from reflect.store import lessons as db
from reflect.store import runs, trials
from reflect.tasksets import extract_answer, load_taskset, taskset
from reflect.tasksets.task import Score, Task
from reflect.training import lesson_set
from reflect.trials import comparison
from reflect.trials.reward_version import reward_version

SETTINGS = Settings()
COUNT = RuleModel().count_tokens
SAYS = "the task says zubi"


# -- what a reward means
# -----------------------------------------------------------------------------------------------

SOURCE = """
from reflect.tasksets.base import Score, Task, Taskset

WORTH = {worth}

def paid(text):
    {doc}
    return WORTH if text else {nothing}

class Mine(Taskset):
    name, about = "mine", "{about}"
    def tasks(self, split, n=None, seed=0):
        message = {{"role": "user", "content": split}}
        return [Task(split, [message], "taskset", "yes", split)][:n]
    def verify(self, task, text):
        return Score(paid(text))

TASKSET = Mine()
"""


def meaning(tmp_path, monkeypatch, name, **words):
    folder = tmp_path / name
    (folder / "tasks").mkdir(parents=True)
    words = {"worth": 1.0, "doc": '"""What it pays."""', "nothing": 0.0, "about": "a", **words}
    (folder / "tasks" / "mine.py").write_text(SOURCE.format(**words))
    monkeypatch.chdir(folder)
    return reward_version(load_taskset("mine"))


def test_the_measure_changes_with_what_the_verifier_reaches_and_with_nothing_else(
    tmp_path, monkeypatch
):
    one = meaning(tmp_path, monkeypatch, "one")
    assert one == meaning(
        tmp_path, monkeypatch, "same", doc='"""Other words."""  # and a comment', about="b"
    )
    assert one != meaning(tmp_path, monkeypatch, "constant", worth=0.9)
    assert one != meaning(tmp_path, monkeypatch, "helper", nothing=0.1)
    words = "from reflect.trials.reward_version import reward_version\nfrom reflect.tasksets import load_taskset\n"
    code = words + "print(reward_version(load_taskset('mine')))"
    monkeypatch.chdir(tmp_path / "one")
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True).strip() == one
    (tmp_path / "one" / "prompts").mkdir()
    (tmp_path / "one" / "prompts" / "system.jinja").write_text("{{ system }}")
    assert reward_version(load_taskset("mine")) != one


def test_named_verifiers_and_the_audit_count():
    shipped = {
        name: reward_version(load_taskset(name)) for name in ("letters", "dialect", "dialect:2")
    }
    assert shipped["dialect"] == shipped["dialect:2"] != shipped["letters"]
    assert reward_version(Hackable()) != shipped["dialect"]


@pytest.mark.parametrize(
    ("row", "version"),
    [
        ({"rubric": "Is it polite?"}, "3faded8f9df7"),
        ({"cases": [{"stdin": "2", "stdout": "4"}], "verifier": "code"}, "bac4084227b6"),
    ],
)
def test_effects_measured_by_the_first_version_still_count(tmp_path, row, version):
    """Runs and trials of before hold these hashes: with others, all evidence would begin anew."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "p", "split": "practice"} | row))
    assert reward_version(load_taskset(tmp_path / "t.jsonl")) == version


@pytest.mark.parametrize(
    ("row", "first", "second"),
    [
        ({"answer": "a"}, "8219a673a06c", "cfb1d38ab84a"),
        ({"answer": 1, "verifier": "number"}, "c2b5626be9c9", "2840c7e5857f"),
        ({"answer": "a", "verifier": "contains"}, "19ab4de61e57", "cc2ae48d245b"),
        ({"answer": "a", "verifier": "regex", "gold": "a"}, "e93fe0a38d99", "863010481d64"),
    ],
)
def test_verifiers_that_score_otherwise_start_their_evidence_anew(
    tmp_path, monkeypatch, row, first, second
):
    """Version 2 accepts answers that version 1 did not. Both hashes are pinned: the first proves
    that only the change restarts evidence, the second that nothing else does later."""
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "p", "split": "practice"} | row))
    rows = load_taskset(tmp_path / "t.jsonl")
    assert reward_version(rows) == second
    monkeypatch.setattr("reflect.trials.reward_version._is_shipped", lambda kind: True)
    assert reward_version(rows) == first


def test_code_that_extracts_the_answer_starts_anew_and_other_code_does_not(monkeypatch):
    def own(text, answer):
        return float(answer in text)

    def extracting(text, answer):
        return float(answer == extract_answer(text))

    def rows(split):
        yield f"{split}?", "a"

    tasksets = [taskset(verify=verify)(rows) for verify in (own, extracting)]
    later = [reward_version(one) for one in tasksets]
    monkeypatch.setattr("reflect.trials.reward_version._is_shipped", lambda kind: True)
    first = [reward_version(one) for one in tasksets]
    assert later[0] == first[0] and later[1] != first[1]


def test_the_shipped_tasksets_keep_their_first_version():
    names = {
        "calc": "e067db9a4fbc",
        "dialect": "8219a673a06c",
        "letters": "c2b5626be9c9",
        "shop": "07957d8c3380",
    }
    assert {name: reward_version(load_taskset(name)) for name in names} == names


class Stricter(dialect.Dialect):
    def verify(self, task, text):
        score = super().verify(task, text)
        return score if "means" in text else Score(0.0)


def test_evidence_begins_anew_with_another_verifier_and_the_lesson_stays(sqlite_store, capsys):
    verb, op = next(iter(dialect.TASKSET.meanings.items()))
    lesson = lesson_of(
        sqlite_store, "active", when=f"the task says {verb}", do=f"use {op}", scope="dialect"
    )
    half = Settings(withhold_active=0.5)
    for source, n in ((dialect.TASKSET, 24), (Stricter(), 12)):
        practice(RuleModel(), sqlite_store, source, half, n=n, k=8, seed=1)
    with sqlite_store.read() as s:
        result = {
            trial.measure: trial
            for trial in s.exec(select(Trial).where(Trial.lesson_id == lesson.id))
        }
        assert set(result) == {reward_version(dialect.TASKSET), reward_version(Stricter())}
        assert result[reward_version(dialect.TASKSET)].n > result[reward_version(Stricter())].n > 0
        assert db.get(s, lesson.id).status == "active"
    code, out, _ = output_of(capsys, "trial", str(lesson.id), "--db", str(sqlite_store.path))
    assert code == 0 and "measured with another verifier or system prompt" in out


def test_a_verdict_of_an_old_version_says_so(sqlite_store, capsys):
    lesson = lesson_of(sqlite_store, scope="dialect")
    practised(
        sqlite_store, lesson.id, 0.35
    )  # its run has no measure, as those of before it was recorded
    _code, out, _ = output_of(capsys, "trial", "--db", str(sqlite_store.path), "--json")
    (row,) = json.loads(out)
    assert (row["verdict"], row["measure"], row["status"]) == ("accept", "", "active")
    assert row["missing"] == "a new trial: measured with another verifier or system prompt"


# -- choosing
# ----------------------------------------------------------------------------------------------------------


def chosen(s, task, **words):
    words = {"profile": "default", "budget": 400, "limit": 6, "count_tokens": COUNT} | words
    return [lesson.id for lesson in select_lessons(s, "dialect", task, **words)]


def ask(number, split="holdout"):
    return Task(
        f"t{number}", [{"role": "user", "content": f"Sort these {number}"}], "exact", "x", split
    )


def proven(s, lesson_id, low, high=0.9, version=1, **words):
    verdict = "accept" if low > 0 else "reject"
    words |= {"effect": (low + high) / 2, "low": low, "high": high, "n": 99, "verdict": verdict}
    s.add(Trial(lesson_id=lesson_id, version=version, kind="withhold", **words))
    s.flush()


def test_a_proven_lesson_goes_before_an_undecided_one_and_that_is_tried_now_and_then(sqlite_store):
    with sqlite_store.write() as s:
        ids = [
            db.add(s, when=f"general {word}", do="x", author="model", scope="dialect").id
            for word in "abc"
        ]
        assert chosen(s, ask(1), limit=1) == [ids[0]]
        proven(s, ids[2], 0.2)
        proven(s, ids[1], 0.1)
        assert {tuple(chosen(s, ask(i), limit=1)) for i in range(40)} == {(ids[2],)}
        assert chosen(s, ask(1), limit=2) == ids[1:], "in a prompt they stand by id"
        assert chosen(s, ask(1)) == ids
        tried = [chosen(s, ask(i, "practice"), limit=2) for i in range(200)]
        assert tried == [chosen(s, ask(i, "practice"), limit=2) for i in range(200)]
        # 200 coins: 0.1 off is 3.3 standard errors, 1 of 1,000
        assert sum(ids[0] in result for result in tried) / 200 == pytest.approx(TRIED, abs=0.1)
        assert all(ids[2] in result for result in tried)
        more = [
            db.add(s, when=f"general {word}", do="x", author="model", scope="dialect").id
            for word in "de"
        ]
        tried = [chosen(s, ask(i, "practice"), limit=2) for i in range(60)]
        assert all(any(i in result for result in tried) for i in (ids[0], *more)), (
            "each gets its turn"
        )


def test_relevance_still_counts_and_only_verdicts_on_the_present_text(sqlite_store):
    with sqlite_store.write() as s:
        off, on = [
            db.add(s, when=when, do="x", author="model", scope="dialect").id
            for when in ("general", "sort these")
        ]
        proven(s, off, 0.2)
        assert chosen(s, ask(1), limit=1) == [on]
        proven(s, off, 0.5)
        assert chosen(s, ask(1), limit=1) == [off]
        db.revise(s, off, author="model", do="y")
        assert trials.proven_effects(s, [off, on]) == {} and chosen(s, ask(1), limit=1) == [on]
        proven(s, on, -0.4, high=-0.1)  # pinned, or under review: it stays all the same
        assert trials.proven_effects(s, [on]) == {on: -0.1} and chosen(s, ask(1), limit=1) == [off]
        proven(s, on, -0.4, high=-0.1, moved=2)
        assert trials.proven_effects(s, [on]) == {}, "somebody has brought it back since"


def test_a_lesson_of_one_task_is_chosen_for_that_task_alone(sqlite_store):
    mine, other = ask(1), ask(2)
    with sqlite_store.write() as s:
        words = {"do": "x", "author": "model", "scope": "dialect"}
        bound = db.add(s, when="sort these", tags=["a", f"task:{mine.key}"], **words).id
        for i in range(60):  # more than the pool holds
            db.add(s, when=f"sort these {i}", tags=[f"task:nobody{i}"], **words)
        free = db.add(s, when="sorting", tags=["task"], **words).id
        assert chosen(s, mine) == [bound, free] and chosen(s, other) == [free]


# -- outside bytes
# -----------------------------------------------------------------------------------------------------


def test_a_task_file_says_what_is_untrusted(tmp_path):
    plain = {"prompt": "p", "answer": "a", "split": "practice"}
    keys = {}
    for name, more in (
        ("plain", {}),
        ("false", {"untrusted": False}),
        ("true", {"untrusted": True}),
    ):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(plain | more) + "\n")
        (task,) = load_taskset(tmp_path / f"{name}.jsonl").tasks("practice")
        keys[name] = task.key, task.untrusted
    assert (
        keys["plain"] == keys["false"] and keys["true"][0] != keys["plain"][0] and keys["true"][1]
    )
    assert "untrusted" not in Task("i", [], "exact", "a").shape()
    (tmp_path / "y.yaml").write_text(
        "- prompt: p\n  answer: a\n  split: practice\n  untrusted: true\n"
    )
    assert load_taskset(tmp_path / "y.yaml").tasks("practice")[0].untrusted
    (tmp_path / "bad.jsonl").write_text(json.dumps(plain | {"untrusted": "maybe"}))
    with pytest.raises(BadTaskFile, match="field 'untrusted': 'maybe' is neither"):
        load_taskset(tmp_path / "bad.jsonl")


class Web(dialect.Dialect):
    """Every task carries outside bytes."""

    def tasks(self, split, n=None, seed=0):
        return [replace(task, untrusted=True) for task in super().tasks(split, n, seed)]


def test_what_outside_bytes_teach_reaches_neither_a_prompt_nor_a_training_set(sqlite_store):
    report = practice(RuleModel(), sqlite_store, Web(), SETTINGS, n=16, k=8, seed=1)
    assert report.outcomes["quarantined"] > 0 and "added" not in report.outcomes
    with sqlite_store.read() as s:
        assert {row.trust for row in s.exec(select(Rollout))} == {"untrusted"}
        learned = db.listing(s)
        assert {(x.status, x.trust) for x in learned} == {("quarantined", "untrusted")}
        assert all(db.history(s, x.id)[0].reason == OUTSIDE for x in learned)
        for task in dialect.TASKSET.tasks("practice"):
            assert (
                lessons_for(
                    RuleModel(),
                    s,
                    dialect.TASKSET,
                    task,
                    SETTINGS,
                    ("candidate", "active", "distilled"),
                )
                == []
            )
    assert lesson_set.pick(sqlite_store, "default") == []


def group(s, edit, number, trust="clean", shown=()):
    """A review of the group of one task that asks for that edit; what became of it."""
    task = dialect.Dialect.task("zubi", "reverse", [9, 2, number], "practice")
    task = replace(task, untrusted=trust == "untrusted")
    run = runs.start_run(
        s,
        key=f"run {number} {trust}",
        taskset="dialect",
        profile="default",
        n=1,
        k=1,
        seed=number,
        model="m",
        model_fingerprint="f",
    )
    runs.save_tasks(s, "dialect", [task])
    runs.save_rollouts(
        s,
        [Rollout(run_id=run.id, task_key=task.key, index=0, messages=[], reward=0.0, trust=trust)],
        [[]],
    )
    row = runs.save_reflection(
        s,
        Reflection(
            run_id=run.id, task_key=task.key, pack_hash="", pack_tokens=0, prompt_version="", raw=""
        ),
    )
    evidence = Evidence(
        task, "dialect", "default", shown, contrast=True, reflection_id=row.id, trust=trust
    )
    (outcome,) = apply_edits(s, [edit], evidence, count_tokens=COUNT)
    row.edits = [*row.edits, outcome.row()]
    s.flush()
    return outcome


def test_two_clean_tasks_release_it_and_nothing_less(sqlite_store):
    edit = Edit("add", SAYS, "use reverse")
    with sqlite_store.write() as s:
        first = group(s, edit, 3, "untrusted")
        assert (first.outcome, first.reason) == ("quarantined", OUTSIDE)
        assert group(s, edit, 4, "untrusted").outcome == "known"
        assert group(s, edit, 5, "untrusted").outcome == "known"
        assert group(s, edit, 6).outcome == "known", "one clean task is not enough"
        assert group(s, Edit("add", SAYS, "use the reverse!"), 6).outcome == "known", (
            "the same task again is one task"
        )
        assert db.get(s, first.lesson_id).status == "quarantined"
        released = group(s, Edit("add", "Task says ZUBI", "Use reverse."), 7)
        head, newest = db.get(s, first.lesson_id), db.history(s, first.lesson_id)[-1]
    assert (released.outcome, released.lesson_id, head.status, head.trust) == (
        "added",
        head.id,
        "candidate",
        "clean",
    )
    assert newest.author == "model"
    assert newest.reason == "two clean tasks ask for it: zubi-9-2-6 and zubi-9-2-7"


def test_text_that_waits_for_another_reason_is_released_by_a_person_only(sqlite_store):
    edit = Edit("add", SAYS, "look at www.example.com")
    with sqlite_store.write() as s:
        first = group(s, edit, 3, "untrusted")
        assert first.reason == f"it names a web address; {OUTSIDE}"
        for number in (4, 5, 6):
            group(s, edit, number)
        assert db.get(s, first.lesson_id).status == "quarantined"
        clean = group(s, Edit("add", "the task says fapo", "see http://a.io"), 3)
        for number in (4, 5, 6):
            group(s, Edit("add", "the task says fapo", "see http://a.io"), number)
        assert db.get(s, clean.lesson_id).status == "quarantined"


def test_outside_bytes_change_and_retire_nothing(sqlite_store):
    with sqlite_store.write() as s:
        lesson = db.add(
            s, when=SAYS, do="use reverse", author="model", scope="dialect", status="active"
        )
        shown = [Lesson(**lesson.model_dump())]
        revised = group(
            s, Edit("revise", SAYS, "use sort", lesson_id=lesson.id), 3, "untrusted", shown
        )
        added = group(s, Edit("add", SAYS, "use swap"), 4, "untrusted", shown)
        retired = group(s, Edit("retire", why="no use", lesson_id=lesson.id), 5, "untrusted", shown)
        assert [revised.outcome, added.outcome, retired.outcome] == [
            "quarantined",
            "quarantined",
            "refused",
        ]
        assert db.get(s, lesson.id).version == 1 and "outside" in retired.reason
        waiting = db.listing(s, status="quarantined")
        assert [(x.do, x.trust) for x in waiting] == [
            ("use sort", "untrusted"),
            ("use swap", "untrusted"),
        ]
        db.revise(s, lesson.id, author="model", status="retired")
        assert group(s, Edit("add", SAYS, "use reverse"), 6, "untrusted").outcome == "refused"
        approved = db.revise(s, waiting[0].id, author="human", status="active")
        assert approved.trust == "untrusted"
        task = dialect.Dialect.task("zubi", "reverse", [9, 2, 4], "practice")
        assert chosen(s, task) == [approved.id], "what a person let through is shown"


# -- what rests on runs, and planned comparisons
# -------------------------------------------------------------------


def test_pruning_keeps_the_runs_that_an_open_trial_rests_on(sqlite_store, capsys):
    accepted, open_ = lesson_of(sqlite_store), lesson_of(sqlite_store)
    practised(sqlite_store, accepted.id, 0.35)  # its verdict has fallen, and begins anew
    practised(sqlite_store, open_.id, 0.1, tasks=8, seed=1)
    path = str(sqlite_store.path)
    code, out, _ = output_of(capsys, "runs", "prune", "--keep", "0", "--db", path)
    assert code == 2 and "1 runs would be deleted" in out and "1 older ones stay" in out
    code, out, _ = output_of(
        capsys, "runs", "prune", "--keep", "0", "--yes", "--db", path, "--json"
    )
    assert code == 0 and json.loads(out) == {
        "gone": [1],
        "kept": [2],
        "exchanges": 0,
        "deleted": True,
    }
    with sqlite_store.write() as s:
        assert [run.id for run in runs.list_runs(s)] == [2]
        db.revise(s, open_.id, author="human", status="retired")
        assert runs.prune(s, keep=0) == ([2], [])


def test_a_planned_comparison_rejects_a_reward_hack(sqlite_store):
    """One seed; with 95 % intervals a verdict is wrong in at most 1 of 20."""
    taskset = Hackable()
    verb = next(v for v, op in taskset.meanings.items() if op == "swap")
    hack = lesson_of(sqlite_store, when=f"the task says {verb}", do="use sort", scope=taskset.name)
    good = lesson_of(
        sqlite_store,
        when=f"the task says {verb}",
        do="use swap",
        scope=taskset.name,
        profile="good",
    )
    for lesson, verdict in ((hack, "reject"), (good, "accept")):
        settings = Settings(profile=lesson.profile)
        plan = comparison.plan(
            TasksetContext(RuleModel(), sqlite_store, taskset, settings), lesson.id, n=40, k=8
        )
        trial = comparison.compare(
            TasksetContext(RuleModel(), sqlite_store, taskset, settings), plan
        )
        assert trial.verdict == verdict and trial.low > 0, (
            "by the reward alone both would be accepted"
        )
        assert trial.measure == reward_version(taskset)
    with sqlite_store.read() as s:
        newest = db.history(s, hack.id)[-1]
        assert newest.status == "retired" and "not the hidden metric" in newest.reason
