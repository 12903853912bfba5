"""The review of a wave: reflect on its groups, in one batch, and carry out what the reflections
want, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reflect import prompts
from reflect.config import Settings
from reflect.day.long_groups import take_notes
from reflect.day.reflection import (
    has_failures,
    majority_success,
    reflection_messages,
    rewards_differ,
)
from reflect.errors import ModelError, ModelHalted
from reflect.lessons.apply_edits import Evidence, Outcome, apply_edits
from reflect.lessons.edit_format import Edit, parse_edits
from reflect.lessons.protection import EditTransaction
from reflect.lessons.voting import ProposedEdits, select_winning_edits
from reflect.models.base import Model
from reflect.models.partial import Answer, ask
from reflect.records import CHEATED, Lesson, Reflection, Rollout, Run
from reflect.rollouts.runner import request_for, using
from reflect.store import Store, runs
from reflect.tasksets.task import Task

WAITING = "waiting"  # the outcome of a reflection's edits that are still to be carried out


@dataclass(frozen=True)
class Group:
    """The rollouts of one task, the lessons that stood in their prompt, and those that the adapter
    holds for it.

    `missed`: the rollouts (by index) from which a lesson was withheld.
    """

    task: Task
    shown: list[Lesson]
    held: list[Lesson]
    rollouts: list[Rollout]
    missed: frozenset[int] = frozenset()

    @property
    def complete(self) -> list[Rollout]:
        """The rollouts that saw all their lessons; all of them where none did. What lessons are
        worth is seen here."""
        return [row for row in self.rollouts if row.index not in self.missed] or self.rollouts

    @property
    def trust(self) -> str:
        """cheated where any of the rollouts passed its twin, untrusted where any read bytes from
        outside."""
        found = {row.trust for row in self.rollouts} - {"clean"}
        return CHEATED if CHEATED in found else "untrusted" if found else "clean"

    @property
    def reviewed(self) -> list[Rollout]:
        """The attempts that a review reads: those that saw what it is told they saw. Where all of
        these failed, the others too: without the lesson somebody may have found the way."""
        return self.complete if any(row.reward for row in self.complete) else self.rollouts


@dataclass(frozen=True)
class Review:
    """A reflection that is not saved yet, and what could be read of it."""

    group: Group
    row: Reflection
    edits: list[Edit]
    problems: list[str]


def review(
    model: Model, store: Store, settings: Settings, run: Run, groups: Sequence[Group]
) -> list[Review]:
    """Reflect, in one batch, on each group that teaches something and has no reflection yet.

    Where the model answers nothing more, what it did answer is saved and waits for the rest: the
    edits of a wave are carried out together, however often it was interrupted.
    """
    with store.read() as s:
        # Where all goes well with the lessons, the failures of attempts that missed one ask for
        # nothing new.
        found = runs.reflections_of(s, run.id, [g.task.key for g in groups])
    saved = [(g, found.get(g.task.key)) for g in groups if has_failures(g.complete)]
    waiting = [
        Review(g, row, *parse_edits(row.raw, complete=_ended(row)))
        for g, row in saved
        if row and _waits(row)
    ]
    todo = [g for g, row in saved if row is None]
    size = settings.reflect_tokens
    with using(
        model, None
    ):  # the bare base reflects: what it writes does not drift with the adapters
        notes = take_notes(model, [(g.task, g.shown, g.reviewed) for g in todo], size)
        asked = [
            reflection_messages(model, g.task, g.shown, g.reviewed, max_tokens=size, noted=noted)
            for g, noted in zip(todo, notes, strict=True)
        ]
        answers = ask(model, [request_for(messages, size) for messages, _ in asked])
    reviews, stop = [], None
    for group, (_, packed), (answer,) in zip(todo, asked, answers, strict=True):
        if isinstance(answer, ModelHalted):
            stop = answer
            continue
        raw, edits, problems = _read(answer)
        row = Reflection(
            run_id=run.id or 0,
            task_key=group.task.key,
            pack_hash=packed.hash,
            pack_tokens=packed.tokens,
            cut=packed.cut,
            prompt_version=prompts.version("reflect"),
            raw=raw,
            edits=[
                {
                    "kind": "problem",
                    "outcome": WAITING,
                    "ended": getattr(answer, "finish", "") == "stop",
                }
            ],
            model=(answer.model if not isinstance(answer, ModelError) else "") or model.name,
        )
        reviews.append(Review(group, row, edits, problems))
    if stop:
        with store.write() as s:
            for r in reviews:
                runs.save_reflection(s, r.row)
        raise stop
    order = {g.task.key: number for number, (g, _) in enumerate(saved)}
    return sorted(waiting + reviews, key=lambda r: order[r.row.task_key])


def _waits(row: Reflection) -> bool:
    """Was it answered, and the run stopped before its edits were carried out?"""
    return any(edit["outcome"] == WAITING for edit in row.edits)


def _ended(row: Reflection) -> bool:
    return all(edit.get("ended", True) for edit in row.edits)


def _read(answer: Answer) -> tuple[str, list[Edit], list[str]]:
    """(raw answer, edits, problems) of one reflection; one that the model could not give is a
    problem too."""
    if isinstance(answer, ModelError):
        return "", [], [answer.message]
    edits, problems = parse_edits(answer.text, complete=answer.finish == "stop")
    return answer.text, edits, problems


def edit_lessons(
    model: Model,
    store: Store,
    settings: Settings,
    run: Run,
    reviews: Sequence[Review],
    groups: Sequence[Group],
) -> None:
    """Save the wave's reflections and carry out those of their edits that stand, in one
    transaction."""
    edits = {r.row.task_key: r.edits for r in reviews}
    ballots = [
        ProposedEdits(
            edits.get(g.task.key, []),
            [*g.shown, *g.held],
            rewards_differ(g.reviewed),
            majority_success(g.complete),
            g.trust,
        )
        for g in groups
    ]
    elected = {
        g.task.key: stands for g, stands in zip(groups, select_winning_edits(ballots), strict=True)
    }
    with store.write() as s:
        saved = runs.reflections_of(s, run.id, [r.group.task.key for r in reviews])
        fresh = []
        for r in reviews:
            standing = saved.get(r.group.task.key)
            if standing is None or _waits(standing):  # else another process was faster
                fresh.append(replace(r, row=standing or r.row))
        s.add_all(r.row for r in fresh)
        s.flush()
        wave = EditTransaction(s, run.profile)
        for r in fresh:
            evidence = Evidence(
                task=r.group.task,
                scope=run.taskset,
                profile=run.profile,
                shown=r.group.shown,
                held=r.group.held,
                contrast=rewards_differ(r.group.reviewed),
                reflection_id=r.row.id,
                review=settings.require_approval,
                trust=r.group.trust,
            )
            outcomes = [
                apply_edits(
                    s,
                    [edit],
                    evidence,
                    count_tokens=model.count_tokens,
                    budget=settings.lesson_budget,
                )[0]
                if stand
                else Outcome(edit, "outvoted", "more groups of the same wave speak against it")
                for edit, stand in zip(r.edits, elected[r.row.task_key], strict=True)
            ]
            problems = [
                {"kind": "problem", "outcome": "problem", "reason": problem}
                for problem in r.problems
            ]
            r.row.edits = [outcome.row() for outcome in outcomes] + problems
        if alarm := wave.close():  # nothing of the wave stands
            for r in fresh:
                r.row.edits = [
                    Outcome(edit, "refused", "taken back by the shrink alarm").row()
                    for edit in r.edits
                ]
            fresh[0].row.edits = [
                {"kind": "alarm", "outcome": "alarm", "reason": alarm},
                *fresh[0].row.edits,
            ]
