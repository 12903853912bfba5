"""Sessions of coding agents: readers, redaction, rewards, import, export."""

from __future__ import annotations

import copy
import json
import random
import re
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes import RuleModel

from reflect.config import Settings
from reflect.day.traffic import learn
from reflect.sessions import hook_lessons
from reflect.sessions.claude import ClaudeReader
from reflect.sessions.codex import CodexReader
from reflect.sessions.importer import ImportReport, find_transcripts, import_sessions
from reflect.sessions.redaction import redact, redact_all
from reflect.sessions.session import AgentSession, stored
from reflect.sessions.signals import CheckCommand, exit_of, is_check
from reflect.store import Store, exchanges

DATA = Path(__file__).parents[1] / "data" / "sessions"
ROOT = "root"


class Claude:
    """Writes a transcript as Claude Code does."""

    def __init__(self, session: str = "s-1", cwd: str = "/home/ada/shop", **fields: object) -> None:
        self.common = {"sessionId": session, "cwd": cwd, "version": "2.1.332", "isSidechain": False}
        self.common |= {"entrypoint": "cli", "userType": "external"} | fields
        self.rows: list[dict] = []
        self.calls = 0

    def add(self, kind: str, message: dict | None = None, **fields: object) -> Claude:
        at = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(seconds=len(self.rows))
        name = f"{self.common['sessionId']}-{len(self.rows)}"
        row = {"type": kind, "uuid": name, "timestamp": at.isoformat(), **self.common, **fields}
        self.rows.append(row | ({"message": message} if message else {}))
        return self

    def user(self, content: object, **fields: object) -> Claude:
        return self.add("user", {"role": "user", "content": content}, **fields)

    def says(self, *parts: dict | str, tokens: tuple[int, int] = (10, 5)) -> Claude:
        for part in parts:
            block = {"type": "text", "text": part} if isinstance(part, str) else part
            usage = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
            message = {"id": f"msg-{len(self.rows) - parts.index(part)}", "role": "assistant"}
            self.add("assistant", message | {"model": "m-1", "content": [block], "usage": usage})
        return self

    def runs(self, command: str, code: int = 0, output: str = "", **fields: object) -> Claude:
        self.calls += 1
        name = f"call-{self.calls}"
        self.says({"type": "tool_use", "id": name, "name": "Bash", "input": {"command": command}})
        text = f"Exit code {code}\n{output}" if code else output
        result = {"type": "tool_result", "tool_use_id": name, "content": text, "is_error": code > 0}
        return self.user([result], **fields)

    def text(self) -> str:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.common['sessionId']}.jsonl"
        path.write_text(self.text())
        return path


def codex(session: str = "c-1", source: str = "cli", code: int = 0) -> list[dict]:
    """A transcript of Codex in its form of 2025."""
    items = [
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "<environment_context>\n<cwd>/x</cwd>"}]},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Fix the build."}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "zzz"},
        {"type": "function_call", "name": "shell", "call_id": "k",
         "arguments": json.dumps({"command": ["bash", "-lc", "cargo test"]})},
        {"type": "function_call_output", "call_id": "k", "output": json.dumps(
            {"output": "ok", "metadata": {"exit_code": code, "duration_seconds": 1}})},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "Fixed."}]},
    ]  # fmt: skip
    meta = {"id": session, "cwd": "/home/ada/tool", "originator": "codex_cli_rs", "source": source}
    rows = [{"type": "session_meta", "payload": meta}]
    rows += [{"type": "response_item", "payload": item} for item in items]
    return [{"timestamp": "2026-11-01T00:00:00Z", **row} for row in rows]


