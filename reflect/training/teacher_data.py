"""Training data: the teacher's successful attempts without the lessons in the prompt, and anchors.

The teacher is the bare base with the lessons to distill in its prompt, selected as at run time.
Anchors are prompts outside the night with the base's answers to them. Only practice tasks are used
here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from reflect.evaluation.arms import run_arm
from reflect.models.base import Completion, Request, using
from reflect.records import Lesson
from reflect.rollouts.episode import messages_for, validate_reward
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.tasksets import available, isolation
from reflect.tasksets.base import Taskset, has_environment
from reflect.tasksets.task import Message, Score, Split, Task
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.lesson_set import Rows, effect, gains, practice_rows, rows_for
from reflect.training.teacher_episodes import examples, successful, teach, tokens_of
from reflect.types import Json, Limits, TrialVerdict, Trust

if TYPE_CHECKING:
    from reflect.training.context import NightContext, TasksetLessons

BATCH = 128  # prompts in one sample call
PROBES = 5  # every fifth anchor is a probe
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
    ctx: NightContext, failed: set[str], means: Mapping[str, float] | None = None
) -> TrainingData:
    """The teacher's successful attempts without the lessons in the prompt, and the anchors.

    `failed`: keys of the tasks that the bare model fails; attempts at those weigh twice. `means`:
    taskset -> mean reward with the lessons. An attempt is a target if its reward is at least that;
    without `means`, if it is 1.
    """
    good: list[Example] = []
    tasksets: Json = {}
    practice: list[Rows] = []
    near: list[Task] = []
    tasks: list[PracticeTask] = []
    for item in ctx.tasksets:
        rows = practice_rows(ctx, item)
        attempts = episodes_of if has_environment(item.taskset) else answers_of
        enough = (means or {}).get(item.taskset.name) or 1.0
        tried = kept = 0
        with isolation.batch():
            for task, targets in attempts(ctx, item.taskset, rows, enough):
                tried += 1
                kept += bool(targets)
                weight = 2.0 if task.key in failed else 1.0
                good += [replace(example, weight=weight) for example in targets]
        practice.append(rows)
        near += near_tasks(ctx, item, "practice")
        tasks += [PracticeTask(item.taskset.name, task) for task, _ in rows]
        figures = {"tasks": len(rows), "attempts": tried, "kept": kept, "enough": enough}
        tasksets[item.taskset.name] = figures
    unrelated = outside(ctx)
    prompts = anchor_prompts(ctx, unrelated, practice, near)
    answers = sample(ctx, [question.student for question in prompts], 1, "anchors")
    anchors = [
        Example(question, tokens)
        for question, (done,) in zip(prompts, answers, strict=True)
        if (tokens := tokens_of(ctx.model, done))
    ]
    summary = {
        "tasksets": tasksets,
        "kept": len(good),
        "anchors": len(anchors),
        "outside": [taskset.name for taskset in unrelated],
    }
    probes = anchors[::PROBES]
    rest = [example for example in anchors if example not in probes]
    settings = ctx.settings
    return TrainingData(good, rest, probes, settings.max_tokens, summary, tasks, settings.limits)


Attempts = Iterator[tuple[Task, list[Example]]]
"""For each attempt its task, and its examples if it is successful."""


def answers_of(ctx: NightContext, taskset: Taskset, rows: Rows, enough: float) -> Attempts:
    """The teacher's attempts at tasks of one answer."""
    questions = [
        Question(messages_for(task), messages_for(task, lessons)) for task, lessons in rows
    ]
    answers = sample(ctx, [q.teacher for q in questions], ctx.plan.samples, "harvest")
    for (task, _), question, completions in zip(rows, questions, answers, strict=True):
        for done in completions:
            good = done.finish == "stop" and scored(taskset, task, done.text).reward >= enough
            yield task, [Example(question, tokens_of(ctx.model, done))] if good else []


def episodes_of(ctx: NightContext, taskset: Taskset, rows: Rows, enough: float) -> Attempts:
    """The teacher's attempts at tasks of several turns."""
    for group in teach(ctx, taskset, rows, ctx.plan.samples, "harvest"):
        for one in group:
            yield one.task, examples(ctx.model, one, one.task) if successful(one, enough) else []


def scored(taskset: Taskset, task: Task, text: str) -> Score:
    """The verifier's score; 0 if the verifier raises any error, or if the attempt passes the
    task's twin (see `isolation.verify`)."""
    try:
        score = isolation.verify(taskset, task, text)
        validate_reward(score.reward)
    except Exception:
        return Score(0.0)
    return score


def sample(
    ctx: NightContext, prompts: Sequence[list[Message]], samples: int, what: str
) -> list[list[Completion]]:
    """`samples` answers of the bare base to each prompt."""
    answers: list[list[Completion]] = []
    rng = random.Random(f"{what} {ctx.plan.seed}")
    with using(ctx.model, None):
        for i in range(0, len(prompts), BATCH):
            ctx.report(i, len(prompts), what)
            requests = []
            for prompt in prompts[i : i + BATCH]:
                seeds = tuple(rng.getrandbits(60) for _ in range(samples))
                max_tokens, temperature = ctx.settings.max_tokens, ctx.plan.temperature
                requests.append(Request(prompt, seeds, max_tokens, temperature))
            answers += ctx.model.sample(requests)
    return answers


# -- anchors


