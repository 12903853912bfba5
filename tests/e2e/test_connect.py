"""Hooks of coding agents: settings that are changed and restored, and lessons in real processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import RuleModel
from test_sessions import Claude, codex, save

from reflect import prompts
from reflect.cli import run_command
from reflect.config import Settings
from reflect.day.traffic import learn
from reflect.sessions import hook
from reflect.sessions.hook_lessons import MOST, folder_of, refresh
from reflect.store import Store, exchanges, lessons, runs
from reflect.trials.assignment import draw, withhold


@pytest.fixture
def agents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without settings, and a database in the working folder."""
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(folder / "claude"))
    monkeypatch.setenv("CODEX_HOME", str(folder / "codex"))
    return folder


def lesson(store: Store, when: str = "tests fail", do: str = "read the log", **more: object) -> int:
    with store.write() as s:
        row = lessons.add(s, when=when, do=do, author="human", **more)  # type: ignore[arg-type]
        return row.id or 0


# -- settings

OTHER = {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "say done"}]}]}, "model": "m"}
TEXTS = {
    "missing": None,
    "empty": b"",
    "object": b"{}\n",
    "two spaces": json.dumps(OTHER, indent=2).encode() + b"\n",
    "tabs, no newline": json.dumps(OTHER, indent="\t").encode(),
    "minified": json.dumps(OTHER, separators=(",", ":")).encode(),
    "CRLF": json.dumps(OTHER, indent=4).replace("\n", "\r\n").encode() + b"\r\n",
    "BOM": b"\xef\xbb\xbf" + json.dumps(OTHER, indent=2).encode(),
    "odd": b'\n\n{ "hooks" : {"Stop":[ ] } ,\n\n  "a":\t[1,2 ,3],"u":"\\u00e9 \xc3\xa9" }   \n\n',
    "other events": json.dumps({"hooks": {"UserPromptSubmit": [{"hooks": []}, 5]}}).encode(),
}


