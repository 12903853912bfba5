"""The held-out proof that an adapter must pass before promotion.

Four arms on holdout, the same tasks in each: {base, adapter} x {lessons out, lessons in}; an
adapter that was slept on shuffled lessons beside them; then what must not have been harmed. The
base is asked once (`GateEvaluation`), so that the adapter can be judged again at a smaller scale
where it does harm: see `judge`. What is asked is in here, what is made of the answers in `checks`.

Not covered: harm outside the tasksets that are here (and in tasks of several turns that the night
is not about: their episodes would take longer than the night), and a holdout that leaks into
practice.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reflect.config import Settings
from reflect.evaluation.arms import ArmResult, run_arm
from reflect.gate import checks, forgetting
from reflect.gate.checks import Check, Probe
from reflect.gate.drift import probe
from reflect.models.base import SamplingOptions
from reflect.models.local import LocalModel
from reflect.rollouts.runner import run_groups
from reflect.store import Store
from reflect.tasksets import available
from reflect.tasksets.base import Taskset
from reflect.tasksets.task import Task
from reflect.training.lesson_set import Rows, TasksetLessons, gains, lesson_effects, rows_for
from reflect.training.plan import PER_LESSON, Plan
from reflect.training.teacher_data import TrainingData, advice_of, contradicted, guarded, near_tasks
from reflect.types import CheckKind, Progress, QuestionKind

LESSON_ENOUGH = 0.7  # of one lesson's own gain: few tasks are behind it
TRIES, TRIED = 4, 24  # pass@k: attempts at each of so many tasks of a taskset
FEWEST = 8  # tasks that a taskset outside the night is judged by
FINEST = 0.1  # the bisection of the scale ends here, and no adapter is made weaker than this
ARMS = ("base_out", "base_in", "adapter_out", "adapter_in")


@dataclass(frozen=True)
class Arms:
    """The four arms of one taskset, paired by task, and the tasks with their lessons."""

    taskset: Taskset
    rows: Rows
    base_out: ArmResult
    base_in: ArmResult
    adapter_out: ArmResult
    adapter_in: ArmResult

    def shape(self) -> dict[str, Any]:
        return {name: getattr(self, name).shape() for name in ARMS}

    def triples(self, third: Sequence[float] | None = None) -> list[checks.Triple]:
        """Rewards by task: base_out, base_in, adapter_out (or `third`)."""
        last = self.adapter_out.rewards if third is None else third
        return list(zip(self.base_out.rewards, self.base_in.rewards, last, strict=True))


@dataclass(frozen=True)
class GateQuestion:
    """Tasks of one taskset, asked once of the base: `before`. None of them was an anchor or
    practice."""

    name: str
    kind: QuestionKind
    taskset: Taskset
    rows: Rows
    before: ArmResult
    sampled: bool = False  # several attempts at each, in place of the first choice


class GateEvaluation:
    """The questions of a gate, and what the base (and the adapter that would be replaced) answers
    to them."""

    def __init__(
        self,
        model: LocalModel,
        store: Store,
        subjects: Sequence[TasksetLessons],
        data: TrainingData,
        settings: Settings,
        plan: Plan,
        previous: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`previous`: the loaded adapter that would be replaced; the lessons that it holds must be
        held as well."""
        self.model, self.data, self.settings, self.plan, self.progress = (
            model,
            data,
            settings,
            plan,
            progress,
        )
        self.gone = forgetting.gone(model, store, subjects, settings, plan)
        self.rows: dict[str, Rows] = {}
        self.base: dict[str, tuple[ArmResult, ArmResult]] = {}  # taskset -> base_out, base_in
        self.harm: list[GateQuestion] = []
        self.earlier: list[tuple[str, list[int], ArmResult]] = []
        self.rules: list[tuple[Taskset, Rows, ArmResult, ArmResult]] = []
        self.tasksets = {subject.taskset.name: subject.taskset for subject in subjects}
        for subject in subjects:
            taskset = subject.taskset
            rows = self.rows[taskset.name] = gate_rows(model, store, subject, settings, plan)
            out, into = self.ask(None, taskset, _bare(rows)), self.ask(None, taskset, rows)
            self.base[taskset.name] = out, into
            at = [
                i
                for i, (_, lessons) in enumerate(rows)
                if any(x.status == "distilled" for x in lessons)
            ]
            if previous and at:
                self.earlier.append(
                    (taskset.name, at, self.ask(previous, taskset, _bare([rows[i] for i in at])))
                )
            free = rows[: plan.gate_tasks]
            ruled = contradicted(free, advice_of(subject), random.Random(f"override {plan.seed}"))
            if ruled:
                true = ArmResult(0.0, len(free), (0.0, 0.0), answers=into.answers[: len(free)])
                self.rules.append((taskset, ruled, self.ask(None, taskset, ruled), true))
            near = near_tasks(model, store, subject, settings, "holdout")
            self._add(
                f"near tasks of {taskset.name}",
                QuestionKind.NEAR,
                taskset,
                near[: plan.gate_tasks],
                sampled=True,
            )
        outside = [taskset for taskset in available() if taskset.name in data.figures["outside"]]
        for taskset in guarded(subjects):
            tasks = taskset.following(plan.gate_tasks, seed=-1)
            self._add(
                f"following new lessons in {taskset.name}", QuestionKind.FOLLOWING, taskset, tasks
            )
        for taskset in outside:
            tasks = taskset.tasks("holdout", plan.gate_tasks)
            self._add(
                f"unrelated {taskset.name}", QuestionKind.UNRELATED, taskset, tasks, sampled=True
            )
        self.passed = {name: self._passes(None, name, rows) for name, rows in self.rows.items()}

    def _add(
        self,
        name: str,
        kind: QuestionKind,
        taskset: Taskset,
        tasks: Sequence[Task],
        sampled: bool = False,
    ) -> None:
        rows: Rows = [(task, []) for task in tasks]
        if sampled:
            rows = self.within_reach(taskset, rows)
        if rows:
            before = self.ask(None, taskset, rows, sampled)
            self.harm.append(GateQuestion(name, kind, taskset, rows, before, sampled))

    def within_reach(self, taskset: Taskset, rows: Rows) -> Rows:
        """The tasks that the base passes in half of its attempts, none where these are few: what it
        only guesses it cannot lose. They are judged by other attempts, so that luck in these does
        not look like a loss."""
        scores = self.attempts(None, taskset, rows, self.plan.seed + 1)
        kept = [row for row, rewards in zip(rows, scores, strict=True) if sum(rewards) >= TRIES / 2]
        return kept if len(kept) >= FEWEST else []

    def ask(
        self, adapter: str | None, taskset: Taskset, rows: Rows, sampled: bool = False
    ) -> ArmResult:
        """One greedy answer to each, or with `sampled` the mean of several attempts."""
        if sampled:
            means = [
                sum(scores) / len(scores)
                for scores in self.attempts(adapter, taskset, rows, self.plan.seed)
            ]
            return ArmResult(sum(means) / len(means), len(means), (0.0, 1.0), means)
        with self.model.using(adapter):
            return run_arm(
                self.model,
                taskset,
                rows,
                options=SamplingOptions.of(self.settings),
                progress=self.progress,
            )

    def attempts(
        self, adapter: str | None, taskset: Taskset, rows: Rows, seed: int
    ) -> list[list[float]]:
        """The rewards of TRIES sampled attempts at each task, with the same seeds for whoever is
        asked."""
        options = SamplingOptions.of(self.settings, self.plan.temperature)
        with self.model.using(adapter):
            found = run_groups(self.model, taskset, rows, k=TRIES, seed=seed, options=options)
        return [[row.reward or 0.0 for row in group] for group in found]

    def _passes(self, adapter: str | None, name: str, rows: Rows) -> list[float]:
        """Does one of the attempts pass? The base with the lessons, an adapter without."""
        asked = rows[:TRIED] if adapter is None else _bare(rows[:TRIED])
        return [
            max(scores)
            for scores in self.attempts(adapter, self.tasksets[name], asked, self.plan.seed)
        ]

    def examine(self, name: str, placebo: dict[str, list[float]] | None = None) -> dict[str, Any]:
        """The verdict on the adapter `name` as it is set now:
        {ok, reasons, recovered, arms, checks, lessons, follows_new_lessons, drift}."""
        arms = [
            Arms(self.tasksets[key], rows, *self.base[key], self.ask(name, self.tasksets[key], _bare(rows)),
                 self.ask(name, self.tasksets[key], rows))
            for key, rows in self.rows.items()
        ]  # fmt: skip
        triples = [triple for a in arms for triple in a.triples()]
        found = [checks.answers([a.adapter_out for a in arms]), checks.gain(triples)]
        found += [checks.taskset(a.taskset.name, a.base_out, a.adapter_out) for a in arms]
        if placebo:
            found.append(
                checks.placebo([x for a in arms for x in a.triples(placebo[a.taskset.name])])
            )
        answered = {a.taskset.name: a.adapter_out.rewards for a in arms}
        for key, at, before in self.earlier:
            after = [answered[key][i] for i in at]
            now = ArmResult(sum(after) / len(after), len(after), (0.0, 1.0), after)
            found.append(checks.no_harm(f"earlier lessons of {key}", before, now))
        follows: dict[str, dict[str, float]] = {}
        for question in self.harm:
            now = self.ask(name, question.taskset, question.rows, question.sampled)
            found.append(checks.no_harm(question.name, question.before, now))
            if question.kind == QuestionKind.FOLLOWING:
                figures = {"base": question.before.reward, "adapter": now.reward, "n": now.n}
                follows[question.taskset.name] = figures
        found += self._behaviour(name, arms)
        found += [
            forgetting.judge_probe(self.model, name, one, self.settings, self.progress)
            for one in self.gone
        ]
        probes = [Probe(*told) for told in probe(self.model, name, self.data, self.plan)]
        found += [drift := checks.drift(probes), checks.entropy(probes)]
        return {
            "ok": all(check.ok for check in found),
            "reasons": [check.text for check in found if not check.ok],
            "recovered": checks.recovered(triples)[0],
            "arms": {a.taskset.name: a.shape() for a in arms},
            "checks": [asdict(check) for check in found],
            "lessons": held_lessons(arms),
            "follows_new_lessons": follows,
            "drift": drift.value,
        }

    def _behaviour(self, name: str, arms: Sequence[Arms]) -> list[Check]:
        """How it answers, beside what it earns: rules in the prompt, sampled attempts, clean
        words."""
        ruled, free, now = [], [], []
        for taskset, rows, under_rule, true in self.rules:
            ruled += under_rule.answers
            free += true.answers
            now += self.ask(name, taskset, rows).answers
        before = [x for values in self.passed.values() for x in values]
        after = [x for key, rows in self.rows.items() for x in self._passes(name, key, rows)]
        found = [checks.override(ruled, free, now)] if ruled else []
        return [
            *found,
            checks.pass_at_k(TRIES, before, after),
            *checks.hygiene(
                _together([a.base_in for a in arms]), _together([a.adapter_out for a in arms])
            ),
        ]


