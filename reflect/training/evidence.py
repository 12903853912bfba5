"""What the day has scored already: attempts of this base with the lessons shown or withheld.

Used by preflight and harvest before they sample anew. A rollout counts for a task if it ran with
the bare base and the present reward, and if the lessons that fire on the task were all shown to it
in their present text, or all withheld from it.

Not covered: tasks of several turns, whose turns have no stored prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reflect.lessons.selection import about
from reflect.rollouts.transcript import last_words
from reflect.store import runs, trials
from reflect.tasksets.base import has_environment
from reflect.training.lesson_set import PreflightEffect
from reflect.trials.lesson_trial import TrialScope
from reflect.trials.reward_version import reward_version
from reflect.types import Finish, TrialVerdict, Trust

if TYPE_CHECKING:
    from sqlmodel import Session

    from reflect.training.context import NightContext, TasksetLessons
    from reflect.training.lesson_set import Rows

Attempt = tuple[str, float]  # the answer and its reward


@dataclass(frozen=True)
class DayEvidence:
    """By task key: complete answers with the lessons shown, and all rewards with and without."""

    answers: dict[str, list[Attempt]] = field(default_factory=dict)
    shown: dict[str, list[float]] = field(default_factory=dict)
    withheld: dict[str, list[float]] = field(default_factory=dict)
    proven: dict[int, PreflightEffect] = field(default_factory=dict)
    """lesson id -> the effect of an accepted trial."""


def of_day(ctx: NightContext, item: TasksetLessons, rows: Rows) -> DayEvidence:
    """The evidence on these tasks; none unless the plan reuses it."""
    found = DayEvidence()
    if not ctx.plan.reuse or has_environment(item.taskset):
        return found
    scope = TrialScope(ctx.model.fingerprint, None, reward_version(item.taskset))
    with ctx.store.read() as s:
        since = {x.id or 0: trials.since(s, x) for x in item.lessons}
        _add_trials(s, ctx, item, scope, found)
        keys = [task.key for task, _ in rows]
        scored = runs.scored_attempts(s, keys, scope.model_fingerprint, scope.measure)
    wanted = {task.key: {x.id or 0 for x in about(task, lessons)} for task, lessons in rows}
    for rollout, exposures in scored:
        present = {
            x.lesson_id for x in exposures if x.shown and x.version >= since.get(x.lesson_id, 0)
        }
        old = {x.lesson_id for x in exposures if x.shown} - present
        fire, key, reward = wanted[rollout.task_key], rollout.task_key, rollout.reward or 0.0
        if fire <= present:
            found.shown.setdefault(key, []).append(reward)
            if rollout.finish == Finish.STOP and rollout.trust == Trust.CLEAN:
                found.answers.setdefault(key, []).append((last_words(rollout), reward))
        elif fire.isdisjoint(present | old):
            found.withheld.setdefault(key, []).append(reward)
    return found


def _add_trials(
    s: Session, ctx: NightContext, item: TasksetLessons, scope: TrialScope, found: DayEvidence
) -> None:
    newest = trials.newest_effects(s, item.lessons)
    for lesson_id, trial in newest.items():
        same = (trial.model_fingerprint, trial.adapter_id, trial.measure)
        accepted = trial.verdict == TrialVerdict.ACCEPT
        if accepted and same == (scope.model_fingerprint, None, scope.measure):
            found.proven[lesson_id] = PreflightEffect(trial.effect, trial.low, trial.high, trial.n)
