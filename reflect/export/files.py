"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from reflect.errors import UsageError


def write(path: Path, data: bytes, *, overwrite: bool = False) -> bool:
    """Replace the file by a rename; its mode stays, a link stays a link. False when it held these
    bytes already.

    UsageError when there is a file that may not be overwritten.
    """
    real = Path(os.path.realpath(path))  # AGENTS.md is often a link to CLAUDE.md
    if real.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    there = real.exists()
    if there and real.read_bytes() == data:
        return False
    if there and not overwrite:
        raise UsageError(
            f"{path} is there already.", "Name another file, or say --yes to overwrite it."
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


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