def gate_rows(
    model: LocalModel, store: Store, subject: TasksetLessons, settings: Settings, plan: Plan
) -> Rows:
    """The holdout tasks of the four arms: those in whose prompt a lesson of the night stands."""
    n = max(plan.gate_tasks, PER_LESSON * len(subject.lessons))
    return rows_for(model, store, subject, settings, subject.taskset.tasks("holdout"), n)


def placebo_rewards(
    model: LocalModel,
    name: str,
    store: Store,
    subjects: Sequence[TasksetLessons],
    settings: Settings,
    plan: Plan,
) -> dict[str, list[float]]:
    """taskset -> rewards of the placebo adapter `name` without lessons, task by task as in the four
    arms."""
    found = {}
    for subject in subjects:
        rows = _bare(gate_rows(model, store, subject, settings, plan))
        with model.using(name):
            options = SamplingOptions.of(settings)
            found[subject.taskset.name] = run_arm(
                model, subject.taskset, rows, options=options
            ).rewards
    return found


def held_lessons(arms: Sequence[Arms]) -> dict[str, Any]:
    """Lesson by lesson, over the holdout tasks in whose prompt it stands: how much of its gain do
    the weights keep?"""
    found: dict[str, Any] = {}
    for a in arms:
        in_prompt = lesson_effects(a.rows, gains(a.base_in, a.base_out))
        for i, e in lesson_effects(a.rows, gains(a.adapter_out, a.base_out)).items():
            held = e.mean >= LESSON_ENOUGH * in_prompt[i].mean
            if str(i) not in found or found[str(i)]["n"] < e.n:
                found[str(i)] = asdict(e) | {
                    "verdict": "accept" if held else "reject",
                    "prompt": in_prompt[i].mean,
                }
    return found


