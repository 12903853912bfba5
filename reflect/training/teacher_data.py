"""What training sees: the teacher's good attempts with the lessons stripped from the prompt, and
the anchors.

The teacher is the bare base with the lessons that the adapter shall hold in its prompt, chosen
exactly as at run time. Anchors are prompts outside the night with what the base says to them. Only
practice tasks are used here.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reflect.config import Settings
from reflect.evaluation.arms import run_arm
from reflect.models.base import Completion, Model, Request
from reflect.records import Lesson
from reflect.rollouts.runner import messages_for, using, validate_reward
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.store import Store
from reflect.tasksets import available, isolation
from reflect.tasksets.base import Taskset, has_environment
from reflect.tasksets.task import Message, Score, Split, Task
from reflect.training import teacher_episodes
from reflect.training.examples import Example, PracticeTask, Question
from reflect.training.lesson_set import Rows, TasksetLessons, effect, gains, practice_rows, rows_for
from reflect.training.plan import Plan
from reflect.training.teacher_episodes import tokens_of
from reflect.types import Limits, Progress

BATCH = 128  # prompts in one sample call
PROBES = 5  # every fifth anchor is a probe


@dataclass(frozen=True)
class TrainingData:
    """What training sees. JSON in, JSON out: a night that was killed does not harvest twice."""

    harvest: list[Example]
    anchors: list[Example]
    probes: list[
        Example
    ]  # anchors that are kept from training, to measure how far the adapter drifts
    max_tokens: int
    figures: dict[str, Any] = field(default_factory=dict)
    tasks: list[PracticeTask] = field(default_factory=list)
    limits: Limits = Limits()  # of attempts that have several turns
    tasksets: dict[str, Taskset] = field(
        default_factory=dict, compare=False
    )  # the verifiers; not in the JSON

    @property
    def questions(self) -> list[Question]:
        """The questions that the teacher can answer, each once."""
        return list(
            {str(example.question.student): example.question for example in self.harvest}.values()
        )

    def shape(self) -> dict[str, Any]:
        return {
            **{
                name: [dataclasses.asdict(x) for x in getattr(self, name)]
                for name in ("harvest", "anchors", "probes")
            },
            "tasks": [[x.taskset, x.task.shape()] for x in self.tasks],
            "max_tokens": self.max_tokens,
            "limits": list(self.limits),
            "figures": self.figures,
        }

    @classmethod
    def of(cls, shape: dict[str, Any], tasksets: Sequence[Taskset] = ()) -> TrainingData:
        def examples(rows: list[dict[str, Any]]) -> list[Example]:
            return [
                Example(Question(**row["question"]), row["answer"], row["weight"]) for row in rows
            ]

        kinds: dict[str, Any] = {
            name: examples(shape[name]) for name in ("harvest", "anchors", "probes")
        }
        tasks = [PracticeTask(name, Task(**row)) for name, row in shape["tasks"]]
        verifiers = {taskset.name: taskset for taskset in tasksets}
        rest: dict[str, Any] = {"max_tokens": shape["max_tokens"], "figures": shape["figures"]}
        rest["limits"] = Limits(
            *shape.get("limits", ())
        )  # a night that began before there were any
        return cls(**kinds, **rest, tasks=tasks, tasksets=verifiers)


# -- harvest
# -----------------------------------------------------------------------------------------------


def harvest(
    model: Any,
    store: Store,
    subjects: Sequence[TasksetLessons],
    settings: Settings,
    plan: Plan,
    failed: set[str],
    progress: Progress | None = None,
    means: Mapping[str, float] | None = None,
) -> TrainingData:
    """The teacher's attempts that are worth imitating, with the lessons stripped; anchors beside
    them.

    `failed`: keys of the tasks that the bare model fails; attempts at those weigh twice. `means`:
    taskset -> mean reward with the lessons. Worth imitating is what has that at least: where tasks
    are passed or failed, what passes. Without it the full reward is asked for.
    """
    good: list[Example] = []
    figures: dict[str, Any] = {}
    practice: list[Rows] = []
    near: list[Task] = []
    tasks: list[PracticeTask] = []
    for subject in subjects:
        rows = practice_rows(model, store, subject, settings, plan)
        attempts = episodes_of if has_environment(subject.taskset) else answers_of
        enough = (means or {}).get(subject.taskset.name) or 1.0
        tried = kept = 0
        with isolation.batch():
            for task, made in attempts(
                model, subject.taskset, rows, settings, plan, enough, progress
            ):
                tried += 1
                kept += bool(made)
                good += [
                    dataclasses.replace(example, weight=2.0 if task.key in failed else 1.0)
                    for example in made
                ]
        practice.append(rows)
        near += near_tasks(model, store, subject, settings, "practice")
        tasks += [PracticeTask(subject.taskset.name, task) for task, _ in rows]
        figures[subject.taskset.name] = {
            "tasks": len(rows),
            "attempts": tried,
            "kept": kept,
            "enough": enough,
        }
    alone = outside(model, store, subjects, settings, plan)
    prompts = anchor_prompts(model, subjects, alone, settings, plan, practice, near)
    answers = sample(model, [q.student for q in prompts], settings, plan, 1, "anchors", progress)
    held = [Example(q, tokens_of(model, done)) for q, (done,) in zip(prompts, answers, strict=True)]
    held = [example for example in held if example.answer]
    told = {
        "tasksets": figures,
        "kept": len(good),
        "anchors": len(held),
        "outside": [t.name for t in alone],
    }
    probes = held[::PROBES]
    rest = [x for x in held if x not in probes]
    return TrainingData(good, rest, probes, settings.max_tokens, told, tasks, settings.limits)


Made = Iterator[
    tuple[Task, list[Example]]
]  # for each attempt its task and, where it is good, what it teaches


def answers_of(
    model: Any,
    taskset: Taskset,
    rows: Rows,
    settings: Settings,
    plan: Plan,
    enough: float,
    progress: Progress | None,
) -> Made:
    """The teacher's attempts at tasks of one answer."""
    questions = [
        Question(messages_for(task), messages_for(task, lessons)) for task, lessons in rows
    ]
    answers = sample(
        model, [q.teacher for q in questions], settings, plan, plan.samples, "harvest", progress
    )
    for (task, _), question, completions in zip(rows, questions, answers, strict=True):
        for done in completions:
            good = done.finish == "stop" and scored(taskset, task, done.text).reward >= enough
            yield task, [Example(question, tokens_of(model, done))] if good else []