def save(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def opened(sqlite_store: Store, settings: Settings) -> tuple[Store, Settings]:
    return sqlite_store, settings


def load(opened: tuple[Store, Settings], path: Path, **flags: bool) -> ImportReport:
    return import_sessions(*opened, find_transcripts(str(path), path / "none", None), **flags)


def rows(opened: tuple[Store, Settings]) -> list:
    with opened[0].read() as s:
        return exchanges.of_sessions(s, "default")


# -- readers


def test_the_transcripts_that_the_programs_wrote_are_read(opened, inbox) -> None:
    for file in DATA.glob("*.jsonl"):
        (inbox / file.name).write_bytes(file.read_bytes())
    assert load(opened, inbox).statuses == {"headless": 2}
    report = load(opened, inbox, headless=True)
    assert report.statuses == {"new": 2}
    figures = {row.name.split(":")[0]: (row.prompts, row.answers, row.calls, row.scope)
               for row in report.sessions}  # fmt: skip
    assert figures == {"claude": (1, 2, 1, "shop"), "codex": (1, 2, 1, "shop")}
    assert (report.tokens_in, report.tokens_out) == (2 * 125 + 240, 30 + 24)
    for row in rows(opened):
        assert row.asked == [{"role": "user", "content": "run the tests please"}]
        assert [m["role"] for m in row.messages] == ["user", "assistant", "tool", "assistant"]
        assert "LESSONTEXT" not in json.dumps(row.messages)
        assert (row.trust, row.reward, row.model) in (
            ("untrusted", None, "claude-opus-5-5"),
            ("untrusted", None, "gpt-5-codex"),
        )


def test_counts_are_exact(opened, inbox) -> None:
    one = Claude().user("Add a test.").says("I look.", tokens=(100, 7)).runs("ls", output="a.py")
    one.runs("pytest -q", 1, "1 failed").user("Fix it.").runs("pytest -q").says("Done.")
    one.save(inbox)
    report = load(opened, inbox)
    names = ("prompts", "answers", "calls", "results", "records")
    assert [report.counts[name] for name in names] == [2, 4, 3, 3, 10]
    assert (report.tokens_in, report.tokens_out) == (140, 27)
    (row,) = rows(opened)
    assert (row.name, row.taskset, row.reward) == ("claude:s-1", "shop", 1.0)
    assert row.feedback == "check: `pytest -q` ended with exit code 0."


def test_a_message_in_several_records_is_one_answer_whose_tokens_count_once(opened, inbox) -> None:
    call = {"type": "tool_use", "id": "x", "name": "Read", "input": {"file_path": "a"}}
    Claude().user("Hi").says("Look:", call).user("thanks").says("ok").save(inbox)
    report = load(opened, inbox)
    (row,) = rows(opened)
    assert report.counts["answers"] == 2 and report.tokens_in == 20
    assert row.messages[1]["content"] == "Look:" and len(row.messages[1]["tool_calls"]) == 1


def test_what_is_no_part_of_the_conversation_is_counted_and_left_out(opened, inbox) -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "QUJD" * 50}}
    one = Claude().user("Look at this.").says("Yes.")
    one.add("summary", summary="LEFT OUT").add("system", subtype="compact_boundary")
    one.user("LEFT OUT so far", isCompactSummary=True).user("LEFT OUT", isMeta=True)
    one.user("LEFT OUT", isSidechain=True)
    one.add("attachment", attachment={"type": "hook_additional_context", "content": ["LEFT OUT"]})
    one.add("hologram", content="LEFT OUT").add("hologram").add("quux")
    one.user("<system-reminder>LEFT OUT</system-reminder>")
    one.user("[Request interrupted by user]")
    one.user("<command-name>/clear</command-name><command-args></command-args>")
    one.user("<local-command-stdout>LEFT OUT</local-command-stdout>")
    one.user("<command-name>/fix</command-name>\n<command-args>the bug</command-args>")
    one.says({"type": "thinking", "thinking": "LEFT OUT"}, "ok")
    one.user([{"type": "tool_result", "tool_use_id": "z", "content": [image]}]).says("A cat.")
    one.save(inbox)
    report = load(opened, inbox)
    (row,) = rows(opened)
    text = json.dumps(row.messages)
    assert "LEFT OUT" not in text and "QUJD" not in text and "[image]" in text
    assert "/fix the bug" in text and "[Request" not in text and "/clear" not in text
    assert dict(report.skipped) == {
        "hologram": 2, "quux": 1, "summary": 2, "meta": 1, "sidechain": 1, "thinking": 1,
        "system/compact_boundary": 1, "attachment/hook_additional_context": 1, "reminder": 2,
        "interruption": 1, "command": 1,
    }  # fmt: skip


def test_a_prompt_that_was_queued_while_the_agent_worked_counts(opened, inbox) -> None:
    one = Claude().user("Fix it.").runs("make", 1)
    queued = {"type": "queued_command", "prompt": "Use clang.", "origin": {"kind": "human"}}
    one.add("attachment", attachment=queued)
    one.add(
        "attachment", attachment=queued | {"prompt": "no", "origin": {"kind": "task-notification"}}
    )
    one.add("attachment", attachment=queued | {"prompt": "no", "isMeta": True})
    one.user("A task ended.", origin={"kind": "task-notification"}).runs("make").save(inbox)
    report = load(opened, inbox)
    assert report.counts["prompts"] == 2
    assert report.skipped == {"attachment/queued_command": 2, "meta": 1}
    assert [m["content"] for m in rows(opened)[0].messages if m["role"] == "user"] == [
        "Fix it.", "Use clang."
    ]  # fmt: skip


