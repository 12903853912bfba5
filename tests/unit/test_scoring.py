"""Verifiers under limits: one that hangs, loops, blows up or ends its process costs its own rollout
alone."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from fakes import FixedModel

from reflect.errors import BadTaskFile
from reflect.rollouts.runner import Part, run_parts
from reflect.tasksets import isolation, load_taskset
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Score, Task

LIMIT = 1.0
NEVER = 60.0  # seconds: far above what a busy machine needs, far below the bombs
LAUGHS = "\n".join(
    [f"a0: &a0 [{'x, ' * 9}x]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}x]" for i in range(1, 12))]
)
BOMBS = {
    "hangs": lambda text: time.sleep(600),
    "loops": lambda text: next(x for x in iter(int, 1) if x),
    "a power": lambda text: eval("9 ** 9 ** 9 ** 9"),
    "a pattern": lambda text: re.match(r"(a+)+$", "a" * 60 + "b"),
    "nested JSON": lambda text: json.loads("[" * 200_000) or json.loads('{"a":' * 200_000),
    "nested YAML": lambda text: yaml.safe_load("[" * 200_000),
    "aliases": lambda text: len(str(yaml.safe_load(LAUGHS))),
    "memory": lambda text: [bytearray(1 << 20) for _ in range(1 << 20)],
    "exits": lambda text: exit(0),
    "leaves": lambda text: os._exit(0),
    "deaf": lambda text: [signal.pthread_sigmask(0, signal.valid_signals()), time.sleep(600)],
}


@pytest.fixture(autouse=True)
def limits():
    isolation.limit(LIMIT, 256)
    yield
    isolation.limit(10.0, 4096)


class Mined(Taskset):
    """A task's answer is the name of what its verifier does; the others are scored as they should
    be."""

    name = "mined"

    def tasks(self, split, n=None, seed=0):
        rows = [*BOMBS, "good", "bad"]
        return [
            Task(name, [{"role": "user", "content": name}], "taskset", name, split) for name in rows
        ][:n]

    def verify(self, task, text):
        if task.answer in BOMBS:
            BOMBS[task.answer](text)
        return Score(float(task.answer == "good"), "seen", {"length": len(text)})


def task_of(name: str) -> Task:
    return next(task for task in Mined().tasks("practice") if task.id == name)


@pytest.mark.parametrize("name", BOMBS)
def test_each_ends_within_its_limit(name):
    began = time.monotonic()
    with pytest.raises((isolation.Broke, TimeoutError, ChildProcessError)) as caught:
        isolation.verify(Mined(), task_of(name), "text")
    assert time.monotonic() - began < NEVER
    errors = {
        "exits": "SystemExit",
        "nested JSON": "RecursionError",
        "nested YAML": "RecursionError",
    }
    errors |= {"leaves": "ChildProcessError"}
    named = dict.fromkeys(
        ("aliases", "memory"), ("TimeoutError", "MemoryError")
    )  # whichever a busy machine meets first
    named["nested YAML"] = ("TimeoutError", "RecursionError")
    assert type(caught.value).__name__ in named.get(name, (errors.get(name, "TimeoutError"),))


def test_four_at_once_and_the_others_are_scored(monkeypatch):
    call, turn, active, most = isolation._call, threading.Lock(), 0, 0

    def counted(*words):
        nonlocal active, most
        with turn:
            active += 1
            most = max(most, active)
        try:
            return call(*words)
        finally:
            with turn:
                active -= 1

    monkeypatch.setattr(isolation, "_call", counted)
    bombs = ["hangs", "loops", "a pattern", "aliases"]
    parts = [Part(task_of(name), [], [0]) for name in [*bombs, "good", "bad", "good"]]
    rows = [row for (row,) in run_parts(FixedModel(), Mined(), parts, seed=0)]
    assert all(row.reward is None and row.error.startswith("verifier: ") for row in rows[:4])
    assert "within 1 s (verify_seconds)" in rows[0].error
    assert [(row.reward, row.feedback, row.error) for row in rows[4:]] == [
        (1.0, "seen", None),
        (0.0, "seen", None),
        (1.0, "seen", None),
    ]
    assert most == isolation.AT_ONCE == 4
    assert not _children(), "no worker outlives its batch"


def _children() -> list[int]:
    """Processes that this one has forked and that still are there."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    mine = Path("/proc/self/cmdline").read_text()
    return [pid for pid in found if Path(f"/proc/{pid}/cmdline").read_text() == mine]


def test_what_a_verifier_started_ends_with_it(tmp_path):
    class Starts(Mined):
        def verify(self, task, text):
            if pid := os.fork():
                (tmp_path / "pid").write_text(str(pid))
            time.sleep(600)

    with pytest.raises(TimeoutError):
        isolation.verify(Starts(), task_of("good"), "x")
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    # the kernel ends it when it gets its turn; its new parent may leave it a zombie
    end = time.monotonic() + NEVER
    while time.monotonic() < end and status.exists() and "Z (zombie)" not in status.read_text():
        time.sleep(0.01)
    assert time.monotonic() < end


def test_what_a_worker_says_is_what_the_verifier_says():
    taskset = Mined()
    assert isolation.verify(taskset, task_of("good"), "four") == Score(1.0, "seen", {"length": 4.0})
    with isolation.batch():
        assert [
            isolation.verify(taskset, task_of(name), "x").reward for name in ("good", "bad", "good")
        ] == [1, 0, 1]
    taskset.verify = lambda task, text: Score(0.25, str(os.getpid()))
    mine = isolation.verify(taskset, task_of("good"), "x")
    assert mine.reward == 0.25 and mine.feedback != str(os.getpid())


