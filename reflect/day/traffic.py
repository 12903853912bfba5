"""Learn from what a server answered: exchanges that were rewarded become the rollouts of a run.

A group is what was asked in the same words; of what was asked once, what was asked in like words
(see `groups`). Each group is reviewed as the groups of practice are, and what it teaches takes the
same way: guards, quarantine, trials. Each exchange is reflected on once.

What is trusted, and what not: the words of an exchange and its reward are a client's. Unless the
server was told that its clients are its own, a group teaches lessons that wait in quarantine, it
changes and retires none, and its rewards move no lesson; its evidence is kept apart from that of
trusted traffic.

Not covered: whether a reward is true. Who may send feedback to a trusted server can teach it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from reflect.config import Settings
from reflect.day.practice import WAVE
from reflect.day.report import Report, report
from reflect.day.review import Group, edit_lessons, review
from reflect.lessons.selection import lessons_for
from reflect.models.base import Message, Model
from reflect.records import Exchange, Exposure, Rollout, Run
from reflect.store import Store, exchanges, runs
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.trials.bundle import Bundle
from reflect.trials.lesson_trial import LessonTrials, TrialScope, shown_to
from reflect.types import Progress

MOST = 32  # exchanges of one task in a group; more wait for the next run
ALIKE = 0.5  # share of the words of two tasks that stand in both
KEPT = ("reflect_tokens", "lesson_budget", "lesson_limit", "require_approval")


@dataclass(frozen=True)
class GroupedTask(Task):
    """A task that stands for a group of like ones. To a review its text is what each attempt was
    asked."""

    texts: tuple[str, ...] = field(default=(), compare=False)

    def shape(self) -> dict[str, Any]:
        return {name: value for name, value in super().shape().items() if name != "texts"}

    @property
    def text(self) -> str:
        first, *others = self.texts
        return "\n".join(
            [first, *(f"Task of attempt {i}: {text}" for i, text in enumerate(others, 2))]
        )


def learn(
    model: Model, store: Store, settings: Settings, *, progress: Progress | None = None
) -> list[Report]:
    """Reflect on all rewarded exchanges of the profile that no run has reflected on: a run for each
    model, adapter and taskset that they belong to. Runs that were interrupted are finished first.
    [] when nothing waits."""
    with store.read() as s:
        left = [run for run in runs.unfinished(s, profile=settings.profile) if run.from_traffic]
    made = [finish(model, store, settings, run, progress) for run in reversed(left)]
    with store.read() as s:
        rows = exchanges.waiting(s, settings.profile)
    parts: dict[tuple[str, ...], list[Exchange]] = {}
    for row in rows:
        words = (
            row.taskset,
            row.trust,
            row.measure,
            row.model,
            row.model_fingerprint,
            str(row.adapter_id),
        )
        parts.setdefault(words, []).append(row)
    for mine in parts.values():
        if run := _begin(store, settings, groups(mine, settings.k)):
            made.append(finish(model, store, settings, run, progress))
    return made


def finish(
    model: Model, store: Store, settings: Settings, run: Run, progress: Progress | None = None
) -> Report:
    """Review the groups of a run that have no review yet, wave by wave."""
    began = time.monotonic()
    tell = progress or (lambda done, total, what: None)
    with store.read() as s:
        asked = {row.seed: task_of(row).text for row in exchanges.of_run(s, run.id)}
    found = _groups_of(model, store, settings, run)
    waves = [found[i : i + WAVE] for i in range(0, len(found), WAVE)]
    for number, wave in enumerate(waves):
        tell(number * WAVE, len(found), "reflections")
        wave = [_as_it_stands(store, run, group, asked) for group in wave]
        edit_lessons(model, store, settings, run, review(model, store, settings, run, wave), wave)
    with store.write() as s:
        runs.finish_run(s, run.id)
    return report(
        store, run, [[group.task for group in wave] for wave in waves], time.monotonic() - began
    )


# -- groups
# ------------------------------------------------------------------------------------------------------------


def task_of(row: Exchange) -> Task:
    """What was asked. Nobody knows its answer."""
    words = json.dumps(row.asked, sort_keys=True, ensure_ascii=False)
    name = f"asked-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
    return Task(
        id=name, messages=row.asked, verifier="traffic", answer="", untrusted=row.trust != "clean"
    )


def groups(rows: Sequence[Exchange], k: int) -> list[list[Exchange]]:
    """Exchanges of one task together, at most MOST; those whose task came once in groups of like
    tasks, at most k.

    Tasks are alike when their words are the same but for numbers, else when half of the words of
    both stand in both.
    """
    same: dict[str, list[Exchange]] = {}
    for row in rows:
        same.setdefault(task_of(row).key, []).append(row)
    made = [mine[:MOST] for mine in same.values() if len(mine) > 1]
    forms: dict[str, list[Exchange]] = {}
    for mine in same.values():
        if len(mine) == 1:
            forms.setdefault(form(mine[0].asked), []).append(mine[0])
    loose: list[tuple[set[str], list[Exchange]]] = []
    for words, mine in forms.items():
        if len(mine) > 1:
            made += _shares(mine, k)
            continue
        said = set(words.split())
        near = next(
            (group for first, group in loose if len(said & first) >= ALIKE * len(said | first)),
            None,
        )
        if near is None:
            loose.append((said, mine))
        else:
            near += mine
    for _, mine in loose:
        made += _shares(mine, k)
    return sorted(made, key=lambda group: group[0].id or 0)


def form(asked: Sequence[Message]) -> str:
    """The user's words without case, punctuation and the values of numbers."""
    text = " ".join(str(m.get("content") or "") for m in asked if m.get("role") == "user")
    words = ["#" if word.isdecimal() else word for word in re.findall(r"\w+", text.lower())]
    return " ".join(
        word for i, word in enumerate(words) if word != "#" or i == 0 or words[i - 1] != "#"
    )


