"""Generators of reasoning-gym as tasksets: a few of them; `reflect tasks check gym` tries all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reflect.cli import run_command
from reflect.errors import ReflectError, UnknownName, UsageError
from reflect.tasksets import check, load_taskset, reasoning_gym
from reflect.tasksets.gymworker import Worker
from reflect.tasksets.task import Task

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize(
    "name",
    [
        "gym:leg_counting",
        "gym:chain_sum:min_terms=4,max_terms=6",
        "gym:chain_sum:level=2,size=90",
        "gym:graph_color",
        "gym:spell_backward+leg_counting:min_animals=4",
    ],
)
def test_own_answers_score_one_and_the_sides_are_apart(name: str) -> None:
    result = load_taskset(name)
    assert result.name == name and check(result, 12) == []
    assert (
        result.tasks("practice", 3, 1)
        == result.tasks("practice", 9, 1)[:3]
        != result.tasks("practice", 3, 2)
    )
    (task,) = result.tasks("holdout", 1)
    assert result.verify(task, "answer: surely not this").reward < 1.0
    assert result.verify(task, f"so it must be this.\n{result.gold(task)}").reward == 1.0


def test_a_mixture_alternates_and_settings_reach_their_generator() -> None:
    result = load_taskset("gym:chain_sum:min_terms=5,max_terms=5,size=6+leg_counting:size=40")
    tasks = result.tasks("practice")
    assert [task.id.split("-")[0] for task in tasks[:4]] == ["chain_sum", "leg_counting"] * 2
    assert (
        result.tasks("practice", 20) == tasks[:20] and len(tasks) > 20
    )  # where one has few, the other makes up for it
    terms = tasks[0].messages[0]["content"].split(":")[1].split("=")[0]
    assert terms.count("+") + terms.count(" - ") == 4


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("gym", UnknownName, "one for each generator"),
        ("gym:leg_countin", UnknownName, "Did you mean leg_counting"),
        ("gym:leg_counting+chainsum", UnknownName, "Did you mean chain_sum"),
        ("gym:leg_counting+leg_counting", UsageError, "twice"),
        (
            "gym:chain_sum:min_term=3",
            UnknownName,
            "no setting 'min_term=3'. Did you mean min_terms",
        ),
        ("gym:chain_sum:seed=3", UnknownName, "no setting 'seed=3'"),
        ("gym:chain_sum:min_terms=9,max_terms=2", UsageError, "cannot be made: AssertionError"),
        ("gym:chain_sum:size=many", UsageError, "size = 'many' is no whole number"),
        ("gym:acre:level=1", UsageError, "has no levels"),
    ],
)
def test_a_name_or_setting_that_is_off(name: str, error: type[ReflectError], said: str) -> None:
    with pytest.raises(error, match=said) as e:
        load_taskset(name)
    assert e.value.hint


def test_the_same_tasks_in_every_process() -> None:
    """This generator orders sets of texts: without a fixed hash seed each process made other
    questions."""
    words = ("isomorphic_strings", {"size": 9, "seed": 1})
    other = Worker()
    item = [
        [worker.entry(*words, i) for i in (0, 1, 2)] for worker in (reasoning_gym.worker, other)
    ]
    other.end()
    assert item[0] == item[1]


def test_a_task_that_the_generator_would_not_make_is_not_scored() -> None:
    result = load_taskset("gym:leg_counting")
    (task,) = result.tasks("practice", 1)
    other = Task(task.id, [{"role": "user", "content": "How many?"}], "taskset", "1", "practice")
    with pytest.raises(ReflectError, match="another question"):
        result.verify(other, "answer: 1")


def test_the_check_names_what_fails_and_why_and_gives_up_in_time() -> None:
    from reflect.tasksets.gymcheck import check_one

    assert check_one("count_bits", 20).problems == []
    assert "without an answer or a solution" in check_one("rush_hour", 5).problems[0]
    assert check_one("zebra_puzzles", 20, seconds=0.5).problems == ["not done within 0.5 seconds"]
    assert check_one("count_bits", 20).problems == []  # the process that was stopped is begun anew


def test_the_list_names_every_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tasks", "list", "gym", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 100 and all(row["name"].startswith("gym:") and row["about"] for row in rows)
    assert run_command(["tasks", "list", "gum"]) == 2


def test_without_the_library_the_extra_is_named(folder: Path) -> None:
    """A real absence: a process whose only reasoning_gym is one that cannot be imported."""
    (folder / "reasoning_gym").mkdir()
    (folder / "reasoning_gym" / "__init__.py").write_text("raise ImportError('not here')\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    words = [sys.executable, "-m", "reflect", "run", "gym:leg_counting"]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=folder)
    assert (
        done.returncode == 2
        and "pip install 'second-nature[gym]'" in done.stderr
        and "Traceback" not in done.stderr
    )
