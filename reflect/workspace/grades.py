"""Grades given by people: for rollouts that no program can score, or that it scores wrongly.

    ws = reflect.open("lessons.db")
    grades = ws.grades
    for row in grades.waiting(run_id):
        grades.give(row["rollout"], 0.5, feedback="polite, but too long")
    grades.review(run_id)

A file of grades is JSON Lines: what `waiting` gives, with `reward` (and `feedback`) filled in.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.errors import UsageError
from reflect.tasksets.files import FileRow, rows_of
from reflect.workspace.context import WorkspaceContext

if TYPE_CHECKING:
    from reflect.day.report import Report
    from reflect.types import Progress


class Grades:
    """The grades of one workspace."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context

    def newest(self) -> int:
        """The newest run of the profile with rollouts that wait for a grade, else the newest
        run."""
        from reflect.store import grades, runs

        with self.context.store.read() as s:
            ids = [run.id or 0 for run in runs.list_runs(s, 20, self.context.settings.profile)]
            if not ids:
                raise UsageError(
                    "There is no run to grade.", "Begin one: reflect run TASKSET --no-reflect"
                )
            return next((run_id for run_id in ids if grades.ungraded(s, run_id)), ids[0])

    def waiting(self, run_id: int, every: bool = False) -> list[dict[str, Any]]:
        """The rollouts of a run that wait for a grade (with `every` all that can be graded):
        {rollout, task, attempt, prompt, rubric, text, reward, feedback}."""
        from reflect.store import grades, runs
        from reflect.tasksets.task import Task

        with self.context.store.read() as s:
            runs.get_run(s, run_id)
            found = [(row, Task(**task.content)) for row, task in grades.ungraded(s, run_id, every)]
        return [
            {
                "rollout": row.id,
                "task": task.id,
                "attempt": row.index + 1,
                "prompt": task.text,
                **({"rubric": task.rubric} if task.rubric else {}),
                "text": str(row.messages[-1]["content"]),
                "reward": row.reward,
                "feedback": row.feedback,
            }
            for row, task in found
        ]

    def give(
        self, rollout_id: int, reward: float, feedback: str | None = None, by: str | None = None
    ) -> dict[str, Any]:
        """Grade one rollout: {rollout, reward, feedback, grades}, the last with all that it was
        given so far."""
        (done,) = self.give_all([(rollout_id, reward, feedback)], by)
        return done

    def give_all(
        self, given: Sequence[tuple[int, float, str | None]], by: str | None = None
    ) -> list[dict[str, Any]]:
        """Grade several, all or none."""
        from reflect.store import grades

        who = by or _me()
        with self.context.store.write() as s:
            rows = [
                grades.give(s, rollout_id, reward, said, who) for rollout_id, reward, said in given
            ]
            return [
                {
                    "rollout": x.id,
                    "reward": x.reward,
                    "feedback": x.feedback,
                    "grades": x.parts[grades.GRADES],
                }
                for x in rows
            ]

    def load(self, path: Path, by: str | None = None) -> list[dict[str, Any]]:
        """Grades from a file, all or none; rows whose reward is still empty are passed over. A
        malformed row is a BadTaskFile with file, line and field."""
        found = [given for row in rows_of(path) if (given := _given(row))]
        return self.give_all(found, by)

    def save(self, run_id: int, path: Path, every: bool = False) -> int:
        """Write what waits for a grade as JSON Lines; how many. Never overwrites a file."""
        rows = self.waiting(run_id, every)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except FileExistsError as e:
            raise UsageError(f"{path} already exists.", "Give another name, or move it.") from e
        return len(rows)

    def review(self, run_id: int, *, progress: Progress | None = None) -> Report:
        """Review a graded run, by the settings with which it was begun: see
        `reflect.day.human_grades`."""
        from reflect.day.human_grades import review_run
        from reflect.store import runs

        with self.context.store.read() as s:
            run = runs.get_run(s, run_id)
        ws = WorkspaceContext(
            self.context.settings.restored(run.config, model=run.model, profile=run.profile)
        )
        taskset = ws.taskset(run.taskset)
        return review_run(ws.model, ws.store, taskset, ws.settings, run_id, progress)


def _given(row: FileRow) -> tuple[int, float, str | None] | None:
    """(rollout, reward, feedback) of a row; None without a reward."""
    rollout, reward, feedback = (row.fields.get(name) for name in ("rollout", "reward", "feedback"))
    if isinstance(rollout, bool) or not isinstance(rollout, int):
        row.fail(
            "rollout",
            "there is none",
            "Leave the rows as `reflect grade list --out FILE` wrote them.",
        )
    if reward is None:
        return None
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        row.fail("reward", f"{reward!r} is no number from 0 to 1", "0 is bad, 1 is good.")
    if feedback is not None and not isinstance(feedback, str):
        row.fail("feedback", "it is not a text", "Say in words what is good or missing.")
    return rollout, float(reward), feedback


def _me() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user on this machine
        return "somebody"