def judge(examine: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """The verdict on an adapter at its full scale, or, where it does harm, at the largest scale of
    a bisection at which it passes; `examine` judges it at a scale. `scale` is in the verdict, and
    in `scales` what was tried.

    Harm asks for less; a gain that is missing, and a pass, for more. Where both fail there is
    nothing between.
    """
    best = first = examine(1.0) | {"scale": 1.0}
    tried = [{"scale": 1.0, "ok": first["ok"], "reasons": first["reasons"]}]
    low, high = FINEST, 1.0
    failing = {check["kind"] for check in first["checks"] if not check["ok"]}
    while failing == {CheckKind.HARM} and high - low > FINEST:
        scale = round((low + high) / 2, 3)
        verdict = examine(scale) | {"scale": scale}
        tried.append({"scale": scale, "ok": verdict["ok"], "reasons": verdict["reasons"]})
        kinds = {check["kind"] for check in verdict["checks"] if not check["ok"]}
        if kinds == {CheckKind.HARM}:
            high = scale
        elif kinds <= {CheckKind.GAIN}:
            low = scale
            best = verdict if verdict["ok"] else best
        else:
            break
    return best | {"scales": tried}


def _bare(rows: Rows) -> Rows:
    return [(task, []) for task, _ in rows]


def _together(arms: Sequence[ArmResult]) -> ArmResult:
    """The answers of several arms as one."""
    answers, lengths = [x for a in arms for x in a.answers], [x for a in arms for x in a.lengths]
    return (
        dataclasses.replace(arms[0], answers=answers, lengths=lengths)
        if arms
        else ArmResult(0.0, 0, (0.0, 0.0))
    )
