"""The day: roll out groups of attempts, score them, review each group, edit the lessons; wave by wave.

A wave is a few tasks that run in one batch. Its lessons are chosen from the database as the previous wave left it, its
rollouts are saved in one transaction, with the verdicts that fall by them, its reflections and their edits in another.
A run that was killed continues with the first wave that is not complete, and ends with the same rows as one that was
not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session

from reflect import prompts
from reflect.config import Settings
from reflect.day.bundle import Bundle, draw
from reflect.day.edits import Evidence, Outcome, apply_edits
from reflect.day.election import Ballot, elect
from reflect.day.keeping import Consolidation
from reflect.day.lessons import lessons_for
from reflect.day.measure import measure
from reflect.day.reflection import Edit, contrast, parse_edits, reflection_messages, request_for, teaches, went_well
from reflect.day.rollout import Progress, run_parts, sample_each, using
from reflect.day.summary import Report, report
from reflect.day.trial import Court, Holds, parts_of, shown_to, withhold
from reflect.errors import ModelError, UsageError
from reflect.models.base import Completion, Model
from reflect.records import CHEATED, Lesson, Reflection, Rollout, Run
from reflect.store import Store, nights, runs
from reflect.tasksets import scoring
from reflect.tasksets.base import Task, Taskset

WAVE = 8  # tasks that run, and are reviewed, together


def practice(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int | None = None,
    learn: bool = True,
    use_lessons: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Practise n tasks k times each and learn from them, with the adapter that the model has on.

    `seed=None` continues the newest unfinished run of the same words, or begins a new one. A run that is done already
    is only reported. Fewer than n tasks are practised where the taskset has fewer; none is a UsageError.
    """
    began = time.monotonic()
    scoring.limit(settings.verify_seconds, settings.verify_memory)
    run, tasks = open_run(model, store, taskset, settings, n=n, k=k, seed=seed, learn=learn, use_lessons=use_lessons)
    waves = [tasks[i : i + WAVE] for i in range(0, len(tasks), WAVE)]
    tell = progress or (lambda done, total, what: None)
    court, bundle = Court(Holds(run.model_fingerprint, run.adapter_id, run.measure)), Bundle(run)
    done = 0
    for wave in waves if run.status != "done" else []:
        tell(done, len(tasks), "rollouts")
        groups = roll_out(model, store, taskset, settings, run, wave, use_lessons, bundle, court if learn else None)
        if learn:
            tell(done + len(wave) // 2, len(tasks), "reflections")
            reviews = review(model, store, settings, run, groups)
            edit_lessons(model, store, settings, run, reviews, groups)
        done += len(wave)
    with store.write() as s:
        runs.finish_run(s, run.id)
    tell(len(tasks), len(tasks), "done")
    return report(store, run, waves, time.monotonic() - began)


# -- the stages of a wave ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The rollouts of one task, the lessons that stood in their prompt, and those that the adapter holds for it.

    `missed`: the rollouts (by index) from which a lesson was withheld.
    """

    task: Task
    shown: list[Lesson]
    held: list[Lesson]
    rollouts: list[Rollout]
    missed: frozenset[int] = frozenset()

    @property
    def complete(self) -> list[Rollout]:
        """The rollouts that saw all their lessons; all of them where none did. What lessons are worth is seen here."""
        return [row for row in self.rollouts if row.index not in self.missed] or self.rollouts

    @property
    def trust(self) -> str:
        """cheated where any of the rollouts passed its twin, untrusted where any read bytes from outside."""
        found = {row.trust for row in self.rollouts} - {"clean"}
        return CHEATED if CHEATED in found else "untrusted" if found else "clean"

    @property
    def reviewed(self) -> list[Rollout]:
        """The attempts that a review reads: those that saw what it is told they saw. Where all of these failed, the
        others too: without the lesson somebody may have found the way."""
        return self.complete if any(row.reward for row in self.complete) else self.rollouts


@dataclass(frozen=True)
class Review:
    """A reflection that is not saved yet, and what could be read of it."""

    group: Group
    row: Reflection
    edits: list[Edit]
    problems: list[str]


def roll_out(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    run: Run,
    wave: Sequence[Task],
    use_lessons: bool,
    bundle: Bundle,
    court: Court | None = None,
) -> list[Group]:
    """Choose lessons, withhold some or all of them here and there, sample and score all groups of the wave in one
    batch; save them in one transaction with what they say of the bundle, and the verdicts of the court, if there is
    one."""
    with store.read() as s:
        saved = {task.key: runs.rollouts(s, run.id, task.key) for task in wave}
        missing = [task for task in wave if len(saved[task.key]) < run.k]
        chosen = {task.key: lessons_for(model, s, taskset, task, settings) if use_lessons else [] for task in missing}
    drawn, draws = {}, {}
    for key, lessons in chosen.items():
        draws[key] = [draw(lessons, settings, run.seed, key, index) for index in range(run.k)]
        drawn[key] = [
            one.applied(withhold(lessons, settings, run.seed, key, index)) for index, one in enumerate(draws[key])
        ]
    parts = [part for task in missing for part in parts_of(task, chosen[task.key], drawn[task.key])]
    options: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    fresh = run_parts(model, taskset, parts, seed=run.seed, **options)
    order = {task.key: number for number, task in enumerate(missing)}
    rows = sorted((row for part in fresh for row in part), key=lambda row: (order[row.task_key], row.index))
    for row in rows:
        row.run_id, row.adapter_id = run.id or 0, run.adapter_id
        row.bundle_shown, row.bundle_probability = draws[row.task_key][row.index]
    with store.write() as s:
        runs.save_rollouts(s, rows, [drawn[row.task_key][row.index] for row in rows])
        if court and rows:
            seen = [lesson.id or 0 for lessons in chosen.values() for lesson in lessons]
            court.judge(s, seen, run.id, move=not settings.review)
        if rows:
            bundle.judge(s, move=court is not None and not settings.review)
    slept = ("distilled",) if run.adapter_id else ()
    with store.read() as s:
        shown = shown_to(s, run.id, [task.key for task in wave])
        held = {task.key: lessons_for(model, s, taskset, task, settings, slept) if slept else [] for task in wave}
        return [
            Group(task, shown[task.key][0], held[task.key], runs.rollouts(s, run.id, task.key), shown[task.key][1])
            for task in wave
        ]


def review(model: Model, store: Store, settings: Settings, run: Run, groups: Sequence[Group]) -> list[Review]:
    """Reflect, in one batch, on each group that teaches something and has no reflection yet."""
    with store.read() as s:
        # Where all goes well with the lessons, the failures of attempts that missed one ask for nothing new.
        todo = [g for g in groups if teaches(g.complete) and not runs.get_reflection(s, run.id, g.task.key)]
    size = settings.reflect_tokens
    asked = [reflection_messages(model, g.task, g.shown, g.reviewed, max_tokens=size) for g in todo]
    with using(model, None):  # the bare base reflects: what it writes does not drift with the adapters
        answers = sample_each(model, [request_for(messages, size) for messages, _ in asked])
    reviews = []
    for group, (_, packed), answer in zip(todo, asked, answers, strict=True):
        raw, edits, problems = _read(answer)
        row = Reflection(
            run_id=run.id or 0,
            task_key=group.task.key,
            pack_hash=packed.hash,
            pack_tokens=packed.tokens,
            cut=packed.cut,
            prompt_version=prompts.version("reflect"),
            raw=raw,
            model=model.name,
        )
        reviews.append(Review(group, row, edits, problems))
    return reviews


def _read(answer: list[Completion] | ModelError) -> tuple[str, list[Edit], list[str]]:
    """(raw answer, edits, problems) of one reflection; one that the model could not give is a problem too."""
    if isinstance(answer, ModelError):
        return "", [], [answer.message]
    edits, problems = parse_edits(answer[0].text, complete=answer[0].finish == "stop")
    return answer[0].text, edits, problems


def edit_lessons(
    model: Model, store: Store, settings: Settings, run: Run, reviews: Sequence[Review], groups: Sequence[Group]
) -> None:
    """Save the wave's reflections and carry out those of their edits that stand, in one transaction."""
    edits = {r.row.task_key: r.edits for r in reviews}
    ballots = [
        Ballot(edits.get(g.task.key, []), [*g.shown, *g.held], contrast(g.reviewed), went_well(g.complete), g.trust)
        for g in groups
    ]
    elected = {g.task.key: stands for g, stands in zip(groups, elect(ballots), strict=True)}
    with store.write() as s:
        fresh = [r for r in reviews if not runs.get_reflection(s, run.id, r.group.task.key)]  # or another was faster
        for r in fresh:
            runs.save_reflection(s, r.row)
        wave = Consolidation(s, run.profile)
        for r in fresh:
            evidence = Evidence(
                task=r.group.task,
                scope=run.taskset,
                profile=run.profile,
                shown=r.group.shown,
                held=r.group.held,
                contrast=contrast(r.group.reviewed),
                reflection_id=r.row.id,
                review=settings.review,
                trust=r.group.trust,
            )
            outcomes = [
                apply_edits(s, [edit], evidence, count_tokens=model.count_tokens, budget=settings.lesson_budget)[0]
                if stand
                else Outcome(edit, "outvoted", "more groups of the same wave speak against it")
                for edit, stand in zip(r.edits, elected[r.row.task_key], strict=True)
            ]
            problems = [{"kind": "problem", "outcome": "problem", "reason": problem} for problem in r.problems]
            r.row.edits = [outcome.row() for outcome in outcomes] + problems
        if alarm := wave.close():  # nothing of the wave stands
            for r in fresh:
                r.row.edits = [Outcome(edit, "refused", "taken back by the shrink alarm").row() for edit in r.edits]
            fresh[0].row.edits = [{"kind": "alarm", "outcome": "alarm", "reason": alarm}, *fresh[0].row.edits]


# -- the run -----------------------------------------------------------------------------------------------------------


def open_run(
    model: Model,
    store: Store,
    taskset: Taskset,
    settings: Settings,
    *,
    n: int,
    k: int,
    seed: int | None,
    learn: bool = True,
    use_lessons: bool = True,
) -> tuple[Run, list[Task]]:
    """The run of these words, continued or begun, and its tasks."""
    if n < 1 or k < 1:
        raise UsageError(f"A run needs at least one task and one rollout of each, not n={n} and k={k}.")
    names = ["temperature", "max_tokens", "reflect_tokens", "lesson_budget", "lesson_limit"]
    names += ["review", "trials", "withhold_candidate", "withhold_active", "withhold_bundle"]
    config = {name: value for name, value in asdict(settings).items() if name in names}
    config |= {"learn": learn, "use_lessons": use_lessons}
    meaning = measure(taskset)

    with store.write() as s:
        adapter = getattr(model, "active", None)
        adapter_id = nights.get_adapter(s, adapter).id if adapter else None
        words = [taskset.name, settings.profile, n, k, model.fingerprint, adapter_id, meaning, config]

        def tasks_and_key(seed: int) -> tuple[list[Task], str]:
            tasks = list({task.key: task for task in taskset.tasks("practice", n, seed)}.values())
            text = json.dumps([*words, seed, [task.key for task in tasks]], sort_keys=True)
            return tasks, hashlib.sha256(text.encode()).hexdigest()[:32]

        if seed is None:
            seed = _open_seed(s, taskset.name, settings.profile, tasks_and_key)
        tasks, key = tasks_and_key(seed)
        if not tasks:
            raise UsageError(f"The taskset {taskset.name} has no practice tasks.", "Give some the split 'practice'.")
        runs.save_tasks(s, taskset.name, tasks)
        run = runs.start_run(
            s,
            key=key,
            taskset=taskset.name,
            profile=settings.profile,
            n=n,
            k=k,
            seed=seed,
            model=model.name,
            model_fingerprint=model.fingerprint,
            adapter_id=adapter_id,
            measure=meaning,
            config=config,
        )
    return run, tasks


def _open_seed(s: Session, taskset: str, profile: str, tasks_and_key: Callable[[int], tuple[Any, str]]) -> int:
    """The seed of the newest unfinished run that was asked for in the same words, else the next free one."""
    for run in runs.unfinished(s, taskset, profile):
        if tasks_and_key(run.seed)[1] == run.key:
            return run.seed
    return runs.next_seed(s, taskset, profile)
