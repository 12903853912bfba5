"""Shared by the labs: true lessons, questions with and without them, figures and pictures on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reflect.rollouts.episode import messages_for
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.training.teacher_data import Question
from scripts._common import ROOT

DOCS = ROOT / "docs" / "lab"
INSTALL = "The laboratory needs more packages.\nTry: pip install -c constraints.txt -e '.[lab]'"
SPELL = ("counting letters in a word", "spell the word, comma by comma, and keep a counter")


def lessons_of(taskset: Taskset) -> list[tuple[str, str]]:
    """(when, do) of what is true in letters or in a dialect."""
    meanings = getattr(taskset, "meanings", None)
    return [(f"the task says {verb}", f"use {op}") for verb, op in meanings.items()] if meanings else [SPELL]


def questions(tasks: Sequence[Task], lessons: Sequence[tuple[str, str]]) -> list[Question]:
    """Each task as the student sees it, and as the teacher sees it: with the one lesson that speaks of it."""
    out = []
    for task in tasks:
        mine = [row for row in lessons if row is SPELL or row[0].split()[-1] in task.text.split()]
        out.append(Question(messages_for(task), messages_for(_with(task, mine))))
    return out


def _with(task: Task, lessons: Sequence[tuple[str, str]]) -> Task:
    return dataclasses.replace(task, lessons=tuple(lessons))


def keep(name: str, figures: dict[str, Any]) -> Path:
    """Write docs/lab/NAME.json; the path of the picture that goes with it."""
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return DOCS / f"{name}.svg"


@contextmanager
def panels(path: Path, n: int) -> Iterator[Sequence[Any]]:
    """A row of n plots, saved as SVG; the same bytes for the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "reflect", "svg.fonttype": "none"}  # letters as text: a few kB
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, n, figsize=(3.2 * n, 3), layout="constrained")
    yield axes
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