class Odd(Mined):
    def verify(self, task, text):
        return {
            "nothing": None,
            "a text": Score("much"),
            "NaN": Score(float("nan")),
            "parts": Score(1, "", {"a": {}}),
        }[text]


@pytest.mark.parametrize("text", ["nothing", "a text", "NaN", "parts"])
def test_a_score_that_is_none_is_an_error_of_its_rollout(text):
    ((row,),) = run_parts(FixedModel(text), Odd(), [Part(task_of("good"), [], [0])], seed=0)
    assert row.reward is None and row.error.startswith("verifier: ")


def test_the_named_verifiers_run_here_and_a_pattern_or_an_endless_text_does_not(monkeypatch):
    asked = []
    monkeypatch.setattr(
        isolation,
        "_call",
        lambda taskset, name, task, text: asked.append(task.verifier) or {"reward": 1.0},
    )
    message = [{"role": "user", "content": "?"}]
    for verifier in ("exact", "number", "contains", "regex"):
        isolation.verify(Taskset(), Task("t", message, verifier, "1", "practice"), "answer: 1")
    assert asked == ["regex"]
    isolation.verify(Taskset(), Task("t", message, "number", "1", "practice"), "1," * 20_000)
    assert asked == ["regex", "number"]
    dialect = load_taskset("dialect")
    task = dialect.tasks("practice", 1)[0]
    assert isolation.verify(dialect, task, dialect.gold(task)).reward == 1.0 and len(asked) == 2


def test_the_fast_path_starts_no_process_and_asks_none(monkeypatch):
    task = Task("t", [{"role": "user", "content": "?"}], "number", 3, "practice")
    started = []
    monkeypatch.setattr(isolation, "_call", lambda *job: started.append(job))
    monkeypatch.setattr(os, "fork", lambda: started.append("fork"))
    for _ in range(1000):
        assert isolation.verify(Taskset(), task, "s t r, so 3. answer: 3").reward == 1.0
    assert not started


@pytest.mark.parametrize("verifier", ["regex", "number", "exact", "contains"])
def test_a_pattern_or_a_text_without_end_is_ended(verifier):
    answers = {"regex": r"(a|a)+$"}
    texts = {"regex": "a" * 60 + "b", "number": "1,111," * 300_000 + "x" + "9" * 1_000_000 + "e999"}
    task = Task(
        "t", [{"role": "user", "content": "?"}], verifier, answers.get(verifier, 3), "practice"
    )
    began = time.monotonic()
    try:
        assert (
            isolation.verify(Taskset(), task, texts.get(verifier, "answer: " * 300_000)).reward == 0
        )
    except TimeoutError:
        assert verifier in ("regex", "number")
    assert time.monotonic() - began < NEVER


def test_numbers_with_huge_exponents_are_compared_and_not_written_out():
    task = Task("t", [{"role": "user", "content": "?"}], "number", 3, "practice")
    for text in ("1e999", "9" * 15_000 + "e999", "-1e-999", "1" * 15_000 + "." + "1" * 4_000):
        began = time.process_time()
        assert isolation.verify(Taskset(), task, text).reward == 0
        assert time.process_time() - began < 0.2


def test_forking_beside_busy_threads_of_torch_hangs_nothing():
    torch = pytest.importorskip("torch")
    stop = threading.Event()

    def busy() -> None:
        a = torch.rand(300, 300)
        while not stop.is_set():
            a = (a @ a).softmax(0)

    class Heavy(Mined):
        def verify(self, task, text):
            return Score(float(torch.ones(200, 200).matmul(torch.ones(200, 200)).sum() == 200.0**3))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threads = [threading.Thread(target=busy) for _ in range(2)]
    try:
        for thread in threads:
            thread.start()
        isolation.limit(20.0, 4096)  # each would hang for ever, if one did
        assert [isolation.verify(Heavy(), task_of("good"), "x").reward for _ in range(25)] == [
            1.0
        ] * 25
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        torch.set_num_threads(before)


# -- task files
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "laughs.yaml",
            f"- prompt: p\n  answer: a\n  more:\n{re.sub('^', '    ', LAUGHS, flags=re.MULTILINE)}\n",
            "endless",
        ),
        ("self.yaml", "- &a\n  prompt: p\n  answer: *a\n", "endless"),
        ("deep.yaml", "- prompt: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (
            "deep.json",
            '[{"prompt": "p", "answer": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}]",
            "no JSON",
        ),
        ("deep.jsonl", '{"prompt": "p", "answer": ' + '{"a":' * 100_000, "no JSON"),
        ("long.jsonl", '{"prompt": "p", "answer": ' + "1" * 100_000 + "}", "no JSON"),
        ("huge.jsonl", '{"prompt": "p", "answer": 1e999}', "no number that can be compared"),
    ],
)
def test_a_task_file_that_is_a_bomb_is_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    began = time.process_time()
    with pytest.raises(BadTaskFile, match=says):
        load_taskset(tmp_path / name)
    assert time.process_time() - began < 5


def test_aliases_in_a_task_file_stand_for_what_they_name(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "- {prompt: &p the same, answer: a}\n- {prompt: other, answer: *p}\n"
    )
    taskset = load_taskset(tmp_path / "t.yaml")
    tasks = [*taskset.tasks("practice"), *taskset.tasks("holdout")]
    assert {task.answer for task in tasks} == {"a", "the same"}