def _shares(rows: list[Exchange], k: int) -> list[list[Exchange]]:
    """In groups of at most k, of nearly equal size."""
    count = -(-len(rows) // max(k, 1))
    return [rows[i * len(rows) // count : (i + 1) * len(rows) // count] for i in range(count)]


# -- the run
# -----------------------------------------------------------------------------------------------------------


def _begin(store: Store, settings: Settings, found: Sequence[Sequence[Exchange]]) -> Run | None:
    """The rollouts of these groups, with what they say of lessons, in one transaction; their
    exchanges are then taken. None where another process was faster."""
    first = found[0][0]
    trusted = first.trust == "clean"
    with store.write() as s:
        free = {row.id for row in exchanges.waiting(s, settings.profile)}
        found = [mine for group in found if (mine := [row for row in group if row.id in free])]
        if not found:
            return None
        ids = [row.id for group in found for row in group]
        run = runs.start_run(
            s,
            key=hashlib.sha256(f"traffic/{ids}".encode()).hexdigest()[:32],
            taskset=first.taskset,
            profile=settings.profile,
            n=len(found),
            k=0,  # as many as there were
            seed=0,
            model=first.model,
            model_fingerprint=first.model_fingerprint,
            adapter_id=first.adapter_id,
            measure=first.measure if trusted else f"{first.measure}-untrusted",
            config=settings.stored(KEPT),
        )
        run.from_traffic = True
        runs.save_tasks(s, run.taskset, [task_of(row) for group in found for row in group])
        rows = [
            (
                _rollout(run, task_of(group[0]).key, index, row),
                [Exposure(rollout_id=0, **one) for one in row.exposures],
            )
            for group in found
            for index, row in enumerate(group)
        ]
        runs.save_rollouts(s, [row for row, _ in rows], [exposures for _, exposures in rows])
        for row in (row for group in found for row in group):
            taken = s.get(Exchange, row.id)
            assert taken is not None
            taken.run_id = run.id
            s.add(taken)
        s.flush()
        move = trusted and not settings.require_approval
        seen = [exposure.lesson_id for _, exposures in rows for exposure in exposures]
        LessonTrials(TrialScope(run.model_fingerprint, run.adapter_id, run.measure)).judge(
            s, seen, run.id, move=move
        )
        Bundle(run).judge(s, move=move)
    return run


def _rollout(run: Run, task_key: str, index: int, row: Exchange) -> Rollout:
    words = row.model_dump(
        include={
            "messages",
            "reward",
            "feedback",
            "prompt_tokens",
            "completion_tokens",
            "finish",
            "seed",
            "model",
        }
        | {"adapter_id", "trust", "bundle_shown", "bundle_probability", "created"}
    )
    return Rollout(run_id=run.id or 0, task_key=task_key, index=index, **words)


def _groups_of(model: Model, store: Store, settings: Settings, run: Run) -> list[Group]:
    """The groups of a run as its rows have them."""
    scope = Taskset()
    scope.name = run.taskset
    with store.read() as s:
        by: dict[str, list[Rollout]] = {}
        for row in runs.rollouts(s, run.id):
            by.setdefault(row.task_key, []).append(row)
        found = []
        for key, rows in by.items():
            task = Task(**runs.task(s, key).content)
            slept = ("distilled",) if run.adapter_id else ()
            held = lessons_for(model, s, scope, task, settings, slept) if slept else []
            found.append(Group(task, [], held, sorted(rows, key=lambda row: row.index)))
    return found


def _as_it_stands(store: Store, run: Run, group: Group, asked: Mapping[int, str]) -> Group:
    """With the lessons that its attempts saw and that still stand, for an earlier wave may have
    changed them, and with what each of the attempts that are reviewed was asked (`asked`: by the
    seed of the attempt)."""
    with store.read() as s:
        shown, missed = shown_to(s, run.id, [group.task.key])[group.task.key]
    now = replace(group, shown=shown, missed=missed)
    texts = tuple(asked[row.seed] for row in now.reviewed)
    if len(set(texts)) < 2:
        return now
    words = {f.name: getattr(group.task, f.name) for f in fields(group.task)}
    return replace(now, task=GroupedTask(**words, texts=texts))
