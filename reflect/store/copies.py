"""Lessons as they travel: read with all that belongs to them, written with a history made elsewhere; whole copies."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sqlmodel import Session, col, select

from reflect.errors import UsageError
from reflect.records import Lesson, LessonVersion, Trial
from reflect.store import lessons as db
from reflect.store.database import Store, explain

Whole = tuple[Lesson, list[LessonVersion], list[Trial]]


def whole(s: Session, profile: str, scope: str | None = None) -> Iterator[Whole]:
    """Every lesson by id with its versions, oldest first, and the trials that no adapter had a part in."""
    mine: list[Any] = [Lesson.profile == profile, *([] if scope is None else [Lesson.scope == scope])]
    versions = s.exec(
        select(LessonVersion)
        .join(Lesson)
        .where(*mine)
        .order_by(col(LessonVersion.lesson_id), col(LessonVersion.version))
    )
    trials = s.exec(
        select(Trial)
        .join(Lesson)
        .where(*mine, col(Trial.adapter_id).is_(None))
        .order_by(col(Trial.lesson_id), col(Trial.id))
    )
    history = {lesson_id: list(rows) for lesson_id, rows in groupby(versions, key=lambda row: row.lesson_id)}
    measured = {lesson_id: list(rows) for lesson_id, rows in groupby(trials, key=lambda row: row.lesson_id)}
    for lesson in db.listing(s, profile, scope=scope):
        yield lesson, history[lesson.id or 0], measured.get(lesson.id or 0, [])


def put(s: Session, lesson: Lesson, versions: Sequence[LessonVersion], trials: Sequence[Trial]) -> Lesson:
    """A lesson with a history made elsewhere. It keeps its id where that is free, else it gets the next one."""
    if lesson.id is not None and s.get(Lesson, lesson.id) is not None:
        lesson.id = None
    s.add(lesson)
    s.flush()
    extend(s, lesson, versions, trials)
    return lesson


def extend(s: Session, lesson: Lesson, versions: Sequence[LessonVersion], trials: Sequence[Trial]) -> None:
    """Versions made elsewhere that follow on the newest one here, and trials; the caller has set the head."""
    for row in (*versions, *trials):
        row.lesson_id = lesson.id or 0
        s.add(row)
    s.add(lesson)
    s.flush()


def backup(store: Store, target: Path) -> Path:
    """The whole database as it is at this moment, in one file; others may write meanwhile. Never overwrites.

    It becomes visible only when complete. UsageError when there is something already.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    taken = UsageError(f"{target} is there already.", "Name another file, or move that one away.")
    if os.path.lexists(target):
        raise taken
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(store.path, timeout=30)
        try:
            connection.execute("VACUUM INTO ?", (str(part),))
        finally:
            connection.close()
        part.chmod(store.path.stat().st_mode & 0o777)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename it refuses to overwrite
    except FileExistsError as e:
        raise taken from e
    except sqlite3.Error as e:
        if told := explain(e, store.path):
            raise told from e
        raise
    finally:
        part.unlink(missing_ok=True)
    return target