def test_a_sub_agents_file_and_a_headless_session_are_skipped(opened, inbox) -> None:
    Claude("agent", isSidechain=True).user("Search.").says("Found.").save(inbox)
    Claude("tool", entrypoint="sdk-ts").user("Grade this.").says("5").save(inbox)
    save(inbox / "exec.jsonl", codex(source="exec"))
    rows_of_sub = codex("c-3")
    rows_of_sub[0]["payload"]["source"] = {"subagent": "review"}
    save(inbox / "sub.jsonl", rows_of_sub)
    assert load(opened, inbox).statuses == {"subagent": 2, "headless": 2}
    assert rows(opened) == []
    assert load(opened, inbox, headless=True).statuses["new"] == 2, "they may be wanted later"


@pytest.mark.parametrize("code", [0, 101])
def test_codex_of_2025(opened, inbox, code: int) -> None:
    save(inbox / "rollout.jsonl", codex(code=code))
    report = load(opened, inbox)
    (row,) = rows(opened)
    assert (row.name, row.taskset, row.reward) == ("codex:c-1", "tool", float(code == 0))
    assert [m["role"] for m in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert report.skipped == {"session_meta": 1, "message/context": 1, "reasoning": 1}


def test_other_languages_and_halves_of_characters(store: Store, settings, inbox) -> None:
    opened = store, settings
    words = "Prüfe die Straße. これを直して。 أصلح هذا 😀 \ud800 \0"
    one = Claude().user(words).says("完了")
    (inbox / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one.rows))
    load(opened, inbox)
    (row,) = rows(opened)
    assert row.asked[0]["content"] == "Prüfe die Straße. これを直して。 أصلح هذا 😀 ? "
    assert row.messages[-1]["content"] == "完了"


# -- once, and on


def test_imported_twice_is_imported_once(opened, inbox) -> None:
    path = Claude().user("Hi").says("Ho").save(inbox)
    first = load(opened, inbox)
    (inbox / "copy.jsonl").write_bytes(path.read_bytes())
    second = load(opened, inbox)
    assert first.statuses == {"new": 1} and second.statuses == {"unchanged": 2}
    assert len(rows(opened)) == 1 and second.counts["prompts"] == 0
    (hook_lessons.folder_of(opened[1]) / "imported.json").unlink()
    load(opened, inbox)
    assert len(rows(opened)) == 1, "the state was lost"


@pytest.mark.parametrize("cut", [0.05, 0.3, 0.5, 0.77, 0.99])
def test_a_file_cut_in_the_middle_is_continued(opened, inbox, cut: float) -> None:
    one = Claude().user("Fix it.").runs("make", 2).user("Again.").runs("make").says("Done.")
    whole = one.text().encode()
    path = inbox / "s.jsonl"
    path.write_bytes(whole[: int(len(whole) * cut)])
    load(opened, inbox)
    path.write_bytes(whole)
    assert load(opened, inbox).statuses.keys() <= {"new", "grown"}
    (row,) = rows(opened)
    assert [m["role"] for m in row.messages].count("tool") == 2 and row.reward == 1.0
    assert load(opened, inbox).statuses == {"unchanged": 1}


def test_what_follows_a_review_is_an_exchange_of_its_own(opened, inbox) -> None:
    store, settings = opened
    one = Claude().user("Fix it.").runs("make", 2).says("No.")
    one.save(inbox)
    load(opened, inbox)
    (report,) = learn(RuleModel(reviews=False), store, settings)
    assert report.rollouts == 1
    one.user("Then try again.").runs("make").says("Done.").save(inbox)
    assert load(opened, inbox).statuses == {"grown": 1}
    first, second = rows(opened)
    assert (first.choice, first.reward, second.choice, second.reward) == (0, 0.0, 1, 1.0)
    assert second.asked[0]["content"] == "Then try again." and len(second.messages) == 4
    one.user("/reflect bad it broke the page").says("Noted.").save(inbox)
    assert load(opened, inbox).statuses == {"grown": 1}
    assert [row.reward for row in rows(opened)] == [0.0, 0.0]
    assert rows(opened)[1].feedback == "grade: bad. it broke the page"
    assert len(rows(opened)) == 2


