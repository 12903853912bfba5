"""What a night must not change: the anchors of its training, and the probes of its gate.

They depend on the model. A model that was trained on tasksets of its own, such as the pocket model,
is guarded by these (`OwnTasksets`); a pretrained model by general instructions, by invented lessons
and rules that it follows, and by questions near the lessons (`Pretrained`). Both also guard the
user's other tasksets. What the base cannot do is not asked of the adapter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reflect.config import shipped
from reflect.evaluation.arms import run_arm
from reflect.lessons.selection import about
from reflect.models.base import using
from reflect.records import Lesson
from reflect.rollouts.episode import messages_for
from reflect.rollouts.stepwise import PerTurnLessons
from reflect.tasksets import available
from reflect.tasksets.base import Taskset, has_environment
from reflect.training import general
from reflect.training.examples import Example, Question
from reflect.training.lesson_set import (
    Rows,
    effect,
    gains,
    installed,
    practised,
    rows_for,
)
from reflect.training.sampling import sample
from reflect.training.teacher_episodes import teach, tokens_of
from reflect.types import Json, TrialVerdict, Trust

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reflect.tasksets.task import Message, Split, Task
    from reflect.training.context import NightContext, TasksetLessons

TRIED = 4  # questions of each kind of invented lesson, to see whether the base follows it
FOLLOWS = 0.5  # share of them that it must answer as the lesson says


@dataclass(frozen=True)
class Anchors:
    """Prompts outside the night with the base's answers to them.

    `outside`: the tasksets that the night must not change; `followed`: the kinds of invented
    lessons that the base follows.
    """

    anchors: list[Example]
    probes: list[Example]
    """Not trained on: they measure the drift of the adapter."""
    outside: list[Taskset]
    followed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Ruled:
    """Tasks with a rule in their prompt that contradicts a lesson of the night. `marks`: the text
    that shows that a rule is obeyed, for each task; none where the base's own answer shows it."""

    rows: Rows
    marks: list[str] = field(default_factory=list)


class OwnTasksets:
    """The guards of a model that was trained on tasksets of its own."""

    PROBES = 5  # every fifth anchor is a probe

    def tasksets(self, ctx: NightContext, items: Sequence[TasksetLessons]) -> list[Taskset]:
        """The tasksets that are checked for harm: the named ones and the night's own. Named
        tasksets of several turns are left out: their episodes would take longer than the night."""
        named = [taskset for taskset in available() if not has_environment(taskset)]
        return list({t.name: t for t in (*named, *(item.taskset for item in items))}.values())

    def outside(self, ctx: NightContext, n: int = 24) -> list[Taskset]:
        """The tasksets that the night must not change: not in it, and without an effect of its
        lessons on their rewards (a user's file of letter questions makes `letters` part of the
        night)."""
        names = {item.taskset.name for item in ctx.tasksets}
        unrelated = []
        for taskset in self.tasksets(ctx, ()):
            left_out = taskset.name in names or taskset.load_error is not None
            tasks = [] if left_out else taskset.tasks("practice", n)
            if tasks and all(
                _unchanged(ctx, taskset, rows_for(ctx, item, tasks, n)) for item in ctx.tasksets
            ):
                unrelated.append(taskset)
        return unrelated

    def anchors(self, ctx: NightContext, practice: Sequence[Rows], near: Sequence[Task]) -> Anchors:
        """The base's answers to `prompts`."""
        unrelated = self.outside(ctx)
        questions = self.prompts(ctx, unrelated, practice, near)
        answers = sample(ctx, [question.student for question in questions], 1, "anchors")
        anchors = [
            Example(question, tokens)
            for question, (done,) in zip(questions, answers, strict=True)
            if (tokens := tokens_of(ctx.model, done))
        ]
        probes = anchors[:: self.PROBES]
        return Anchors([x for x in anchors if x not in probes], probes, unrelated)

    def prompts(
        self,
        ctx: NightContext,
        unrelated: Sequence[Taskset],
        practice: Sequence[Rows],
        near: Sequence[Task],
    ) -> list[Question]:
        """`plan.anchors` prompts on which the student must keep the base's answers, from five
        sources:

        tasks that bring a new lesson; practice tasks of tasksets outside the night; near tasks, to
        which no lesson of the night applies; the night's own tasks with their lessons in the
        prompt; and the same with contradicting lessons, which must be followed as before.
        """
        rng = random.Random(f"anchor prompts {ctx.plan.seed}")
        n = ctx.plan.anchors
        with_lessons, against = [], []
        for item, rows in zip(ctx.tasksets, practice, strict=True):
            wrong = contradicted(rows, advice_of(item), rng)
            with_lessons += prompts_of(ctx, item.taskset, rows, "anchors in prompt")
            against += prompts_of(ctx, item.taskset, wrong, "anchors against")
        tasksets = self.tasksets(ctx, ctx.tasksets)
        new = without_outside_bytes(
            task for t in tasksets for task in t.following(n, rng.getrandbits(30))
        )
        other = without_outside_bytes(
            task for t in unrelated for task in t.tasks("practice", n, rng.getrandbits(30))
        )
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

    def following(self, ctx: NightContext, figures: Json, n: int) -> list[tuple[Taskset, Rows]]:
        """The gate's tasks that bring a new lesson."""
        tasksets = self.tasksets(ctx, ctx.tasksets)
        return [(t, [(task, []) for task in t.following(n, seed=-1)]) for t in tasksets]

    def ruled(self, ctx: NightContext, item: TasksetLessons, rows: Rows, split: Split) -> Ruled:
        """The tasks, each lesson with another lesson's advice."""
        rng = random.Random(f"override {ctx.plan.seed}")
        return Ruled(contradicted(rows, advice_of(item), rng))

    def neighbours(self, item: TasksetLessons, rows: Rows, split: Split, seed: int) -> list[Task]:
        """None: each task of such a taskset is of its own world."""
        return []

    def page(self) -> str:
        """None: such a model may know no ordinary English."""
        return ""


