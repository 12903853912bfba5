"""A session of a coding agent, in the form that all readers of transcripts fill.

The messages have the OpenAI shape. Texts and whole conversations are cut while they are read, so
memory does not grow with the file: of a long text both ends stay, of a long conversation its
beginning and its end.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from reflect.sessions.hook import GRADES, HEAD, digest
from reflect.sessions.signals import CheckCommand, is_check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reflect.tasksets.task import Message
    from reflect.types import Json

MOST_TEXT = 6000  # characters of one text that are stored
# Characters of one text in memory. More than are stored, so that a key which the first cut parts is
# cut off by the second one, after redaction.
MOST_RAW = 16_000
MOST_CHARS = 240_000  # of one conversation in memory
OURS = re.compile(rf"{re.escape(HEAD)} \[([0-9a-f]{{4,16}})\]\n.*?\[end \1\]", re.DOTALL)
COMMITTED = re.compile(r"^\[[^\]\n]*? ([0-9a-f]{7,40})\]", re.MULTILINE)
UNDONE = re.compile(
    r"\bgit\b[^\n;|&]{0,80}?\s(?:revert\b(?! --abort)"
    r"|reset\b[^\n;|&]{0,80}?\s(?:HEAD|ORIG_HEAD|@)(?:[~^]|@\{))"
)


class Conversation:
    """Messages with a bound on their characters: the first half, and the last."""

    def __init__(self) -> None:
        self._first: list[Message] = []
        self._last: deque[Message] = deque()
        self._room, self._size, self.left_out = MOST_CHARS // 2, 0, 0

    def add(self, message: Message) -> None:
        """Add a message; drop those in the middle that do not fit."""
        size = size_of(message)
        if not self._last and size <= self._room:
            self._first.append(message)
            self._room -= size
            return
        self._last.append(message)
        self._size += size
        while self._size > MOST_CHARS // 2 and len(self._last) > 1:
            self._size -= size_of(self._last.popleft())
            self.left_out += 1

    @property
    def newest(self) -> Message | None:
        """The last message."""
        rows = self._last or self._first
        return rows[-1] if rows else None

    def messages(self) -> list[Message]:
        """The messages, with a note in place of those that were dropped."""
        note = f"[{self.left_out} messages are left out]"
        gap: list[Message] = [{"role": "user", "content": note}] if self.left_out else []
        return [*self._first, *gap, *self._last]


def size_of(message: Message) -> int:
    """The characters of a message, those of its calls included."""
    return len(str(message.get("content") or "")) + len(json.dumps(message.get("tool_calls", "")))


def shorten(text: str, most: int = MOST_RAW) -> str:
    """Both ends of a long text, cut at white space where there is some."""
    if len(text) <= most:
        return text
    head, tail = text[: most // 2], text[-(most // 2) :]
    head = head.rsplit(None, 1)[0] if len(head.split()) > 1 else head
    tail = tail.split(None, 1)[1] if len(tail.split()) > 1 else tail
    return f"{head}\n[{len(text) - len(head) - len(tail)} characters are left out]\n{tail}"


def plain(text: object) -> str:
    """A text that every database takes: without NUL and without halves of surrogate pairs."""
    return str(text).encode("utf-8", "replace").decode().replace("\0", "")


def text_of(content: object) -> str:
    """The text of a message's content: a text, or a list of parts. Images become a word."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        kind = str(content.get("type", ""))
        if "image" in kind or "audio" in kind:
            return f"[{'image' if 'image' in kind else 'audio'}]"
        for name in ("text", "content", "output"):
            if content.get(name) is not None:
                return text_of(content[name])
        return ""
    if isinstance(content, list):
        return "\n".join(filter(None, map(text_of, content)))
    return "" if content is None else str(content)


