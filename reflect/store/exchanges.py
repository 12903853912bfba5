"""The answers of a server, and the rewards that come later."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlmodel import Session, col, delete, func, select

from reflect.errors import Conflict, UnknownName, UsageError
from reflect.records import Exchange, now
from reflect.store.rows import save as save_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

SESSION = "session/"
"""How the model fingerprint of an exchange begins that was a session of a coding agent."""


def save(s: Session, rows: Sequence[Exchange]) -> None:
    """Save exchanges."""
    s.add_all(rows)
    s.flush()


def reward(
    s: Session, name: str, reward: float, feedback: str = "", choice: int | None = None
) -> Exchange:
    """Store the reward of an answer, in place of an earlier reward of the same answer.

    UnknownName for an answer that was never given, UsageError where one of several must be named,
    Conflict when a run has reflected on it already. Servers that count their answers anew give a
    name twice: the newest is meant.
    """
    newest = select(Exchange).where(Exchange.name == name).order_by(col(Exchange.id).desc())
    rows = list(s.exec(newest if choice is None else newest.where(Exchange.choice == choice)))
    if not rows:
        which = "" if choice is None else f" with a choice {choice}"
        raise UnknownName(
            f"There is no answer {name}{which} here.",
            "Give the id of an answer of this server.",
        )
    if choice is None and len({row.choice for row in rows}) > 1:
        raise UsageError(f"{name} has several answers.", 'Say which: "choice": 0 for the first.')
    row = rows[0]
    if row.run_id is not None:
        raise Conflict(
            f"Run {row.run_id} has reflected on {name} already: its reward cannot change."
        )
    row.reward, row.feedback = reward, feedback
    return save_row(s, row)


def waiting(s: Session, profile: str) -> list[Exchange]:
    """The rewarded exchanges of a profile that no run has reflected on, oldest first."""
    new = select(Exchange).where(Exchange.profile == profile, col(Exchange.run_id).is_(None))
    return list(s.exec(new.where(col(Exchange.reward).is_not(None)).order_by(col(Exchange.id))))


def of_sessions(s: Session, profile: str, name: str = "") -> list[Exchange]:
    """The exchanges that sessions of coding agents became, oldest first; with `name` only those of
    this session, one for each part of it."""
    mine = select(Exchange).where(Exchange.profile == profile)
    mine = mine.where(col(Exchange.model_fingerprint).startswith(SESSION))
    mine = mine.where(Exchange.name == name) if name else mine
    return list(s.exec(mine.order_by(col(Exchange.id))))


def of_run(s: Session, run_id: int | None) -> list[Exchange]:
    """The exchanges that a run reflected on, oldest first."""
    mine = select(Exchange).where(Exchange.run_id == run_id)
    return list(s.exec(mine.order_by(col(Exchange.id))))


def unrewarded(s: Session, profile: str, days: float) -> int:
    """How many exchanges have waited longer than that for a reward."""
    return s.exec(select(func.count()).where(*_unrewarded(profile, days))).one()


def forget(s: Session, profile: str, days: float) -> int:
    """Delete these; returns how many. A later reward finds no answer of its name."""
    return s.exec(delete(Exchange).where(*_unrewarded(profile, days))).rowcount


def _unrewarded(profile: str, days: float) -> list[ColumnElement[bool]]:
    new = [col(Exchange.reward).is_(None), col(Exchange.run_id).is_(None)]
    old = col(Exchange.created) < now() - timedelta(days=days)
    return [col(Exchange.profile) == profile, *new, old]


def count(s: Session, profile: str) -> int:
    """Exchanges of a profile, rewarded or not."""
    return s.exec(select(func.count()).where(Exchange.profile == profile)).one()