@pytest.mark.parametrize(
    ("agent", "name"),
    [*(("claude", name) for name in TEXTS), ("codex", "missing"), ("codex", "odd")],
)
def test_settings_are_restored_byte_for_byte(
    agents: Path, agent: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = agents / agent / ("settings.json" if agent == "claude" else "hooks.json")
    before = TEXTS[name]
    if before is not None:
        file.parent.mkdir()
        file.write_bytes(before)
    assert run_command(["connect", agent]) == 0
    out, err = capsys.readouterr()
    assert "+++" in out and "reflect/sessions/hook.py" in out and "Nothing is written" in err
    assert (file.read_bytes() if file.exists() else None) == before
    assert run_command(["connect", agent, "--yes"]) == 0
    written = file.read_bytes()
    document = json.loads(written.decode("utf-8-sig"))
    old = json.loads((before or b"").decode("utf-8-sig") or "{}")
    assert {k: v for k, v in document.items() if k != "hooks"} == {
        k: v for k, v in old.items() if k != "hooks"
    }
    for event, entries in old.get("hooks", {}).items():
        assert document["hooks"][event][: len(entries)] == entries
    for event in ("UserPromptSubmit", "Stop", "SessionStart"):
        assert "hook.py" in json.dumps(document["hooks"][event][-1])
    assert ("SessionEnd" in document["hooks"]) == (agent == "claude")
    capsys.readouterr()
    assert run_command(["connect", agent, "--yes"]) == 0, "again: nothing to change"
    assert file.read_bytes() == written and "Nothing to change" in capsys.readouterr().err
    assert run_command(["connect", agent, "--remove"]) == 0
    assert file.read_bytes() == written
    assert run_command(["connect", agent, "--remove", "--yes"]) == 0
    assert (file.read_bytes() if file.exists() else None) == before
    left = [p for p in (agents / agent).rglob("*") if p.is_file() and p != file]
    assert not left
    assert run_command(["connect", agent, "--remove", "--yes"]) == 0


def test_what_a_person_changed_in_the_meantime_stays(agents: Path) -> None:
    file = agents / "claude" / "settings.json"
    file.parent.mkdir()
    file.write_text(json.dumps(OTHER, indent=2) + "\n")
    run_command(["connect", "claude", "--yes"])
    document = json.loads(file.read_text())
    document["theme"] = "dark"
    document["hooks"]["Stop"].append({"hooks": [{"type": "command", "command": "beep"}]})
    document["hooks"]["SessionEnd"][0]["hooks"].append({"type": "command", "command": "bye"})
    file.write_text(json.dumps(document, indent=2) + "\n")
    run_command(["connect", "claude", "--yes"])
    run_command(["connect", "claude", "--remove", "--yes"])
    left = json.loads(file.read_text())
    assert "hook.py" not in file.read_text()
    assert left["theme"] == "dark" and left["model"] == "m"
    commands = [[x["command"] for e in rows for x in e["hooks"]] for rows in left["hooks"].values()]
    assert commands == [["say done", "beep"], ["bye"]]


def test_a_linked_file_stays_a_link_and_keeps_its_mode(agents: Path) -> None:
    real = agents / "dotfiles.json"
    real.write_text("{}")
    real.chmod(0o640)
    (agents / "claude").mkdir()
    (agents / "claude" / "settings.json").symlink_to(real)
    run_command(["connect", "claude", "--yes"])
    assert (agents / "claude" / "settings.json").is_symlink() and "hook.py" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    run_command(["connect", "claude", "--remove", "--yes"])
    assert real.read_text() == "{}"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"hooks": []}', '{"hooks": {"Stop": {}}}', '{"a": 1, "a": 2}', "// x\n{}"]
)
def test_settings_that_cannot_be_read_are_not_touched(
    agents: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = agents / "claude" / "settings.json"
    file.parent.mkdir()
    file.write_text(text)
    assert run_command(["connect", "claude", "--yes"]) == 2
    assert file.read_text() == text and "Fix the file" in capsys.readouterr().err
    assert run_command(["connect", "emacs"]) == 2


def test_the_plugin_has_manifest_hooks_skill_and_mcp(agents: Path) -> None:
    assert run_command(["connect", "claude", "--plugin", "plugin"]) == 0
    plugin = agents / "plugin"
    assert json.loads((plugin / ".claude-plugin/plugin.json").read_text())["name"] == "reflect"
    hooks = json.loads((plugin / "hooks/hooks.json").read_text())["hooks"]
    assert set(hooks) == {"UserPromptSubmit", "SessionStart", "Stop", "SessionEnd"}
    assert "reflect sessions import" in (plugin / "skills/reflect/SKILL.md").read_text()
    assert json.loads((plugin / ".mcp.json").read_text())["mcpServers"]["reflect"]
    assert run_command(["connect", "claude", "--plugin", "plugin"]) == 2


# -- the hook


def fire(command: str, event: object) -> str:
    """Run the hook as the agent does: a shell, the event on stdin. Returns what it adds."""
    text = event if isinstance(event, bytes) else json.dumps(event).encode()
    done = subprocess.run(command, shell=True, input=text, capture_output=True, timeout=20)
    assert done.returncode == 0 and done.stderr == b"", done
    if not done.stdout:
        return ""
    answer = json.loads(done.stdout)["hookSpecificOutput"]
    assert set(answer) == {"hookEventName", "additionalContext"}
    return answer["additionalContext"]


def hook_command(file: Path) -> str:
    return json.loads(file.read_text())["hooks"]["Stop"][-1]["hooks"][0]["command"]


def test_a_lesson_goes_from_the_database_through_sessions_to_its_evidence(agents: Path) -> None:
    """12 sessions of an agent in real processes; import; a run. The draws are those of practice."""
    store, settings = Store("lessons.db"), Settings()
    one = lesson(store, scope="shop")
    everywhere = lesson(store, "the task is code", "keep it short")
    lesson(store, "elsewhere", "never", scope="garden")
    with store.write() as s:  # a candidate: shown to half of the sessions
        lessons.revise(s, one, author="human", status="retired")
        candidate = lessons.add(s, when="a test fails", do="read it", author="model", scope="shop")
    assert candidate.status == "candidate"
    assert run_command(["connect", "claude", "--yes"]) == 0
    command = hook_command(agents / "claude" / "settings.json")
    repository = agents / "work" / "shop"
    (repository / ".git").mkdir(parents=True)
    (repository / "src").mkdir()
    projects = agents / "claude" / "projects" / "-work-shop"
    projects.mkdir(parents=True)
    with store.read() as s:
        mine = lessons.by_ids(s, [everywhere, candidate.id or 0])
    shown = 0
    for number in range(12):
        name = f"session-{number}"
        path = projects / f"{name}.jsonl"
        event = {"session_id": name, "cwd": str(repository / "src"), "transcript_path": str(path)}
        prompt = event | {"hook_event_name": "UserPromptSubmit", "prompt": "Fix the test."}
        text = fire(command, prompt)
        bundle = draw(mine, settings, 0, name, 0)
        expected = bundle.applied(withhold(mine, settings, 0, name, 0))
        lines = [
            f"- when: {x.when} do: {x.do}" for x, e in zip(mine, expected, strict=True) if e.shown
        ]
        assert text.splitlines()[1:-1] == lines and (hook.HEAD in text) == bool(lines)
        assert fire(command, prompt | {"prompt": "And now?"}) == "", "once in a session"
        again = event | {"hook_event_name": "SessionStart", "source": "compact"}
        assert fire(command, again) == text
        session = Claude(name, cwd=str(repository / "src")).user("Fix the test.\n" + text)
        session.runs("pytest", number % 2).says("Done.").save(projects)
        assert fire(command, event | {"hook_event_name": "SessionEnd", "reason": "other"}) == ""
        shown += "read it" in text
    assert 2 < shown < 10
    queue = folder_of(settings) / "queue"
    assert len(list(queue.iterdir())) == 12
    assert run_command(["sessions", "import", "--trusted"]) == 0
    with store.read() as s:
        rows = exchanges.of_sessions(s, "default")
    assert len(rows) == 12 and all(row.taskset == "shop" and row.trust == "clean" for row in rows)
    assert all(len(row.exposures) == 2 for row in rows)
    assert not [row for row in rows if hook.HEAD in json.dumps(row.messages)]
    learn(RuleModel(reviews=False), store, settings)
    with store.read() as s:
        evidence = runs.exposures(s, candidate.id)
        assert len(evidence) == 12
        assert sum(row.shown for row in evidence) == shown
        assert {row.probability for row in evidence} <= {0.0, 0.5}


def test_codex_has_the_same_hook(agents: Path) -> None:
    store = Store("lessons.db")
    lesson(store)
    run_command(["connect", "codex", "--yes"])
    command = hook_command(agents / "codex" / "hooks.json")
    event = {"session_id": "c-1", "cwd": str(agents), "hook_event_name": "UserPromptSubmit"}
    texts = [fire(command, event | {"session_id": f"c-{i}", "prompt": "x"}) for i in range(8)]
    assert any("read the log" in text for text in texts)
    folder = agents / "codex" / "sessions" / "2026" / "11" / "01"
    folder.mkdir(parents=True)
    save(folder / "rollout-1.jsonl", codex("c-1"))
    assert run_command(["sessions", "import", "codex"]) == 0
    with store.read() as s:
        (row,) = exchanges.of_sessions(s, "default")
    assert len(row.exposures) == 1 and row.trust == "untrusted"
    for log in (folder_of(Settings()) / "sessions").iterdir():
        log.unlink()
    with (folder / "rollout-1.jsonl").open("a") as file:
        file.write(json.dumps(codex("c-1")[-1]) + "\n")
    assert run_command(["sessions", "import", "codex"]) == 0
    with store.read() as s:
        (again,) = exchanges.of_sessions(s, "default")
    assert len(again.messages[-1]["content"]) > len(row.messages[-1]["content"])
    assert again.exposures == row.exposures, "the draws stay when their log is gone"


def test_a_python_or_a_package_that_has_moved_stops_no_prompt(agents: Path) -> None:
    lesson(Store("lessons.db"))
    run_command(["connect", "claude", "--yes"])
    command = hook_command(agents / "claude" / "settings.json")
    event = {"session_id": "s", "cwd": "/", "hook_event_name": "UserPromptSubmit", "prompt": "x"}
    for gone in (sys.executable, hook.__file__, str(folder_of(Settings()))):
        assert gone in command
        assert fire(command.replace(gone, "/nowhere/at all"), event) == ""


BROKEN = {
    "no JSON": b"hello",
    "nothing": b"",
    "another type": b"[1]",
    "no session": b'{"hook_event_name": "UserPromptSubmit", "cwd": "/"}',
    "numbers": b'{"hook_event_name": "UserPromptSubmit", "session_id": 5, "cwd": 7, "prompt": []}',
    "unknown event": b'{"hook_event_name": "Dance", "session_id": "a"}',
    "no path": b'{"hook_event_name": "Stop", "transcript_path": null}',
    "not UTF-8": b'{"hook_event_name": "\xff\xfe"}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_event_adds_nothing_and_is_no_error(agents: Path, name: str) -> None:
    lesson(Store("lessons.db"))
    run_command(["connect", "claude", "--yes"])
    command = hook_command(agents / "claude" / "settings.json")
    if name == "numbers":  # read as texts
        fire(command, BROKEN[name])
    else:
        assert fire(command, BROKEN[name]) == ""


@pytest.mark.parametrize(
    "damage", ["deleted", "old", "cut", "a folder", "read-only", "other types"]
)
def test_damaged_files_add_nothing_and_are_no_error(agents: Path, damage: str) -> None:
    store, settings = Store("lessons.db"), Settings(withhold_candidate=0.0, withhold_bundle=0.0)
    lesson(store)
    run_command(["connect", "claude", "--yes"])
    refresh(store, settings)
    command = hook_command(agents / "claude" / "settings.json")
    folder = folder_of(settings)
    event = {"session_id": "s", "cwd": "/", "hook_event_name": "UserPromptSubmit", "prompt": "x"}
    (file,) = (folder / "lessons").iterdir()
    assert "read the log" in fire(command, event | {"session_id": "before"})
    if damage == "deleted":
        file.unlink()
    elif damage == "old":
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"written": time.time() - 15 * 86400}))
    elif damage == "cut":
        file.write_text(file.read_text()[:-20])
    elif damage == "a folder":
        file.unlink()
        file.mkdir()
    elif damage == "read-only":  # a draw that cannot be saved is not shown
        (folder / "sessions" / "before").unlink(missing_ok=True)
        for log in (folder / "sessions").iterdir():
            log.unlink()
        (folder / "sessions").rmdir()
        (folder / "sessions").write_text("")
    else:
        file.write_text(json.dumps({"written": "yesterday", "lessons": 5}))
    assert fire(command, event) == ""