def outside(ctx: NightContext, n: int = 24) -> list[Taskset]:
    """The named tasksets that the night must not change: not in it, and without an effect of its
    lessons on their rewards (a user's file of letter questions makes `letters` part of the night).

    Tasks of several turns are left out: see `guarded`.
    """
    names = {item.taskset.name for item in ctx.tasksets}
    unrelated = []
    for taskset in guarded(()):
        left_out = taskset.name in names or taskset.load_error is not None
        tasks = [] if left_out else taskset.tasks("practice", n)
        if tasks and all(
            _unchanged(ctx, taskset, rows_for(ctx, item, tasks, n)) for item in ctx.tasksets
        ):
            unrelated.append(taskset)
    return unrelated


def guarded(items: Sequence[TasksetLessons]) -> list[Taskset]:
    """The tasksets that are checked for harm: the named ones and the night's own. Named tasksets of
    several turns are left out, because their episodes would take longer than the night."""
    named = [taskset for taskset in available() if not has_environment(taskset)]
    return list({t.name: t for t in (*named, *(item.taskset for item in items))}.values())


def _unchanged(ctx: NightContext, taskset: Taskset, rows: Rows) -> bool:
    with using(ctx.model, None):
        lessons = run_arm(ctx.model, taskset, rows)
        base = run_arm(ctx.model, taskset, [(task, ()) for task, _ in rows])
    return effect(gains(lessons, base)).verdict == TrialVerdict.UNDECIDED


def anchor_prompts(
    ctx: NightContext, unrelated: Sequence[Taskset], practice: Sequence[Rows], near: Sequence[Task]
) -> list[Question]:
    """`plan.anchors` prompts on which the student must keep the base's answers, from five sources:

    tasks that bring a new lesson; practice tasks of tasksets outside the night; near tasks, to
    which no lesson of the night applies; the night's own tasks with their lessons in the prompt;
    and the same with contradicting lessons, which must be followed as before.
    """
    rng = random.Random(f"anchor prompts {ctx.plan.seed}")
    n = ctx.plan.anchors
    with_lessons, against = [], []
    for item, rows in zip(ctx.tasksets, practice, strict=True):
        wrong = contradicted(rows, advice_of(item), rng)
        with_lessons += prompts_of(ctx, item.taskset, rows, "anchors in prompt")
        against += prompts_of(ctx, item.taskset, wrong, "anchors against")
    items = ctx.tasksets
    new = _clean(task for t in guarded(items) for task in t.following(n, rng.getrandbits(30)))
    other = _clean(task for t in unrelated for task in t.tasks("practice", n, rng.getrandbits(30)))
    sources = [
        ([messages_for(task) for task in new], 3 * n // 8),
        ([messages_for(task) for task in other], n // 4),
        ([messages_for(task) for task in near], n // 8),
        (with_lessons, n // 8),
        (against, n // 8),
    ]
    return [
        Question(prompt, prompt)
        for prompts, most in sources
        for prompt in rng.sample(prompts, min(most, len(prompts)))
    ]


def prompts_of(ctx: NightContext, taskset: Taskset, rows: Rows, what: str) -> list[list[Message]]:
    """The prompts of the tasks with these lessons. For tasks of several turns: the prompts of every
    turn of the base's episodes, because an anchor at the first turn does not protect later ones."""
    if not has_environment(taskset):
        return [messages_for(task, lessons) for task, lessons in rows]
    groups = teach(ctx, taskset, rows[: ctx.plan.anchors // 8], 1, what)
    clean = [one for group in groups for one in group if one.row.trust == Trust.CLEAN]
    return [one.prompt_of(turn) for one in clean for turn in one.turns]


def near_tasks(ctx: NightContext, item: TasksetLessons, split: Split) -> list[Task]:
    """The tasks of the taskset without a lesson of the night in their prompt."""
    tasks = item.taskset.tasks(split)
    keys = {task.key for task, _ in rows_for(ctx, item, tasks, len(tasks))}
    return [task for task in _clean(tasks) if task.key not in keys]


def advice_of(item: TasksetLessons) -> list[str]:
    """The texts of its lessons. Each, under another lesson's condition, is an instruction that the
    base can follow; texts of another taskset's lessons would not be."""
    return sorted({lesson.do for lesson in item.lessons})


def contradicted(rows: Rows, advice: Sequence[str], rng: random.Random) -> Rows:
    """The same tasks, each lesson with another lesson's advice (per turn, if the lessons are chosen
    per turn). No rows if there is no other advice."""
    if len(advice) < 2:
        return []
    wrong: Rows = []
    for task, own in rows:
        other = {lesson.id: rng.choice([do for do in advice if do != lesson.do]) for lesson in own}
        if isinstance(own, PerTurnLessons):
            wrong.append((task, _with_other_advice(own, other)))
        else:
            changed = tuple((lesson.when, other[lesson.id]) for lesson in own)
            wrong.append((replace(task, lessons=changed), []))
    return wrong


def _clean(tasks: Iterable[Task]) -> list[Task]:
    """The tasks without bytes from outside."""
    return [task for task in tasks if not task.untrusted]


def _with_other_advice(own: PerTurnLessons, other: Mapping[int | None, str]) -> PerTurnLessons:
    def changed(lessons: Sequence[Lesson]) -> list[Lesson]:
        return [Lesson(id=x.id, when=x.when, do=other[x.id]) for x in lessons if x.id in other]

    return PerTurnLessons(changed(own), lambda state: changed(own.at(state)))
