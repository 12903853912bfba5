"""What a night learns from: the lessons, the proof that they help, the teacher's good attempts, the anchors.

The teacher is the bare base with the lessons that the adapter shall hold in its prompt, chosen exactly as at run time.
Only practice tasks are used here; holdout belongs to the gate.

Not covered: a lesson that helps only beside another one is judged with that other one in the prompt, never alone.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from reflect.config import Settings
from reflect.day.lessons import lessons_for
from reflect.day.rollout import Progress, messages_for, using
from reflect.errors import ReflectError, UnknownName
from reflect.evaluate import HELD_STATUSES, ArmResult, bootstrap, run_arm
from reflect.models.base import Completion, Model, Request
from reflect.night.plan import Plan
from reflect.records import Lesson, Trial
from reflect.store import Store
from reflect.store import lessons as lessons_db
from reflect.store import runs as runs_db
from reflect.tasksets import available, load_taskset
from reflect.tasksets.base import Message, Task, Taskset

BATCH = 128  # prompts in one sample call
PROBES = 5  # every fifth anchor is a probe


@dataclass(frozen=True)
class Subject:
    """A taskset of the night and the lessons that may stand in its prompts."""

    taskset: Taskset
    lessons: tuple[Lesson, ...]


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
class Data:
    """What training sees. JSON in, JSON out: a night that was killed does not harvest twice."""

    harvest: list[Example]
    anchors: list[Example]
    probes: list[Example]  # anchors that are kept from training, to measure how far the adapter drifts
    max_tokens: int
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def questions(self) -> list[Question]:
        """The questions that the teacher can answer, each once."""
        return list({str(example.question.student): example.question for example in self.harvest}.values())

    def shape(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, shape: dict[str, Any]) -> Data:
        def examples(rows: list[dict[str, Any]]) -> list[Example]:
            return [Example(Question(**row["question"]), row["answer"], row["weight"]) for row in rows]

        kinds = {name: examples(shape[name]) for name in ("harvest", "anchors", "probes")}
        return cls(**kinds, max_tokens=shape["max_tokens"], figures=shape["figures"])


# -- which lessons -----------------------------------------------------------------------------------------------------


def pick(store: Store, profile: str) -> list[Lesson]:
    """All lessons that the profile holds, in text or in weights, by id."""
    with store.read() as s:
        rows = [row for status in HELD_STATUSES for row in lessons_db.listing(s, profile=profile, status=status)]
    return sorted((row for row in rows if row.trust == "clean"), key=lambda row: row.id or 0)


def subjects(store: Store, profile: str, lessons: Sequence[Lesson], given: Sequence[Taskset] = ()) -> list[Subject]:
    """The tasksets that the lessons speak of, by name. A general lesson goes with every taskset of the night, and where
    there is none with those that the profile has practised. A lesson whose taskset is gone is left out."""
    tasksets = {taskset.name: taskset for taskset in given}
    names = {lesson.scope for lesson in lessons if lesson.scope}
    if not names and not tasksets:
        with store.read() as s:
            names = {run.taskset for run in runs_db.list_runs(s, limit=100) if run.profile == profile}
    for name in sorted(names - set(tasksets)):
        try:
            tasksets[name] = load_taskset(name)
        except ReflectError:
            continue  # its lessons stay in the prompt: nothing can be measured without tasks
    found = [
        Subject(taskset, tuple(lesson for lesson in lessons if lesson.scope in (name, "")))
        for name, taskset in sorted(tasksets.items())
    ]
    found = [subject for subject in found if subject.lessons and subject.taskset.tasks("practice", 1)]
    if not found:
        raise UnknownName(
            "None of the lessons belongs to a taskset that is here.",
            "Name the tasksets, or run `reflect tasks` to see what there is.",
        )
    return found


def rows_for(
    model: Model, store: Store, subject: Subject, settings: Settings, tasks: Sequence[Task]
) -> list[tuple[Task, list[Lesson]]]:
    """The tasks, each with the lessons of the night that stand in its prompt."""
    held = {lesson.id for lesson in subject.lessons}
    with store.read() as s:
        chosen = [lessons_for(model, s, subject.taskset, task, settings, HELD_STATUSES) for task in tasks]
    return [(t, [lesson for lesson in some if lesson.id in held]) for t, some in zip(tasks, chosen, strict=True)]


def practice_tasks(subject: Subject, plan: Plan) -> list[Task]:
    """What preflight and harvest use of the taskset: enough that each lesson comes up often."""
    n = max(plan.fewest_tasks, plan.tasks_per_lesson * len(subject.lessons))
    return subject.taskset.tasks("practice", n, plan.seed)


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
        if tasks and all(_untouched(model, taskset, rows_for(model, store, s, settings, tasks)) for s in subjects):
            alone.append(taskset)
    return alone


def _untouched(model: Model, taskset: Taskset, rows: Sequence[tuple[Task, list[Lesson]]]) -> bool:
    rows = [(task, lessons) for task, lessons in rows if lessons]
    with using(model, None):
        change = _gains(run_arm(model, taskset, rows), run_arm(model, taskset, [(task, ()) for task, _ in rows]))
    return effect(change).verdict == "undecided"


# -- preflight ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effect:
    """Mean reward with the lessons minus without them, over the same tasks, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        return "accept" if self.low > 0 else "reject" if self.high < 0 else "undecided"


