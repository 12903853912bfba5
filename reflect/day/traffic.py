"""Learn from the answers of a server: exchanges with a reward become the rollouts of a run.

A group has the exchanges of the same task; single exchanges are grouped with similar ones (see
`groups`). Each group is reflected on as in practice, with the same protections, quarantine and
trials for its edits. Each exchange is reflected on once.

Trust: the text of an exchange and its reward come from a client. Unless the server was configured
to trust its clients, the lessons of a group wait in quarantine, its edits change and retire no
lesson, and its rewards move no lesson; its evidence is kept apart from that of trusted traffic.

Not covered: whether a reward is true. A client that may send feedback to a trusted server can teach
it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from reflect.day.learning import edit_lessons, reflect_on
from reflect.day.practice import RunTrials, load_groups, tasks_of
from reflect.day.report import Report, report
from reflect.day.run import waves_of
from reflect.evaluation.followed import read_checks
from reflect.records import Exchange, Exposure, Rollout, Run
from reflect.rollouts.context import TasksetContext
from reflect.rollouts.transcript import TURNS
from reflect.store import Store, exchanges, runs
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Message, Task
from reflect.types import Progress, Trust

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reflect.config import Settings
    from reflect.day.reflection import Group
    from reflect.models.base import Model

MOST = 32  # exchanges of one task in a group; more wait for the next run
CHARS = 4  # of a token
ALIKE = 0.5  # share of the words of two tasks that both have
SETTINGS = ("reflect_tokens", "lesson_budget", "lesson_limit", "require_approval", "proposals")
SAME_RUN = ("taskset", "trust", "measure", "model", "model_fingerprint", "adapter_id")
COPIED = set(
    "messages reward feedback prompt_tokens completion_tokens finish seed model "
    "adapter_id trust bundle_shown bundle_probability created".split()
)


@dataclass(frozen=True)
class GroupedTask(Task):
    """A task in place of a group of similar ones. A reflection reads the text of each."""

    texts: tuple[str, ...] = field(default=(), compare=False)

    def shape(self) -> dict[str, Any]:
        """The JSON shape of the task, without `texts`."""
        return {name: value for name, value in super().shape().items() if name != "texts"}

    @property
    def text(self) -> str:
        """The texts of all tasks of the group."""
        return "\n".join(self.texts)


def learn(
    model: Model,
    store: Store,
    settings: Settings,
    *,
    token_cap: int | None = None,
    progress: Progress | None = None,
) -> list[Report]:
    """Reflect on all exchanges of the profile that have a reward and no reflection: one run for
    each model, adapter and taskset. Interrupted runs are finished first. [] when none waits.

    `token_cap`: only the newest exchanges, as many as reflections on each of them alone would read
    and write with so many tokens.
    """
    with store.read() as s:
        unfinished = runs.unfinished(s, profile=settings.profile)
        waiting = exchanges.waiting(s, settings.profile)
    if token_cap is not None:
        waiting = within(waiting, token_cap, settings.reflect_tokens)
    parts: dict[tuple[str, ...], list[Exchange]] = {}
    for row in waiting:
        key = tuple(str(getattr(row, name)) for name in SAME_RUN)
        parts.setdefault(key, []).append(row)
    mine = [run for run in reversed(unfinished) if run.from_traffic]
    reports = [finish(model, store, settings, run, progress) for run in mine]
    for rows in parts.values():
        if run := _start(store, settings, groups(rows, settings.k)):
            reports.append(finish(model, store, settings, run, progress))
    return reports


def within(rows: Sequence[Exchange], token_cap: int, reflect_tokens: int) -> list[Exchange]:
    """The newest exchanges whose reflections take at most `token_cap` tokens, oldest first."""
    chosen: list[Exchange] = []
    for row in reversed(rows):
        token_cap -= tokens_of(row) + reflect_tokens
        if token_cap < 0:
            break
        chosen.append(row)
    return chosen[::-1]


def tokens_of(row: Exchange) -> int:
    """About the tokens of an exchange in the prompt of a reflection."""
    return sum(len(str(message.get("content") or "")) for message in row.messages) // CHARS


def finish(
    model: Model, store: Store, settings: Settings, run: Run, progress: Progress | None = None
) -> Report:
    """Reflect on the groups of a run that have no reflection yet, wave by wave."""
    began = time.monotonic()
    taskset = Taskset()
    taskset.name = run.taskset
    context = TasksetContext(model, store, taskset, settings, progress=progress).in_run(run)
    with store.read() as s:
        texts = {row.seed: task_of(row).text for row in exchanges.of_run(s, run.id)}
        tasks = tasks_of(s, run.id)
    waves, done = waves_of(tasks), 0
    for wave in waves:
        context.report(done, len(tasks), "reflections")
        wave_groups = [_with_texts(group, texts) for group in load_groups(context, wave)]
        edit_lessons(context, reflect_on(context, wave_groups), wave_groups)
        done += len(wave)
    with store.write() as s:
        runs.finish_run(s, run.id)
    read_checks(store, settings.profile)
    return report(store, run, waves, time.monotonic() - began)


def _with_texts(group: Group, texts: Mapping[int, str]) -> Group:
    """The group with the task texts (by seed) that its reflection reads, if they differ."""
    asked = tuple(texts[row.seed] for row in group.attempts)
    if len(set(asked)) < 2:
        return group
    values = {f.name: getattr(group.task, f.name) for f in fields(Task)}
    return replace(group, task=GroupedTask(**values, texts=asked))


# -- groups


def task_of(row: Exchange) -> Task:
    """The task that a client asked for. Its answer is unknown."""
    content = json.dumps(row.asked, sort_keys=True, ensure_ascii=False)
    name = f"asked-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    outside = row.trust != Trust.CLEAN
    return Task(id=name, messages=row.asked, verifier="traffic", answer="", untrusted=outside)


def _parts(row: Exchange) -> dict[str, int]:
    """The number of turns of an exchange that has several: the session of a coding agent."""
    asked, every = (
        sum(message.get("role") == "assistant" for message in messages)
        for messages in (row.asked, row.messages)
    )
    return {TURNS: every - asked} if every - asked > 1 else {}


def groups(rows: Sequence[Exchange], k: int) -> list[list[Exchange]]:
    """Exchanges of one task together, at most MOST; those of tasks that came once in groups of
    similar tasks, at most k.

    Tasks are similar if their words are the same but for numbers, else if both have half of the
    words of both.
    """
    same: dict[str, list[Exchange]] = {}
    for row in rows:
        same.setdefault(task_of(row).key, []).append(row)
    grouped = [mine[:MOST] for mine in same.values() if len(mine) > 1]
    forms: dict[str, list[Exchange]] = {}
    for mine in same.values():
        if len(mine) == 1:
            forms.setdefault(form(mine[0].asked), []).append(mine[0])
    loose: list[tuple[set[str], list[Exchange]]] = []
    for text, mine in forms.items():
        words = set(text.split())
        near = (group for first, group in loose if len(words & first) >= ALIKE * len(words | first))
        if len(mine) > 1:
            grouped += _shares(mine, k)
        elif (group := next(near, None)) is not None:
            group += mine
        else:
            loose.append((words, mine))
    for _, mine in loose:
        grouped += _shares(mine, k)
    return sorted(grouped, key=lambda group: group[0].id or 0)


def form(asked: Sequence[Message]) -> str:
    """The user's words without case, punctuation and the values of numbers."""
    text = " ".join(str(m.get("content") or "") for m in asked if m.get("role") == "user")
    words = ["#" if word.isdecimal() else word for word in re.findall(r"\w+", text.lower())]
    pairs = zip(words, ["", *words], strict=False)
    return " ".join(word for word, before in pairs if (word, before) != ("#", "#"))


