"""A workspace of an earlier version: what it holds is read as it was, and what was unfinished goes on.

`data/before/workspaces.tar.xz` was written by commit 8372a51, by its own commands and functions alone:

- `day`: the profile default has a promoted night with its adapter, finished runs, traffic of `reflect serve`, of which
  a part waits for a run, and run 7, ended by SIGKILL in its second wave. The profile team has lessons of every status,
  in quarantine for each reason that there was, links, rules, verdicts of trials, and run 8, ended by SIGKILL after the
  rollouts of its first wave. Run 3 has a rollout for each kind of error. Runs 5 and 6 stopped because the server of the
  model, and that of the judge, refused the key.
- `night_harvest` and `night_train`: night 2, ended by SIGKILL after that stage.

`data/before/expected.json` is what that commit itself reported of them, and what it made of them when it went on.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text as sql

import reflect
from reflect.cli import run_command

DATA = (
    next(parent for parent in Path(__file__).parents if (parent / "data").is_dir())
    / "data"
    / "before"
)
FIRST, SECOND = (
    "night-00e5f03b76c0",
    "night-3ee96bec4207",
)  # adapters: that of the promoted night, that of night 2
SLEEP, BUDGET = ["sleep", "dialect", "--budget", "10s"], 1 / 6  # as night 2 was started; minutes
Copy = Callable[[str], Path]

# Tasksets of before import the first names of EnvironmentStep and extract_answer.
pytestmark = pytest.mark.filterwarnings("ignore:reflect.tasksets.:DeprecationWarning")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(DATA / "workspaces.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copy(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    """A fresh copy of one of the workspaces, made the working folder."""
    for name in [name for name in os.environ if name.startswith(("REFLECT_", "OPENAI_"))]:
        monkeypatch.delenv(name)

    def make(name: str) -> Path:
        shutil.copytree(unpacked / name, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((DATA / "expected.json").read_text())
    return result


def command(*words: str, exit_code: int = 0) -> Any:
    """The JSON that a command prints, run in the working folder."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_command([*words, "--json"]) == exit_code
    return json.loads(out.getvalue())


# -- what a workspace holds --------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def lessons_of(profile: str) -> list[list[Any]]:
    """[id, version, status, trust, pinned, scope, when, do] of each lesson, by id."""
    names = ("id", "version", "status", "trust", "pinned", "scope", "when", "do")
    return [
        [getattr(lesson, name) for name in names]
        for lesson in reflect.open("lessons.db", profile=profile).lessons
    ]


def histories_of(profile: str) -> list[list[Any]]:
    """[lesson, version, parent, author, status] of each version."""
    book = reflect.open("lessons.db", profile=profile).lessons
    rows = [row for lesson in book for row in book.history(lesson.id)]  # type: ignore[arg-type]
    return [[row.lesson_id, row.version, row.parent, row.author, row.status] for row in rows]


def links_of(profile: str) -> list[list[Any]]:
    """[lesson, the lesson in whose place it is, kind] of each link."""
    book = reflect.open("lessons.db", profile=profile).lessons
    rows = [row for lesson in book for row in book.links(lesson.id)]  # type: ignore[arg-type]
    return sorted([row.lesson_id, row.other_id, row.kind] for row in rows)


def shown(run_id: int) -> dict[str, Any]:
    result: dict[str, Any] = command("runs", "show", str(run_id), "--rollouts")
    return result


def run_of(shown: dict[str, Any]) -> dict[str, Any]:
    """A run with its rollouts in the order of tasks and attempts, and its reflections."""
    names = (
        "task_key",
        "index",
        "seed",
        "reward",
        "finish",
        "trust",
        "bundle_shown",
        "bundle_probability",
    )
    rows = [[row[name] for name in names] + [digest(row["messages"])] for row in shown["attempts"]]
    reviews = [
        [
            row["task_key"],
            digest(row["raw"]),
            [[x["kind"], x["outcome"], x["lesson"]] for x in row["edits"]],
        ]
        for row in shown["reflections"]
    ]
    return {"status": shown["status"], "rollouts": sorted(rows), "reflections": reviews}


def errors_of(shown: dict[str, Any]) -> dict[str, list[Any]]:
    """rollout -> [the kind of its error or None, finish]."""
    rows = shown["attempts"]
    return {
        str(row["id"]): [row["error"] and str(row["error"]).split(":")[0], row["finish"]]
        for row in rows
    }


