"""The report of a run, read from its rows, so that an interruption does not change it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reflect.lessons.edit_format import CUT_OFF
from reflect.store import Store, lessons, runs, trials
from reflect.types import Finish, TrialVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.records import LessonVersion, Reflection, Rollout, Run
    from reflect.tasksets.task import Task

BY_REVIEWER = " with adapter "  # in `Reflection.model`, before the name of a reviewer
ANSWER = 160  # characters of an unreadable answer


@dataclass(frozen=True)
class Report:
    """One run in figures."""

    run_id: int
    taskset: str
    n: int
    """Number of tasks."""
    k: int
    seed: int
    rollouts: int
    errors: int
    """Rollouts that failed, and have no reward."""
    withheld: int
    """Rollouts from which a lesson was withheld, to measure its effect."""
    reward: float
    """Mean reward of the rollouts that saw all their lessons; in a wave without any, of all."""
    rewards: list[float]
    """The same per wave, in order: the learning curve."""
    reflections: int
    outcomes: dict[str, int]
    """Number of edits by outcome (see `reflect.lessons.outcome.Outcome`), and of verdicts:
    accepted, rejected."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Each edit with its outcome, then the verdicts."""
    bundle: dict[str, Any] = field(default_factory=dict)
    """The effect of all lessons together: see `reflect.trials.bundle`."""
    spent: dict[str, Any] = field(default_factory=dict)
    """Usage of models behind an API: see `reflect.models.budget`."""
    ungraded: int = 0
    """Rollouts that wait for a person's grade."""
    unreadable: int = 0
    """Reflections whose answer had no edit that could be read."""
    unreadable_answer: str = ""
    """The first such answer, shortened."""
    equal: int = 0
    """Groups of two or more attempts that all earned the same."""
    cut: int = 0
    """Rollouts that ended at `max_tokens`."""
    reflections_cut: int = 0
    """Reflections that ended at `reflect_tokens`."""
    reviewer: str = ""
    """The reviewer adapter that reflected; "" for the base model."""
    superseded: list[int] = field(default_factory=list)
    """Unfinished runs with the same arguments, whose tasks have changed since."""
    seconds: float = 0.0


def report(
    store: Store,
    run: Run,
    waves: Sequence[Sequence[Task]],
    seconds: float = 0.0,
    superseded: Sequence[int] = (),
) -> Report:
    """Sum up a run whose tasks ran in `waves`."""
    keys = [task.key for wave in waves for task in wave]
    with store.read() as s:
        groups, reflected = runs.groups(s, run.id, keys), runs.reflections_of(s, run.id, keys)
        missed = trials.missed(s, run.id)
        verdicts = [verdict_row(trial.verdict, moved) for trial, moved in trials.moves(s, run.id)]
        now = runs.get_run(s, run.id)
        for harm in now.bundle.get("harm", ()):
            retired = [lessons.version(s, *pair) for pair in harm["retired"]]
            verdicts += [verdict_row(TrialVerdict.REJECT, version) for version in retired]
    rows = [[row for task in wave for row in groups[task.key]] for wave in waves]
    every = [row for wave in rows for row in wave]
    seen = [[row for row in wave if row.id not in missed] or wave for wave in rows]
    reflections = [reflected[key] for key in keys if key in reflected]
    unreadable = [row for row in reflections if _is_unreadable(row)]
    changes = [edit for reflection in reflections for edit in reflection.edits] + verdicts
    return Report(
        run_id=run.id or 0,
        taskset=run.taskset,
        n=len(keys),
        k=run.k,
        seed=run.seed,
        rollouts=len(every),
        errors=sum(row.error is not None for row in every),
        withheld=len(missed),
        reward=mean_reward([row for wave in seen for row in wave]),
        rewards=[mean_reward(wave) for wave in seen],
        reflections=len(reflections),
        outcomes=dict(Counter(edit["outcome"] for edit in changes)),
        changes=changes,
        bundle=now.bundle,
        spent=now.spent or {},
        ungraded=sum(row.reward is None and row.error is None for row in every),
        unreadable=len(unreadable),
        unreadable_answer=" ".join(unreadable[0].raw.split())[:ANSWER] if unreadable else "",
        equal=sum(_is_equal(group) for group in groups.values()),
        cut=sum(row.finish == Finish.LENGTH for row in every),
        reflections_cut=sum(_is_cut(row) for row in reflections),
        reviewer=", ".join(dict.fromkeys(filter(None, map(_reviewer, reflections)))),
        superseded=list(superseded),
        seconds=seconds,
    )


def _is_unreadable(reflection: Reflection) -> bool:
    """Its answer has lines, but none that could be read."""
    edits = reflection.edits
    return bool(edits) and all(edit["kind"] == "problem" for edit in edits)


def _reviewer(reflection: Reflection) -> str:
    """The reviewer adapter that reflected, as `reflect.day.learning` records it."""
    return reflection.model.rpartition(BY_REVIEWER)[2] if BY_REVIEWER in reflection.model else ""


def _is_cut(reflection: Reflection) -> bool:
    return any(edit.get("reason", "").startswith(CUT_OFF) for edit in reflection.edits)


def _is_equal(group: Sequence[Rollout]) -> bool:
    rewards = [row.reward for row in group if row.reward is not None]
    return len(rewards) > 1 and len(set(rewards)) == 1


def verdict_row(verdict: str, version: LessonVersion) -> dict[str, Any]:
    """A verdict that moved a lesson to this version, in the form of an edit."""
    return {
        "kind": "trial",
        "outcome": "accepted" if verdict == TrialVerdict.ACCEPT else "rejected",
        "lesson": version.lesson_id,
        "version": version.version,
        "when": version.when,
        "do": version.do,
        "why": version.reason,
        "reason": version.reason,
    }


def mean_reward(rows: Sequence[Rollout]) -> float:
    """The mean of the rewards, 0.0 if there is none."""
    rewards = [row.reward for row in rows if row.reward is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0