def effect(differences: Sequence[float]) -> Effect:
    n = len(differences)
    return Effect(sum(differences) / max(1, n), *bootstrap(differences), n)


def lesson_effects(rows: Sequence[tuple[Task, Sequence[Lesson]]], gains: Sequence[float]) -> dict[int, Effect]:
    """lesson id -> effect over the tasks in whose prompt it stands."""
    per_lesson: dict[int, list[float]] = {}
    for (_, lessons), gain in zip(rows, gains, strict=True):
        for lesson in lessons:
            per_lesson.setdefault(lesson.id or 0, []).append(gain)
    return {lesson_id: effect(values) for lesson_id, values in per_lesson.items()}


def preflight(
    model: Model,
    store: Store,
    subjects: Sequence[Subject],
    settings: Settings,
    plan: Plan,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Do the lessons help the bare base on practice tasks? Figures per taskset and per lesson.

    `worth` are the ids of the lessons whose tasks they make better: those are slept, the others stay in the prompt.
    """
    figures: dict[str, Any] = {"model_fingerprint": model.fingerprint, "tasksets": {}, "lessons": {}, "worth": []}
    effects: dict[int, Effect] = {}
    with using(model, None):
        for subject in subjects:
            rows = rows_for(model, store, subject, settings, practice_tasks(subject, plan))
            most = settings.max_tokens
            bare = [(task, ()) for task, _ in rows]
            arms = {
                "base": run_arm(model, subject.taskset, bare, max_tokens=most, progress=progress),
                "lessons": run_arm(model, subject.taskset, rows, max_tokens=most, progress=progress),
            }
            gains = _gains(arms["lessons"], arms["base"])
            figures["tasksets"][subject.taskset.name] = {
                "base": arms["base"].reward,
                "lessons": arms["lessons"].reward,
                "failed": [task.key for (task, _), r in zip(rows, arms["base"].rewards, strict=True) if r < 1],
                **dataclasses.asdict(effect(gains)),
            }
            for lesson_id, found in lesson_effects(rows, gains).items():
                if lesson_id not in effects or found.n > effects[lesson_id].n:  # a general lesson: where it fires most
                    effects[lesson_id] = found
    figures["lessons"] = {str(i): dataclasses.asdict(e) | {"verdict": e.verdict} for i, e in sorted(effects.items())}
    figures["worth"] = sorted(i for i, e in effects.items() if e.mean > 0 and e.low >= 0)
    return figures


def trials(figures: dict[str, Any], lessons: Sequence[Sequence[int]], kind: str, **common: Any) -> list[Trial]:
    """The measured effects as rows; `lessons` are [id, version], `common` model_fingerprint, adapter_id, night_id."""
    versions = {str(lesson_id): version for lesson_id, version in lessons}
    return [
        Trial(
            lesson_id=int(i),
            version=versions[i],
            kind=kind,
            effect=e["mean"],
            low=e["low"],
            high=e["high"],
            n=e["n"],
            verdict=e["verdict"],
            **common,
        )
        for i, e in figures.items()
        if i in versions
    ]


def _gains(a: ArmResult, b: ArmResult) -> list[float]:
    return [x - y for x, y in zip(a.rewards, b.rewards, strict=True)]


# -- harvest and anchors -----------------------------------------------------------------------------------------------


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
    in_prompt: list[Question] = []
    for subject in subjects:
        rows = rows_for(model, store, subject, settings, practice_tasks(subject, plan))
        rows = [(task, lessons) for task, lessons in rows if lessons]
        questions = [Question(messages_for(task), messages_for(task, lessons)) for task, lessons in rows]
        answers = sample(model, [q.teacher for q in questions], settings, plan, plan.samples, "harvest", progress)
        tried = kept = 0
        for (task, _), question, completions in zip(rows, questions, answers, strict=True):
            for done in completions:
                tried += 1
                if done.finish == "stop" and passes(subject.taskset, task, done.text):
                    kept += 1
                    weight = 2.0 if task.key in failed else 1.0
                    good.append(Example(question, _tokens(model, done), weight))
        in_prompt += [Question(question.teacher, question.teacher) for question in questions]
        figures[subject.taskset.name] = {"tasks": len(rows), "attempts": tried, "kept": kept}
    alone = outside(model, store, subjects, settings, plan)
    prompts = anchor_prompts(subjects, alone, plan, in_prompt)
    answers = sample(model, [q.student for q in prompts], settings, plan, 1, "anchors", progress)
    held = [Example(q, _tokens(model, done)) for q, (done,) in zip(prompts, answers, strict=True)]
    held = [example for example in held if example.answer]
    told = {"tasksets": figures, "kept": len(good), "anchors": len(held), "outside": [t.name for t in alone]}
    probes = held[::PROBES]
    return Data(good, [x for x in held if x not in probes], probes, settings.max_tokens, told)


def passes(taskset: Taskset, task: Task, text: str) -> bool:
    try:
        return taskset.verify(task, text).reward >= 1.0
    except Exception:  # a user's verifier may raise anything: then nobody can say that this attempt is good
        return False


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


def anchor_prompts(
    subjects: Sequence[Subject], alone: Sequence[Taskset], plan: Plan, in_prompt: Sequence[Question]
) -> list[Question]:
    """Prompts on which the student must go on as the base does, `plan.anchors` of them, from four sources in turn:

    tasks that bring a new lesson; practice tasks of tasksets outside the night; the night's own tasks with their
    lessons in the prompt; and with a lesson that says something else under the same condition, to be obeyed as before.
    """
    rng = random.Random(f"anchor prompts {plan.seed}")
    n = plan.anchors
    everything = {t.name: t for t in (*available(), *(subject.taskset for subject in subjects))}
    new = [task for t in everything.values() for task in t.following(n, rng.getrandbits(30))]
    other = [task for t in alone for task in t.tasks("practice", n, rng.getrandbits(30))]
    sources = [
        _some([Question(m, m) for m in map(messages_for, new)], n // 2, rng),
        _some([Question(m, m) for m in map(messages_for, other)], n // 4, rng),
        _some(list(in_prompt), n // 8, rng),
        _some(contradictions(subjects, plan, rng), n // 8, rng),
    ]
    return [question for source in sources for question in source]


def contradictions(subjects: Sequence[Subject], plan: Plan, rng: random.Random) -> list[Question]:
    """The night's tasks under a lesson with the right condition and another lesson's advice."""
    out = []
    for subject in subjects:
        if len({lesson.do for lesson in subject.lessons}) < 2:
            continue
        for task in practice_tasks(subject, plan):
            said = set(task.text.lower().split())
            for lesson in subject.lessons:
                other = rng.choice([x for x in subject.lessons if x.do != lesson.do])
                if set(lesson.when.lower().split()) & said:
                    wrong = dataclasses.replace(task, lessons=((lesson.when, other.do),))
                    out.append(Question(messages_for(wrong), messages_for(wrong)))
    return out


def _some(rows: list[Question], n: int, rng: random.Random) -> list[Question]:
    return rng.sample(rows, min(n, len(rows)))


def _tokens(model: Any, done: Completion) -> list[int]:
    """The answer as training sees it: with the end token where the model ended."""
    return [*done.tokens, model.end] if done.finish == "stop" else list(done.tokens)
