"""Reads a copy of an upstream's answer, whole or streamed, to record it.

The client gets the bytes whatever this reader makes of them: `feed` and `completions` never raise,
and an answer that is not understood is not recorded. Servers differ in the details of the format,
so each field is checked where it is read. A stream is read as the WHATWG specification of
server-sent events says (any line end, byte order mark, comments, data in several lines), and each
complete object also where the empty line after it is missing.

Not covered: encodings other than gzip and deflate.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from reflect.models.base import Completion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reflect.types import Json

MOST_BYTES = 32 * 2**20  # of one answer, decoded; a longer one is not recorded
MOST_LINES = 2**20
MOST_EVENT = 8 * 2**20  # of one line, one event or one JSON body
SLICE = 2**16  # bytes that are decoded and read at a time
MOST_NAME = 256  # characters of an id, a model or a function
LINE_END = re.compile(rb"\r\n|\r|\n")
BOM = b"\xef\xbb\xbf"
FINISH: dict[object, Literal["length", "tool_calls"]] = {
    "length": "length",
    "tool_calls": "tool_calls",
}


@dataclass
class StreamedCall:
    """A tool call of an answer; `arguments` are pieces of JSON text."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass
class Choice:
    """One answer."""

    text: list[str] = field(default_factory=list)
    calls: list[StreamedCall] = field(default_factory=list)
    by_index: dict[int, StreamedCall] = field(default_factory=dict)
    by_id: dict[str, StreamedCall] = field(default_factory=dict)
    finish: str = ""
    has_message: bool = False


class AnswerReader:
    """The parts of an answer, joined. `encoding` is its Content-Encoding."""

    def __init__(self, encoding: str = "") -> None:
        self.complete = False
        """The stream has sent [DONE], or the JSON body has been read."""
        self.id = self.model = ""
        self._decoder = _Decoder(encoding)
        self.encoded = self._decoder.encoding not in ("", "identity")
        self._readable = True
        self._size = self._lines = 0
        self._json: bool | None = None  # None: no byte yet that tells JSON from events
        self._pieces: list[bytes] = []  # of an unfinished line, or of the JSON body
        self._data: list[bytes] = []  # of an unfinished event
        self._pieces_size = self._data_size = 0
        self._after_cr = False
        self._choices: dict[int, Choice] = {}
        self._usage: Json = {}

    def feed(self, part: bytes) -> None:
        """Read the next bytes. Never raises."""
        if not self._readable or self.complete:
            return
        try:
            for data in self._decoder.decode(part):
                self._size += len(data)
                self._read(data)
                waiting = self._pieces_size + self._data_size
                if self._size > MOST_BYTES or self._lines > MOST_LINES or waiting > MOST_EVENT:
                    raise ValueError("too long")
        except Exception:
            self._give_up()

    def completions(self) -> list[Completion]:
        """The answers, by index, when no more bytes come; [] if they cannot be read or are not
        complete. Never raises."""
        try:
            self._finish()
            return self._completions()
        except Exception:
            self._give_up()
            return []

    def _give_up(self) -> None:
        self._readable = False
        self._pieces, self._data, self._choices = [], [], {}

    # -- from bytes to events

    def _read(self, data: bytes) -> None:
        if self._json is None:
            head = b"".join([*self._pieces, data])
            if len(head) < len(BOM) and BOM.startswith(head):
                self._pieces = [head]
                return
            data = head.removeprefix(BOM).lstrip()
            self._pieces = []
            if not data:
                return
            self._json = data.startswith(b"{")
        if self._json:
            self._pieces.append(data)
            self._pieces_size += len(data)
        elif data:
            self._read_lines(data)

    def _read_lines(self, data: bytes) -> None:
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        first, *lines = LINE_END.split(data)
        self._pieces.append(first)
        self._pieces_size += len(first)
        if lines:
            lines, rest = [b"".join(self._pieces), *lines[:-1]], lines[-1]
            self._pieces, self._pieces_size = [rest], len(rest)
            self._lines += len(lines)
            for line in lines:
                self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name != b"data" or self.complete:
            return
        value = value.removeprefix(b" ")
        if self._data or not self._take(value):
            self._data.append(value)
            self._data_size += len(value)

    def _end_event(self) -> None:
        data, self._data, self._data_size = self._data, [], 0
        if len(data) > 1:
            self._take(b"\n".join(data))

    def _finish(self) -> None:
        """The end of the answer."""
        if self._json:
            self._take(b"".join(self._pieces))
            self.complete = True
        elif self._readable:
            self._read_line(b"".join(self._pieces))
            self._end_event()
        self._pieces = []

    # -- from events to choices

    def _take(self, data: bytes) -> bool:
        """Read the data of an event. False if it is neither a JSON object nor [DONE]."""
        if data.strip() == b"[DONE]":
            self.complete = True
            return True
        try:
            content = json.loads(data.decode("utf-8", "replace"), strict=False)
        except (ValueError, RecursionError):
            return False
        if isinstance(content, dict):
            self._read_chunk(content)
        return isinstance(content, dict)

    def _read_chunk(self, chunk: Json) -> None:
        """One chunk of a stream, or a whole answer."""
        if chunk.get("error"):
            raise ValueError("an error instead of an answer")
        self.id = self.id or word(chunk.get("id"))
        self.model = self.model or word(chunk.get("model"))
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
        rows = objects(chunk.get("choices"))
        indexes = [count(row.get("index")) for row in rows]
        if len(set(indexes)) < len(rows):
            raise ValueError("two choices have one index")
        for index, row in zip(indexes, rows, strict=True):
            self._read_choice(self._choices.setdefault(index, Choice()), row)

    def _read_choice(self, choice: Choice, row: Json) -> None:
        if isinstance(finish := row.get("finish_reason"), str) and finish:
            choice.finish = finish
        part = row.get("delta") or row.get("message")
        if isinstance(part, str | list):
            part = {"content": part}
        choice.has_message |= isinstance(row.get("delta"), dict) or isinstance(part, dict)
        if not isinstance(part, dict):
            return
        if text := _text(part.get("content")):
            choice.text.append(text)
        calls = part.get("tool_calls")
        for piece in objects([calls] if isinstance(calls, dict) else calls):
            self._read_call(choice, piece)

    def _read_call(self, choice: Choice, piece: Json) -> None:
        """One piece of a tool call: of the call with its index, else of that with its id, else, if
        it has no name, of the last call. An id and a name that are both new begin another call."""
        function = piece.get("function")
        function = function if isinstance(function, dict) else piece
        name, new_id = string(function.get("name")), string(piece.get("id"))
        index = piece.get("index")
        last = choice.calls[-1] if choice.calls else None
        if isinstance(index, int):
            call = choice.by_index.get(index)
        elif new_id:
            call = choice.by_id.get(new_id)
        else:
            call = None if name else last
        if call is None or (new_id and call.id and new_id != call.id and name):
            call = StreamedCall()
            choice.calls.append(call)
        if isinstance(index, int):
            choice.by_index[index] = call
        if new_id:
            choice.by_id[new_id] = call
        call.id = call.id or new_id
        if name != call.name:
            call.name = (call.name + name)[:MOST_NAME]
        arguments = function.get("arguments")
        if arguments is not None:
            text = isinstance(arguments, str)
            call.arguments.append(arguments if text else json.dumps(arguments, ensure_ascii=False))

    # -- the result

    def _completions(self) -> list[Completion]:
        choices = [choice for _, choice in sorted(self._choices.items())]
        finished = self.complete or all(choice.finish for choice in choices)
        if not finished or not all(choice.has_message for choice in choices):
            return []
        return [
            Completion(
                text="".join(choice.text),
                prompt_tokens=count(self._usage.get("prompt_tokens")),
                completion_tokens=count(self._usage.get("completion_tokens")) // len(choices),
                finish=FINISH.get(choice.finish, "stop"),
                seed=0,
                calls=tuple(_as_call(call) for call in choice.calls),
            )
            for choice in choices
        ]