def episodes_of(
    model: Any,
    taskset: Taskset,
    rows: Rows,
    settings: Settings,
    plan: Plan,
    enough: float,
    progress: Progress | None,
) -> Made:
    """The teacher's attempts at tasks of several turns."""
    for group in teacher_episodes.teach(
        model, taskset, rows, settings, plan, plan.samples, "harvest", progress
    ):
        for one in group:
            yield (
                one.task,
                teacher_episodes.examples(model, one, one.task)
                if teacher_episodes.good(one, enough)
                else [],
            )


def scored(taskset: Taskset, task: Task, text: str) -> Score:
    """The verifier's score; 0 where it breaks: a user's verifier may raise anything, and then
    nobody can say that this attempt is good. One that passes its twin has 0, whatever else it
    passes (see `scoring.verify`)."""
    try:
        score = isolation.verify(taskset, task, text)
        validate_reward(score.reward)
    except Exception:
        return Score(0.0)
    return score


def reward_of(practice: PracticeTask, tasksets: Mapping[str, Taskset], done: Completion) -> float:
    """The reward of one attempt in reinforcement learning."""
    return scored(tasksets[practice.taskset], practice.task, done.text).reward


def sample(
    model: Any,
    prompts: Sequence[list[Message]],
    settings: Settings,
    plan: Plan,
    samples: int,
    what: str,
    progress: Progress | None,
) -> list[list[Completion]]:
    """`samples` answers of the bare base to each prompt."""
    out: list[list[Completion]] = []
    rng = random.Random(f"{what} {plan.seed}")
    with using(model, None):
        for i in range(0, len(prompts), BATCH):
            if progress:
                progress(i, len(prompts), what)
            requests = [
                Request(
                    p,
                    tuple(rng.getrandbits(60) for _ in range(samples)),
                    settings.max_tokens,
                    plan.temperature,
                )
                for p in prompts[i : i + BATCH]
            ]
            out += model.sample(requests)
    return out


# -- anchors
# -----------------------------------------------------------------------------------------------------------


def outside(
    model: Model,
    store: Store,
    subjects: Sequence[TasksetLessons],
    settings: Settings,
    plan: Plan,
    n: int = 24,
) -> list[Taskset]:
    """The named tasksets that the night shall leave alone: not in it, and none of its lessons
    changes their rewards.

    (A user's file of letter questions makes `letters` a part of the night in all but name.) Tasks
    of several turns are left out: see `guarded`.
    """
    inside = {subject.taskset.name for subject in subjects}
    alone = []
    for taskset in guarded(()):
        left_out = taskset.name in inside or taskset.load_error is not None
        tasks = [] if left_out else taskset.tasks("practice", n)
        if tasks and all(
            _untouched(model, taskset, rows_for(model, store, s, settings, tasks, n))
            for s in subjects
        ):
            alone.append(taskset)
    return alone


def guarded(subjects: Sequence[TasksetLessons]) -> list[Taskset]:
    """The tasksets on which harm is looked for: the named ones, and the night's own. Of those with
    tasks of several turns only the night's: episodes of all the others would take longer than the
    night itself."""
    named = [taskset for taskset in available() if not has_environment(taskset)]
    return list({t.name: t for t in (*named, *(subject.taskset for subject in subjects))}.values())


