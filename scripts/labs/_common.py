"""Shared by the labs: true lessons, questions with and without them, figures and pictures on disk."""

from __future__ import annotations

import dataclasses
import json
import math
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
TRIES = 8
QUICK = {"anchors": 24, "fewest_tasks": 6, "tasks_per_lesson": 2, "samples": 1}  # of a plan, for --quick
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


def said(model: Any) -> list[tuple[Any, list[int], list[int], Any]]:
    """(task, prompt, answer, log probabilities_TV) of what the base says to practice tasks of `skills`, greedily."""
    import torch

    from reflect.models.base import Request
    from reflect.tasksets import load_taskset
    from reflect.training.losses import answer_logits

    tasks = load_taskset("skills").tasks("practice", 48)
    out = []
    for task, (done,) in zip(tasks, model.sample([Request(t.messages, (0,), 32, 0.0) for t in tasks]), strict=True):
        prompt, answer = model.encode(task.messages), [*done.tokens, model.end]
        with torch.no_grad():
            out.append((task, prompt, answer, answer_logits(model, [prompt], [answer]).log_softmax(-1)))
    return out


def judge(model: Any, taskset: Any, tests: list[Any], outside: list[Any]) -> dict[str, float]:
    """`reward`: greedy on `tests`; `pass_at_8` and `entropy` (bits a token, of the distributions along the samples) of
    eight samples of them; `kept` and `drift` of `forgetting`."""
    import torch

    from reflect.models.base import Request
    from reflect.training.losses import answer_logits

    greedy = model.sample([Request(t.messages, (0,), 24, 0.0) for t in tests])
    drawn = model.sample([Request(t.messages, tuple(range(TRIES)), 24, 1.0) for t in tests])
    right = [[taskset.verify(t, a.text).reward >= 1 for a in group] for t, group in zip(tests, drawn, strict=True)]
    entropy: list[float] = []
    with torch.no_grad():
        for task, group in zip(tests, drawn, strict=True):
            answers = [[*a.tokens, model.end] for a in group]
            log_NV = answer_logits(model, [model.encode(task.messages)] * len(answers), answers).log_softmax(-1)
            entropy += (-(log_NV.exp() * log_NV).sum(-1) / math.log(2)).tolist()
    return {
        "reward": _mean([taskset.verify(t, a.text).reward for t, (a,) in zip(tests, greedy, strict=True)]),
        "pass_at_8": _mean([float(any(group)) for group in right]),
        "entropy": _mean(entropy),
        **forgetting(model, outside),
    }


def forgetting(model: Any, outside: list[Any]) -> dict[str, float]:
    """`kept`: the greedy reward on what `said` returned; `drift`: the forward KL from the base on what it says to those,
    bits a token."""
    import torch

    from reflect.models.base import Request
    from reflect.tasksets import load_taskset
    from reflect.training.losses import answer_logits

    skills = load_taskset("skills")
    kept = model.sample([Request(task.messages, (0,), 32, 0.0) for task, *_ in outside])
    drift: list[float] = []
    with torch.no_grad():
        for _, prompt, answer, base_TV in outside:
            log_TV = answer_logits(model, [prompt], [answer]).log_softmax(-1)
            drift += ((base_TV.exp() * (base_TV - log_TV)).sum(-1) / math.log(2)).tolist()
    return {
        "kept": _mean([skills.verify(row[0], a.text).reward for row, (a,) in zip(outside, kept, strict=True)]),
        "drift": _mean(drift),
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def teacher_data(model: Any, worlds: Sequence[tuple[Any, Sequence[tuple[str, str]]]], plan: Any, folder: Path) -> Any:
    """The training data of a night over true lessons: (dialect, [(verb, operation)]) of each world."""
    from reflect.config import Settings
    from reflect.store import Store, lessons
    from reflect.training import lesson_set
    from reflect.training.context import NightContext
    from reflect.training.teacher_data import TrainingData, harvest

    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(db=str(folder / "lessons.db"), home=str(folder / "home"), threads=1)
    store = Store(settings.db)
    with store.write() as s:
        for taskset, meanings in worlds:
            for verb, op in meanings:
                words = {"when": f"the task says {verb}", "do": f"use {op}", "scope": taskset.name}
                lessons.add(s, **words, author="human", status="active")
    subjects = lesson_set.lessons_by_taskset(store, "default", lesson_set.pick(store, "default"))
    made = harvest(NightContext(model, store, settings, plan, subjects), set()).shape()
    return TrainingData.of(made, [subject.taskset for subject in subjects])


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
