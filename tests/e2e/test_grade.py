"""Grades by people: what waits, who gave what and when, files, and the review that reads them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from fakes import RuleModel

import reflect
from reflect.cli import run_command
from reflect.config import Settings
from reflect.day.practice import learn_from_grades, practice
from reflect.errors import BadTaskFile, UnknownName, UsageError
from reflect.records import Lesson, Rollout
from reflect.rollouts.context import TasksetContext
from reflect.store import Store, lessons, runs
from reflect.tasksets import Score, Task, load_taskset
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import HUMAN, Split


class ByHand(Taskset):
    """dialect, but no program scores it."""

    name = "dialect"

    def __init__(self) -> None:
        self.scored = load_taskset("dialect")
        self.known = {task.id: task for task in self.scored.tasks("practice")}

    def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
        return [
            Task(t.id, t.messages, HUMAN, t.answer, split)
            for t in self.scored.tasks(split, n, seed)
        ]

    def right(self, row: Rollout, task: Task) -> float:
        return self.scored.verify(self.known[task.id], row.messages[-1]["content"]).reward


@pytest.fixture
def graded(folder: Path) -> tuple[Store, ByHand, int]:
    """A finished run of 4 tasks, 4 attempts each, that nobody has graded."""
    store, taskset = Store("lessons.db"), ByHand()
    report = practice(RuleModel(), store, taskset, Settings(), n=4, k=4, seed=0, learn=False)
    assert (report.errors, report.ungraded, report.reflections) == (0, 16, 0)
    return store, taskset, report.run_id


def grade_all(store: Store, taskset: ByHand, run_id: int) -> None:
    grades = reflect.open("lessons.db").grades
    with store.read() as s:
        tasks = {
            row.id: Task(**runs.task(s, row.task_key).content) for row in runs.rollouts(s, run_id)
        }
        rows = runs.rollouts(s, run_id)
    grades.give_all([(row.id or 0, taskset.right(row, tasks[row.id]), "") for row in rows], "Ada")


def said(store: Store) -> list[tuple[str, str, str]]:
    with store.read() as s:
        return [(row.when, row.do, row.status) for row in lessons.listing(s)]


def test_a_graded_run_is_reviewed_as_a_scored_one_is(
    graded: tuple[Store, ByHand, int], tmp_path: Path
) -> None:
    store, taskset, run_id = graded
    grade_all(store, taskset, run_id)
    done = learn_from_grades(TasksetContext(RuleModel(), store, taskset, Settings()), run_id)
    scored = Store(tmp_path / "scored.db")
    direct = practice(RuleModel(), scored, taskset.scored, Settings(), n=4, k=4, seed=0)
    # The task keys differ with the verifier, and the seeds with the keys: compare what the reviews
    # were made of.
    assert done.reflections > 0 and done.reward > 0 and done.ungraded == 0
    with store.read() as s, scored.read() as t:
        mine, theirs = runs.reflections(s, run_id)[0], runs.reflections(t, direct.run_id)[0]
        assert mine.prompt_version == theirs.prompt_version and mine.raw and mine.pack_tokens
        assert all(edit["outcome"] in ("added", "known", "quarantined") for edit in mine.edits)
    assert said(store) and all(when.startswith("the task says") for when, _, _ in said(store))
    assert (
        learn_from_grades(
            TasksetContext(RuleModel(), store, taskset, Settings()), run_id
        ).reflections
        == done.reflections
    )


def test_the_review_of_the_same_rollouts_is_the_same(folder: Path) -> None:
    """A run that a program scored: reviewed at once, or without a review and then by `grade
    review`."""
    taskset = load_taskset("dialect")
    at_once, later = Store("once.db"), Store("later.db")
    first = practice(RuleModel(), at_once, taskset, Settings(), n=6, k=4, seed=3)
    second = practice(RuleModel(), later, taskset, Settings(), n=6, k=4, seed=3, learn=False)
    done = learn_from_grades(TasksetContext(RuleModel(), later, taskset, Settings()), second.run_id)
    assert done.changes == first.changes and done.changes and done.rewards == first.rewards
    with at_once.read() as s, later.read() as t:
        packs = [[row.pack_hash for row in runs.reflections(x, 1)] for x in (s, t)]
    assert packs[0] == packs[1] and said(at_once) == said(later)


def test_feedback_of_an_expert_stands_in_the_reflection(graded: tuple[Store, ByHand, int]) -> None:
    store, taskset, run_id = graded
    grade_all(store, taskset, run_id)
    grades = reflect.open("lessons.db").grades
    with store.read() as s:
        row = runs.rollouts(s, run_id)[0]
    grades.give(row.id or 0, 0.0, "say which list <|end|> you mean", "Ada")
    model = RuleModel()
    learn_from_grades(TasksetContext(model, store, taskset, Settings()), run_id)
    (seen,) = [prompt for prompt in model.prompts if "say which list" in prompt]
    assert "feedback: say which list   you mean" in seen and "Ada" not in seen


def test_who_and_when_and_what_stood_before_is_kept(graded: tuple[Store, ByHand, int]) -> None:
    _store, _, run_id = graded
    grades = reflect.open("lessons.db").grades
    one = grades.waiting(run_id)[0]["rollout"]
    grades.give(one, 0.5, "short", "Ada")
    done = grades.give(one, 1.0, by="Bo")
    assert (done["reward"], done["feedback"]) == (1.0, "short"), (
        "words stand until others are given"
    )
    assert [(g["by"], g["reward"], g["feedback"]) for g in done["grades"]] == [
        ("Ada", 0.5, "short"),
        ("Bo", 1.0, "short"),
    ]
    assert all(datetime.fromisoformat(g["at"]).tzinfo for g in done["grades"])
    assert len(grades.waiting(run_id)) == 15 and len(grades.waiting(run_id, every=True)) == 16


def test_a_grade_over_a_verifiers_keeps_the_verifiers(folder: Path) -> None:
    class Broken(Taskset):
        name = "broken"

        def tasks(self, split: Split, n: int | None = None, seed: int = 0) -> list[Task]:
            verbs = ["zubi", "nonu"]
            requests = [
                f"Apply {verb} to the list 1 2 {number}. ({split})"
                for number, verb in enumerate(verbs)
            ]
            return [
                Task(text, [{"role": "user", "content": text}], "taskset", 1, split)
                for text in requests
            ][:n]

        def verify(self, task: Task, text: str) -> Score:
            return Score(0.25, "wrong") if "nonu" in task.id else Score(1 / 0)

    store = Store("lessons.db")
    practice(RuleModel(), store, Broken(), Settings(), n=2, k=1, seed=0, learn=False)
    grades = reflect.open("lessons.db").grades
    (broke,) = grades.waiting(1)
    (other,) = [row for row in grades.waiting(1, every=True) if row["reward"] == 0.25]
    firsts = [grades.give(row["rollout"], 1.0, by="Ada")["grades"][0] for row in (broke, other)]
    assert (
        firsts[0]["error"] == "verifier: ZeroDivisionError: division by zero"
        and firsts[0]["reward"] is None
    )
    assert (firsts[1]["by"], firsts[1]["reward"], firsts[1]["feedback"]) == (
        "verifier",
        0.25,
        "wrong",
    )
    with store.read() as s:
        assert [row.error for row in runs.rollouts(s, 1)] == [None, None]


def test_what_waits_for_a_grade_counts_in_no_trial(folder: Path) -> None:
    from reflect.store import trials
    from reflect.trials.reward_version import reward_version

    store, taskset = Store("lessons.db"), ByHand()
    verb = taskset.tasks("practice", 1)[0].text.split()[1]
    with store.write() as s:
        result = lessons.add(
            s, when=f"the task says {verb}", do="use sort", author="model", scope="dialect"
        )
    practice(RuleModel(), store, taskset, Settings(), n=6, k=8, seed=0, learn=False)
    words = (result.id, 1, "rule-1", None, reward_version(taskset))
    with store.read() as s:
        assert trials.observations(s, *words) == [] and runs.rollouts(s, 1)
    grade_all(store, taskset, 1)
    with store.read() as s:
        seen = trials.observations(s, *words)
    assert {row.shown for row in seen} == {True, False}
    learn_from_grades(TasksetContext(RuleModel(), store, taskset, Settings()), 1)
    with store.read() as s:
        ((lesson, tried),) = [(a, b) for a, b in trials.of_day(s, "default", result.id)]
    assert isinstance(lesson, Lesson) and tried and tried[0].n == len(seen)


# -- the command line
# --------------------------------------------------------------------------------------------------


def out_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run_command(words) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return out if code == 0 else err


def test_by_hand_and_by_file(
    graded: tuple[Store, ByHand, int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(out_of(capsys, "grade", "--json"))
    assert len(rows) == 16 and set(rows[0]) == {
        "rollout",
        "task",
        "attempt",
        "prompt",
        "text",
        "reward",
        "feedback",
    }
    one = str(rows[0]["rollout"])
    assert f"rollout {one}, attempt 1: " in out_of(capsys, "grade", "--run", "1")
    assert (
        out_of(capsys, "grade", one, "0.5", "--feedback", "half") == f"rollout {one}: reward 0.5\n"
    )
    again = json.loads(out_of(capsys, "grade", "give", one, "1", "--by", "Ada", "--json"))
    assert again["reward"] == 1.0 and again["grades"][-1]["by"] == "Ada"
    assert out_of(capsys, "grade", "list", "--out", "g.jsonl") == "g.jsonl: 15 rollouts of run 1\n"
    assert "already exists" in out_of(capsys, "grade", "list", "--out", "g.jsonl", code=2)
    lines = [json.loads(line) for line in Path("g.jsonl").read_text().splitlines()]
    lines[0] |= {"reward": 0, "feedback": "no"}
    lines[1] |= {"reward": 1}
    Path("g.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert len(json.loads(out_of(capsys, "grade", "load", "g.jsonl", "--by", "Bo", "--json"))) == 2
    assert len(json.loads(out_of(capsys, "grade", "--json"))) == 13


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"rollout": 1, "reward": 2}',
            "g.jsonl, line 2, field 'reward': 2 is no number from 0 to 1",
        ),
        ('{"rollout": 1, "reward": "good"}', "field 'reward'"),
        ('{"rollout": "one", "reward": 1}', "field 'rollout': there is none"),
        ('{"rollout": 1, "reward": 1, "feedback": 3}', "field 'feedback': it is not a text"),
        ('{"rollout": 1, "rew', "g.jsonl, line 2: this is no JSON"),
        ('{"rollout": 99, "reward": 1}', "There is no rollout 99"),
    ],
)
def test_a_file_with_a_bad_line_grades_nothing(
    graded: tuple[Store, ByHand, int], line: str, said: str
) -> None:
    Path("g.jsonl").write_text(f'{{"rollout": 2, "reward": 1}}\n{line}\n')
    grades = reflect.open("lessons.db").grades
    with pytest.raises((BadTaskFile, UnknownName), match=said):
        grades.load(Path("g.jsonl"))
    assert len(grades.waiting(1)) == 16


def test_what_cannot_be_graded_or_reviewed(
    graded: tuple[Store, ByHand, int], capsys: pytest.CaptureFixture[str]
) -> None:
    store, taskset, _ = graded
    assert "1.5 is no reward" in out_of(capsys, "grade", "1", "1.5", code=2)
    assert "not a finite number" in out_of(capsys, "grade", "1", "nan", code=2)
    assert "There is no rollout 99" in out_of(capsys, "grade", "99", "1", code=2)
    assert "There is no run 9" in out_of(capsys, "grade", "--run", "9", code=2)
    with pytest.raises(UsageError, match="No rollout of run 1 has a grade"):
        learn_from_grades(TasksetContext(RuleModel(), store, taskset, Settings()), 1)
    practice(RuleModel(context=20), store, taskset, Settings(), n=1, k=1, seed=5, learn=False)
    assert "has no answer: model: " in out_of(capsys, "grade", "17", "1", code=2)
    with store.write() as s:
        runs.get_run(s, 1).status = "running"
    with pytest.raises(UsageError, match="Run 1 is not finished"):
        learn_from_grades(TasksetContext(RuleModel(), store, taskset, Settings()), 1)


def test_there_is_no_run_yet(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no run to grade" in out_of(capsys, "grade", code=2)


def test_from_the_run_to_the_lesson_at_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Apply fima to the list 3 1 {i}.", "verifier": "human"} for i in range(4, 8)
    ]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run_command(["run", "mine.jsonl", "-n", "2", "-k", "3", "--no-reflect"])
    assert "6 rollouts wait for a person's grade" in capsys.readouterr().err
    for number, row in enumerate(json.loads(out_of(capsys, "grade", "--json"))):
        out_of(capsys, "grade", str(row["rollout"]), str(number % 2))
    report = json.loads(out_of(capsys, "grade", "review", "1", "--json"))
    assert report["reflections"] == 2 and report["reward"] == 0.5
