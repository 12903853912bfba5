"""Reflect on the groups of a wave in one batch, then apply the edits of all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reflect.day.reflection import (
    Group,
    has_failures,
    majority_success,
    prompt_version,
    rewards_differ,
)
from reflect.day.report import BY_REVIEWER
from reflect.day.review import read_answers, review
from reflect.lessons.apply_edits import Evidence, Outcome, apply_edits
from reflect.lessons.protection import EditTransaction
from reflect.lessons.voting import ProposedEdits, select_winning_edits
from reflect.records import Reflection
from reflect.store import runs, trials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.lessons.edit_format import Edit
    from reflect.rollouts.context import RunContext

SHORT = 160  # tokens of a reflection for which every context must have room
PENDING = "waiting"  # outcome of the edits of a saved reflection that are not applied yet


@dataclass(frozen=True)
class GroupReflection:
    """A reflection whose edits are not applied yet, with the readable edits and the problems."""

    group: Group
    row: Reflection
    edits: list[Edit]
    problems: list[str]


def reflect_on(context: RunContext, groups: Sequence[Group]) -> list[GroupReflection]:
    """Reflect, in one batch, on each group that has failures and no reflection yet.

    If the model stops answering, the answers so far are saved and wait for the rest, because the
    edits of a wave are applied together.
    """
    model = context.reflector
    # A small context is for the group first.
    size = min(context.settings.reflect_tokens, max(SHORT, model.context // 4))
    with context.store.read() as s:
        rows = runs.reflections_of(s, context.run.id, [group.task.key for group in groups])
    # Failures of rollouts that missed a lesson call for nothing new if the others all succeed.
    failed = [group for group in groups if has_failures(group.complete)]
    reflections, new = [], [group for group in failed if group.task.key not in rows]
    for group in failed:
        row = rows.get(group.task.key)
        if row and _is_pending(row):
            whole = all(edit.get("ended", True) for edit in row.edits)
            reflections.append(GroupReflection(group, row, *read_answers(row.raw, whole)))
    halted, fresh = None, []
    settings = context.settings
    reviews = review(
        model, _with_effects(context, new), size, settings.proposals, settings.temperature
    )
    for group, answer in zip(new, reviews, strict=True):
        if answer.halted:
            halted = answer.halted
            continue
        row = Reflection(
            run_id=context.run.id or 0,
            task_key=group.task.key,
            pack_hash=answer.packed.hash,
            pack_tokens=answer.packed.tokens,
            cut=answer.packed.cut,
            prompt_version=prompt_version(model, context.reviewer),
            raw=answer.raw,
            edits=[{"kind": "problem", "outcome": PENDING, "ended": answer.whole}],
            model=answer.model + (f"{BY_REVIEWER}{context.reviewer}" if context.reviewer else ""),
        )
        fresh.append(GroupReflection(group, row, answer.edits, answer.problems))
    if halted:
        with context.store.write() as s:
            for reflection in fresh:
                runs.save_reflection(s, reflection.row)
        raise halted
    place = {group.task.key: number for number, group in enumerate(failed)}
    return sorted(reflections + fresh, key=lambda r: place[r.row.task_key])


def _with_effects(context: RunContext, groups: Sequence[Group]) -> list[Group]:
    """The groups with the measured effects of their lessons and the reviewer of the run."""
    lessons = {lesson.id: lesson for group in groups for lesson in group.shown}
    with context.store.read() as s:
        effects = trials.newest_effects(s, list(lessons.values()))
    return [
        replace(
            x,
            effects={y.id: effects[y.id] for y in x.shown if y.id in effects},
            reviewer=context.reviewer,
        )
        for x in groups
    ]


def edit_lessons(
    context: RunContext, reflections: Sequence[GroupReflection], groups: Sequence[Group]
) -> None:
    """Save a wave's reflections and apply the edits that win its vote, in one transaction."""
    run, settings = context.run, context.settings
    wanted = {r.row.task_key: r.edits for r in reflections}
    proposed = [
        ProposedEdits(
            wanted.get(group.task.key, []),
            [*group.shown, *group.in_weights],
            rewards_differ(group.attempts),
            majority_success(group.complete),
            group.trust,
        )
        for group in groups
    ]
    wins = select_winning_edits(proposed, compete=settings.proposals > 1)
    won = dict(zip([g.task.key for g in groups], wins, strict=True))
    with context.store.write() as s:
        saved = runs.reflections_of(s, run.id, [r.row.task_key for r in reflections])
        fresh = []
        for r in reflections:
            row = saved.get(r.row.task_key)
            if row is None or _is_pending(row):  # else another process has applied its edits
                fresh.append(replace(r, row=row or r.row))
        s.add_all(r.row for r in fresh)
        s.flush()
        transaction = EditTransaction(s, run.profile)
        for r in fresh:
            evidence = Evidence(
                task=r.group.task,
                scope=run.taskset,
                profile=run.profile,
                shown=r.group.shown,
                in_adapter=r.group.in_weights,
                contrast=rewards_differ(r.group.attempts),
                reflection_id=r.row.id,
                require_approval=settings.require_approval,
                trust=r.group.trust,
                proposals=settings.proposals,
            )
            count, budget = context.model.count_tokens, settings.lesson_budget
            outcomes = [
                apply_edits(s, [edit], evidence, count_tokens=count, budget=budget)[0]
                if winner
                else Outcome(edit, "outvoted", "more groups of the wave are against it")
                for edit, winner in zip(r.edits, won[r.row.task_key], strict=True)
            ]
            r.row.edits = [outcome.row() for outcome in outcomes]
            r.row.edits += [
                {"kind": "problem", "outcome": "problem", "reason": text} for text in r.problems
            ]
        if alarm := transaction.close():  # every edit of the wave is undone
            for r in fresh:
                undone = "undone by the shrink alarm"
                r.row.edits = [Outcome(edit, "refused", undone).row() for edit in r.edits]
            first = {"kind": "alarm", "outcome": "alarm", "reason": alarm}
            fresh[0].row.edits = [first, *fresh[0].row.edits]


def _is_pending(row: Reflection) -> bool:
    """Whether the run stopped after this answer, before its edits were applied."""
    return any(edit["outcome"] == PENDING for edit in row.edits)
