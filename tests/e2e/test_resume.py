"""A run whose tasks, model or settings have changed since it began is never continued, replaced or
left behind without a word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import reflect
from reflect.cli import run_command
from reflect.day.practice import run_practice
from reflect.day.run import RunArguments
from reflect.errors import ModelError, UsageError
from reflect.models.base import Completion, Request
from reflect.rollouts.context import TasksetContext
from reflect.store import doctor, runs
from reflect.tasksets import load_taskset
from reflect.workspace.workspace import Workspace

pytestmark = pytest.mark.usefixtures("folder")


class Yes:
    """Says yes to everything, `limit` times; then it is killed."""

    name, fingerprint, context = "yes", "yes-1", 4000

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def sample(self, requests: list[Request]) -> list[list[Completion]]:
        if self.limit <= 0:
            raise KeyboardInterrupt
        self.limit -= 1
        return [
            [Completion("answer: yes", 9, 2, "stop", seed) for seed in r.seeds] for r in requests
        ]


def tasks(n: int = 12, **changed: str) -> None:
    """The file of tasks; `changed`: other words for some of them."""
    rows = [
        {
            "id": f"t{i}",
            "prompt": changed.get(f"t{i}", f"word {i}?"),
            "answer": "yes",
            "split": "practice",
        }
        for i in range(n)
    ]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["prompt"]))


@pytest.fixture
def ws(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which run 1 has 8 of its 12 tasks and was then ended."""
    models = {"yes": Yes(limit=1)}
    monkeypatch.setattr("reflect.models.load_model", lambda name, *_: models[name])
    tasks()
    with pytest.raises(KeyboardInterrupt):
        reflect.open("lessons.db", model="yes").run("my.jsonl", n=12, k=1, seed=0, learn=False)
    models["yes"] = Yes()
    return reflect.open("lessons.db", model="yes")


def states(ws: Workspace) -> list[tuple[int | None, str, int]]:
    """(id, status, rollouts) of each run."""
    with ws.store.read() as s:
        rows = reversed(runs.list_runs(s))
        return [(run.id, run.status, len(runs.rollouts(s, run.id))) for run in rows]


def test_an_unchanged_run_goes_on(ws: Workspace) -> None:
    assert states(ws) == [(1, "running", 8)]
    report = ws.resume()
    assert (report.run_id, report.rollouts, report.superseded) == (1, 12, [])
    assert states(ws) == [(1, "done", 12)] and doctor.check(ws.store, deep=True) == []


CHANGES = [
    ({"t3": "another word?"}, "task t3 has changed"),
    ({"t3": "a?", "t11": "b?"}, "task t11 has changed, task t3 has changed"),
    ({"t3": ""}, "task t3 is missing"),
    ({f"t{i}": "x?" for i in range(9)}, "and 3 more"),
]


@pytest.mark.parametrize(("changed", "message"), CHANGES)
def test_changed_tasks_are_named_and_nothing_is_begun(
    ws: Workspace, changed: dict[str, str], message: str
) -> None:
    tasks(**changed)
    for run_id in (None, 1):
        with pytest.raises(UsageError, match=message) as e:
            reflect.open("lessons.db", model="yes").resume(run_id)
        assert "runs resume 1 --restart" in e.value.hint
    assert states(ws) == [(1, "running", 8)]
    tasks()
    assert reflect.open("lessons.db", model="yes").resume().rollouts == 12


def test_a_new_task_and_another_order_are_named(ws: Workspace) -> None:
    tasks(13)
    with pytest.raises(UsageError, match=r"task t12 is new|is missing|order of its tasks"):
        reflect.open("lessons.db", model="yes").resume()
    assert states(ws) == [(1, "running", 8)]