def trials_of(profile: str) -> list[list[Any]]:
    names = ("lesson", "kind", "effect", "low", "high", "n", "verdict", "moved")
    rows = command("trial", "--profile", profile)
    return [[row.get(name) for name in names] for row in rows]


def facts() -> dict[str, Any]:
    """Everything that the working folder `day` is compared by."""
    profiles = {row["profile"]: row for row in command("profiles", "list")}
    runs = command("runs", "list")
    whole = {str(run["id"]): shown(run["id"]) for run in runs}
    names = (
        "id",
        "profile",
        "taskset",
        "n",
        "k",
        "seed",
        "status",
        "model",
        "adapter_id",
        "measure",
        "key",
    )
    return {
        "profiles": {name: [row["lessons"], row["active"]] for name, row in profiles.items()},
        "lessons": {name: lessons_of(name) for name in profiles},
        "histories": {name: histories_of(name) for name in profiles},
        "links": links_of("team"),
        "runs": [[run[name] for name in names] for run in runs],
        "rollouts": {name: run_of(run) for name, run in whole.items()},
        "errors": {name: errors_of(whole[name]) for name in ("3", "5", "6")},
        "trials": {name: trials_of(name) for name in ("default", "team")},
        "rules": [
            [x["id"], x["pattern"], x["kind"], x["why"]]
            for x in command(*"lessons forbidden --profile team".split())
        ],
        "nights": [[x["id"], x["status"], x["lessons"]] for x in command("nights", "list")],
        "adapters": [[x["name"], x["status"], x["manifest"]] for x in command("adapters", "list")],
        "ungraded": [x["rollout"] for x in command(*"grade list --run 3 --profile errors".split())],
        "waiting": command("run", "--from-traffic", "--dry-run")["waiting"],
    }


# -- the tests ---------------------------------------------------------------------------------------------------------


def test_what_a_workspace_holds_is_read_as_it_was(copy: Copy, expected: dict[str, Any]) -> None:
    copy("day")
    result = json.loads(json.dumps(facts()))
    for name, value in expected["facts"].items():
        assert result[name] == value, name
    default, team = (result["profiles"][name] for name in ("default", "team"))
    assert default == [
        {"candidate": 2, "active": 1, "distilled": 3, "retired": 0, "quarantined": 2},
        FIRST,
    ]
    assert team == [
        {"candidate": 7, "active": 5, "distilled": 0, "retired": 3, "quarantined": 24},
        None,
    ]
    kinds = sorted({kind for kind, _ in result["errors"]["3"].values() if kind})
    assert kinds == ["environment", "judge", "model", "verifier"]
    assert [x[1] for x in result["errors"]["5"].values()].count("halted") == 3


def test_the_doctor_finds_nothing_wrong_with_it(copy: Copy) -> None:
    copy("day")
    with reflect.open("lessons.db").store.read() as s:
        waiting = s.exec(sql("SELECT id FROM rollout WHERE reward IS NULL AND error IS NULL"))
        assert waiting.scalars().all() == [71], "rollout 71 waits for a person's grade"
    for words in (["doctor"], ["doctor", "--deep"]):
        assert command(*words)["problems"] == []


MEASURES = {  # taskset -> the hash of its reward, by which trials and unfinished runs are known
    "letters": "c2b5626be9c9",
    "dialect": "8219a673a06c",
    "calc": "e067db9a4fbc",
    "shop": "07957d8c3380",
    "skills": "8219a673a06c",
    "contains.jsonl": "cc2ae48d245b",
    "code.jsonl": "bac4084227b6",
    "functions.py:longer": "1302a14620ce",
    "functions.py:doubles": "f203e3165686",
    "sums.py": "ff24eeff9a44",
}
GYM = {
    "gym:leg_counting": "4eb8779e9d13",
    "gym:leg_counting+chain_sum:level=2": "e807c69e806e",
}
CODE_CASES = [{"args": [2], "returns": 4}]
FILES = {
    "contains.jsonl": json.dumps(
        {"id": "a", "prompt": "say 3", "verifier": "contains", "answer": "3"}
    ),
    "code.jsonl": json.dumps(
        {"prompt": "w", "verifier": "code", "entry": "f", "cases": CODE_CASES}
    ),
    "functions.py": '''"""longer: which is longer"""
from reflect.tasksets import judged, taskset
WORDS = "plum apple cherry banana kiwi apricot fig orange papaya grapefruit pear tangerine".split()
def one_word(text, answer):
    said = judged(text).split()
    if len(said) != 1:
        return 0, f"{len(said)} words instead of one"
    return said[0].strip(".").lower() == answer
@taskset(verify=one_word)
def longer(split):
    """Which of two words is longer?"""
    words = WORDS[::2] if split == "practice" else WORDS[1::2]
    for one in words:
        for other in words:
            if len(one) > len(other):
                yield f"Which is longer, {other} or {one}?", one
@taskset
def doubles(split):
    """Doubles."""
    for n in range(9):
        if (n % 2) == (split == "practice"):
            yield f"double {n}", str(2 * n)
''',
    "sums.py": '''"""sums"""
from reflect.tasksets import Environment, Outside, Score, Step, Task, Taskset, Toolbox
def add(a: int, b: int) -> int:
    "Add two numbers."
    return a + b
class Sums(Taskset):
    name = "sums"
    about = "sums"
    def tasks(self, split, n=None, seed=0):
        add = 100 * (split == "practice")
        return [Task(f"{split}-{i}", [{"role": "user", "content": f"Add 5 and {i + add}."}], "exact", str(5 + i + add), split=split) for i in range(3)][:n]
    def environment(self, task):
        return Toolbox(add, lines=True)
TASKSET = Sums()
''',
}


