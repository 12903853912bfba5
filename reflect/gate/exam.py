"""The evaluation of an adapter on holdout tasks, which it must pass before promotion.

Four arms on the same holdout tasks: {base, adapter} x {without lessons, with lessons}; an adapter
that was trained on shuffled lessons as a control; then the questions about harm. The base is run
once (`GateEvaluation`), so that the adapter can be evaluated again at a smaller scale if it does
harm: see `judge`. This module runs the models; `checks` decides.

Not covered: harm outside the installed tasksets (and in tasks of several turns outside the night:
their episodes would take longer than the night), and a holdout split that leaks into practice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from reflect.evaluation.arms import ArmResult
from reflect.gate import checks, forgetting
from reflect.gate.drift import page_loss, probe
from reflect.rollouts.runner import Part, run_parts
from reflect.tasksets import available
from reflect.training.guards import guards_of, near_tasks
from reflect.training.lesson_set import Rows, gains, lesson_effects, rows_for
from reflect.training.plan import PER_LESSON
from reflect.types import (
    Arm,
    CheckArea,
    CheckKind,
    Json,
    LessonStatus,
    QuestionKind,
    TrialVerdict,
    with_old_arms,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from reflect.gate.checks import Check
    from reflect.records import Lesson
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Task
    from reflect.training.context import NightContext, TasksetLessons
    from reflect.training.guards import Ruled
    from reflect.training.teacher_data import TrainingData

LESSON_ENOUGH = 0.7  # share of one lesson's own gain, which few tasks measure
TRIES, TRIED = 4, 24  # pass@k: attempts at each task, and tasks of a taskset
AREAS = {
    QuestionKind.NEAR: CheckArea.NEAR,
    QuestionKind.NEIGHBOURS: CheckArea.NEAR,
    QuestionKind.FOLLOWING: CheckArea.FOLLOWING,
    QuestionKind.UNRELATED: CheckArea.OUTSIDE,
}
FINEST = 0.1  # the bisection of the scale ends here, and no adapter is made weaker than this


@dataclass(frozen=True)
class Arms:
    """The four arms of one taskset, paired by task, and their rows."""

    taskset: Taskset
    rows: Rows
    base: ArmResult
    lessons: ArmResult
    adapter: ArmResult
    both: ArmResult

    def shape(self) -> Json:
        """The rewards of each arm, as JSON."""
        return with_old_arms({arm: getattr(self, arm).shape() for arm in Arm})

    def triples(self, third: Sequence[float] | None = None) -> list[checks.Triple]:
        """Rewards by task: base, lessons, adapter (or `third`)."""
        last = self.adapter.rewards if third is None else third
        return list(zip(self.base.rewards, self.lessons.rewards, last, strict=True))


@dataclass(frozen=True)
class GateQuestion:
    """Tasks of one taskset, none an anchor or a practice task, and the base's result `before`."""

    name: str
    kind: QuestionKind
    taskset: Taskset
    rows: Rows
    before: ArmResult
    sampled: bool = False
    """The mean of several sampled attempts at each task; otherwise one greedy answer."""


