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
from typing import TYPE_CHECKING, TypedDict

from reflect.errors import UsageError
from reflect.store import grades, runs
from reflect.tasksets.rows import FileRow, rows_of
from reflect.tasksets.task import Task
from reflect.workspace.context import WorkspaceContext

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect.day.report import Report
    from reflect.records import Rollout
    from reflect.types import Progress


class Rubric(TypedDict, total=False):
    """The rubric of a task, if it has one."""

    rubric: str


class UngradedRow(Rubric):
    """A rollout for a person to grade; a row of the file that `save` writes."""

    rollout: int | None
    task: str
    attempt: int
    prompt: str
    text: str
    reward: float | None
    feedback: str


class GradedRow(TypedDict):
    """A graded rollout; `grades` lists all its grades so far."""

    rollout: int | None
    reward: float | None
    feedback: str
    grades: list[dict[str, object]]


class Grades:
    """The grades of one workspace."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context

    def newest(self) -> int:
        """The newest run of the profile with rollouts that wait for a grade, else the newest
        run."""
        with self.context.store.read() as s:
            ids = [run.id or 0 for run in runs.list_runs(s, 20, self.context.settings.profile)]
            if not ids:
                raise UsageError(
                    "There is no run to grade.", "Begin one: reflect run TASKSET --no-reflect"
                )
            return next((run_id for run_id in ids if grades.ungraded(s, run_id)), ids[0])

    def waiting(self, run_id: int, every: bool = False) -> list[UngradedRow]:
        """The rollouts of a run that wait for a grade (with `every` all that can be graded):
        {rollout, task, attempt, prompt, rubric, text, reward, feedback}."""
        with self.context.store.read() as s:
            runs.get_run(s, run_id)
            pairs = [(row, Task(**task.content)) for row, task in grades.ungraded(s, run_id, every)]
        return [_ungraded(row, task) for row, task in pairs]

    def give(
        self, rollout_id: int, reward: float, feedback: str | None = None, by: str | None = None
    ) -> GradedRow:
        """Grade one rollout. `by`: the grader, by default the name of the user."""
        return self.give_all([(rollout_id, reward, feedback)], by)[0]

    def give_all(
        self, given: Sequence[tuple[int, float, str | None]], by: str | None = None
    ) -> list[GradedRow]:
        """Grade several rollouts, all or none. `given`: (rollout, reward, feedback)."""
        grader = by or _user()
        with self.context.store.write() as s:
            rows = [grades.give(s, *grade, grader) for grade in given]
            return [
                {
                    "rollout": row.id,
                    "reward": row.reward,
                    "feedback": row.feedback,
                    "grades": row.parts[grades.GRADES],
                }
                for row in rows
            ]

    def load(self, path: Path, by: str | None = None) -> list[GradedRow]:
        """Grade from a file, all or none; rows without a reward are skipped. Raises BadTaskFile
        with file, line and field for a malformed row."""
        return self.give_all([grade for row in rows_of(path) if (grade := _grade(row))], by)

    def save(self, run_id: int, path: Path, every: bool = False) -> int:
        """Write the rollouts that wait for a grade as JSON Lines. Returns their number. Never
        overwrites a file."""
        rows = self.waiting(run_id, every)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except FileExistsError as e:
            raise UsageError(f"{path} already exists.", "Give another name, or move it.") from e
        return len(rows)

    def review(self, run_id: int, *, progress: Progress | None = None) -> Report:
        """Learn from a graded run with the settings that it was started with: see
        `reflect.day.practice.learn_from_grades`."""
        from reflect.day.practice import learn_from_grades

        run = self.context.read(runs.get_run, run_id)
        ws = WorkspaceContext(
            self.context.settings.restored(run.config, model=run.model, profile=run.profile)
        )
        return learn_from_grades(ws.practice_on(run.taskset, progress, learn=True), run_id)


def _ungraded(row: Rollout, task: Task) -> UngradedRow:
    rubric: Rubric = {"rubric": task.rubric} if task.rubric else {}
    return {
        "rollout": row.id,
        "task": task.id,
        "attempt": row.index + 1,
        "prompt": task.text,
        **rubric,
        "text": str(row.messages[-1]["content"]),
        "reward": row.reward,
        "feedback": row.feedback,
    }


def _grade(row: FileRow) -> tuple[int, float, str | None] | None:
    """(rollout, reward, feedback) of a row; None without a reward."""
    rollout, reward, feedback = (row.fields.get(name) for name in ("rollout", "reward", "feedback"))
    if isinstance(rollout, bool) or not isinstance(rollout, int):
        hint = "Leave the rows as `reflect grade list --out FILE` wrote them."
        row.fail("rollout", "there is none", hint)
    if reward is None:
        return None
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
        row.fail("reward", f"{reward!r} is no number from 0 to 1", "0 is bad, 1 is good.")
    if feedback is not None and not isinstance(feedback, str):
        row.fail("feedback", "it is not a text", "Say in words what is good or missing.")
    return rollout, float(reward), feedback


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user on this machine
        return "somebody"