def measures(names: Iterable[str]) -> dict[str, str]:
    """The hashes by which runs of these tasksets are recorded."""
    for name, text in FILES.items():
        Path(name).write_text(text)
    ws = reflect.open("lessons.db", max_tokens=2, max_turns=1, verify_seconds=60.0)
    runs = {name: ws.run(name, n=1, k=1, seed=0, learn=False).run_id for name in names}
    return {name: shown(run_id)["measure"] for name, run_id in runs.items()}


def test_rewards_are_known_by_the_same_hash(copy: Copy, bwrap: str) -> None:
    """Else evidence is lost, and no unfinished run could go on. `exact`, `contains` and
    extract_answer accept other texts since version 0.1: what rests on them is measured again."""
    copy("day")
    assert measures(MEASURES) == MEASURES


def test_rewards_of_reasoning_gym_are_known_by_the_same_hash(copy: Copy) -> None:
    pytest.importorskip("reasoning_gym")
    if version("reasoning-gym") != "0.1.25":
        pytest.skip("the hash holds the version of reasoning-gym")
    copy("day")
    assert measures(GYM) == GYM


def test_more_tasks_are_practised_with_its_lessons_and_its_adapter(copy: Copy) -> None:
    copy("day")
    report = reflect.open("lessons.db", k=2).run("dialect", n=2, seed=77)
    assert (report.run_id, report.rollouts, report.errors) == (9, 4, 0)
    assert shown(9)["adapter_id"] == 1


def test_its_unfinished_runs_go_on_as_they_would_have(copy: Copy, expected: dict[str, Any]) -> None:
    """Run 7, the newest of its profile, with the adapter on; run 8 of another profile, whose reflections release a
    lesson from the quarantine."""
    copy("day")
    assert command("runs", "resume")["run_id"] == 7
    assert reflect.open("lessons.db").resume(8).rollouts == 64
    for number in ("7", "8"):
        result = run_of(shown(int(number)))
        assert result["status"] == "done" and len(result["rollouts"]) == 64
        assert json.loads(json.dumps(result)) == expected["resumed"][number]
    for profile in ("default", "team"):
        assert json.loads(json.dumps(lessons_of(profile))) == expected["resumed"][profile]
    assert [26, 2, "candidate", "clean"] in [row[:4] for row in lessons_of("team")]


def test_what_it_served_is_reflected_on(copy: Copy, expected: dict[str, Any]) -> None:
    copy("day")
    (report,) = command("run", "--from-traffic")
    assert (report["run_id"], report["rollouts"], report["reward"]) == tuple(expected["traffic"])
    assert command("run", "--from-traffic", "--dry-run")["waiting"] == 0


