"""Reading what a person names: files with a bound, home folders, values in messages.

A path can name anything: a folder, a device without an end, a pipe without a writer. Each is one
sentence, never a hang and never more memory than the bound.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path
from unicodedata import category

from reflect.errors import ReflectError, UsageError

SILENCE = 10.0  # seconds without data from a pipe or device before reading fails
CHUNK = 2**20


def user_cache() -> Path:
    """The folder for what can be made again: $REFLECT_CACHE, else reflect in the user's cache."""
    if own := os.environ.get("REFLECT_CACHE"):
        return expand_home(own)
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else expand_home() / ".cache") / "reflect"


def expand_home(path: str | Path = "~") -> Path:
    """`path` with a leading `~` or `~USER` expanded. UsageError where that home is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        name = shortened(Path(path).parts[0])
        message = f"The home folder {name} is unknown: the user has no entry in the system."
        raise UsageError(message, "Set HOME, or write the path without ~.") from e


def read_bytes(path: str | Path, most: int) -> bytes:
    """The content of a file, pipe or device. ReflectError where it cannot be read, UsageError where
    it is a folder, has more than `most` bytes, or sends nothing for SILENCE seconds."""
    file = expand_home(path)
    name = clipped(str(path))
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise ReflectError(f"{name} cannot be read: {why}.", "Check the path.") from e
    try:
        info = os.fstat(number)
        if stat.S_ISREG(info.st_mode) and info.st_size > most:
            raise _too_large(name, most)
        if stat.S_ISDIR(info.st_mode):
            raise UsageError(f"{name} cannot be read: it is a folder.", "Name a file in it.")
        parts, size = [], 0
        while part := _part(number, name):
            parts.append(part)
            size += len(part)
            if size > most:
                raise _too_large(name, most)
        return b"".join(parts)
    except OSError as e:
        raise ReflectError(f"{name} cannot be read: {e.strerror}.") from e
    finally:
        os.close(number)


def read_stdin(most: int) -> bytes:
    """All of stdin. UsageError where it has more than `most` bytes."""
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        raise _too_large("stdin", most)
    return data


def _too_large(name: str, most: int) -> UsageError:
    message = f"{name} has more than {most // 2**20} MiB, or no end."
    return UsageError(message, "Name a smaller file.")


def _part(number: int, name: str) -> bytes:
    ready = select.poll()
    ready.register(number, select.POLLIN)
    while True:
        if not ready.poll(SILENCE * 1000):
            message = f"{name} sent nothing for {SILENCE:g} seconds."
            raise UsageError(message, "Write its content to a file, and name that.")
        try:
            return os.read(number, CHUNK)
        except BlockingIOError:  # another reader was faster
            continue


def read_text(path: str | Path, most: int) -> str:
    """As `read_bytes`, as text without a byte order mark. UsageError where it is not UTF-8."""
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        message = f"{clipped(str(path))} is not UTF-8 text: line {line}."
        raise UsageError(message, "Save it as UTF-8, then try again.") from e


def plain_text(text: str) -> bool:
    """False for text with a control character other than tab and line break, or with half a
    surrogate pair, as Python reads bytes that are not UTF-8."""
    return not any(category(x) in ("Cc", "Cs") for x in text if x not in "\t\n\r")


def shortened(value: object) -> str:
    """A value in a message, as Python writes it, in at most 60 characters."""
    try:
        return clipped(repr(value), 60)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"({type(value).__name__} that is too long to print)"


def clipped(text: str, most: int = 200) -> str:
    """Text in a message: at most `most` characters, all printable."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)