class _Decoder:
    """Undoes a Content-Encoding. ValueError for one that is unknown."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding.strip().lower()
        self._zlib: zlib._Decompress | None = None
        self._head = b""

    def decode(self, part: bytes) -> Iterator[bytes]:
        """The decoded bytes, in slices."""
        if self.encoding in ("", "identity"):
            yield part
            return
        if self.encoding not in ("gzip", "x-gzip", "deflate"):
            raise ValueError("an encoding that is not read")
        if self._zlib is None:
            self._head += part
            if len(self._head) < 2:
                return
            part, first = self._head, int.from_bytes(self._head[:2], "big")
            # Some servers send deflate without the head of zlib.
            bare = self.encoding == "deflate" and (first >> 8 & 15 != 8 or first % 31)
            self._zlib = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        while part:
            yield self._zlib.decompress(part, SLICE)
            part = self._zlib.unconsumed_tail


def _as_call(call: StreamedCall) -> Json:
    function = {"name": call.name, "arguments": "".join(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def fields_of(value: object) -> Json:
    """An object, {} for all that is none."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Json]:
    """The objects of a list, [] for all that is none."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _text(content: object) -> str:
    """The text of a content: a string, a list of parts, or one part."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part_text(part) for part in content)
    return _part_text(content)


def _part_text(part: object) -> str:
    if isinstance(part, dict) and part.get("type") in (None, "text", "output_text"):
        return string(part.get("text"))
    return string(part)


def string(value: object) -> str:
    """A text, "" for all that is none."""
    return value if isinstance(value, str) else ""


def word(value: object) -> str:
    """A name that can be a key of the database: printable and not longer than MOST_NAME; else
    ""."""
    text = string(value)
    return text if len(text) <= MOST_NAME and text.isprintable() else ""


def count(value: object) -> int:
    """A number of tokens or an index, 0 for all that is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value < 2**31 else 0
