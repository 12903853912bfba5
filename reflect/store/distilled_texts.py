"""Which lessons the nights have read: the texts, not the ids, for a lesson whose text has changed
is a new one."""

from __future__ import annotations

from sqlmodel import Session, col, select

from reflect.records import LessonVersion, Night, Trial

Text = tuple[int, str, str]  # lesson id, when, do


def texts_by_night(s: Session, profile: str) -> dict[int, set[Text]]:
    """night id -> the texts that it read: those that it was begun with, and those that its
    preflight measured.

    (A promotion leaves in `Night.lessons` only what the adapter holds.)
    """
    nights = list(s.exec(select(Night).where(Night.profile == profile)))
    read = {
        night.id or 0: {(int(i), int(version)) for i, version in night.lessons} for night in nights
    }
    for trial in s.exec(select(Trial).where(col(Trial.night_id).in_(list(read)))):
        read[trial.night_id or 0].add((trial.lesson_id, trial.version))
    ids = {lesson_id for pairs in read.values() for lesson_id, _ in pairs}
    rows = s.exec(select(LessonVersion).where(col(LessonVersion.lesson_id).in_(ids)))
    texts = {(row.lesson_id, row.version): (row.lesson_id, row.when, row.do) for row in rows}
    return {
        night: {texts[pair] for pair in pairs if pair in texts} for night, pairs in read.items()
    }
