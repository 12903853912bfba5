"""Claude Code and Codex themselves, if they are installed (`claude`, `codex` on the PATH), against
`reflect serve` in front of a scripted server: lessons arrive, a tool runs, the exchanges are
stored."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import post, running, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from test_protocols import add_lesson, as_events, exchanges_of

from reflect.config import Settings
from reflect.models.local import LocalModel

pytestmark = pytest.mark.slow
TEXT = "The shell said four."
USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class Scripted:
    """It asks for one shell command, and answers when it has the result."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        routes = [
            Route("/v1/messages", self.message, methods=["POST"]),
            Route("/v1/responses", self.response, methods=["POST"]),
            Route("/{path:path}", self.other, methods=["GET", "POST", "HEAD"]),
        ]
        self.app = Starlette(routes=routes)

    async def other(self, http: Request) -> Response:
        return JSONResponse({"object": "list", "data": []})

    async def message(self, http: Request) -> Response:
        body = json.loads(await http.body())
        self.seen.append(body)
        blocks = [
            b for m in body["messages"] if isinstance(m["content"], list) for b in m["content"]
        ]
        done = any(block["type"] == "tool_result" for block in blocks)
        tools = [tool.get("name") for tool in body.get("tools", [])]
        calls = "Bash" in tools and not done
        block = {"type": "text", "text": TEXT}
        if calls:
            command = {"command": "echo four", "description": "say four"}
            block = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": command}
        reason = "tool_use" if calls else "end_turn"
        message = {"id": f"msg_{len(self.seen)}", "type": "message", "role": "assistant", "model": body["model"], "content": [], "stop_reason": None, "stop_sequence": None, "usage": USAGE}  # fmt: skip
        if not body.get("stream"):
            return JSONResponse(message | {"content": [block], "stop_reason": reason})
        delta = {"type": "text_delta", "text": TEXT}
        if calls:
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        empty = block | ({"input": {}} if calls else {"text": ""})
        rows = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": USAGE},
            {"type": "message_stop"},
        ]
        return Response(as_events(rows), media_type="text/event-stream")

    async def response(self, http: Request) -> Response:
        body = json.loads(await http.body())
        self.seen.append(body)
        done = any(item.get("type") == "function_call_output" for item in body["input"])
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [{"type": "output_text", "text": TEXT, "annotations": []}]}  # fmt: skip
        if not done:
            arguments = json.dumps({"cmd": "echo four"})
            item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "exec_command", "arguments": arguments, "status": "completed"}  # fmt: skip
        start = {"id": f"resp_{len(self.seen)}", "object": "response", "created_at": 1, "model": body["model"], "status": "in_progress", "output": []}  # fmt: skip
        rows = [
            {"type": "response.created", "response": start},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": start | {"status": "completed", "output": [item], "usage": USAGE}},
        ]  # fmt: skip
        return Response(as_events(rows), media_type="text/event-stream")


def run(folder: Path, command: list[str], **env: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    home = folder / "home"
    home.mkdir()
    subprocess.run(["git", "init", "-q", folder], check=True)
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "IS_SANDBOX": "1"}
    done = subprocess.run(
        command,
        env=own | env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def front(folder: Path) -> Iterator[tuple[Scripted, str]]:
    add_lesson("lessons.db")
    up = Scripted()
    settings = Settings(db="lessons.db", trials=False)
    with running(up.app) as url, serving("lessons.db", settings=settings, upstream=url) as base:
        yield up, base


def check(base: str, prefix: str) -> None:
    first, last = exchanges_of("lessons.db")[-2:]
    assert (first.finish, last.finish) == ("tool_calls", "stop")
    assert last.messages[-1]["content"] == TEXT and last.name.startswith(prefix)
    assert "four" in next(m["content"] for m in last.asked if m["role"] == "tool")
    assert all(row.exposures[0]["shown"] for row in (first, last))
    post(base, "feedback", {"id": last.name, "reward": 1}).raise_for_status()
    assert exchanges_of("lessons.db")[-1].reward == 1


def claude_env(base: str) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": base.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": "sk-none",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def test_claude_code(front: tuple[Scripted, str], folder: Path) -> None:
    up, base = front
    command = ["claude", "-p", "What does the shell say?", "--allowedTools", "Bash"]
    assert TEXT in run(folder, command, **claude_env(base))
    *own, added = up.seen[-1]["system"]
    assert "count twice" in added["text"] and "count twice" not in str(own)
    check(base, "msg_")


def test_codex(front: tuple[Scripted, str], folder: Path) -> None:
    up, base = front
    provider = f'{{name="reflect", base_url="{base}", wire_api="responses"}}'
    command = ["codex", "exec", "--skip-git-repo-check"]
    command += ["--dangerously-bypass-approvals-and-sandbox", "-c", "model_provider=reflect"]
    command += ["-c", "model=gpt-x", "-c", f"model_providers.reflect={provider}"]
    output = run(folder, [*command, "What does the shell say?"], OPENAI_API_KEY="none")
    assert TEXT in output
    *_, added = up.seen[-1]["input"][0]["content"]
    assert "count twice" in (added["text"] + (up.seen[-1].get("instructions") or ""))
    check(base, "resp_")


def test_claude_code_with_the_pocket_model(pocket: LocalModel, folder: Path) -> None:
    add_lesson("lessons.db")
    settings = Settings(db="lessons.db", trials=False)
    command = ["claude", "-p", "How many r are in strawberry?", "--model", "pocket"]
    command += ["--system-prompt", "Answer.", "--tools", "", "--output-format", "json"]
    with serving("lessons.db", pocket, settings=settings) as base:
        names = {"ANTHROPIC_DEFAULT_HAIKU_MODEL": "pocket"}
        result = json.loads(run(folder, command, **claude_env(base), **names))
        (row,) = exchanges_of("lessons.db")
        post(base, "feedback", {"id": row.name, "reward": 1}).raise_for_status()
    assert result["result"] == row.messages[-1]["content"] and row.exposures[0]["shown"]
