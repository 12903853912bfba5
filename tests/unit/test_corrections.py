"""Corrections in a person's later messages: the judge reads them, within a cap of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import JudgeModel
from test_sessions import Claude

from reflect.cli import run_command
from reflect.config import Settings
from reflect.store import exchanges
from reflect.workspace.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Four sessions: one is corrected, one goes on, one ends after the answer, one has a grade."""
    monkeypatch.chdir(tmp_path)
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "agents"))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for name, later in {
        "wrong": ["No, that is the wrong file. Undo it."],
        "fine": ["Thanks. Now rename the other one.", "And push."],
        "silent": [],
        "graded": ["/reflect good", "More."],
    }.items():
        talk = Claude(name).user("Rename the module.").says("Renamed.")
        for text in later:
            talk.user(text).says("Done.")
        talk.save(inbox)
    workspace = Workspace(Settings(db="lessons.db", home=str(tmp_path / "home")))
    assert workspace.sessions.load(str(inbox)).statuses["new"] == 4

    def reply(nonce: str, text: str) -> str:
        prompt = model.judged[-1][len(seen)].messages[-1]["content"]
        seen.append(prompt)
        return f"why {nonce}: as it says\nreward {nonce}: {0 if 'wrong file' in prompt else 1}"

    seen: list[str] = []
    model = JudgeModel(reply=reply)
    workspace.context.model = model
    workspace.prompts_of_judge = seen  # type: ignore[attr-defined]
    return workspace


def rewards(ws: Workspace) -> dict[str, tuple[float | None, str]]:
    return {
        row.name.split(":")[1]: (row.reward, row.feedback.partition(":")[0])
        for row in ws.sessions.listing()
    }


def test_a_correction_is_a_reward_of_0_and_silence_is_no_signal(ws: Workspace) -> None:
    report = ws.sessions.judge()
    assert (report.judged, report.silent, report.left, report.problems) == (2, 1, 0, [])
    assert rewards(ws) == {
        "wrong": (0.0, "correction"),
        "fine": (1.0, "correction"),
        "silent": (None, ""),
        "graded": (1.0, "grade"),
    }
    prompt = next(p for p in ws.prompts_of_judge if "wrong file" in p)  # type: ignore[attr-defined]
    assert "Rename the module." in prompt and "message 2: No, that is the wrong file." in prompt
    assert "Renamed." not in prompt, "the agent's own words are not judged"
    again = ws.sessions.judge()
    assert (again.judged, again.silent) == (0, 1), "each session is judged once"


def test_the_cap_bounds_the_tokens_and_the_newest_come_first(ws: Workspace) -> None:
    every = ws.sessions.judge(dry_run=True)
    assert every.judged == 2 and rewards(ws)["wrong"] == (None, ""), "a dry run asks nothing"
    one = ws.sessions.judge(every.tokens - 1)
    assert (one.judged, one.left) == (1, 1) and one.tokens < every.tokens
    judged = [row.name for row in ws.sessions.listing() if row.feedback.startswith("correction")]
    waiting = [row for row in ws.sessions.listing() if row.reward is None]
    assert len(judged) == 1 and len(waiting) == 2
    assert ws.sessions.judge(1).left == 1


def test_a_grade_that_cannot_be_read_changes_nothing(ws: Workspace) -> None:
    ws.context.model = JudgeModel(reply=lambda nonce, text: "It was wrong!")
    report = ws.sessions.judge()
    assert report.judged == 0 and len(report.problems) == 2
    assert rewards(ws)["wrong"] == (None, "")


def test_the_command_prints_its_bill(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    Path("reflect.toml").write_text('home = "home"\nprices = "pocket 1 2"\n')
    assert run_command(["sessions", "judge", "--dry-run"]) == 0
    out = capsys.readouterr()
    assert "Would judge 2 sessions: at most" in out.out and "price 0.00" in out.out
    assert "1 sessions have no later message" in out.err
    assert run_command(["sessions", "judge", "--dry-run", "--json", "--token-cap", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 2


def test_a_scheduled_night_reads_sessions_within_its_cap_and_prints_the_bill(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    from reflect.cli.sessions import learn_from_sessions

    ws.sessions.judge()
    learn_from_sessions(ws, 5000, dry_run=True)
    bill = capsys.readouterr().err
    assert "3 exchanges would be reflected on" in bill and "of 5000; 0 wait" in bill
    learn_from_sessions(ws, 250, dry_run=False)
    bill = capsys.readouterr().err
    assert "1 exchanges reflected on" in bill and "2 wait for the next time" in bill
    with ws.store.read() as s:
        assert len(exchanges.waiting(s, "default")) == 2
    assert run_command(["schedule", "print", "--kind", "cron", "--sessions"]) == 0
    assert "sleep --if-due" in (text := capsys.readouterr().out) and "--sessions" in text
