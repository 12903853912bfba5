"""Whether rollouts followed the advice of lessons: the patterns that tell it, and the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import and_, delete, exists
from sqlmodel import Session, col, func, select

from reflect.errors import UsageError
from reflect.records import (
    Exposure,
    Followed,
    FollowedCheck,
    Lesson,
    LessonVersion,
    Rollout,
)
from reflect.stats.proportion import wilson
from reflect.store import forbidden_rules
from reflect.store import lessons as db
from reflect.store.lesson_evidence import version_of
from reflect.types import FollowedSource, RuleKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Share(NamedTuple):
    """How many of the rollouts followed a lesson, with a 95 % interval."""

    followed: int
    n: int

    @property
    def share(self) -> float | None:
        """None without a rollout."""
        return self.followed / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson(self.followed, self.n)


NONE = Share(0, 0)


@dataclass(frozen=True)
class FollowedShares:
    """Of the rollouts that saw the present advice, and of those from which it was withheld."""

    source: str
    shown: Share = NONE
    withheld: Share = NONE


def set_check(s: Session, lesson_id: int, kind: str, pattern: str) -> FollowedCheck:
    """Give a lesson its check, in place of a different one, whose results are deleted. UnknownName,
    UsageError for a pattern that is broken or that every text has."""
    lesson, pattern = db.get(s, lesson_id), pattern.strip()
    if kind == RuleKind.REGEX and (wrong := forbidden_rules.broken(pattern)):
        raise UsageError(
            f"'{pattern}' is no regular expression: {wrong}.", "Fix it, or add --words."
        )
    if not pattern or forbidden_rules.found(kind, pattern, ""):
        raise UsageError(
            f"Every answer has '{pattern}', so it tells nothing.", "Give words of the advice."
        )
    old = check_of(s, lesson)
    if old and (old.kind, old.pattern) == (kind, pattern):
        return old
    remove_check(s, lesson_id)
    check = FollowedCheck(lesson_id=lesson_id, do=lesson.do, kind=kind, pattern=pattern)
    s.add(check)
    s.flush()
    return check


def remove_check(s: Session, lesson_id: int) -> bool:
    """Delete the check of a lesson with its results. False if there is none."""
    check = _check(s, db.get(s, lesson_id).id)
    if check is None:
        return False
    mine = (col(Followed.lesson_id) == lesson_id, col(Followed.source) == FollowedSource.CHECK)
    s.exec(delete(Followed).where(*mine))
    s.delete(check)
    s.flush()
    return True


def check_of(s: Session, lesson: Lesson) -> FollowedCheck | None:
    """The check of the present advice of a lesson."""
    check = _check(s, lesson.id)
    return check if check and check.do == lesson.do else None


def _check(s: Session, lesson_id: int | None) -> FollowedCheck | None:
    return s.exec(select(FollowedCheck).where(FollowedCheck.lesson_id == lesson_id)).first()


def checks(
    s: Session, profile: str, lesson_ids: Sequence[int] | None = None
) -> list[tuple[Lesson, FollowedCheck]]:
    """The lessons whose present advice has a check, by id."""
    mine = select(Lesson, FollowedCheck).join(
        FollowedCheck, col(FollowedCheck.lesson_id) == col(Lesson.id)
    )
    mine = mine.where(Lesson.profile == profile, Lesson.do == FollowedCheck.do)
    if lesson_ids is not None:
        mine = mine.where(col(Lesson.id).in_(lesson_ids))
    return list(s.exec(mine.order_by(col(Lesson.id))))


def unread(s: Session, lesson: Lesson, source: str, limit: int) -> list[tuple[int, bool]]:
    """(rollout id, was the lesson shown?) of the newest rollouts with the present advice that
    `source` has not read. Broken rollouts are left out."""
    known = exists().where(
        col(Followed.lesson_id) == lesson.id,
        col(Followed.rollout_id) == col(Exposure.rollout_id),
        col(Followed.source) == source,
    )
    mine = (
        select(Exposure.rollout_id, Exposure.shown)
        .join(LessonVersion, version_of(Exposure))
        .join(Rollout, col(Rollout.id) == col(Exposure.rollout_id))
        .where(Exposure.lesson_id == lesson.id, LessonVersion.do == lesson.do)
        .where(col(Rollout.error).is_(None), ~known)
        .order_by(col(Exposure.rollout_id).desc())
        .limit(limit)
    )
    return [(rollout_id, bool(shown)) for rollout_id, shown in s.exec(mine)]


def rollouts(s: Session, rollout_ids: Sequence[int]) -> list[Rollout]:
    """The rollouts with these ids, by id."""
    mine = select(Rollout).where(col(Rollout.id).in_(rollout_ids))
    return list(s.exec(mine.order_by(col(Rollout.id))))


def save(s: Session, rows: Iterable[Followed]) -> int:
    """Save results, except those that another process has saved. Returns how many were new."""
    rows = list(rows)
    keys = select(Followed.lesson_id, Followed.rollout_id, Followed.source).where(
        col(Followed.lesson_id).in_({row.lesson_id for row in rows}),
        col(Followed.rollout_id).in_({row.rollout_id for row in rows}),
    )
    known = set(s.exec(keys).all())
    new = [row for row in rows if (row.lesson_id, row.rollout_id, row.source) not in known]
    s.add_all(new)
    s.flush()
    return len(new)


def shares(s: Session, lesson_ids: Sequence[int]) -> dict[int, FollowedShares]:
    """lesson -> its shares, for its present advice; by its check, else by a judge. Lessons without
    a result are left out."""
    exposed = and_(
        col(Exposure.rollout_id) == col(Followed.rollout_id),
        col(Exposure.lesson_id) == col(Followed.lesson_id),
    )
    counted = (  # sqlmodel types four columns at most
        select(  # type: ignore[call-overload]
            Followed.lesson_id, Followed.source, Exposure.shown, Followed.followed, func.count()
        )
        .join(Exposure, exposed)
        .join(LessonVersion, version_of(Exposure))
        .join(Lesson, col(Lesson.id) == col(Followed.lesson_id))
        .where(col(Followed.lesson_id).in_(lesson_ids), LessonVersion.do == Lesson.do)
        .group_by(col(Followed.lesson_id), col(Followed.source), col(Exposure.shown),
                  col(Followed.followed))
    )  # fmt: skip
    counts: dict[int, dict[str, dict[tuple[bool, bool], int]]] = {}
    for lesson_id, source, shown, followed, n in s.exec(counted):
        counts.setdefault(lesson_id, {}).setdefault(source, {})[bool(shown), bool(followed)] = n

    def share(cells: dict[tuple[bool, bool], int], shown: bool) -> Share:
        yes = cells.get((shown, True), 0)
        return Share(yes, yes + cells.get((shown, False), 0))

    result = {}
    for lesson_id, sources in counts.items():
        source = min(sources)  # "check" before "judge"
        cells = sources[source]
        result[lesson_id] = FollowedShares(source, share(cells, True), share(cells, False))
    return result
