"""The command line without a model: the same verbs on every noun, data on stdout, everything else
on stderr."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reflect.cli import run_command
from reflect.config import shipped
from reflect.store import Store

REFLECT = Path(sys.executable).with_name("reflect")
Cli = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command that must succeed; its stdout, read as JSON when --json was said."""

    def run(*words: str, code: int = 0) -> Any:
        got = run_command(words)
        out, err = capsys.readouterr()
        assert got == code, err
        return json.loads(out) if "--json" in words and code == 0 else out

    return run


def add(
    cli: Cli, when: str = "counting letters", do: str = "spell the word first", **options: str
) -> dict[str, Any]:
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return cli("lessons", "add", "--when", when, "--do", do, *words, "--json")


def test_a_lesson_from_first_to_last(cli: Cli) -> None:
    lesson = add(cli, scope="letters", tag="spelling", reason="I know it")
    assert (lesson["id"], lesson["status"], lesson["pinned"], lesson["tags"]) == (
        1,
        "active",
        True,
        ["spelling"],
    )
    assert lesson["tokens"] > 0  # counted by the tokenizer alone

    assert cli("lessons", "edit", "1", "--do", "spell it, comma by comma", "--json")["version"] == 2
    assert cli("lessons", "undo", "1", "--json")["do"] == "spell the word first"
    assert cli("lessons", "undo", "1", "--json")["do"] == "spell it, comma by comma"
    assert cli("lessons", "retire", "1", "--reason", "no use", "--json")["status"] == "retired"
    assert cli("lessons", "approve", "1", "--json")["status"] == "active"
    assert not cli("lessons", "unpin", "1", "--json")["pinned"]

    history = cli("lessons", "history", "1", "--json")
    assert [v["version"] for v in history] == [1, 2, 3, 4, 5, 6, 7]
    assert {v["author"] for v in history} == {"human"}
    assert (history[0]["reason"], history[4]["reason"]) == ("I know it", "no use")
    shown = cli("lessons", "show", "1", "--json")
    assert shown["version"] == 7 and len(shown["versions"]) == 7
    assert cli("doctor", "--json")["ok"]


def test_list_is_the_default_verb(cli: Cli) -> None:
    add(cli)
    assert cli("lessons", "--json") == cli("lessons", "list", "--json")
    assert cli("lessons") == cli("lessons", "list")
    for noun in ("runs", "nights", "adapters"):
        assert cli(noun, "--json") == []
    assert {row["name"] for row in cli("tasks", "--json")} >= {"letters", "dialect"}


def test_lessons_are_chosen_by_status_scope_profile_and_words(cli: Cli) -> None:
    add(cli, "the task says zubi", "use reverse", scope="dialect")
    add(cli, scope="letters")
    add(cli, "the task says zubi", "use sort", profile="other")
    cli("lessons", "retire", "2")
    assert [row["id"] for row in cli("lessons", "--json")] == [1, 2]
    assert [row["id"] for row in cli("lessons", "--status", "active", "--json")] == [1]
    assert [row["id"] for row in cli("lessons", "--scope", "letters", "--json")] == [2]
    assert [row["id"] for row in cli("lessons", "--profile", "other", "--json")] == [3]
    assert [row["id"] for row in cli("lessons", "-n", "1", "--json")] == [1]
    found = cli("lessons", "search", 'what does "zubi" mean? (AND NOT *', "--json")
    assert [row["id"] for row in found] == [1] and found[0]["score"] > 0


def test_a_pipe_gets_every_line_whole(cli: Cli) -> None:
    add(cli, "the task says " + "very " * 25 + "much", "say so")
    header, line = cli("lessons").splitlines()
    assert line.endswith("say so") and header.split() == ["id", "status", "scope", "when", "do"]
    assert "\x1b" not in line


def test_the_path_and_nothing_else(cli: Cli, folder: Path) -> None:
    assert cli("lessons", "path") == f"{folder / 'lessons.db'}\n"
    assert cli("lessons", "path", "--db", "sub/x.db") == f"{folder / 'sub' / 'x.db'}\n"
    assert not (folder / "lessons.db").exists()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "reflect.toml").write_text('db = "file.db"\n')
    assert cli("lessons", "path").endswith("/file.db\n")
    monkeypatch.setenv("REFLECT_DB", "environment.db")
    assert cli("lessons", "path").endswith("/environment.db\n")
    assert cli("lessons", "path", "--db", "flag.db").endswith("/flag.db\n")


