"""Grades that people give rollouts. The newest is the rollout's reward and feedback; earlier ones
stay in `Rollout.parts["grades"]`, oldest first: {by, at, reward, feedback}, and `error` where the
verifier had broken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlmodel import Session, col, select

from reflect.errors import UnknownName, UsageError
from reflect.records import Rollout, TaskRow, now
from reflect.store import runs, trials
from reflect.store.rows import save

if TYPE_CHECKING:
    from reflect.types import Json

GRADES = "grades"  # in `Rollout.parts`


def ungraded(s: Session, run_id: int | None, every: bool = False) -> list[tuple[Rollout, TaskRow]]:
    """The rollouts of a run that have an answer and no reward; with `every` also those that have
    one."""
    query = (
        select(Rollout, TaskRow)
        .join(TaskRow, col(TaskRow.key) == col(Rollout.task_key))
        .where(Rollout.run_id == run_id)
        .order_by(col(Rollout.id))
    )
    if not every:
        query = query.where(col(Rollout.reward).is_(None))
    return [(row, task) for row, task in s.exec(query) if _answered(row)]


def give(s: Session, rollout_id: int, reward: float, feedback: str | None, by: str) -> Rollout:
    """Grade a rollout; `feedback=None` leaves the present one. The earlier grade is kept, with its
    author and time.

    UnknownName for a missing rollout, UsageError for one without an answer and for an invalid
    reward.
    """
    row = s.get(Rollout, rollout_id)
    if row is None:
        raise UnknownName(f"There is no rollout {rollout_id}.", "See: reflect grade list")
    if not (math.isfinite(reward) and 0.0 <= reward <= 1.0):
        raise UsageError(f"{reward:g} is no reward.", "Give a number from 0 (bad) to 1 (good).")
    if not _answered(row):
        raise UsageError(
            f"Rollout {rollout_id} has no answer: {row.error}.", "There is nothing to grade."
        )
    history: list[Json] = list(row.parts.get(GRADES, []))
    if not history and (row.reward is not None or row.error):
        first = {"by": "verifier", "at": row.created.isoformat(), "reward": row.reward}
        first |= {"feedback": row.feedback} | ({"error": row.error} if row.error else {})
        history.append(first)
    row.reward, row.error, row.error_kind = reward, None, None
    row.feedback = row.feedback if feedback is None else feedback.strip()
    history.append({"by": by, "at": now().isoformat(), "reward": reward, "feedback": row.feedback})
    row.parts = {**row.parts, GRADES: history}
    save(s, row)
    run = runs.get_run(s, row.run_id)
    same = {name: getattr(run, name) for name in ("model_fingerprint", "adapter_id", "measure")}
    for holder in trials.holders(s, same):  # the evidence has changed: read it from the beginning
        runs.note(s, holder.id, checkpoints=None)
    return row


def _answered(row: Rollout) -> bool:
    return bool(row.messages) and row.messages[-1]["role"] == "assistant"
