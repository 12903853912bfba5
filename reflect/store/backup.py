"""Lessons as they travel: read with all that belongs to them, written with a history made
elsewhere; whole copies."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from sqlmodel import Session, col, select

from reflect.errors import UsageError
from reflect.records import FollowedCheck, Lesson, LessonLink, LessonVersion, Trial
from reflect.store import lessons as db

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from reflect.store.database import Store

Row = TypeVar("Row", LessonVersion, Trial, LessonLink)
Whole = tuple[Lesson, list[LessonVersion], list[Trial], list[LessonLink], FollowedCheck | None]


def whole(s: Session, profile: str, scope: str | None = None) -> Iterator[Whole]:
    """Every lesson by id with its versions, oldest first, the trials that no adapter had a part in,
    the links to others of these lessons that it replaces, and its check."""
    mine = [col(Lesson.profile) == profile]
    mine += [] if scope is None else [col(Lesson.scope) == scope]
    versions = _by_lesson(
        s.exec(
            select(LessonVersion)
            .join(Lesson)
            .where(*mine)
            .order_by(col(LessonVersion.lesson_id), col(LessonVersion.version))
        )
    )
    bare = select(Trial).join(Lesson).where(*mine, col(Trial.adapter_id).is_(None))
    trials = _by_lesson(s.exec(bare.order_by(col(Trial.lesson_id), col(Trial.id))))
    order = (col(LessonLink.lesson_id), col(LessonLink.other_id), col(LessonLink.kind))
    links = _by_lesson(s.exec(select(LessonLink).order_by(*order)))
    checks = {
        check.lesson_id: check for check in s.exec(select(FollowedCheck).join(Lesson).where(*mine))
    }
    lessons = db.listing(s, profile, scope=scope)
    ids = {lesson.id for lesson in lessons}
    for lesson in lessons:
        key = lesson.id or 0
        own = [link for link in links.get(key, []) if link.other_id in ids]
        yield lesson, versions[key], trials.get(key, []), own, checks.get(key)


def _by_lesson(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """lesson id -> its rows, which come in order of the lessons."""
    return {key: list(group) for key, group in groupby(rows, key=lambda row: row.lesson_id)}


def put(
    s: Session, lesson: Lesson, versions: Sequence[LessonVersion], trials: Sequence[Trial]
) -> Lesson:
    """A lesson with a history made elsewhere. It keeps its id where that is free, else it gets the
    next one."""
    if lesson.id is not None and s.get(Lesson, lesson.id) is not None:
        lesson.id = None
    s.add(lesson)
    s.flush()
    extend(s, lesson, versions, trials)
    return lesson


def extend(
    s: Session, lesson: Lesson, versions: Sequence[LessonVersion], trials: Sequence[Trial]
) -> None:
    """Versions made elsewhere that follow on the newest one here, and trials; the caller has set
    the head."""
    for row in (*versions, *trials):
        row.lesson_id = lesson.id or 0
        s.add(row)
    s.add(lesson)
    s.flush()


def backup(store: Store, path: Path | None = None) -> Path:
    """The whole database as it is at this moment, in one file; others may write meanwhile. Never
    overwrites.

    By default next to the database, named by it and the time; `path` may be a folder. The file
    becomes visible only when complete. UsageError when it exists already, or when the database is
    no file.
    """
    if store.path is None:
        raise UsageError(f"{store.url} is on a server.", "Its own tool copies it: pg_dump.")
    target = path or store.path.parent
    if target.is_dir():
        target = target / f"{store.path.stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}.db"
    taken = UsageError(f"{target} is there already.", "Name another file, or move that one away.")
    if os.path.lexists(target):
        raise taken
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            store.translate_errors(),
            closing(sqlite3.connect(store.path, timeout=30)) as connection,
        ):
            connection.execute("VACUUM INTO ?", (str(part),))
        part.chmod(store.path.stat().st_mode & 0o777)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename it refuses to overwrite
    except FileExistsError as e:
        raise taken from e
    finally:
        part.unlink(missing_ok=True)
    return target
