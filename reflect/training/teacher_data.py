"""Training data: the teacher's successful attempts without the lessons in the prompt, and anchors.

The teacher is the bare base with the lessons to distill in its prompt, selected as at run time.
Anchors are prompts outside the night with the base's answers to them. Only practice tasks are used
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from reflect.rollouts.episode import messages_for
from reflect.tasksets import isolation
from reflect.tasksets.base import Taskset, has_environment
from reflect.tasksets.task import Task
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.guards import guards_of, near_tasks
from reflect.training.lesson_set import Rows, practice_rows
from reflect.training.sampling import sample, scored
from reflect.training.teacher_episodes import examples, successful, teach, tokens_of
from reflect.types import Json, Limits

if TYPE_CHECKING:
    from reflect.training.context import NightContext
    from reflect.training.evidence import Attempt

KINDS = ("harvest", "anchors", "probes")


@dataclass(frozen=True)
class TrainingData:
    """The rows to train on, stored as JSON so that a killed night does not sample them again."""

    harvest: list[Example]
    anchors: list[Example]
    probes: list[Example]
    """Anchors that are not trained on, to measure the drift of the adapter."""
    max_tokens: int
    figures: Json = field(default_factory=dict)
    tasks: list[PracticeTask] = field(default_factory=list)
    limits: Limits = Limits()
    """Limits of attempts of several turns."""
    tasksets: dict[str, Taskset] = field(default_factory=dict, compare=False)
    """The verifiers; not in the JSON."""

    @property
    def questions(self) -> list[Question]:
        """The questions that the teacher can answer, each once."""
        return list({str(x.question.student): x.question for x in self.harvest}.values())

    def shape(self) -> Json:
        """The data as JSON."""
        return {
            **{name: [asdict(x) for x in getattr(self, name)] for name in KINDS},
            "tasks": [[x.taskset, x.task.shape()] for x in self.tasks],
            "max_tokens": self.max_tokens,
            "limits": list(self.limits),
            "figures": self.figures,
        }

    @classmethod
    def of(cls, shape: Json, tasksets: Sequence[Taskset] = ()) -> TrainingData:
        """The data from its JSON."""
        harvest, anchors, probes = (
            [Example(Question(**row["question"]), row["answer"], row["weight"]) for row in rows]
            for rows in (shape[name] for name in KINDS)
        )
        return cls(
            harvest,
            anchors,
            probes,
            max_tokens=shape["max_tokens"],
            figures=shape["figures"],
            tasks=[PracticeTask(name, Task(**row)) for name, row in shape["tasks"]],
            limits=Limits(*shape.get("limits", ())),  # an older night has none
            tasksets={taskset.name: taskset for taskset in tasksets},
        )


# -- harvest


def harvest(
    ctx: NightContext,
    failed: set[str],
    means: Mapping[str, float] | None = None,
    attempts: Mapping[str, Mapping[str, Sequence[Attempt]]] | None = None,
) -> TrainingData:
    """The teacher's successful attempts without the lessons in the prompt, and the anchors.

    `failed`: keys of the tasks that the bare model fails; attempts at those weigh twice. `means`:
    taskset -> mean reward with the lessons. An attempt is a target if its reward is at least that;
    without `means`, if it is 1. `attempts`: taskset -> task key -> what was answered and scored
    before under these lessons.
    """
    good: list[Example] = []
    tasksets: Json = {}
    practice: list[Rows] = []
    near: list[Task] = []
    tasks: list[PracticeTask] = []
    for item in ctx.tasksets:
        rows, name = practice_rows(ctx, item), item.taskset.name
        enough = (means or {}).get(name) or 1.0
        earlier = (attempts or {}).get(name, {})
        tried = kept = 0
        with isolation.batch():
            if has_environment(item.taskset):
                pairs = episodes_of(ctx, item.taskset, rows, enough)
            else:
                pairs = answers_of(ctx, item.taskset, rows, enough, earlier)
            for task, targets in pairs:
                tried += 1
                kept += bool(targets)
                weight = 2.0 if task.key in failed else 1.0
                good += [replace(example, weight=weight) for example in targets]
        practice.append(rows)
        near += near_tasks(ctx, item, "practice")
        tasks += [PracticeTask(name, task) for task, _ in rows]
        figures = {"tasks": len(rows), "attempts": tried, "kept": kept, "enough": enough}
        if ctx.plan.reuse:
            reused = _good(earlier, enough)
            figures |= {"attempts": tried - reused, "reused": reused}
        tasksets[name] = figures
    guards = guards_of(ctx).anchors(ctx, practice, near)
    summary = {
        "tasksets": tasksets,
        "kept": len(good),
        "anchors": len(guards.anchors) + len(guards.probes),
        "outside": [taskset.name for taskset in guards.outside],
        **({"followed": guards.followed} if guards.followed else {}),
    }
    return TrainingData(
        good,
        guards.anchors,
        guards.probes,
        ctx.sampling.max_tokens,
        summary,
        tasks,
        ctx.settings.limits,
    )


Attempts = Iterator[tuple[Task, list[Example]]]
"""For each attempt its task, and its examples if it is successful."""


def answers_of(
    ctx: NightContext,
    taskset: Taskset,
    rows: Rows,
    enough: float,
    earlier: Mapping[str, Sequence[Attempt]],
) -> Attempts:
    """The teacher's attempts at tasks of one answer: those that were scored `earlier`, and
    `plan.samples` new ones at each task with fewer different good answers."""
    todo: Rows = []
    for task, lessons in rows:
        question = Question(messages_for(task), messages_for(task, lessons))
        texts = {text for text, reward in earlier.get(task.key, ()) if reward >= enough}
        for text in sorted(texts):
            yield task, [Example(question, _tokens(ctx, text))]
        if len(texts) < ctx.plan.samples:
            todo.append((task, lessons))
    questions = [
        Question(messages_for(task), messages_for(task, lessons)) for task, lessons in todo
    ]
    answers = sample(ctx, [q.teacher for q in questions], ctx.plan.samples, "harvest")
    for (task, _), question, completions in zip(todo, questions, answers, strict=True):
        for done in completions:
            good = done.finish == "stop" and scored(taskset, task, done.text).reward >= enough
            yield task, [Example(question, tokens_of(ctx.model, done))] if good else []


def _good(earlier: Mapping[str, Sequence[Attempt]], enough: float) -> int:
    """How many different good answers were scored before, over all tasks."""
    return sum(len({text for text, r in xs if r >= enough}) for xs in earlier.values())


def _tokens(ctx: NightContext, text: str) -> list[int]:
    """The ids of an answer that is known as text, with the end token."""
    message = [{"role": "user", "content": ""}]
    return ctx.model.encode(message, text)[len(ctx.model.encode(message)) :]


def episodes_of(ctx: NightContext, taskset: Taskset, rows: Rows, enough: float) -> Attempts:
    """The teacher's attempts at tasks of several turns."""
    for group in teach(ctx, taskset, rows, ctx.plan.samples, "harvest"):
        for one in group:
            yield one.task, examples(ctx.model, one, one.task) if successful(one, enough) else []