def test_runs_that_a_server_stopped_go_on(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts that were made stay; those that were not are made now. In run 6 it was the judge that had stopped."""
    copy("day")
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    before = [row[:6] for row in run_of(shown(5))["rollouts"] if row[4] != "halted"]
    with answering() as url:
        for number, rollouts in ((5, 8), (6, 2)):
            report = command("runs", "resume", str(number), "--base-url", url)
            assert report["rollouts"] == rollouts
    five, six = run_of(shown(5)), run_of(shown(6))
    assert (
        len(before) == 5
        and [row for row in before if row in [x[:6] for x in five["rollouts"]]] == before
    )
    assert (five["status"], len(five["rollouts"])) == ("done", 8)
    assert [row[3:5] for row in six["rollouts"]] == [[0.5, "stop"]] * 2


def test_what_a_person_decides_about_its_lessons_has_the_same_effect(copy: Copy) -> None:
    """Lesson 20 was proposed in the place of lesson 19."""
    copy("day")
    book = reflect.open("lessons.db", profile="team").lessons
    assert (book.get(19).status, book.get(20).status) == ("candidate", "quarantined")
    assert book.approve(20).status == "active"
    assert book.get(19).status == "retired"
    assert book.undo(38).do == "round it up"
    assert book.reject(4, reason="no").status == "retired"


def test_its_adapter_is_left_and_taken_up_again(copy: Copy) -> None:
    copy("day")
    book = reflect.open("lessons.db").lessons
    assert FIRST in json.dumps(command("adapters", "rollback"))
    assert [book.get(i).status for i in (1, 2, 3)] == ["candidate"] * 3
    assert command("profiles", "list")[0]["active"] is None
    assert FIRST in json.dumps(
        command("adapters", "promote", FIRST)
    )  # whose files and base are verified first
    assert [book.get(i).status for i in (1, 2, 3)] == ["distilled"] * 3
    assert command("profiles", "list")[0]["active"] == FIRST


@pytest.mark.parametrize(
    ("name", "done", "next_"),
    [
        ("night_harvest", ["harvest", "preflight"], "train"),
        ("night_train", ["harvest", "preflight", "train"], "placebo"),
    ],
)
def test_its_unfinished_night_is_found_at_the_stage_where_it_was(
    name: str, done: list[str], next_: str, copy: Copy
) -> None:
    """A deadline that is over at once pauses the night in its first unfinished stage."""
    folder = copy(name)
    mark(folder)
    report = reflect.open("lessons.db").sleep("dialect", budget=BUDGET, deadline=0.001)
    assert (report.status, report.night_id, sorted(report.stages)) == ("paused", 2, done), (
        report.reason
    )
    assert next_ in report.reason
    assert report.stages["harvest"]["kept"] == MARK
    assert [(x["id"], x["status"]) for x in command("nights", "list")] == [
        (2, "running"),
        (1, "promoted"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["night_harvest", "night_train"])
def test_its_unfinished_night_goes_on_to_its_end(
    name: str, copy: Copy, expected: dict[str, Any]
) -> None:
    folder = copy(name)
    weights = folder / ".reflect" / "adapters" / SECOND / "adapter_model.safetensors"
    before = weights.read_bytes() if weights.exists() else b""
    mark(folder)
    report = command(*SLEEP)
    was = expected["slept"]
    assert (report["status"], report["night_id"], report["again"]) == (was["status"], 2, False), (
        report["reason"]
    )
    assert (report["adapter"], report["lessons"], report["distilled"]) == (
        SECOND,
        [1, 2, 3, 47],
        was["distilled"],
    )
    assert report["stages"]["harvest"]["kept"] == MARK
    arms = report["stages"]["gate"]["arms"]  # under the old names too
    assert {x: {name: arms[x][name] for name in was["arms"][x]} for x in arms} == was["arms"]
    assert before in (b"", weights.read_bytes())
    result = command("adapters", "list")
    assert {x["name"]: x["status"] for x in result} == {FIRST: "promoted", SECOND: was["status"]}
    assert not list((folder / ".reflect").glob("nights/*"))
    again = command(*SLEEP)
    assert (again["again"], again["night_id"]) == (True, 2)


MARK = 4242  # what the file of a finished stage says after `mark`: a stage that is done anew says something else


def mark(folder: Path) -> None:
    (path,) = folder.glob(".reflect/nights/*/harvest.json")
    item = json.loads(path.read_text())
    item["figures"]["kept"] = MARK
    path.write_text(json.dumps(item))


class Answering(http.server.BaseHTTPRequestHandler):
    """A server of the OpenAI API that says 1, and as a judge 0.5."""

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._say({"object": "list", "data": [{"id": "none", "object": "model"}]})

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"])).decode()
        nonce = re.search(r"reward ([0-9a-f]{8}):", asked)
        text = f"why {nonce[1]}: as it is\nreward {nonce[1]}: 0.5" if nonce else "answer: 1"
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        self._say(
            {
                "id": "c",
                "object": "chat.completion",
                "model": "none",
                "choices": [choice],
                "usage": usage,
            }
        )

    def _say(self, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def answering() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)
