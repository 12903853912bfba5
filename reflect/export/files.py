"""Writing a text file whole or not at all, and not when it holds the same text already."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import tempfile
from pathlib import Path

from reflect.errors import UsageError


def text_of(data: bytes) -> bytes:
    """The bytes without a byte order mark, with every line end as a newline."""
    return re.sub(rb"\r\n?", b"\n", data.removeprefix(codecs.BOM_UTF8))


def line_end(data: bytes) -> bytes:
    """The first line end of the text; a newline where there is none."""
    match = re.search(rb"\r\n|\n|\r", data)
    return match[0] if match else b"\n"


def write(path: Path, data: bytes, *, overwrite: bool = False, exact: bool = False) -> bool:
    """Replace the file by a rename; its mode stays, a link stays a link.

    False, and nothing is written, when it holds this text already: other line ends, a byte order
    mark or a missing newline at the end are no difference (git and editors change them), unless
    `exact`. UsageError when there is a file that may not be overwritten.
    """
    real = Path(os.path.realpath(path))  # AGENTS.md is often a link to CLAUDE.md
    if real.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if path.exists() and not path.is_file():  # the real path of a pipe does not exist
        return _write_device(path, data)
    there = real.exists()
    before = real.read_bytes() if there else b""
    if there and (before == data or (not exact and _same_text(before, data))):
        return False
    if there and not overwrite:
        raise UsageError(
            f"{path} already exists.", "Name another file, or say --yes to overwrite it."
        )
    real.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), real.stat().st_mode & 0o7777 if there else 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(part, real)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
    return True


def _write_device(path: Path, data: bytes) -> bool:
    """Write to a pipe or a character device, such as /dev/stdout."""
    if path.is_block_device():
        raise UsageError(f"{path} is a disk.", "Name a file.")
    # Without O_NONBLOCK, opening a pipe waits for its reader.
    number = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    os.set_blocking(number, True)
    with os.fdopen(number, "wb") as file:
        file.write(data)
    return True


def _same_text(one: bytes, other: bytes) -> bool:
    return text_of(one).removesuffix(b"\n") == text_of(other).removesuffix(b"\n")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