def test_lessons_that_change_reach_the_hook(agents: Path) -> None:
    store, settings = Store("lessons.db"), Settings()
    one = lesson(store)
    assert not folder_of(settings).exists(), "without hooks nothing is written"
    run_command(["lessons"])
    assert not (folder_of(settings) / "lessons").exists()
    run_command(["connect", "claude", "--yes"])

    def cached() -> list[str]:
        (file,) = (folder_of(settings) / "lessons").glob("*.json")
        return [row["do"] for row in json.loads(file.read_text())["lessons"]]

    assert cached() == ["read the log"]
    run_command(["lessons", "edit", str(one), "--do", "read it twice"])
    assert cached() == ["read it twice"]
    run_command(["lessons", "retire", str(one)])
    assert cached() == []
    run_command(["lessons", "add", "--when", "always", "--do", "be brief", "--scope", "shop"])
    assert len(list((folder_of(settings) / "lessons").glob("*.json"))) == 2
    run_command(["lessons", "retire", str(one + 1)])
    assert len(list((folder_of(settings) / "lessons").glob("*.json"))) == 1


def test_limits_and_order_of_lessons(agents: Path) -> None:
    """Within the limit and the budget; those whose condition fits the prompt go first; draws do not
    change what is chosen."""
    store, settings = Store("lessons.db"), Settings(lesson_limit=3)
    with store.write() as s:
        for number in range(MOST + 5):
            lessons.add(s, when=f"the prompt says word{number}", do=f"do{number}", author="human")
    refresh(store, settings)
    folder = folder_of(settings)
    event = {"session_id": "s", "cwd": "/", "prompt": "Now word7, word100 and WORD150"}
    text = hook.at_prompt(folder, event)
    log = json.loads(next((folder / "sessions").iterdir()).read_text())
    with store.read() as s:
        chosen = {row.do for row in lessons.by_ids(s, [x["lesson_id"] for x in log["exposures"]])}
    assert chosen == {"do7", "do100", "do150"} and text.count("- when:") <= 3
    assert hook.at_prompt(folder, event | {"prompt": "word9"}) == "", "three is the session's limit"
    refresh(store, Settings(lesson_budget=1))
    assert hook.at_prompt(folder, event | {"session_id": "t"}) == ""
    assert hook.at_prompt(folder, event | {"session_id": "u", "prompt": "/reflect good"}) == ""