def _shares(rows: list[Exchange], k: int) -> list[list[Exchange]]:
    """In groups of at most k, of nearly equal size."""
    count = -(-len(rows) // max(k, 1))
    return [rows[i * len(rows) // count : (i + 1) * len(rows) // count] for i in range(count)]


# -- the run


def _start(store: Store, settings: Settings, grouped: Sequence[Sequence[Exchange]]) -> Run | None:
    """Save the rollouts of these groups and the effects that they show, in one transaction, and
    mark their exchanges as taken. None if another process has taken all of them."""
    first = grouped[0][0]
    trusted = first.trust == Trust.CLEAN
    with store.write() as s:
        free = {row.id for row in exchanges.waiting(s, settings.profile)}
        open_groups = [mine for group in grouped if (mine := [r for r in group if r.id in free])]
        if not open_groups:
            return None
        rows = [row for group in open_groups for row in group]
        content = f"traffic/{[row.id for row in rows]}"
        run = runs.start_run(
            s,
            key=hashlib.sha256(content.encode()).hexdigest()[:32],
            taskset=first.taskset,
            profile=settings.profile,
            n=len(open_groups),
            k=0,  # the groups differ in size
            seed=0,
            model=first.model,
            model_fingerprint=first.model_fingerprint,
            adapter_id=first.adapter_id,
            measure=first.measure if trusted else f"{first.measure}-untrusted",
            config=settings.stored(SETTINGS),
        )
        run.from_traffic = True
        runs.save_tasks(s, run.taskset, [task_of(row) for row in rows])
        rollouts = []
        for group in open_groups:
            key = task_of(group[0]).key
            for index, row in enumerate(group):
                copied = row.model_dump(include=COPIED) | {"parts": _parts(row)}
                rollouts.append(Rollout(run_id=run.id or 0, task_key=key, index=index, **copied))
        exposures = [[Exposure(rollout_id=0, **one) for one in row.exposures] for row in rows]
        runs.save_rollouts(s, rollouts, exposures)
        for row in rows:
            s.get_one(Exchange, row.id).run_id = run.id
        s.flush()
        lessons = [exposure.lesson_id for mine in exposures for exposure in mine]
        RunTrials(run).update(s, lessons, move=trusted and not settings.require_approval)
    return run
