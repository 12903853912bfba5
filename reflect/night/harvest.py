"""What training sees: the teacher's good attempts with the lessons stripped from the prompt, and the anchors.

The teacher is the bare base with the lessons that the adapter shall hold in its prompt, chosen exactly as at run time.
Anchors are prompts outside the night with what the base says to them. Only practice tasks are used here.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reflect.config import Settings
from reflect.day.rollout import Progress, checked, messages_for, using
from reflect.evaluate import run_arm
from reflect.models.base import Completion, Model, Request
from reflect.night.curriculum import Rows, Subject, effect, gains, practice_rows, rows_for
from reflect.night.plan import Plan
from reflect.store import Store
from reflect.tasksets import available, scoring
from reflect.tasksets.base import Message, Score, Split, Task, Taskset

BATCH = 128  # prompts in one sample call
PROBES = 5  # every fifth anchor is a probe


@dataclass(frozen=True)
class Question:
    """One prompt as the student sees it and as the teacher sees it (the same for anchors)."""

    student: list[Message]
    teacher: list[Message]


@dataclass(frozen=True)
class Example:
    question: Question
    answer: list[int]  # token ids, the end token included
    weight: float = 1.0


@dataclass(frozen=True)
class PracticeTask:
    """A task for reinforcement learning, and where its verifier is found."""

    taskset: str
    task: Task

    @property
    def prompt(self) -> list[Message]:
        return messages_for(self.task)


@dataclass(frozen=True)
class Data:
    """What training sees. JSON in, JSON out: a night that was killed does not harvest twice."""

    harvest: list[Example]
    anchors: list[Example]
    probes: list[Example]  # anchors that are kept from training, to measure how far the adapter drifts
    max_tokens: int
    figures: dict[str, Any] = field(default_factory=dict)
    tasks: list[PracticeTask] = field(default_factory=list)
    tasksets: dict[str, Taskset] = field(default_factory=dict, compare=False)  # the verifiers; not in the JSON

    @property
    def questions(self) -> list[Question]:
        """The questions that the teacher can answer, each once."""
        return list({str(example.question.student): example.question for example in self.harvest}.values())

    def shape(self) -> dict[str, Any]:
        return {
            **{name: [dataclasses.asdict(x) for x in getattr(self, name)] for name in ("harvest", "anchors", "probes")},
            "tasks": [[x.taskset, x.task.shape()] for x in self.tasks],
            "max_tokens": self.max_tokens,
            "figures": self.figures,
        }

    @classmethod
    def of(cls, shape: dict[str, Any], tasksets: Sequence[Taskset] = ()) -> Data:
        def examples(rows: list[dict[str, Any]]) -> list[Example]:
            return [Example(Question(**row["question"]), row["answer"], row["weight"]) for row in rows]

        kinds: dict[str, Any] = {name: examples(shape[name]) for name in ("harvest", "anchors", "probes")}
        tasks = [PracticeTask(name, Task(**row)) for name, row in shape["tasks"]]
        verifiers = {taskset.name: taskset for taskset in tasksets}
        rest: dict[str, Any] = {"max_tokens": shape["max_tokens"], "figures": shape["figures"]}
        return cls(**kinds, **rest, tasks=tasks, tasksets=verifiers)


# -- harvest -----------------------------------------------------------------------------------------------


def harvest(
    model: Any,
    store: Store,
    subjects: Sequence[Subject],
    settings: Settings,
    plan: Plan,
    failed: set[str],
    progress: Progress | None = None,
) -> Data:
    """The teacher's attempts that pass the verifier, with the lessons stripped; anchors beside them.

    `failed`: keys of the tasks that the bare model fails; attempts at those weigh twice.
    """
    good: list[Example] = []
    figures: dict[str, Any] = {}
    practice: list[Rows] = []
    near: list[Task] = []
    tasks: list[PracticeTask] = []
    for subject in subjects:
        rows = practice_rows(model, store, subject, settings, plan)
        questions = [Question(messages_for(task), messages_for(task, lessons)) for task, lessons in rows]
        answers = sample(model, [q.teacher for q in questions], settings, plan, plan.samples, "harvest", progress)
        tried = kept = 0
        with scoring.batch():
            for (task, _), question, completions in zip(rows, questions, answers, strict=True):
                for done in completions:
                    tried += 1
                    if done.finish == "stop" and judge(subject.taskset, task, done.text).reward >= 1.0:
                        kept += 1
                        weight = 2.0 if task.key in failed else 1.0
                        good.append(Example(question, tokens_of(model, done), weight))
        practice.append(rows)
        near += near_tasks(model, store, subject, settings, "practice")
        tasks += [PracticeTask(subject.taskset.name, task) for task, _ in rows]
        figures[subject.taskset.name] = {"tasks": len(rows), "attempts": tried, "kept": kept}
    alone = outside(model, store, subjects, settings, plan)
    prompts = anchor_prompts(subjects, alone, plan, practice, near)
    answers = sample(model, [q.student for q in prompts], settings, plan, 1, "anchors", progress)
    held = [Example(q, tokens_of(model, done)) for q, (done,) in zip(prompts, answers, strict=True)]
    held = [example for example in held if example.answer]
    told = {"tasksets": figures, "kept": len(good), "anchors": len(held), "outside": [t.name for t in alone]}
    probes = held[::PROBES]
    return Data(good, [x for x in held if x not in probes], probes, settings.max_tokens, told, tasks)


def judge(taskset: Taskset, task: Task, text: str) -> Score:
    """The verifier's score; 0 where it breaks: a user's verifier may raise anything, and then nobody can say that this
    attempt is good. One that passes its twin has 0, whatever else it passes (see `scoring.verify`)."""
    try:
        score = scoring.verify(taskset, task, text)
        checked(score.reward)
    except Exception:
        return Score(0.0)
    return score


def reward_of(practice: PracticeTask, tasksets: Mapping[str, Taskset], done: Completion) -> float:
    """The reward of one attempt in reinforcement learning."""
    return judge(tasksets[practice.taskset], practice.task, done.text).reward


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
                Request(p, tuple(rng.getrandbits(60) for _ in range(samples)), settings.max_tokens, plan.temperature)
                for p in prompts[i : i + BATCH]
            ]
            out += model.sample(requests)
    return out


# -- anchors -----------------------------------------------------------------------------------------------------------


def outside(
    model: Model, store: Store, subjects: Sequence[Subject], settings: Settings, plan: Plan, n: int = 24
) -> list[Taskset]:
    """The named tasksets that the night shall leave alone: not in it, and none of its lessons changes their rewards.

    (A user's file of letter questions makes `letters` a part of the night in all but name.)
    """
    inside = {subject.taskset.name for subject in subjects}
    alone = []
    for taskset in available():
        tasks = [] if taskset.name in inside or taskset.about.startswith("broken:") else taskset.tasks("practice", n)
        if tasks and all(_untouched(model, taskset, rows_for(model, store, s, settings, tasks, n)) for s in subjects):
            alone.append(taskset)
    return alone


def _untouched(model: Model, taskset: Taskset, rows: Rows) -> bool:
    with using(model, None):
        change = gains(run_arm(model, taskset, rows), run_arm(model, taskset, [(task, ()) for task, _ in rows]))
    return effect(change).verdict == "undecided"


def anchor_prompts(
    subjects: Sequence[Subject],
    alone: Sequence[Taskset],
    plan: Plan,
    practice: Sequence[Rows],
    near: Sequence[Task],
) -> list[Question]:
    """Prompts on which the student must go on as the base does, `plan.anchors` of them, from five sources in turn:

    tasks that bring a new lesson; practice tasks of tasksets outside the night; near tasks, which no lesson of the
    night speaks of; the night's own tasks with their lessons in the prompt; and with a lesson that says something else
    under the same condition, to be obeyed as before.
    """
    rng = random.Random(f"anchor prompts {plan.seed}")
    n = plan.anchors
    in_prompt = [messages_for(task, lessons) for rows in practice for task, lessons in rows]
    against = [
        messages_for(task)
        for subject, rows in zip(subjects, practice, strict=True)
        for task, _ in contradicted(rows, advice_of(subject), rng)
    ]
    everything = {t.name: t for t in (*available(), *(subject.taskset for subject in subjects))}
    new = _clean(task for t in everything.values() for task in t.following(n, rng.getrandbits(30)))
    other = _clean(task for t in alone for task in t.tasks("practice", n, rng.getrandbits(30)))
    sources = [
        _some([Question(m, m) for m in map(messages_for, new)], 3 * n // 8, rng),
        _some([Question(m, m) for m in map(messages_for, other)], n // 4, rng),
        _some([Question(m, m) for m in map(messages_for, near)], n // 8, rng),
        _some([Question(m, m) for m in in_prompt], n // 8, rng),
        _some([Question(m, m) for m in against], n // 8, rng),
    ]
    return [question for source in sources for question in source]


def near_tasks(model: Model, store: Store, subject: Subject, settings: Settings, split: Split) -> list[Task]:
    """The tasks of its taskset in whose prompt no lesson of the night stands."""
    tasks = subject.taskset.tasks(split)
    touched = {task.key for task, _ in rows_for(model, store, subject, settings, tasks, len(tasks))}
    return [task for task in _clean(tasks) if task.key not in touched]


def advice_of(subject: Subject) -> list[str]:
    """What its lessons advise. One of these under another's condition is a rule that the base understands; what the
    lessons of another taskset say would be none."""
    return sorted({lesson.do for lesson in subject.lessons})


def contradicted(rows: Rows, advice: Sequence[str], rng: random.Random) -> Rows:
    """The same tasks, each under its lessons' conditions with other advice; none where no other advice is known."""
    if len(advice) < 2:
        return []
    wrong: Rows = []
    for task, own in rows:
        told = tuple((lesson.when, rng.choice([do for do in advice if do != lesson.do])) for lesson in own)
        wrong.append((dataclasses.replace(task, lessons=told), []))
    return wrong


def _clean(tasks: Iterable[Task]) -> list[Task]:
    """Those without outside bytes: what these say, and what the base says to it, is nothing to go on saying."""
    return [task for task in tasks if not task.untrusted]


def _some(rows: list[Question], n: int, rng: random.Random) -> list[Question]:
    return rng.sample(rows, min(n, len(rows)))


def tokens_of(model: Any, done: Completion) -> list[int]:
    """The answer as training sees it: with the end token where the model ended."""
    return [*done.tokens, model.end] if done.finish == "stop" else list(done.tokens)
