"""Transcripts of Codex: ~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl, one record a line.

Checked with files that version 0.171 wrote; the forms of 2025 (records without `payload`, exit
codes inside the output of a command) are read too. Developer messages, which hold what hooks add,
reasoning and compacted histories are no part of the conversation.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from reflect.sessions.claude import number
from reflect.sessions.session import AgentSession, as_dict, text_of

if TYPE_CHECKING:
    from reflect.types import Json

HEADLESS = ("exec", "codex_exec", "mcp", "codex_mcp", "codex_sdk", "sdk", "headless")
CONTEXT = re.compile(
    r"\s*(?:<(environment_context|user_instructions|turn_aborted|permissions|skill|apps|plugins"
    r"|subagent_notification|user_shell_command|INSTRUCTIONS|collaboration_mode|hook\w*)\b"
    r"|# AGENTS\.md instructions)"
)
EXIT = re.compile(r"^(?:Process exited with code|Exit code:)\s*(-?\d+)", re.MULTILINE)
CALLS = ("function_call", "custom_tool_call", "local_shell_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
ITEMS = ("message", "reasoning", *CALLS, *OUTPUTS)


class CodexReader:
    """Fills a session from the records of a transcript."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self._total: object = None
        self._met = False

    def read(self, record: Json) -> None:
        """One record."""
        session, kind = self.session, str(record.get("type") or "")
        session.seen(record.get("timestamp"))
        payload = as_dict(record.get("payload"))
        if kind == "session_meta" or (not kind and "id" in record):
            return self._meta(payload or record)
        if kind == "turn_context":
            session.model = str(payload.get("model") or session.model)
            session.cwd = str(payload.get("cwd") or session.cwd)
            return session.skip(kind)
        if kind == "event_msg":
            return self._event(payload)
        if kind == "response_item" or kind in ITEMS:
            return self._item(payload or record)
        return session.skip(kind)

    def _meta(self, meta: Json) -> None:
        session, source = self.session, meta.get("source")
        if not self._met:  # a forked session repeats the record of its parent
            session.id = str(meta.get("id") or meta.get("session_id") or session.id)
            session.cwd = str(meta.get("cwd") or "")
        self._met = True
        session.subagent |= isinstance(source, dict) and "subagent" in source
        starts = (str(meta.get("originator") or ""), source if isinstance(source, str) else "")
        session.headless |= any(start.startswith(HEADLESS) for start in starts if start)
        session.skip("session_meta")

    def _event(self, event: Json) -> None:
        """Events repeat the items; only exit codes and counts of tokens are read from them."""
        session, kind = self.session, str(event.get("type") or "")
        item = as_dict(event.get("item"))
        if kind == "token_count":
            info = as_dict(event.get("info"))
            if info.get("total_token_usage") != self._total:
                self._total = info.get("total_token_usage")
                usage = as_dict(info.get("last_token_usage"))
                session.tokens_in += number(usage.get("input_tokens"))
                session.tokens_out += number(usage.get("output_tokens"))
        elif kind == "exec_command_end":
            self._ended(event, str(event.get("call_id") or ""))
        elif item.get("type") == "CommandExecution":
            self._ended(item, str(item.get("id") or ""))
        session.skip(f"event/{kind}")

    def _ended(self, event: Json, call: str) -> None:
        code = event.get("exit_code")
        if isinstance(code, int):
            self.session.ended(call, code, text_of(event.get("aggregated_output")))

    def _item(self, item: Json) -> None:
        session, kind = self.session, item.get("type")
        call = str(item.get("call_id") or item.get("id") or "")
        if kind == "message":
            return self._message(item)
        if kind in CALLS:
            arguments = item.get("arguments", item.get("input", item.get("action")))
            return session.answer("", iter([(call, str(item.get("name") or kind), arguments)]))
        if kind in OUTPUTS:
            text, code = _output(item.get("output"))
            return session.result(call, text, code)
        return session.skip(kind)

    def _message(self, item: Json) -> None:
        session, role = self.session, item.get("role")
        text = text_of(item.get("content"))
        if role == "assistant":
            return session.answer(text)
        passed = as_dict(item.get("internal_chat_message_metadata_passthrough"))
        kinds = passed.get("content_item_kinds")
        mine = not isinstance(kinds, list) or any(str(kind).startswith("user.") for kind in kinds)
        if role != "user" or not mine or CONTEXT.match(text):
            return session.skip(f"message/{role if role != 'user' else 'context'}")
        return session.prompt(str(item.get("id") or ""), text)


def _output(output: object) -> tuple[str, int | None]:
    """The text of an output, and the exit code in it, if any."""
    if isinstance(output, str) and output.startswith('{"output"'):
        try:
            output = json.loads(output)
        except (ValueError, RecursionError):
            return str(output), None
    code = as_dict(as_dict(output).get("metadata")).get("exit_code")
    text = text_of(output)
    if not isinstance(code, int):
        match = EXIT.search(text.partition("\nOutput:\n")[0][:2000])
        code = int(match[1]) if match else None
    return text, code
