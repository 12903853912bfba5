"""The review of a run whose rollouts people have graded: what `practice` does after the rollouts,
the same stages."""

from __future__ import annotations

import time

from reflect.config import Settings
from reflect.day.practice import WAVE, edit_lessons, groups_of, review
from reflect.day.report import Report, report
from reflect.errors import UsageError
from reflect.models.base import Model
from reflect.store import Store, runs
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.trials.bundle import Bundle
from reflect.trials.lesson_trial import LessonTrials, TrialScope
from reflect.types import Progress


def review_run(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    run_id: int,
    progress: Progress | None = None,
) -> Report:
    """Judge the lessons of a finished run by its rewards as they stand now, then review each of its
    groups that has no review yet. Doing it again reviews only what was graded since; a group is
    reviewed once.

    UsageError for a run that is not finished, and for one without a single reward.
    """
    began = time.monotonic()
    with store.read() as s:
        run = runs.get_run(s, run_id)
        rows = runs.rollouts(s, run_id)
        keys = list(dict.fromkeys(row.task_key for row in rows))
        tasks = [Task(**runs.task(s, key).content) for key in keys]
    if run.status != "done":
        raise UsageError(
            f"Run {run_id} is not finished.", f"Finish it: reflect runs resume {run_id}"
        )
    if all(row.reward is None for row in rows):
        raise UsageError(
            f"No rollout of run {run_id} has a grade.", f"See: reflect grade list --run {run_id}"
        )
    court, bundle = (
        LessonTrials(TrialScope(run.model_fingerprint, run.adapter_id, run.measure)),
        Bundle(run),
    )
    waves = [tasks[i : i + WAVE] for i in range(0, len(tasks), WAVE)]
    for number, wave in enumerate(waves):
        if progress:
            progress(number * WAVE, len(tasks), "reflections")
        groups = groups_of(model, store, taskset, settings, run, wave)
        with store.write() as s:
            court.judge(
                s,
                [x.id or 0 for group in groups for x in group.shown],
                run.id,
                move=not settings.require_approval,
            )
            bundle.judge(s, move=not settings.require_approval)
        edit_lessons(
            model, store, settings, run, review(model, store, settings, run, groups), groups
        )
    return report(store, run, waves, time.monotonic() - began)