class GateEvaluation:
    """The questions of the gate, with the results of the base and of the replaced adapter."""

    def __init__(self, ctx: NightContext, data: TrainingData, previous: str | None = None) -> None:
        """`previous`: the loaded adapter to be replaced; its lessons' gain must be kept too."""
        self.ctx, self.data, self.guards = ctx, data, guards_of(ctx)
        most = ctx.plan.gate_tasks
        self.revoked = forgetting.probes_of(ctx)
        self.rows: dict[str, Rows] = {}
        self.base: dict[str, tuple[ArmResult, ArmResult]] = {}  # taskset -> base, lessons
        self.questions: list[GateQuestion] = []
        self.missing: list[Check] = []  # questions without enough tasks
        self.earlier: list[tuple[str, list[int], ArmResult]] = []
        # taskset, its tasks under a rule, the base's answers under the rule and under the lessons
        self.rules: list[tuple[Taskset, Ruled, list[str], list[str]]] = []
        self.tasksets = {item.taskset.name: item.taskset for item in ctx.tasksets}
        for item in ctx.tasksets:
            taskset = item.taskset
            rows = self.rows[taskset.name] = gate_rows(ctx, item)
            base, lessons = ctx.run_arm(taskset, _bare(rows)), ctx.run_arm(taskset, rows)
            self.base[taskset.name] = base, lessons
            at = [i for i, (_, texts) in enumerate(rows) if any(map(_distilled, texts))]
            if previous and at:
                before = ctx.run_arm(taskset, _bare([rows[i] for i in at]), previous)
                self.earlier.append((taskset.name, at, before))
            free = rows[:most]
            ruled = self.guards.ruled(ctx, item, free, "holdout")
            if ruled.rows:
                under_rule = ctx.run_arm(taskset, ruled.rows).answers
                self.rules.append((taskset, ruled, under_rule, lessons.answers[: len(free)]))
            near = near_tasks(ctx, item, "holdout")[:most]
            self._add(f"near tasks of {taskset.name}", QuestionKind.NEAR, taskset, near)
            adjacent = self.guards.neighbours(item, free, "holdout", ctx.plan.seed)
            self._add(f"neighbours of {taskset.name}", QuestionKind.NEIGHBOURS, taskset, adjacent)
        for taskset, rows in self.guards.following(ctx, data.figures, most):
            tasks = [task for task, _ in rows]
            name = f"following new lessons in {taskset.name}"
            self._add(name, QuestionKind.FOLLOWING, taskset, tasks)
        if all(q.kind != QuestionKind.FOLLOWING for q in self.questions):
            why = "the base follows none of the lessons that were tried"
            self._miss("following new lessons", QuestionKind.FOLLOWING, why)
        for taskset in available():
            if (name := taskset.name) in data.figures["outside"]:
                tasks = taskset.tasks("holdout", most)
                self._add(f"unrelated {name}", QuestionKind.UNRELATED, taskset, tasks)
        self.page = self.guards.page()
        self.passed = {name: self._passes(None, name, rows) for name, rows in self.rows.items()}

    def _add(self, name: str, kind: QuestionKind, taskset: Taskset, tasks: Sequence[Task]) -> None:
        """Ask the base these tasks; too few that it can do are a check that is not measured."""
        rows: Rows = [(task, []) for task in tasks]
        sampled = kind in (QuestionKind.NEAR, QuestionKind.UNRELATED)
        if sampled and rows:
            rows = self.within_reach(taskset, rows)
            if not rows:
                self._miss(name, kind, f"the base passes fewer than {checks.FEWEST} of its tasks")
        if rows:
            before = self.run(None, taskset, rows, sampled)
            self.questions.append(GateQuestion(name, kind, taskset, rows, before, sampled))

    def _miss(self, name: str, kind: QuestionKind, why: str) -> None:
        self.missing.append(checks.not_measured(name, why, AREAS[kind]))

    def within_reach(self, taskset: Taskset, rows: Rows) -> Rows:
        """The tasks that the base passes in half of its attempts; none if fewer than FEWEST. The
        check uses other attempts, so luck in these does not look like a loss."""
        scores = self.attempts(None, taskset, rows, self.ctx.plan.seed + 1)
        kept = [row for row, rewards in zip(rows, scores, strict=True) if sum(rewards) >= TRIES / 2]
        return kept if len(kept) >= checks.FEWEST else []

    def run(self, adapter: str | None, taskset: Taskset, rows: Rows, sampled: bool) -> ArmResult:
        """One greedy answer to each task, or with `sampled` the mean of several attempts."""
        if not sampled:
            return self.ctx.run_arm(taskset, rows, adapter)
        scores = self.attempts(adapter, taskset, rows, self.ctx.plan.seed)
        means = [sum(rewards) / len(rewards) for rewards in scores]
        return ArmResult(sum(means) / len(means), len(means), (0.0, 1.0), means)

    def attempts(
        self, adapter: str | None, taskset: Taskset, rows: Rows, seed: int
    ) -> list[list[float]]:
        """The rewards of TRIES sampled attempts at each task; each adapter has the same seeds."""
        model, options = self.ctx.model, self.ctx.sampling
        parts = [Part(task, lessons, range(TRIES)) for task, lessons in rows]
        with model.using(adapter):
            groups = run_parts(model, taskset, parts, seed=seed, options=options)
        return [[row.reward or 0.0 for row in group] for group in groups]

    def _passes(self, adapter: str | None, name: str, rows: Rows) -> list[float]:
        """The best reward of TRIES attempts: by the base with lessons, by an adapter without."""
        some = rows[:TRIED] if adapter is None else _bare(rows[:TRIED])
        return list(map(max, self.attempts(adapter, self.tasksets[name], some, self.ctx.plan.seed)))

    def examine(self, name: str, placebo: Mapping[str, list[float]] | None = None) -> Json:
        """The verdict on the adapter `name` at its present scale:
        {ok, reasons, recovered, arms, checks, lessons, follows_new_lessons, drift}."""
        ctx = self.ctx
        arms = []
        for key, rows in self.rows.items():
            taskset = self.tasksets[key]
            adapter, both = (ctx.run_arm(taskset, some, name) for some in (_bare(rows), rows))
            arms.append(Arms(taskset, rows, *self.base[key], adapter, both))
        triples = [triple for a in arms for triple in a.triples()]
        results = [checks.answers([a.adapter for a in arms]), checks.gain(triples)]
        for a in arms:
            results.append(checks.taskset(a.taskset.name, a.base, a.adapter))
            results.append(checks.no_harm(f"{a.taskset.name} with lessons", a.lessons, a.both))
        if placebo:
            shuffled = [triple for a in arms for triple in a.triples(placebo[a.taskset.name])]
            results.append(checks.placebo(shuffled))
        rewards = {a.taskset.name: a.adapter.rewards for a in arms}
        for key, at, before in self.earlier:
            after = [rewards[key][i] for i in at]
            now = ArmResult(sum(after) / len(after), len(after), (0.0, 1.0), after)
            results.append(checks.no_harm(f"earlier lessons of {key}", before, now))
        follows: dict[str, dict[str, float]] = {}
        for q in self.questions:
            now = self.run(name, q.taskset, q.rows, q.sampled)
            area = AREAS[q.kind]
            if q.kind == QuestionKind.NEIGHBOURS:
                results.append(checks.neighbours(q.name, q.before, now))
                continue
            results.append(checks.no_harm(q.name, q.before, now, area))
            if q.kind == QuestionKind.FOLLOWING:
                figures = {"base": q.before.reward, "adapter": now.reward, "n": now.n}
                follows[q.taskset.name] = figures
        results += self._behaviour(name, arms)
        results += [forgetting.check(ctx, name, one) for one in self.revoked]
        probes = probe(ctx.model, name, self.data, ctx.plan)
        results += [drift := checks.drift(probes), checks.entropy(probes)]
        if self.page:
            results.append(checks.text_loss(*page_loss(ctx.model, name, self.page)))
        results += self.missing
        results.append(checks.coverage(results))
        failed = [check for check in results if check.failed]
        return {
            "ok": not failed,
            "reasons": [check.text for check in failed],
            "recovered": checks.recovered(triples)[0],
            "arms": {a.taskset.name: a.shape() for a in arms},
            "checks": [asdict(check) for check in results],
            "lessons": lesson_verdicts(arms),
            "follows_new_lessons": follows,
            "drift": drift.value,
        }

    def _behaviour(self, name: str, arms: Sequence[Arms]) -> list[Check]:
        """The checks of the answers: contradicting rules, sampled attempts, text."""
        obeyed: list[float] = []
        for taskset, ruled, under_rule, true in self.rules:
            now = self.ctx.run_arm(taskset, ruled.rows, name).answers
            obeyed += checks.obeyed(under_rule, true, now, ruled.marks)
        before = [x for values in self.passed.values() for x in values]
        after = [x for key, rows in self.rows.items() for x in self._passes(name, key, rows)]
        rules = [checks.override(obeyed)] if self.rules else []
        lessons, adapter = _together(a.lessons for a in arms), _together(a.adapter for a in arms)
        return [*rules, checks.pass_at_k(TRIES, before, after), *checks.hygiene(lessons, adapter)]