class Pretrained(OwnTasksets):
    """The guards of a pretrained model."""

    def tasksets(self, ctx: NightContext, items: Sequence[TasksetLessons]) -> list[Taskset]:
        """The user's tasksets, the night's own, and invented lessons. The shipped tasksets are
        worlds of the pocket model."""
        named = {t.name: t for t in available() if t.name not in shipped_names()}
        used = practised(ctx.store, ctx.settings.profile) - shipped_names()
        named |= installed(used, named.values(), ctx.load)
        one_turn = [t for t in named.values() if not has_environment(t)]
        every = (*one_turn, *(item.taskset for item in items), general.NewLessons())
        return list({t.name: t for t in every}.values())

    def anchors(self, ctx: NightContext, practice: Sequence[Rows], near: Sequence[Task]) -> Anchors:
        """The base's answers, greedy, to: general instructions (complete answers only), invented
        lessons that it follows, the user's other tasksets, near tasks, neighbours of the night's
        tasks, and these tasks under their lessons and under contradicting rules. Of a long answer
        its beginning is an anchor too: it holds the base's distribution at each token."""
        rng, n = random.Random(f"anchor prompts {ctx.plan.seed}"), ctx.plan.anchors
        unrelated = self.outside(ctx)
        with_lessons: list[list[Message]] = []
        against: list[list[Message]] = []
        adjacent: list[list[Message]] = []
        for item, rows in zip(ctx.tasksets, practice, strict=True):
            with_lessons += prompts_of(ctx, item.taskset, rows, "anchors in prompt")
            if not has_environment(item.taskset):
                against += [
                    messages_for(t) for t, _ in self.ruled(ctx, item, rows, "practice").rows
                ]
            adjacent += [*map(messages_for, self.neighbours(item, rows, "practice", ctx.plan.seed))]
        other = without_outside_bytes(
            t for x in unrelated for t in x.tasks("practice", n, rng.getrandbits(30))
        )
        sources = [
            (adjacent, n // 4),
            ([messages_for(task) for task in [*other, *near]], n // 8),
            (with_lessons, n // 8),
            (against, n // 8),
        ]
        prompts = [x for xs, most in sources for x in rng.sample(xs, min(most, len(xs)))]
        followed, lessons = self.followed(ctx, rng)
        plain = [[{"role": "user", "content": x}] for x in general.instructions("practice")]
        answers = self.examples(ctx, rng.sample(plain, min(n // 4, len(plain))), "instructions")
        answers += self.examples(ctx, prompts, "anchors", whole=False)
        held_out = [[{"role": "user", "content": x}] for x in general.instructions("holdout")]
        probes = self.examples(ctx, rng.sample(held_out, min(n // 4, len(held_out))), "probes")
        return Anchors([*answers, *lessons[: n // 4]], probes, unrelated, followed)

    def followed(self, ctx: NightContext, rng: random.Random) -> tuple[list[str], list[Example]]:
        """The kinds of invented lessons that the base follows, and its answers to them."""
        tasks = general.NewLessons().following(TRIED * len(general.KINDS), rng.getrandbits(30))
        prompts = [messages_for(task) for task in tasks]
        good: dict[str, list[Example]] = {}
        answers = sample(ctx, prompts, 1, "lessons to follow", temperature=0.0)
        for task, prompt, (done,) in zip(tasks, prompts, answers, strict=True):
            if general.NewLessons().verify(task, done.text).reward and done.finish == "stop":
                example = Example(Question(prompt, prompt), tokens_of(ctx.model, done))
                good.setdefault(general.kind_of(task), []).append(example)
        kinds = [kind for kind, some in good.items() if len(some) >= FOLLOWS * TRIED]
        return sorted(kinds), [x for kind in sorted(kinds) for x in good[kind]]

    def examples(
        self, ctx: NightContext, prompts: Sequence[list[Message]], what: str, whole: bool = True
    ) -> list[Example]:
        """The base's answers, greedy; only complete ones, or all of them."""
        answers = sample(ctx, prompts, 1, what, temperature=0.0)
        return [
            Example(Question(prompt, prompt), tokens_of(ctx.model, done))
            for prompt, (done,) in zip(prompts, answers, strict=True)
            if done.tokens and (done.finish == "stop" or not whole)
        ]

    def following(self, ctx: NightContext, figures: Json, n: int) -> list[tuple[Taskset, Rows]]:
        """New tasks of the kinds that the base follows, and of the user's tasksets."""
        kinds = figures.get("followed", [])
        new = general.NewLessons(kinds)
        tasksets = [t for t in self.tasksets(ctx, ctx.tasksets) if t.name != new.name]
        tasksets += [new] if kinds else []
        return [(t, [(task, []) for task in t.following(n, seed=-1)]) for t in tasksets]

    def ruled(self, ctx: NightContext, item: TasksetLessons, rows: Rows, split: Split) -> Ruled:
        """The tasks, each with a rule for the condition of its first lesson."""
        if has_environment(item.taskset):
            return super().ruled(ctx, item, rows, split)
        rules = general.RULES[split]
        ruled: Rows = []
        marks: list[str] = []
        for i, (task, lessons) in enumerate(rows):
            do, mark = rules[i % len(rules)]
            when = about(task, lessons)[0].when
            ruled.append((replace(task, lessons=((when, do),)), []))
            marks.append(mark)
        return Ruled(ruled, marks)

    def neighbours(self, item: TasksetLessons, rows: Rows, split: Split, seed: int) -> list[Task]:
        """The same questions about something else."""
        if has_environment(item.taskset):
            return []
        taken = " ".join(f"{x.when} {x.do}" for x in item.lessons)
        conditions = [x.when for x in item.lessons]
        every = (general.neighbour(task, conditions, taken, split, seed) for task, _ in rows)
        return without_outside_bytes(task for task in every if task)

    def page(self) -> str:
        """A page of ordinary English."""
        return general.page()


def guards_of(ctx: NightContext) -> OwnTasksets:
    """The guards that suit the model of the night."""
    return OwnTasksets() if ctx.model.own_tasksets else Pretrained()


def shipped_names() -> set[str]:
    """The names of the shipped tasksets."""
    return {file.stem for file in shipped("tasks").glob("*.py")}


def _unchanged(ctx: NightContext, taskset: Taskset, rows: Rows) -> bool:
    options = ctx.sampling_at(0.0)
    with using(ctx.model, None):
        lessons = run_arm(ctx.model, taskset, rows, options=options)
        base = run_arm(ctx.model, taskset, [(task, ()) for task, _ in rows], options=options)
    return effect(gains(lessons, base)).verdict == TrialVerdict.UNDECIDED


def prompts_of(ctx: NightContext, taskset: Taskset, rows: Rows, what: str) -> list[list[Message]]:
    """The prompts of the tasks with these lessons. For tasks of several turns: the prompts of every
    turn of the base's episodes, because an anchor at the first turn does not protect later ones."""
    if not has_environment(taskset):
        return [messages_for(task, lessons) for task, lessons in rows]
    groups = teach(ctx, taskset, rows[: ctx.plan.anchors // 8], 1, what)
    trusted = [one for group in groups for one in group if one.row.trust == Trust.CLEAN]
    return [one.prompt_of(turn) for one in trusted for turn in one.turns]


def near_tasks(ctx: NightContext, item: TasksetLessons, split: Split) -> list[Task]:
    """The tasks of the taskset without a lesson of the night in their prompt."""
    tasks = item.taskset.tasks(split)
    keys = {task.key for task, _ in rows_for(ctx, item, tasks, len(tasks))}
    return [task for task in without_outside_bytes(tasks) if task.key not in keys]


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


def without_outside_bytes(tasks: Iterable[Task]) -> list[Task]:
    """The tasks without bytes from outside."""
    return [task for task in tasks if not task.untrusted]


def _with_other_advice(own: PerTurnLessons, other: Mapping[int | None, str]) -> PerTurnLessons:
    def changed(lessons: Sequence[Lesson]) -> list[Lesson]:
        return [Lesson(id=x.id, when=x.when, do=other[x.id]) for x in lessons if x.id in other]

    return PerTurnLessons(changed(own), lambda state: changed(own.at(state)))