def test_a_resumed_session_repeats_records_which_count_once(opened, inbox) -> None:
    first = Claude("old").user("First task.").runs("make").says("Done.")
    first.save(inbox)
    load(opened, inbox)
    again = Claude("new")
    again.rows = [row | {"sessionId": "new"} for row in first.rows]
    again.user("Second task.").runs("make", 1).says("Failed.")
    again.save(inbox)
    fork = Claude("fork")
    fork.rows = [row | {"sessionId": "fork"} for row in first.rows]
    fork.save(inbox)
    report = load(opened, inbox)
    assert report.statuses == {"unchanged": 1, "new": 1, "repeated": 1}
    assert report.counts["prompts"] == 1
    old, new = rows(opened)
    assert "First task." not in json.dumps(new.messages) and (old.reward, new.reward) == (1.0, 0.0)
    twice = Claude("twice").user("A").says("B")
    twice.rows += twice.rows
    twice.save(inbox)
    assert load(opened, inbox).counts["prompts"] == 1


# -- redaction


def letters(rng: random.Random, n: int, of: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(of, k=n - 2)) + "x7"


HEX = "0123456789abcdef"
KINDS = {
    "OpenAI": lambda r: (k := "sk-proj-" + letters(r, 40), f"use {k} for it"),
    "Anthropic": lambda r: (k := "sk-ant-api03-" + letters(r, 80), f"ANTHROPIC_API_KEY={k}"),
    "GitHub": lambda r: (k := "ghp_" + letters(r, 36), f"git clone https://{k}@github.com/a/b"),
    "GitHub fine-grained": lambda r: (k := "github_pat_" + letters(r, 60), k),
    "GitLab": lambda r: (k := "glpat-" + letters(r, 20), f"glab auth login -t {k}"),
    "AWS id": lambda r: (k := "AKIA" + letters(r, 18, string.ascii_uppercase).upper(), k),
    "AWS secret": lambda r: (k := letters(r, 38) + "/+", f"aws_secret_access_key = {k}"),
    "AWS secret alone": lambda r: (k := letters(r, 40), f"it is {k} ."),
    "bearer": lambda r: (k := letters(r, 16, HEX), f"curl -H 'Authorization: Bearer {k}' http://x"),
    "basic": lambda r: (k := letters(r, 20), f'{{"Authorization": "Basic {k}=="}}'),
    "PEM": lambda r: (k := letters(r, 64), f"-----BEGIN RSA PRIVATE KEY-----\n{k}\n{letters(r, 64)}\n-----END RSA PRIVATE KEY-----"),
    "PEM without an end": lambda r: (k := letters(r, 64), f"-----BEGIN OPENSSH PRIVATE KEY-----\n{k}\n"),
    "password": lambda r: (k := letters(r, 6), f"password={k}"),
    "password in YAML": lambda r: (k := f"{letters(r, 4)} {letters(r, 5)}", f'db:\n  password: "{k}"\n'),
    "password in JSON": lambda r: (k := letters(r, 9), json.dumps(json.dumps({"dbPassword": k}))),
    "password in a sentence": lambda r: (k := letters(r, 8) + "!", f"The password is {k} since May"),
    "JWT": lambda r: (k := f"eyJ{letters(r, 20)}.eyJ{letters(r, 30)}.{letters(r, 43)}", f"t {k}"),
    "URL": lambda r: (k := letters(r, 7), f"postgres://app:{k}@db/app"),
    "URL without a user": lambda r: (k := letters(r, 12), f"redis://:{k}@cache:6379/0"),
    "Slack": lambda r: (k := f"xoxb-{letters(r, 12, string.digits)}-{letters(r, 24)}", k),
    "Slack webhook": lambda r: (k := f"T{letters(r, 8)}/B{letters(r, 8)}/{letters(r, 24)}", f"https://hooks.slack.com/services/{k}"),
    "Stripe": lambda r: (k := "sk_live_" + letters(r, 24), f"stripe.api_key = '{k}'"),
    "Google": lambda r: (k := "AIza" + letters(r, 35), f"?key={k}&x=1"),
    "npm": lambda r: (k := "npm_" + letters(r, 36), f"//registry.npmjs.org/:_authToken={k}"),
    "PyPI": lambda r: (k := "pypi-" + letters(r, 90), f"password = {k}"),
    "SendGrid": lambda r: (k := f"SG.{letters(r, 22)}.{letters(r, 43)}", k),
    "Twilio": lambda r: (k := "SK" + letters(r, 32, HEX).replace("x", "a"), k),
    "Hugging Face": lambda r: (k := "hf_" + letters(r, 34), f"HF_TOKEN={k}"),
    "Azure": lambda r: (k := letters(r, 86) + "==", f"AccountName=a;AccountKey={k};EndpointSuffix=b"),
    "Telegram": lambda r: (k := f"{r.randrange(10**8, 10**9)}:{letters(r, 35)}", f"bot{k} or {k}"),
    "Discord": lambda r: (k := f"M{letters(r, 23)}.{letters(r, 6)}.{letters(r, 27)}", k),
    "hexadecimal": lambda r: (k := letters(r, 32, HEX).replace("x", "b"), f"DD {k}"),
    "UUID under a name": lambda r: (k := f"{letters(r, 8, HEX)}-0000-4000-8000-{letters(r, 12, HEX)}", f"HEROKU_API_KEY: {k}"),
    "mysql": lambda r: (k := letters(r, 9), f"mysql -u root -p{k} shop"),
    "curl": lambda r: (k := letters(r, 9), f"curl -s -u ada:{k} https://x"),
    "option": lambda r: (k := letters(r, 9), f"deploy --api-token {k} now"),
    "environment": lambda r: (k := letters(r, 7), f"export MY_SECRET='{k}'; MY_KEY={k} run"),
    "cookie": lambda r: (k := letters(r, 12), f"Cookie: sid={k}; theme=dark"),
    "netrc": lambda r: (k := letters(r, 9), f"machine x.org login ada password {k}"),
    "pgpass": lambda r: (k := letters(r, 9), f"db.x.org:5432:*:ada:{k}"),
    "query": lambda r: (k := letters(r, 12), f"GET /cb?access_token={k}&state=1"),
    "XML": lambda r: (k := letters(r, 12), f"<ClientSecret>{k}</ClientSecret>"),
    "header": lambda r: (k := letters(r, 12), f"X-Api-Key: {k}"),
    "age": lambda r: (k := "AGE-SECRET-KEY-1" + letters(r, 58).upper(), k),
    "Vault": lambda r: (k := "hvs." + letters(r, 24), f"vault login {k}"),
    "code": lambda r: (k := letters(r, 10), f'client = Client(secret_key="{k}", retries=3)'),
    "a name in brackets": lambda r: (k := letters(r, 10), f"os.environ['API_TOKEN'] = '{k}'"),
}  # fmt: skip


