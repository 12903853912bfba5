"""Transcripts of Claude Code: ~/.claude/projects/FOLDER/SESSION.jsonl, one record a line.

Checked with files that versions 2.1 wrote. Of sub-agents (`isSidechain`) only the answer counts, in
the tool result of their call. Summaries, attachments and what the program itself writes into the
conversation (`isMeta`, reminders, output of its own commands) are no part of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reflect.sessions.session import AgentSession, as_dict, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect.types import Json

HEADLESS = ("sdk", "mcp", "claude-code-github-action", "headless")  # how `entrypoint` begins
REMINDER = re.compile(
    r"<(system-reminder|local-command-\w+|command-stdout|bash-stdout|bash-stderr|task-notification"
    r"|user-prompt-submit-hook|session-start-hook|ide_\w+)>.*?</\1>",
    re.DOTALL,
)
COMMAND = re.compile(r"<command-name>\s*(/?[^<]*?)\s*</command-name>")
ARGUMENTS = re.compile(r"<command-args>\s*(.*?)\s*</command-args>", re.DOTALL)
BASH_INPUT = re.compile(r"<bash-input>\s*(.*?)\s*</bash-input>", re.DOTALL)
OWN_COMMANDS = set(
    "/clear /compact /model /config /cost /help /login /logout /status /resume /exit /quit /mcp "
    "/permissions /hooks /agents /memory /vim /theme /usage /context /doctor /terminal-setup /fast "
    "/add-dir /bashes /tasks /export /ide /plugin /rewind /statusline /output-style /rename".split()
)
PERSONS = ("human", "person", "remote", "voice-call")  # where a prompt of a person comes from
INTERRUPTED = "[Request interrupted by user"
EXIT = re.compile(r"(?:Error: )?Exit code (\d+)(?:\n|$)")


class ClaudeReader:
    """Fills a session from the records of a transcript."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self._usage: tuple[str, int, int] = ("", 0, 0)  # of the message that is being read
        self._sidechains = self._others = 0

    def read(self, record: Json) -> None:
        """One record."""
        session, kind = self.session, record.get("type")
        attachment = as_dict(record.get("attachment"))
        if attachment.get("type") == "queued_command" and not record.get("isSidechain"):
            return self._queued(record, attachment)
        if kind not in ("user", "assistant"):
            subtype = record.get("subtype") or attachment.get("type")
            return session.skip(f"{kind}/{subtype}" if subtype else kind or "")
        if record.get("isSidechain"):
            self._sidechains += 1
            session.subagent = not self._others
            return session.skip("sidechain")
        self._others += 1
        session.subagent = False
        session.id = str(record.get("sessionId") or session.id)
        session.cwd = str(record.get("cwd") or session.cwd)
        session.headless |= str(record.get("entrypoint") or "").startswith(HEADLESS)
        session.seen(record.get("timestamp"))
        message = as_dict(record.get("message"))
        if kind == "assistant":
            return self._answer(record, message)
        if record.get("isMeta") or record.get("isCompactSummary"):
            return session.skip("summary" if record.get("isCompactSummary") else "meta")
        return self._user(record, message.get("content"))

    def _queued(self, record: Json, command: Json) -> None:
        """A prompt that the person wrote while the agent worked; others come from the program."""
        mode = command.get("commandMode", "prompt")
        if command.get("isMeta") or not _by_person(command) or mode != "prompt":
            return self.session.skip("attachment/queued_command")
        return self._prompt(str(record.get("uuid") or ""), text_of(command.get("prompt")))

    def _user(self, record: Json, content: object) -> None:
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        results = [p for p in parts if isinstance(p, dict) and p.get("type") == "tool_result"]
        for part in results:
            self._result(part, as_dict(record.get("toolUseResult")))
        texts = [part for part in parts if part not in results]
        if texts and not _by_person(record):
            self.session.skip("meta")
        elif texts:
            self._prompt(str(record.get("uuid") or ""), text_of(texts))

    def _prompt(self, key: str, text: str) -> None:
        session = self.session
        if name := COMMAND.search(text):
            command = name[1] if name[1].startswith("/") else f"/{name[1]}"
            if command in OWN_COMMANDS:
                return session.skip("command")
            arguments = ARGUMENTS.search(text)
            return session.prompt(key, f"{command} {arguments[1] if arguments else ''}")
        if shell := BASH_INPUT.search(text):
            return session.prompt(key, f"! {shell[1]}")
        text = REMINDER.sub("", text).strip()
        if text.startswith(INTERRUPTED) or not text:
            return session.skip("interruption" if text else "reminder")
        return session.prompt(key, text)

    def _result(self, part: Json, details: Json) -> None:
        text = text_of(part.get("content"))
        code: int | None = None
        if part.get("is_error"):
            match = EXIT.match(text)  # other errors: the command did not run to its end
            code = int(match[1]) if match else None
        elif not details.get("interrupted") and not details.get("backgroundTaskId"):
            code = 0
        self.session.result(str(part.get("tool_use_id") or ""), text, code)

    def _answer(self, record: Json, message: Json) -> None:
        session = self.session
        if record.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            return session.skip("error of the API")
        session.model = str(message.get("model") or session.model)
        self._count(str(message.get("id") or record.get("uuid")), as_dict(message.get("usage")))
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        rows = [part for part in parts if isinstance(part, dict)]

        def calls() -> Iterator[tuple[str, str, object]]:
            for part in rows:
                if part.get("type") == "tool_use":
                    yield str(part.get("id")), str(part.get("name")), part.get("input")

        texts = [part for part in rows if part.get("type") == "text"]
        if not texts and all(part.get("type") != "tool_use" for part in rows):
            return session.skip("thinking")
        return session.answer(text_of(texts), calls())

    def _count(self, name: str, usage: Json) -> None:
        """Count the tokens of a message once; each of its records repeats them."""
        session, (before, old_in, old_out) = self.session, self._usage
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        new_in, new_out = (
            sum(map(number, map(usage.get, names))),
            number(usage.get("output_tokens")),
        )
        if name == before:
            session.tokens_in -= old_in
            session.tokens_out -= old_out
        session.tokens_in += new_in
        session.tokens_out += new_out
        self._usage = name, new_in, new_out


def _by_person(record: Json) -> bool:
    """Whether a prompt comes from a person; older records do not say."""
    return as_dict(record.get("origin")).get("kind", "human") in PERSONS


def number(value: object) -> int:
    """A count of tokens; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
