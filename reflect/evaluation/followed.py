"""Was a lesson that was shown also followed?

A lesson may carry a check: words or a regular expression that an answer has if it follows the
advice. The check reads every rollout that saw the lesson, and those from which it was withheld,
whose share tells how often answers do so anyway. Without a check a judge reads a random sample.

Not covered: a check tells what an answer says, not what it is worth. The effect of a lesson is the
matter of its trial.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

from reflect import prompts
from reflect.errors import ReflectError
from reflect.records import Followed
from reflect.rollouts.transcript import last_words, turns_of
from reflect.store import followed as db
from reflect.store import forbidden_rules, runs
from reflect.tasksets import isolation
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import JUDGE, Score, Task
from reflect.types import FollowedSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.records import FollowedCheck, Lesson, Rollout
    from reflect.rollouts.judge import Judge
    from reflect.store import Store

MOST = 1000  # rollouts of one lesson that are read at a time, the newest first
POOL = 2000  # newest rollouts of a lesson of which a judge's sample is drawn


class Judged(NamedTuple):
    """What a judge read."""

    graded: int
    problems: list[str]
    """Why the others have no result."""


class _Patterns(Taskset):
    """Scores a text by a check, under the limits of a verifier: a pattern may take for ever."""

    name = "followed"

    def verify(self, task: Task, text: str) -> Score:
        kind, pattern = task.answer
        return Score(float(forbidden_rules.found(kind, pattern, text)))


def answers_of(row: Rollout) -> str:
    """All text and calls of the model in a rollout."""
    return "\n".join(turn.words for turn in turns_of(row)) or last_words(row)


def read_checks(
    store: Store, profile: str, lesson_ids: Sequence[int] | None = None, most: int = MOST
) -> int:
    """Read the rollouts that the checks of these lessons (None: of all) have not read. Returns how
    many results are new. A pattern that exceeds the time limit of a verifier has no result."""
    with store.read() as s:
        checks = db.checks(s, profile, lesson_ids)
    return sum(_read(store, lesson, check, most) for lesson, check in checks)


def _read(store: Store, lesson: Lesson, check: FollowedCheck, most: int) -> int:
    with store.read() as s:
        ids = [i for i, _ in db.unread(s, lesson, FollowedSource.CHECK, most)]
        rows = db.rollouts(s, ids)
    task, taskset = Task("check", [], "followed", [check.kind, check.pattern]), _Patterns()
    results = []
    with isolation.batch():
        for row in rows:
            try:
                reward = isolation.verify(taskset, task, answers_of(row)).reward
            except (TimeoutError, ChildProcessError):
                break  # this pattern is too slow for such answers
            results.append(_result(lesson, row, FollowedSource.CHECK, reward))
    with store.write() as s:
        return db.save(s, results)


def judge_sample(store: Store, judge: Judge, lesson: Lesson, sample: int, seed: int) -> Judged:
    """Ask a judge about `sample` rollouts, drawn at random from the newest ones that no judge has
    read: half of them saw the lesson, half did not, as far as there are such."""
    with store.read() as s:
        pool = db.unread(s, lesson, FollowedSource.JUDGE, POOL)
        rng = random.Random(f"{seed} {lesson.id}")
        rng.shuffle(pool)
        shown, withheld = ([i for i, saw in pool if saw is side] for side in (True, False))
        seen = min(len(shown), max(sample // 2, sample - len(withheld)))
        ids = [*shown[:seen], *withheld[: sample - seen]]
        rows = db.rollouts(s, ids)
        tasks = {row.task_key: Task(**runs.task(s, row.task_key).content) for row in rows}
    rubric = prompts.render("followed")
    advice = f"when: {lesson.when} do: {lesson.do}"
    asked = [
        (Task(str(row.id), tasks[row.task_key].messages, JUDGE, advice, rubric=rubric), row)
        for row in rows
    ]
    grades = judge.grades([(task, answers_of(row)) for task, row in asked])
    results, problems = [], []
    for (_, row), grade in zip(asked, grades, strict=True):
        if isinstance(grade, ReflectError):
            problems.append(f"rollout {row.id}: {grade.message}")
        else:
            results.append(_result(lesson, row, FollowedSource.JUDGE, grade.reward))
    with store.write() as s:
        return Judged(db.save(s, results), problems)


def _result(lesson: Lesson, row: Rollout, source: FollowedSource, reward: float) -> Followed:
    return Followed(
        lesson_id=lesson.id or 0, rollout_id=row.id or 0, source=source, followed=reward >= 0.5
    )