def gate_rows(ctx: NightContext, item: TasksetLessons) -> Rows:
    """The holdout tasks of the four arms: those with a lesson of the night in their prompt."""
    n = max(ctx.plan.gate_tasks, PER_LESSON * len(item.lessons))
    return rows_for(ctx, item, item.taskset.tasks("holdout"), n)


def placebo_rewards(ctx: NightContext, name: str) -> dict[str, list[float]]:
    """taskset -> rewards of the placebo adapter `name` without lessons, task by task."""
    return {
        item.taskset.name: ctx.run_arm(item.taskset, _bare(gate_rows(ctx, item)), name).rewards
        for item in ctx.tasksets
    }


def lesson_verdicts(arms: Sequence[Arms]) -> Json:
    """lesson id -> its effect in the adapter, over the holdout tasks with it in their prompt, and
    whether the adapter keeps enough of its gain."""
    verdicts: Json = {}
    for a in arms:
        in_prompt = lesson_effects(a.rows, gains(a.lessons, a.base))
        for i, e in lesson_effects(a.rows, gains(a.adapter, a.base)).items():
            kept = e.mean >= LESSON_ENOUGH * in_prompt[i].mean
            if str(i) not in verdicts or verdicts[str(i)]["n"] < e.n:
                verdict = TrialVerdict.ACCEPT if kept else TrialVerdict.REJECT
                verdicts[str(i)] = asdict(e) | {"verdict": verdict, "prompt": in_prompt[i].mean}
    return verdicts


