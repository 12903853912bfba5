"""Agreement of a judge with people: rewards against theirs, and pairs of answers in both orders.

A labelled sample is a file of tasks (see `reflect.tasksets.files`) whose rows also have `text`, an
answer, and `reward`, what a person gave it:

    {"prompt": "Decline politely.", "rubric": "Is it polite?", "text": "No.", "reward": 0}

Agreement compares pass or fail (a reward of at least 0.5); kappa (Cohen 1960) takes off what chance
alone would agree on. Intervals are percentile bootstraps over the answers, at 95 %.

Not covered: a sample that is too small or too easy says little, and the interval of a perfect one
has no width.
"""

from __future__ import annotations

import random
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from reflect.rollouts.judge import Grade, Judge
from reflect.stats.bootstrap import bootstrap, mean
from reflect.stats.kappa import agreement_row, kappa, kappa_of
from reflect.tasksets.files import messages_of, task_of
from reflect.tasksets.rows import rows_of
from reflect.tasksets.task import JUDGE, Task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reflect.types import Progress

PASS = 0.5
BATCH = 64  # answers in one call of the judge
PAIRS = 200  # at most so many are compared


class Label(NamedTuple):
    """An answer and the reward that a person gave it."""

    task: Task
    text: str
    reward: float


class Agreement(NamedTuple):
    """`agreement` and `kappa` with their intervals, over the answers with a readable grade; None
    without any, or if chance alone explains all. `pairs`: answers to one task of which people
    prefer one; `steady`: share in which the judge prefers the same one in both orders, `right`:
    share in which it prefers the one that people prefer."""

    n: int
    unreadable: int
    agreement: float | None
    agreement_ci95: tuple[float, float] | None
    kappa: float | None
    kappa_ci95: tuple[float, float] | None
    difference: float | None  # mean of judge minus person: above 0 it is generous
    pairs: int
    steady: float | None
    right: float | None
    problems: list[str]


def labelled(path: Path) -> list[Label]:
    """The labelled sample in a file. BadTaskFile names the file, line and field of an error."""
    labels = []
    for row in rows_of(path):
        task, _ = task_of(row, messages_of(row), "holdout")
        text, reward = row.fields.get("text"), row.fields.get("reward")
        if task.verifier != JUDGE:
            row.fail("rubric", "there is none", 'Add the criterion: "rubric": "Is it polite?"')
        if not isinstance(text, str):
            row.fail("text", "there is none", 'Give the answer that was graded: "text": "..."')
        if isinstance(reward, str):  # of YAML, where every value is a text
            reward = float(reward) if re.fullmatch(r"\d+\.?\d*", reward) else None
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0 <= reward <= 1:
            row.fail("reward", "it is no number from 0 to 1", "Give what a person gave the answer.")
        labels.append(Label(task, text, float(reward)))
    return labels


def agree(
    judge: Judge, labels: Sequence[Label], seed: int = 0, progress: Progress | None = None
) -> Agreement:
    """Have the judge grade the sample, and compare answers to the same question in both orders."""
    pairs = _pairs(labels, seed)
    total = len(labels) + len(pairs)
    grades: list[Any] = []
    for i in range(0, len(labels), BATCH):
        if progress:
            progress(i, total, "grades")
        grades += judge.grades([(label.task, label.text) for label in labels[i : i + BATCH]])
    compared: list[Any] = []
    for i in range(0, len(pairs), BATCH):
        if progress:
            progress(len(labels) + i, total, "pairs")
        compared += judge.compare([(a.task, a.text, b.text) for a, b in pairs[i : i + BATCH]])
    read = [
        (label.reward, got.reward)
        for label, got in zip(labels, grades, strict=True)
        if isinstance(got, Grade)
    ]
    problems = [str(got) for got in grades if not isinstance(got, Grade)]
    problems += [str(got) for got in compared if not isinstance(got, tuple)]
    marks = [(person >= PASS, model >= PASS) for person, model in read]
    rows, beyond = [agreement_row(*mark) for mark in marks], kappa(marks)
    steady = [isinstance(got, tuple) and got[0] == got[1] for got in compared]
    right = [
        same and got[0] == ("first" if a.reward > b.reward else "second")
        for (a, b), got, same in zip(pairs, compared, steady, strict=True)
    ]
    return Agreement(
        n=len(read),
        unreadable=len(labels) - len(read),
        agreement=sum(agree for agree, *_ in rows) / len(rows) if rows else None,
        agreement_ci95=bootstrap(rows, seed, statistic=mean) if rows else None,
        kappa=beyond,
        kappa_ci95=bootstrap(rows, seed, statistic=kappa_of) if beyond is not None else None,
        difference=sum(model - person for person, model in read) / len(read) if read else None,
        pairs=len(pairs),
        steady=sum(steady) / len(pairs) if pairs else None,
        right=sum(right) / len(pairs) if pairs else None,
        problems=problems,
    )


def _pairs(labels: Sequence[Label], seed: int) -> list[tuple[Label, Label]]:
    """At most PAIRS pairs of answers to one task with different rewards, each in random order."""
    rng = random.Random(seed)
    pairs = [
        (a, b) if rng.random() < 0.5 else (b, a)
        for a, b in combinations(labels, 2)
        if a.reward != b.reward
        and (a.task.messages, a.task.rubric) == (b.task.messages, b.task.rubric)
    ]
    return rng.sample(pairs, PAIRS) if len(pairs) > PAIRS else pairs