def test_the_scope_is_the_name_of_the_repository(tmp_path: Path) -> None:
    main = tmp_path / "shop"
    (main / ".git" / "worktrees" / "fix").mkdir(parents=True)
    (main / "a" / "b").mkdir(parents=True)
    tree = tmp_path / "shop-fix"
    tree.mkdir()
    (tree / ".git").write_text(f"gitdir: {main}/.git/worktrees/fix\n")
    module = main / "vendor" / "lib"
    module.mkdir(parents=True)
    (module / ".git").write_text("gitdir: ../../.git/modules/lib\n")
    assert [hook.scope_of(str(p)) for p in (main, main / "a" / "b", tree, module)] == [
        "shop", "shop", "shop", "lib"
    ]  # fmt: skip
    assert hook.scope_of(str(tmp_path / "gone" / "deep")) == "deep"
    assert hook.scope_of("/") == "sessions"
    assert {hook.scope_of(x) for x in ("/home/ada", "/Users/eve", "/root")} == {"home"}


def test_the_hook_writes_lessons_as_the_system_prompt_does() -> None:
    rows = [{"when": "a", "do": "b"}, {"when": "c", "do": "d"}]
    ours = hook.render([f"- when: {row['when']} do: {row['do']}" for row in rows]).splitlines()
    theirs = prompts.system_prompt("", rows).splitlines()
    assert [re.sub(r"[0-9a-f]{4,8}\]$", "", line) for line in ours] == [
        re.sub(r"[0-9a-f]{4,8}\]$", "", line) for line in theirs
    ]


