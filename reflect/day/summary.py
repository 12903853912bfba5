"""What a run did, read back from its rows: the same for a run that was interrupted and one that was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reflect.records import Rollout, Run
from reflect.store import Store, runs
from reflect.tasksets.base import Task


@dataclass(frozen=True)
class Report:
    """One run in figures. `outcomes` counts what became of the edits: added, superseded, revised, retired, known,
    quarantined, kept, outvoted, refused and problem (see `lessons.Outcome`)."""

    run_id: int
    taskset: str
    n: int  # tasks
    k: int
    seed: int
    rollouts: int
    errors: int  # rollouts without a reward
    reward: float  # mean over the scored rollouts
    rewards: list[float]  # the same per wave, in order: the learning curve
    reflections: int
    outcomes: dict[str, int]
    changes: list[dict[str, Any]] = field(default_factory=list)  # each edit with its outcome, in order
    seconds: float = 0.0


def report(store: Store, run: Run, waves: Sequence[Sequence[Task]], seconds: float = 0.0) -> Report:
    """Sum up a run whose tasks ran in `waves`."""
    with store.read() as s:
        rows = [[row for task in wave for row in runs.rollouts(s, run.id, task.key)] for wave in waves]
        found = [runs.get_reflection(s, run.id, task.key) for wave in waves for task in wave]
    reflections = [reflection for reflection in found if reflection]
    every = [row for wave in rows for row in wave]
    changes = [edit for reflection in reflections for edit in reflection.edits]
    return Report(
        run_id=run.id or 0,
        taskset=run.taskset,
        n=sum(map(len, waves)),
        k=run.k,
        seed=run.seed,
        rollouts=len(every),
        errors=sum(row.reward is None for row in every),
        reward=mean_reward(every),
        rewards=[mean_reward(wave) for wave in rows],
        reflections=len(reflections),
        outcomes=dict(Counter(edit["outcome"] for edit in changes)),
        changes=changes,
        seconds=seconds,
    )


def mean_reward(rows: Sequence[Rollout]) -> float:
    """The mean over the scored rollouts, 0.0 when there is none."""
    scored = [row.reward for row in rows if row.reward is not None]
    return sum(scored) / len(scored) if scored else 0.0