@dataclass
class AgentSession:
    """What one transcript, or the rest of one since the last review, has in it."""

    agent: str
    """claude, codex, or the name of the agent in an ATIF file."""
    id: str = ""
    cwd: str = ""
    model: str = ""
    headless: bool = False
    """A program started it, not a person."""
    subagent: bool = False
    """All of it is the work of a sub-agent, whose answer is in the transcript of its session."""
    identity: str = ""
    """The transcript that it is read from."""
    known: Mapping[str, str] = field(default_factory=dict)
    """Prompt -> the transcript that had it first: a resumed session may repeat earlier ones."""
    first: datetime | None = None
    last: datetime | None = None
    prompts: list[str] = field(default_factory=list)
    """The keys of its prompts."""
    counts: Counter[str] = field(default_factory=Counter)
    """prompts, answers, calls, results, records."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Records that are not part of the conversation, by kind."""
    tokens_in: int = 0
    tokens_out: int = 0
    asked: Message | None = None
    grade: tuple[float, str] | None = None
    """The person's own: 1 or 0, and why."""
    check: CheckCommand | None = None
    """The last test or build command."""
    commits: list[str] = field(default_factory=list)
    undone: bool = False
    """A command undid a commit of the session."""
    conversation: Conversation = field(default_factory=Conversation)
    _copied: bool = False
    _commands: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its exchanges."""
        return plain(f"{self.agent[:40]}:{self.id[:100]}")

    def seen(self, timestamp: object) -> None:
        """Note the time of a record."""
        try:
            at = datetime.fromisoformat(str(timestamp).replace("Z", "+00:00"))
        except ValueError:
            return
        if at.tzinfo:
            self.first, self.last = self.first or at, at

    def skip(self, kind: object) -> None:
        """Count a record that is no part of the conversation."""
        self.skipped[plain(kind)[:60] or "without a type"] += 1

    def prompt(self, key: str, text: str) -> None:
        """A person's message. `/reflect good|bad WHY` grades the session instead."""
        text = OURS.sub("", text).strip()
        if not text:
            return self.skip("empty prompt")
        key = digest(key)[:12] if key else ""
        self._copied = self.known.get(key, self.identity) != self.identity
        if self._copied:
            return self.skip("repeated")
        self.prompts.append(key)
        word, verdict, why = [*text.split(None, 2), "", ""][:3]
        verdict = verdict.rstrip(":,.;!").lower()
        if word in GRADES and verdict in ("good", "bad"):
            self.grade = float(verdict == "good"), why
            self.counts["grades"] += 1
            return None
        message: Message = {"role": "user", "content": shorten(plain(text))}
        self.asked = self.asked or message
        self.counts["prompts"] += 1
        self.conversation.add(message)
        return None

    def answer(self, text: str, calls: Iterable[tuple[str, str, object]] = ()) -> None:
        """Text of the assistant, and its tool calls: (id, name, arguments)."""
        if self._copied:
            return self.skip("repeated")
        rows = []
        for number, name, arguments in calls:
            self.counts["calls"] += 1
            self._command(number, arguments)
            function = {"name": plain(name)[:200], "arguments": _arguments(arguments)}
            rows.append({"id": plain(number)[:200], "type": "function", "function": function})
        text = shorten(plain(OURS.sub("", text).strip()))
        if not rows and not text:
            return self.skip("empty answer")
        newest = self.conversation.newest
        if newest is not None and newest["role"] == "assistant":  # one answer, in several records
            newest["content"] = shorten("\n".join(filter(None, [newest["content"], text])))
            if rows:
                newest["tool_calls"] = [*newest.get("tool_calls", []), *rows]
            return None
        self.counts["answers"] += 1
        message: Message = {"role": "assistant", "content": text}
        self.conversation.add(message | ({"tool_calls": rows} if rows else {}))
        return None

    def result(self, number: str, text: str, exit_code: int | None = None) -> None:
        """The output of a tool. `exit_code`: of a command that ended, if the record has one."""
        if self._copied:
            return self.skip("repeated")
        self.counts["results"] += 1
        text = OURS.sub("", text)
        self.ended(number, exit_code, text)
        content = shorten(plain(text))
        self.conversation.add(
            {"role": "tool", "tool_call_id": plain(number)[:200], "content": content}
        )
        return None

    def ended(self, number: str, exit_code: int | None, output: str) -> None:
        """A command ended: note what it says of tests, builds and commits."""
        command = self._commands.get(number)
        if command is None or self._copied:
            return
        if exit_code is not None:
            del self._commands[number]
        if is_check(command):
            self.check = CheckCommand(command, exit_code)
        if exit_code == 0 and "git" in command:
            made = COMMITTED.findall(output) if "commit" in command else []
            if made:
                self.commits, self.undone = [*self.commits, *made][-50:], False
            elif self.commits and UNDONE.search(command):
                self.undone = True

    def _command(self, number: str, arguments: object) -> None:
        """Remember the shell command of a call until its result comes."""
        command = command_of(arguments)
        if command:
            self._commands[number] = command
            while len(self._commands) > 64:
                del self._commands[next(iter(self._commands))]


def command_of(arguments: object) -> str:
    """The shell command in the arguments of a call; "" if there is none."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return ""
    if not isinstance(arguments, dict) or arguments.get("run_in_background"):
        return ""
    command = arguments.get("command", arguments.get("cmd"))
    if isinstance(command, list) and command and all(isinstance(x, str) for x in command):
        shell = len(command) > 2 and command[-2] in ("-c", "-lc", "-ic")
        command = command[-1] if shell else " ".join(command)
    return command[:20_000] if isinstance(command, str) else ""


def _arguments(value: object) -> object:
    """The arguments of a call, with its texts shortened. JSON in a text is read."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value) if value.startswith("{") else None
        except (ValueError, RecursionError):
            parsed = None
        return _short(parsed) if isinstance(parsed, dict) else shorten(plain(value))
    return _short(value)


def _short(value: object, most: int = MOST_RAW) -> object:
    """A JSON value with texts and lists of bounded length."""
    if isinstance(value, str):
        return shorten(plain(value), most)
    if isinstance(value, list):
        return [_short(item, most) for item in value[:100]]
    if isinstance(value, dict):
        return {plain(name)[:200]: _short(item, most) for name, item in list(value.items())[:100]}
    return value


def stored(message: Message, clean: Callable[[object], object]) -> Message:
    """The message as it is stored: cleaned, then shortened, arguments of calls as JSON texts."""
    row: Message = as_dict(_short(clean(message), MOST_TEXT))
    for call in row.get("tool_calls", ()):
        function = call["function"]
        if not isinstance(function["arguments"], str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return row


def as_dict(value: object) -> Json:
    """The value if it is a JSON object, else {}."""
    return value if isinstance(value, dict) else {}