# -- editing
# -----------------------------------------------------------------------------------------------------------


def editor(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """$EDITOR: a shell script that gets the file as $1."""
    file = folder / "editor"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("EDITOR", str(file))


def test_the_editor(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(cli, scope="letters")
    editor(
        folder,
        "sed -i 's/^do: .*/do: count on your fingers/; s/^tags:.*/tags: a, b/' \"$1\"",
        monkeypatch,
    )
    row = cli("lessons", "edit", "1", "--json")
    assert (row["do"], row["tags"], row["scope"]) == (
        "count on your fingers",
        ["a", "b"],
        "letters",
    )
    editor(folder, "true", monkeypatch)
    assert "stays as it was (version 2" in cli("lessons", "edit", "1")
    editor(folder, "printf 'when: it rains\\ndo: take\\n  an umbrella\\n' > \"$1\"", monkeypatch)
    assert cli("lessons", "add", "--json")["do"] == "take an umbrella"


@pytest.mark.parametrize(
    "script", ["exit 1", "echo > $1", "printf 'when: x\\ndo:\\n' > $1", "echo stray > $1"]
)
def test_an_editor_that_fails_changes_nothing(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    add(cli)
    editor(folder, script, monkeypatch)
    assert run_command(["lessons", "edit", "1"]) in (1, 2)
    assert cli("lessons", "history", "1").count("human") == 1


# -- tasks, init, doctor
# -----------------------------------------------------------------------------------------------


def test_tasks_have_the_public_shape(cli: Cli) -> None:
    rows = cli("tasks", "show", "letters", "--split", "holdout", "-n", "3", "--json")
    assert [set(row) for row in rows] == [{"id", "messages", "verifier", "answer", "split"}] * 3
    assert {row["split"] for row in rows} == {"holdout"}


def test_tasks_are_checked_without_a_model(cli: Cli, folder: Path) -> None:
    assert cli("tasks", "check", "letters", "--json") == {"letters": {"ok": True, "problems": []}}
    (folder / "one.jsonl").write_text('{"prompt": "a?", "answer": "a"}\n')
    assert "there is no holdout task" in cli("tasks", "check", "one.jsonl", code=1)


def test_init_makes_a_folder_to_work_in_and_overwrites_nothing(cli: Cli, folder: Path) -> None:
    made = cli("init", "here", "--prompts").splitlines()
    prompts = sorted(f"prompts/{file.name}" for file in shipped("prompts").glob("*.jinja"))
    assert "prompts/reflect_system.jinja" in prompts
    assert made == [
        f"here/{name}" for name in ("reflect.toml", "example.jsonl", *prompts, "lessons.db")
    ]
    (folder / "here" / "reflect.toml").write_text("k = 3\n")
    assert cli("init", "here") == ""
    assert (folder / "here" / "reflect.toml").read_text() == "k = 3\n"
    assert "ok, 20 practice, 10 holdout" in cli("tasks", "check", "here/example.jsonl")


def test_the_settings_that_init_writes_are_the_settings(cli: Cli, folder: Path) -> None:
    from reflect import config

    cli("init")
    file = folder / "reflect.toml"
    file.write_text(
        "\n".join(line.removeprefix("# ") for line in file.read_text().splitlines()[2:])
    )
    assert config.load(file) == config.Settings()


def test_the_doctor_finds_what_is_wrong(cli: Cli) -> None:
    add(cli)
    facts = cli("doctor", "--json")
    assert (
        facts["ok"]
        and facts["lessons"] == 1
        and facts["adapter"] is None
        and facts["packages"]["torch"]
    )
    with Store("lessons.db").write() as s:
        s.connection().exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        s.connection().exec_driver_sql("UPDATE lesson SET status = 'odd'")
    assert "PROBLEM Lesson 1 has the unknown status 'odd'" in cli("doctor", code=1)


# -- the process
# -------------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    line = f"{REFLECT} tasks show letters -n 600 | head -1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.stdout.startswith("id") and not done.stderr


@pytest.mark.parametrize(
    "words", [["lessons"], ["lessons", "search", "x"], ["tasks"], ["runs"], ["prompt", "letters"]]
)
def test_what_needs_no_model_loads_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom reflect.cli import run_command\n"
        f"assert run_command({words!r}) == 0\nassert not {{'torch', 'transformers', 'peft'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