def test_planted_keys_are_stored_nowhere(opened, inbox, tmp_path: Path) -> None:
    """Each kind in a prompt, an answer, the arguments of a tool and its output, and in long texts."""
    planted = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        key, text = make(random.Random(number))
        planted[kind] = key
        one = Claude(f"s-{number}").user(f"First, {kind}: {text}").says(f"I see:\n{text}\n")
        one.runs(f"run x\n{text}", output=text)
        long = (
            "word " * 4000 + text,
            text + "\nword" * 4000,
            text.join(["word " * 3000, "\nword" * 3000]),
        )
        if number % 4 == 0:
            one.runs("cat", output=long[number // 4 % 3])
        write = {"content": text, "x": [text]}
        one.says({"type": "tool_use", "id": "w", "name": "Write", "input": write})
        one.user(f"/reflect bad it printed {text}").save(inbox)
        other = make(random.Random(1000 + number))
        planted[f"{kind} in codex"] = other[0]
        part = {"type": "input_text", "text": other[1]}
        asked = {"type": "message", "role": "user", "content": [part]}
        items = codex(f"c-{number}")
        items[2]["payload"] = asked
        save(inbox / f"codex-{number}.jsonl", items)
    load(opened, inbox)
    assert len(rows(opened)) == 2 * len(KINDS) and len(KINDS) > 40
    with opened[0].write() as s:
        s.connection().exec_driver_sql("SELECT 1")
    files = (p for p in tmp_path.rglob("*") if p.is_file() and inbox not in p.parents)
    stored = b"".join(p.read_bytes() for p in files)
    text = json.dumps([row.model_dump(mode="json") for row in rows(opened)], ensure_ascii=False)
    leaked = [kind for kind, key in planted.items() if key.encode() in stored or key in text]
    assert not leaked
    assert not [kind for kind, key in planted.items() if json.dumps(key)[1:-1].encode() in stored]
    assert b"/home/ada" not in b"".join(p.read_bytes() for p in tmp_path.glob("*.db*"))


NAMES = ("API_KEY", "DB_PASSWORD", "SLACK_TOKEN", "clientSecret")
UNDER_A_NAME = r"""export NAME=KEY~NAME: KEY~"NAME": "KEY"~'NAME' : 'KEY'~--NAME=KEY~NAME := KEY~set NAME KEY
setx NAME "KEY"~$env:NAME = "KEY"~ENV NAME KEY~NAME=\"KEY\"~<NAME>KEY</NAME>~NAME -> KEY~- name: NAME\n  value: KEY
{"name":"NAME","value":"KEY"}~let NAME = `KEY`;~const NAME: string = "KEY"~NAME => "KEY"~NAME|KEY~[NAME]\nvalue=KEY
gh secret set NAME --body KEY~--from-literal=NAME=KEY~os.environ.setdefault("NAME", "KEY")~the NAME is KEY.
https://x/?NAME=KEY&a=1~curl -d '{"NAME":"KEY"}'~{"a":{"NAME":["KEY"]}}"""
IN_A_COMMAND = r"""ssh://joe:KEY@h~https://KEY@github.com/x~mongodb+srv://u:KEY@h/d~https://x/?sig=KEY&se=1~curl --user u:KEY x
curl -H "Private-Token: KEY"~docker login -u a -p KEY~echo KEY | docker login --password-stdin~echo KEY | sudo -S ls
redis-cli -a KEY~mysqldump -u a -pKEY d~sshpass -pKEY ssh~openssl enc -k KEY~openssl rsa -passin pass:KEY~zip -P KEY a.zip
7z x -pKEY a.7z~htpasswd -b f u KEY~net use x /user:a KEY~aws configure set aws_secret_access_key KEY~az login -u a -p KEY
npm config set //r/:_authToken KEY~Password: KEY~token is "KEY"~Your verification code is KEY~api key KEY~passwd KEY
AWS4-HMAC-SHA256 Credential=A/x, Signature=KEY~Authorization: Token KEY~x-auth: KEY~Set-Cookie: session=KEY; Path=/
root:$6$KEY$abcdefghij0123456789:18000:0~user:{SHA}KEY==~LDAP_BIND_PW=KEY~otpauth://totp/x?secret=KEY~WIFI:S:n;T:WPA;P:KEY;;
define('AUTH_KEY', 'KEY(z');~bindpw: KEY~psk="KEY"~Password for 'https://a@x': KEY~basic_auth: ["bob", "KEY"]
requests.get(u, auth=("bob", "KEY"))~HTTPBasicAuth("bob", "KEY")~login("bob", "KEY")~<p name="password" value="KEY"/>"""


def test_values_are_found_by_the_form_around_them() -> None:
    rng = random.Random(3)
    forms = [form for line in UNDER_A_NAME.splitlines() for form in line.split("~")]
    texts = [form.replace("NAME", name) for form in forms for name in NAMES]
    texts += [form for line in IN_A_COMMAND.splitlines() for form in line.split("~")]
    kept = []
    for text in texts:
        key = letters(rng, 10)
        if key in redact(re.sub(r"(?<!_)KEY", key, text)):
            kept.append(text)
    assert not kept and len(texts) > 140


def test_long_texts_without_white_space_take_no_long_time() -> None:
    """Each pattern in a text of 20,000 characters that begins to match it everywhere."""
    for part in (
        "password ",
        "a.b-c ",
        "token",
        "curl -u ",
        "http://",
        "/home/",
        "aB3_",
        "x",
        "echo ",
    ):
        began = time.perf_counter()
        redact(part * (20_000 // len(part)))
        assert time.perf_counter() - began < 2, part


def test_ordinary_text_is_left_as_it_is() -> None:
    text = """pytest -q tests/unit/test_sessions.py::test_a_file_is_imported_once
        max_tokens=96 prompt_tokens: 120 tokenizer = load("x") author = "Ada"
        the token budget is 400 tokens; The password field is required; sort(key=lambda row: row.id)
        2026-11-28T13:20:11.452Z 1.2.3-beta4 https://docs.python.org/3/library/json.html#json.loads
        node_modules/.pnpm/@babel+core@7.22.5/node_modules 01a22250-3489-7bc3-b742-8a8ce5a10c08
        PWD=/srv/repo make test; export PATH=/usr/local/bin:$PATH; git show 1a2b3c4d"""
    assert redact(text) == text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/home/ada/shop/a.py", "~/shop/a.py"),
        ("/Users/Ada Lovelace/x", "~ Lovelace/x"),
        ("file:///home/ada/x", "file://~/x"),
        (r"C:\Users\ada\x", r"~\x"),
        (r"C:\\Users\\ada\\x", r"~\\x"),
        ("%2Fhome%2Fada%2Fx", "~%2Fx"),
        ("~/.claude/projects/-home-ada-shop/s.jsonl", "~/.claude/projects/~-shop/s.jsonl"),
        (f"/{ROOT}/x and /{ROOT}s", f"~/x and /{ROOT}s"),
        ("/var/people/ada/x", "~/x"),
    ],
)
def test_home_folders_are_removed(path: str, shown: str) -> None:
    assert redact(path, "/var/people/ada") == shown


# -- the reward


@pytest.mark.parametrize(
    ("command", "code", "reward"),
    [
        ("pytest -q", 0, 1.0),
        ("pytest -q", 1, 0.0),
        ("cd app && npm run test:unit 2>&1", 0, 1.0),
        ("python -m pytest tests > out.txt 2>&1", 2, 0.0),
        ("FOO=1 timeout 60 cargo build --release", 0, 1.0),
        ("./gradlew assemble", 1, 0.0),
        ("go vet ./... && go test ./...", 1, 0.0),
        ("bash -lc 'x'; make", 0, 1.0),
        ("./scripts/run_tests.sh", 1, 0.0),
        ("cmake --build build -j", 0, 1.0),
        ("set -o pipefail; pytest | tail -3", 1, 0.0),
        ("pytest && git push", 0, 1.0),
        ("bash -lc 'cd app && npm t'", 1, 0.0),
        ("docker compose run --rm app pytest -q", 0, 1.0),
        ("bash scripts/test.sh", 1, 0.0),
        ("php artisan test", 0, 1.0),
        ("pytest -n 4", 1, 0.0),
        ("make -n", 0, None),
        # the exit code says nothing of the tests
        ("bash -c 'pytest | tail'", 0, None),
        ("if pytest; then echo yes; fi", 0, None),
        ("pytest && git push", 1, None),
        ("pytest | tail -3", 0, None),
        ("pytest; echo done", 0, None),
        ("pytest || true", 0, None),
        ("pytest &", 0, None),
        ("false || pytest", 0, None),
        ("pytest -q", None, None),
        # these are none
        ("echo pytest", 0, None),
        ("pip install pytest", 0, None),
        ("cat tests/test_a.py", 0, None),
        ("npm install", 1, None),
        ("make install", 1, None),
        ("make clean", 0, None),
        ("test -f x", 1, None),
        ("grep -r 'make test' .", 1, None),
        ("git commit -m 'make the test pass'", 0, None),
        ("pytest --help", 0, None),
        ("pytest --collect-only -q", 0, None),
        ("npm ci", 0, None),
        ("ssh host 'make test'", 1, None),
        ("cat <<'EOF'\nit's make\nEOF", 0, None),
    ],
)
def test_the_exit_of_a_test_or_build(command: str, code: int | None, reward: float | None) -> None:
    code = exit_of(CheckCommand(command, code)) if is_check(command) else None
    assert (None if code is None else float(code == 0)) == reward


def test_the_best_signal_counts(opened, inbox) -> None:
    def session(name: str) -> Claude:
        return Claude(name).user("Do it.")

    commit = ("git commit -am x", 0, "[main 1234abc] x\n 1 file changed")
    session("a").runs("make").runs(*commit).user("/reflect bad").save(inbox)
    session("b").runs("make", 1).runs("make").runs("ls", 2).says("ok").save(inbox)
    session("c").runs("make").runs("pytest | tail").says("ok").save(inbox)
    session("d").runs(*commit).runs("git revert HEAD").says("ok").save(inbox)
    session("e").runs("git revert HEAD").says("Undone, as you asked.").save(inbox)
    session("f").says("ok").user("/reflect good: thanks").save(inbox)
    one = session("g").says("ok")
    one.user("<command-name>/reflect</command-name><command-args>good fast</command-args>").save(
        inbox
    )
    session("i").says("ok").user("$reflect bad, it lies").save(inbox)
    session("h").runs("make", toolUseResult={"interrupted": True}).save(inbox)
    load(opened, inbox)
    found = {row.name[-1]: (row.feedback.partition(":")[0], row.reward) for row in rows(opened)}
    assert found == {
        "a": ("grade", 0.0), "b": ("check", 1.0), "c": ("", None), "d": ("commit", 0.0),
        "e": ("", None), "f": ("grade", 1.0), "g": ("grade", 1.0), "h": ("", None),
        "i": ("grade", 0.0),
    }  # fmt: skip


def test_a_commit_that_is_kept_or_reverted_later(opened, inbox, tmp_path: Path) -> None:
    repository = tmp_path / "repo"

    def git(*arguments: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(repository), *name, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    repository.mkdir()
    git("init", "-q", "-b", "main")
    lines = [git("commit", "--allow-empty", "-m", text) for text in "keep undo young".split()]
    git("revert", "--no-edit", "HEAD~1") if False else git(
        "commit",
        "--allow-empty",
        "-m",
        f"Revert\n\nThis reverts commit {git('rev-parse', 'HEAD~1')}",
    )
    for name, line in zip("kuy", lines, strict=True):
        one = Claude(name, cwd=str(repository)).user("Do it.").runs("git commit", output=line)
        if name == "y":
            for row in one.rows:
                row["timestamp"] = datetime.now(UTC).isoformat()
        one.says("Done.").save(inbox) if name != "y" else one.save(inbox)
    load(opened, inbox)
    assert {row.name[-1]: row.reward for row in rows(opened)} == {"k": 1.0, "u": 0.0, "y": None}
    state = hook_lessons.folder_of(opened[1]) / "imported.json"
    later = json.loads(state.read_text())
    later["commits"]["claude:y"]["at"] -= 2 * 86400
    state.write_text(json.dumps(later))
    assert load(opened, inbox).settled == 1
    assert {row.name[-1]: row.reward for row in rows(opened)} == {"k": 1.0, "u": 0.0, "y": 1.0}


# -- hostile and large files


def test_hostile_lines_are_counted(opened, inbox) -> None:
    good = Claude().user("Hi").says("Ho").text()
    bad = [
        "{",
        "[1, 2]",
        "null",
        '"x"',
        "{}",
        '{"type": 7}',
        '{"type": "user"}',
        "[" * 5000,
        "\x00",
    ]
    bad += ['{"type": "user", "message": {"content": 5}}', '{"type": "assistant", "message": []}']
    bad += ['{"type": "assistant", "message": {"content": [{"type": "tool_use", "input": 3}, 4]}}']
    (inbox / "s.jsonl").write_text(good + "\n".join(bad) + "\n\n" + good.replace("s-1", "s-2"))
    report = load(opened, inbox)
    assert report.skipped["unreadable"] == 6 and report.counts["prompts"] >= 2
    (inbox / "empty.jsonl").write_text("")
    (inbox / "text.jsonl").write_text("hello\n")
    (inbox / "nul.json").write_bytes(b"\0" * 100)
    assert load(opened, inbox).statuses == {"unchanged": 1, "broken": 3}


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of each value within a JSON value."""
    items = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("kind", ["claude", "codex"])
def test_fuzz_records_with_values_of_other_types(kind: str) -> None:
    """Each record of a real transcript with up to three values replaced: read, or counted."""
    others = [None, True, -1, 1e400, 10**400, "", "\ud800", [], {}, [None], {"a": {}}, [[[]]]]
    others += ["Exit code 9999999999\n", {"type": "text"}, {"type": "tool_use"}]
    (file,) = DATA.glob(f"{kind}-*.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records += Claude().user("a").runs("make", 1).rows if kind == "claude" else codex()
    for number in range(150):
        rng = random.Random(number)
        session = AgentSession(kind, "id")
        reader = (ClaudeReader if kind == "claude" else CodexReader)(session)
        for record in json.loads(json.dumps(rng.choices(records, k=4))):
            for _ in range(rng.randrange(1, 4)):
                value, path = record, rng.choice(list(places(record)))
                for key in path[:-1]:
                    value = value[key]
                value[path[-1]] = copy.deepcopy(rng.choice(others))
            reader.read(record)
        for message in session.conversation.messages():
            json.dumps(stored(message, redact_all), allow_nan=True).encode()
        session.name.encode()


def test_a_large_file_is_read_at_bounded_memory(opened, tmp_path: Path) -> None:
    """24 MB here; the program below has a limit of memory that the file does not fit in twice."""
    inbox = tmp_path / "big"
    inbox.mkdir()
    block = Claude("big")
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=7)) for _ in range(2000)]
    block.user("Start.").runs("pytest", 1)
    for _ in range(120):
        block.user("Go on.").runs("cat x", output=" ".join(rng.choices(words, k=25_000)))
    text = block.runs("pytest").text()
    (inbox / "big.jsonl").write_text(text)
    code = (
        "import sys, resource; from reflect.config import Settings; from reflect.store import Store\n"
        "from pathlib import Path\n"
        "from reflect.sessions.importer import import_sessions\n"
        "path = Path(sys.argv[1]); settings = Settings(db=sys.argv[2]); store = Store(settings.db)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "report = import_sessions(store, settings, [path])\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(after - before, report.counts['prompts'], report.signals['check'])\n"
    )
    arguments = [str(inbox / "big.jsonl"), str(tmp_path / "big.db")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    grown, prompts, checks = map(int, done.stdout.split())
    assert len(text) > 20e6 and prompts == 121 and checks == 1
    assert grown < 16_000, f"{grown} KiB more for a file of {len(text) // 1024} KiB"
