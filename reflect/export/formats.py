"""One name per format: the lessons of a profile as text, or into files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.errors import UnknownName, UsageError
from reflect.export import files, lines, markdown
from reflect.store import backup, lessons

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlmodel import Session

FORMATS = ("jsonl", "markdown", "agents", "skill")


def text(s: Session, format: str, *, profile: str, scope: str | None = None) -> str:
    """The export as text, whose last line ends with a newline."""
    if format == "jsonl":
        return lines.dump(lines.line_of(*one) for one in backup.whole(s, profile, scope))
    if format == "markdown":
        return markdown.page(lessons.listing(s, profile, scope=scope))
    if format == "agents":
        return markdown.block(lessons.listing(s, profile, scope=scope)) + "\n"
    if format == "skill":
        raise UsageError("A skill is a folder.", "Say where the folders go: --out FOLDER")
    raise UnknownName(f"There is no format '{format}'.", f"The formats are: {', '.join(FORMATS)}.")


def save(
    s: Session,
    path: Path,
    format: str,
    *,
    profile: str,
    scope: str | None = None,
    overwrite: bool = False,
) -> Sequence[Path]:
    """The export in files, each whole or as it was; those that changed."""
    if format == "agents":
        return markdown.write_block(path, lessons.listing(s, profile, scope=scope))
    if format == "skill":
        return markdown.write_skills(
            path, lessons.listing(s, profile, scope=scope), overwrite=overwrite
        )
    data = text(s, format, profile=profile, scope=scope).encode()
    return [path] if files.write(path, data, overwrite=overwrite) else []