def judge(examine: Callable[[float], Json]) -> Json:
    """The verdict on an adapter at full scale or, if it does harm, at the largest scale of a
    bisection at which it passes. `examine` gives the verdict at a scale; `scale` and all attempted
    `scales` are added.

    Harm asks for a smaller scale, a missing gain or a pass for a larger one. If both fail, no scale
    between can pass.
    """
    best = first = examine(1.0) | {"scale": 1.0}
    scales = [{"scale": 1.0, "ok": first["ok"], "reasons": first["reasons"]}]
    low, high = FINEST, 1.0
    failing = _failing(first)
    while failing == {CheckKind.HARM} and high - low > FINEST:
        scale = round((low + high) / 2, 3)
        verdict = examine(scale) | {"scale": scale}
        scales.append({"scale": scale, "ok": verdict["ok"], "reasons": verdict["reasons"]})
        kinds = _failing(verdict)
        if kinds == {CheckKind.HARM}:
            high = scale
        elif kinds <= {CheckKind.GAIN}:
            low = scale
            best = verdict if verdict["ok"] else best
        else:
            break
    return best | {"scales": scales}


def _failing(verdict: Json) -> set[str]:
    return {x["kind"] for x in verdict["checks"] if not x["ok"] and x.get("measured", True)}


def _distilled(lesson: Lesson) -> bool:
    return lesson.status == LessonStatus.DISTILLED


def _bare(rows: Rows) -> Rows:
    return [(task, []) for task, _ in rows]


def _together(results: Iterable[ArmResult]) -> ArmResult:
    """The answers of several arms as one."""
    arms = [*results]
    answers, lengths = [x for a in arms for x in a.answers], [x for a in arms for x in a.lengths]
    first = arms[0] if arms else ArmResult(0.0, 0, (0.0, 0.0))
    return replace(first, answers=answers, lengths=lengths)