def test_a_restart_closes_the_first_run_and_loses_nothing(ws: Workspace) -> None:
    tasks(t3="another word?")
    fresh = reflect.open("lessons.db", model="yes")
    report = fresh.resume(restart=True)
    assert (report.run_id, report.seed, report.rollouts) == (2, 0, 12)
    assert states(ws) == [(1, "abandoned", 8), (2, "done", 12)]
    with pytest.raises(UsageError, match="No run is unfinished"):
        fresh.resume()
    tasks()  # the old words again: the first run can still be finished
    assert reflect.open("lessons.db", model="yes").resume(1).rollouts == 12
    assert states(ws) == [(1, "done", 12), (2, "done", 12)]
    assert doctor.check(ws.store, deep=True) == []


def test_a_restart_without_a_change_is_refused(ws: Workspace) -> None:
    with pytest.raises(UsageError, match="Nothing has changed"):
        ws.resume(restart=True)
    ws.resume()
    with pytest.raises(UsageError, match="finished"):
        ws.resume(1, restart=True)
    assert states(ws) == [(1, "done", 12)]


def test_the_same_command_says_that_the_first_run_stays_unfinished(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks(t3="another word?")
    command = "run my.jsonl -n 12 -k 1 --no-reflect -m yes".split()
    assert run_command(command) == 0
    assert "Run 1 stays unfinished: its tasks have changed" in capsys.readouterr().err
    assert states(ws) == [(1, "running", 8), (2, "done", 12)]
    assert run_command(["runs", "abandon", "1"]) == 0
    assert run_command(["runs", "abandon", "2"]) == 2
    assert states(ws)[0] == (1, "abandoned", 8)
    capsys.readouterr()
    assert run_command([*command, "--seed", "0"]) == 0
    assert "unfinished" not in capsys.readouterr().err


def test_another_model_is_refused_and_a_restart_takes_it(ws: Workspace) -> None:
    ws.model.fingerprint = "yes-2"
    with pytest.raises(ModelError, match="has changed since run 1") as e:
        ws.resume()
    assert "--restart" in e.value.hint and states(ws) == [(1, "running", 8)]
    assert ws.resume(restart=True).run_id == 2
    assert states(ws) == [(1, "abandoned", 8), (2, "done", 12)]


def test_settings_of_today_do_not_change_a_resumed_run(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLECT_JUDGE", "yes")
    monkeypatch.setenv("REFLECT_TEMPERATURE", "0.1")
    monkeypatch.setenv("REFLECT_MAX_TOKENS", "3")
    monkeypatch.setenv("REFLECT_N", "2")
    assert reflect.open("lessons.db").resume().rollouts == 12
    assert states(ws) == [(1, "done", 12)]


def test_a_run_that_must_continue_never_begins_another(ws: Workspace) -> None:
    """Whatever has changed: the check is on the hash of all that was asked."""
    with ws.store.read() as s:
        run = runs.get_run(s, 1)
    taskset = load_taskset("my.jsonl")
    other = ws.settings.restored(run.config, temperature=0.3)
    first = RunArguments(n=12, k=1, seed=0, learn=False, continues=run)
    with pytest.raises(UsageError, match="temperature"):
        run_practice(TasksetContext(ws.model, ws.store, taskset, other), first)
    with pytest.raises(UsageError, match="cannot continue"):
        run_practice(TasksetContext(ws.model, ws.store, taskset, ws.settings), replace(first, k=2))
    assert states(ws) == [(1, "running", 8)]


def test_a_run_of_an_earlier_version_names_what_it_can(ws: Workspace) -> None:
    with ws.store.write() as s:
        runs.get_run(s, 1).task_keys = None
    with ws.store.read() as s:
        first = runs.task(s, runs.rollouts(s, 1)[0].task_key).task_id
    tasks(**{first: "another word?"})
    with pytest.raises(UsageError, match=rf"task {first} (is missing|has changed)"):
        reflect.open("lessons.db", model="yes").resume()
    tasks()
    assert reflect.open("lessons.db", model="yes").resume().rollouts == 12
