"""What a run did, read back from its rows: the same for a run that was interrupted and one that was
not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reflect.records import LessonVersion, Rollout, Run
from reflect.store import Store, lessons, runs, trials
from reflect.tasksets.task import Task


@dataclass(frozen=True)
class Report:
    """One run in figures. `outcomes` counts what became of the edits: added, superseded, revised,
    retired, known, quarantined, merged, kept, defended, outvoted, refused, alarm and problem (see
    `evidence.Outcome`), and the verdicts accepted and rejected. The rewards are those of rollouts
    that saw all their lessons; where a wave has none, of all."""

    run_id: int
    taskset: str
    n: int  # tasks
    k: int
    seed: int
    rollouts: int
    errors: int  # rollouts that broke, and have no reward
    withheld: int  # rollouts that missed a lesson, to measure it
    reward: float  # mean over the scored rollouts
    rewards: list[float]  # the same per wave, in order: the learning curve
    reflections: int
    outcomes: dict[str, int]
    changes: list[dict[str, Any]] = field(
        default_factory=list
    )  # each edit with its outcome, then the verdicts
    bundle: dict[str, Any] = field(
        default_factory=dict
    )  # all lessons together, see `reflect.trials.bundle`
    spent: dict[str, Any] = field(
        default_factory=dict
    )  # on models behind an API, see `reflect.models.budget`
    ungraded: int = 0  # rollouts that wait for a person's grade
    seconds: float = 0.0


def report(store: Store, run: Run, waves: Sequence[Sequence[Task]], seconds: float = 0.0) -> Report:
    """Sum up a run whose tasks ran in `waves`."""
    with store.read() as s:
        keys = [task.key for wave in waves for task in wave]
        made, found = runs.groups(s, run.id, keys), runs.reflections_of(s, run.id, keys)
        rows = [[row for task in wave for row in made[task.key]] for wave in waves]
        missed = trials.missed(s, run.id)
        verdicts = [
            verdict_row(trial.verdict, version) for trial, version in trials.moves(s, run.id)
        ]
        now = runs.get_run(s, run.id)
        bundle, spent = now.bundle, now.spent or {}
        gone = [pair for harm in bundle.get("harm", ()) for pair in harm["retired"]]
        verdicts += [
            verdict_row("reject", lessons.version(s, lesson_id, number))
            for lesson_id, number in gone
        ]
    reflections = [found[key] for key in keys if key in found]
    every = [row for wave in rows for row in wave]
    changes = [edit for reflection in reflections for edit in reflection.edits] + verdicts
    seen = [[row for row in wave if row.id not in missed] or wave for wave in rows]
    return Report(
        run_id=run.id or 0,
        taskset=run.taskset,
        n=sum(map(len, waves)),
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
        bundle=bundle,
        spent=spent,
        ungraded=sum(row.reward is None and row.error is None for row in every),
        seconds=seconds,
    )


def verdict_row(verdict: str, version: LessonVersion) -> dict[str, Any]:
    """A verdict that moved a lesson to this version, in the shape of an edit."""
    return {
        "kind": "trial",
        "outcome": {"accept": "accepted"}.get(verdict, "rejected"),
        "lesson": version.lesson_id,
        "version": version.version,
        "when": version.when,
        "do": version.do,
        "why": version.reason,
        "reason": version.reason,
    }


def mean_reward(rows: Sequence[Rollout]) -> float:
    """The mean over the scored rollouts, 0.0 when there is none."""
    scored = [row.reward for row in rows if row.reward is not None]
    return sum(scored) / len(scored) if scored else 0.0