def _untouched(model: Model, taskset: Taskset, rows: Rows) -> bool:
    with using(model, None):
        change = gains(
            run_arm(model, taskset, rows), run_arm(model, taskset, [(task, ()) for task, _ in rows])
        )
    return effect(change).verdict == "undecided"


def anchor_prompts(
    model: Model,
    subjects: Sequence[TasksetLessons],
    alone: Sequence[Taskset],
    settings: Settings,
    plan: Plan,
    practice: Sequence[Rows],
    near: Sequence[Task],
) -> list[Question]:
    """Prompts on which the student must go on as the base does, `plan.anchors` of them, from five
    sources in turn:

    tasks that bring a new lesson; practice tasks of tasksets outside the night; near tasks, which
    no lesson of the night speaks of; the night's own tasks with their lessons in the prompt; and
    with a lesson that says something else under the same condition, to be obeyed as before.
    """
    rng = random.Random(f"anchor prompts {plan.seed}")
    n = plan.anchors
    in_prompt, against = [], []
    for subject, rows in zip(subjects, practice, strict=True):
        wrong = contradicted(rows, advice_of(subject), rng)
        in_prompt += prompts_of(model, subject.taskset, rows, settings, plan, "anchors in prompt")
        against += prompts_of(model, subject.taskset, wrong, settings, plan, "anchors against")
    new = _clean(task for t in guarded(subjects) for task in t.following(n, rng.getrandbits(30)))
    other = _clean(task for t in alone for task in t.tasks("practice", n, rng.getrandbits(30)))
    sources = [
        _some([Question(m, m) for m in map(messages_for, new)], 3 * n // 8, rng),
        _some([Question(m, m) for m in map(messages_for, other)], n // 4, rng),
        _some([Question(m, m) for m in map(messages_for, near)], n // 8, rng),
        _some([Question(m, m) for m in in_prompt], n // 8, rng),
        _some([Question(m, m) for m in against], n // 8, rng),
    ]
    return [question for source in sources for question in source]


def prompts_of(
    model: Model, taskset: Taskset, rows: Rows, settings: Settings, plan: Plan, what: str
) -> list[list[Message]]:
    """The prompts of the tasks with these lessons; of tasks of several turns those of every turn,
    as the base comes to them: what is held at the first turn alone would be lost at the others."""
    if not has_environment(taskset):
        return [messages_for(task, lessons) for task, lessons in rows]
    few = rows[: plan.anchors // 8]
    groups = teacher_episodes.teach(model, taskset, few, settings, plan, 1, what, None)
    clean = [one for group in groups for one in group if one.row.trust == "clean"]
    return [one.asked(turn) for one in clean for turn in one.turns]


def near_tasks(
    model: Model, store: Store, subject: TasksetLessons, settings: Settings, split: Split
) -> list[Task]:
    """The tasks of its taskset in whose prompt no lesson of the night stands."""
    tasks = subject.taskset.tasks(split)
    touched = {task.key for task, _ in rows_for(model, store, subject, settings, tasks, len(tasks))}
    return [task for task in _clean(tasks) if task.key not in touched]


def advice_of(subject: TasksetLessons) -> list[str]:
    """What its lessons advise. One of these under another's condition is a rule that the base
    understands; what the lessons of another taskset say would be none."""
    return sorted({lesson.do for lesson in subject.lessons})


def contradicted(rows: Rows, advice: Sequence[str], rng: random.Random) -> Rows:
    """The same tasks, each under its lessons' conditions with other advice, chosen at each turn
    where the lessons are; none where no other advice is known."""
    if len(advice) < 2:
        return []
    wrong: Rows = []
    for task, own in rows:
        other = {lesson.id: rng.choice([do for do in advice if do != lesson.do]) for lesson in own}
        if isinstance(own, PerTurnLessons):
            wrong.append((task, _other_advice(own, other)))
        else:
            told = tuple((lesson.when, other[lesson.id]) for lesson in own)
            wrong.append((dataclasses.replace(task, lessons=told), []))
    return wrong


def _clean(tasks: Iterable[Task]) -> list[Task]:
    """Those without outside bytes: what these say, and what the base says to it, is nothing to go
    on saying."""
    return [task for task in tasks if not task.untrusted]


def _other_advice(own: PerTurnLessons, other: Mapping[int | None, str]) -> PerTurnLessons:
    def told(lessons: Sequence[Lesson]) -> list[Lesson]:
        return [Lesson(id=x.id, when=x.when, do=other[x.id]) for x in lessons if x.id in other]

    return PerTurnLessons(told(own), lambda state: told(own.at(state)))


def _some(rows: list[Question], n: int, rng: random.Random) -> list[Question]:
    return rng.sample(rows, min(n, len(rows)))