def test_the_hook_takes_little_longer_than_python(agents: Path) -> None:
    """The proof has percentiles; this is a bound that a busy machine meets."""
    lesson(Store("lessons.db"))
    run_command(["connect", "claude", "--yes"])
    command = hook_command(agents / "claude" / "settings.json")
    event = {"session_id": "s", "cwd": "/", "hook_event_name": "UserPromptSubmit", "prompt": "x"}

    def best(run: str) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(run, shell=True, input=json.dumps(event).encode(), capture_output=True)
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(command) - best(f"{shlex.quote(sys.executable)} -c pass") < 0.15
    code = "import sys; sys.argv = ['', '/x']; import runpy; "
    code += f"runpy.run_path({hook.__file__!r}); print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, env=os.environ
    )
    assert not {"sqlite3", "reflect", "sqlmodel", "typer", "asyncio"} & set(done.stdout.split())


# -- the command line


def test_the_commands_print_counts_tokens_and_price(
    agents: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLECT_PRICES", "gpt-x 2 8")
    projects = agents / "claude" / "projects" / "p"
    projects.mkdir(parents=True)
    path = Claude().user("Fix it. " * 400).runs("pytest", 1).says("No.").save(projects)
    old = Claude("old").user("Hi").says("Ho").save(projects)
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    words = ["sessions", "import", "claude", "--since", "7d", "-m", "openai:gpt-x"]
    assert run_command([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["statuses"] == {"new": 1} and plan["counts"]["prompts"] == 1
    assert (plan["tokens_in"], plan["tokens_out"]) == (20, 10)
    tokens_out = (plan["price"] * 1e6 - plan["review_tokens"] * 2) / 8
    assert round(tokens_out) in (160, 1024), "one reflection"
    assert plan["review_tokens"] > 700 and plan["sessions"][0]["signal"] == "check"
    assert run_command([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Would import 1 sessions (1 new)" in out and "price 0.00" in out
    assert run_command(["sessions"]) == 0 and "No session" in capsys.readouterr().err
    assert run_command(words) == 0
    assert "Then: reflect run --from-traffic" in capsys.readouterr().err
    assert run_command(["sessions", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["reward"], row["trust"]) == ("claude:s-1", 0.0, "untrusted")
    assert "messages" not in row
    assert run_command(["sessions", "list"]) == 0
    assert "claude:s-1" in capsys.readouterr().out
    assert run_command(["sessions", "import", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statuses"] == {"unchanged": 1}
    for wrong in (["--since", "soon"], ["--since", "7"], ["nowhere"], ["--since", "-1d"]):
        assert run_command(["sessions", "import", *wrong]) == 2


def test_a_queued_transcript_outside_the_usual_folders_is_imported_once(agents: Path) -> None:
    run_command(["connect", "claude", "--yes"])
    command = hook_command(agents / "claude" / "settings.json")
    path = Claude("far").user("Hi").says("Ho").save(agents)
    for where in (path, agents / "gone.jsonl"):
        event = {"hook_event_name": "Stop", "session_id": "far", "transcript_path": str(where)}
        fire(command, event)
    queue = folder_of(Settings()) / "queue"
    assert len(list(queue.iterdir())) == 2
    run_command(["sessions", "import"])
    with Store("lessons.db").read() as s:
        assert [row.name for row in exchanges.of_sessions(s, "default")] == ["claude:far"]
    assert not list(queue.iterdir())


def test_sessions_go_out_and_in_again_as_atif(
    agents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Claude("a", cwd="/x/shop").user("Fix it.").says("I look.").runs("pytest", 1, "bad")
    one.runs("pytest").says("Done.").user("/reflect good").save(agents)
    Claude("b", cwd="/x/shop").user("Hi").says("Ho").save(agents)
    for name in "ab":
        run_command(["sessions", "import", f"{name}.jsonl"])
    capsys.readouterr()
    assert run_command(["sessions", "export", "claude:a", "--out", "a.json"]) == 0
    assert run_command(["sessions", "export", "claude:a", "--out", "a.json"]) == 2
    assert run_command(["sessions", "export", "claude:z"]) == 2
    capsys.readouterr()
    assert run_command(["sessions", "export"]) == 0
    lines = capsys.readouterr().out
    (agents / "all.jsonl").write_text(lines)
    document = json.loads((agents / "a.json").read_text())
    assert document["schema_version"] == "ATIF-v1.8" and document["session_id"] == "a"
    assert [step["step_id"] for step in document["steps"]] == [1, 2, 3, 4]
    assert [step["source"] for step in document["steps"]] == ["user", "agent", "agent", "agent"]
    step = document["steps"][1]
    (call,), (result,) = step["tool_calls"], step["observation"]["results"]
    assert call["arguments"] == {"command": "pytest"} and call["function_name"] == "Bash"
    assert result == {"content": "Exit code 1\nbad", "source_call_id": call["tool_call_id"]}
    assert document["extra"]["reflect"]["reward"] == 1.0
    assert run_command(["sessions", "import", "all.jsonl", "--db", "other.db"]) == 0
    assert run_command(["sessions", "import", "all.jsonl", "--db", "other.db"]) == 0
    assert run_command(["sessions", "import", "a.json", "--db", "third.db"]) == 0
    before, after = (Store(name) for name in ("lessons.db", "other.db"))
    with before.read() as s, after.read() as t:
        old, new = exchanges.of_sessions(s, "default"), exchanges.of_sessions(t, "default")
    assert [row.messages for row in new] == [row.messages for row in old]
    assert [row.name for row in new] == ["claude:a", "claude:b"]
    with Store("third.db").read() as s:
        assert len(exchanges.of_sessions(s, "default")) == 1


def test_atif_of_another_agent(agents: Path) -> None:
    """Harbor's example: parts, images, copied context, an exit code, a sub-agent, unknown fields."""
    image = {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}}
    steps = [
        {"step_id": 1, "source": "system", "message": "You are an agent."},
        {"step_id": 2, "source": "user", "message": "Earlier.", "is_copied_context": True},
        {"step_id": 3, "source": "user", "message": [{"type": "text", "text": "Look."}, image]},
        {"step_id": 4, "source": "agent", "message": "Running.", "reasoning_content": "hm",
         "tool_calls": [{"tool_call_id": "1", "function_name": "sh", "arguments": {"command": "make"}}],
         "observation": {"results": [{"source_call_id": "1", "content": "fine", "extra": {"exit_code": 0}}]},
         "metrics": {"prompt_tokens": 50, "completion_tokens": 9}},
        {"step_id": 5, "source": "agent", "message": "Done.", "future": True},
    ]  # fmt: skip
    agent = {"name": "openhands", "version": "1", "model_name": "m", "extra": {"cwd": "/w/shop"}}
    document = {"schema_version": "ATIF-v1.4", "session_id": "x", "agent": agent, "steps": steps}
    (agents / "x.json").write_text(json.dumps(document, indent=1))
    assert run_command(["sessions", "import", "x.json"]) == 0
    with Store("lessons.db").read() as s:
        (row,) = exchanges.of_sessions(s, "default")
    assert (row.name, row.taskset, row.reward, row.prompt_tokens) == (
        "openhands:x",
        "shop",
        1.0,
        50,
    )
    assert [m["content"] for m in row.messages] == ["Look.\n[image]", "Running.", "fine", "Done."]
    for steps in (None, [], [5], [{"source": "agent"}], {"a": 1}):
        (agents / "x.json").write_text(json.dumps(document | {"steps": steps, "session_id": "y"}))
        assert run_command(["sessions", "import", "x.json"]) == 0
