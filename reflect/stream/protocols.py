"""Practise a stream of tasksets in one of three ways, and measure what is kept.

    isolated     a new agent for each taskset
    sequential   one agent, one taskset after the other
    interleaved  one agent, a share of every taskset in each stage

The names are those of AgentStream (arXiv 2608.00155, of which only the abstract was available); the
figures below are of our own design. Each taskset gets the same number of attempts in all three
ways. A stage is practice and, unless nights are off, one night; after it follows an exam.

The first pass learns. The second pass repeats the practised tasks with the final agent, which does
not learn any more. Exams are greedy, with what the agent uses in practice: its adapter and the
lessons that a run shows.

Not covered: streams whose order depends on the agent's results.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from reflect.errors import UsageError
from reflect.evaluation.arms import ArmResult, run_arm
from reflect.lessons.selection import lessons_for
from reflect.models import is_remote
from reflect.models.base import SamplingOptions, active_adapter, using
from reflect.stats.bootstrap import bootstrap
from reflect.training.plan import NightOptions
from reflect.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reflect.config import Settings
    from reflect.rollouts.episode import Advice
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Task
    from reflect.types import Json, Progress

EXAM = 60  # holdout tasks of each taskset


class Protocol(StrEnum):
    """How the tasksets of a stream follow each other."""

    ISOLATED = "isolated"
    SEQUENTIAL = "sequential"
    INTERLEAVED = "interleaved"


@dataclass(frozen=True)
class ProtocolOptions:
    """What is the same in the three protocols, so that they can be compared."""

    n: int
    """Practice tasks of each taskset, in the whole stream."""
    k: int
    """Attempts at each task."""
    exam: int = EXAM
    """Holdout tasks of each taskset in an exam."""
    seed: int = 0
    nights: bool = True
    """End each stage with a night."""
    night: NightOptions = field(default_factory=NightOptions)


@dataclass(frozen=True)
class Practice:
    """Practice of one taskset within a stage."""

    taskset: int
    """Its index in the stream."""
    n: int
    seed: int


@dataclass
class Stage:
    """One stage, and the exam after it."""

    agent: int
    practised: list[int]
    """Indices of its tasksets."""
    online: list[float] = field(default_factory=list)
    """Mean reward of the attempts, for each of `practised`."""
    night: str = ""
    """The night's status and reason; "": without night."""
    exam: list[ArmResult] = field(default_factory=list)
    """On holdout, for each taskset of the stream."""


@dataclass
class StreamReport:
    """The results of one stream. Rows of figures are (mean, low, high), with 95 % intervals by a
    bootstrap over tasks; None where the figure is not defined."""

    protocol: Protocol
    tasksets: list[str]
    options: ProtocolOptions
    base: list[ArmResult] = field(default_factory=list)
    """The model without lessons and adapter, on holdout."""
    stages: list[Stage] = field(default_factory=list)
    first_pass: dict[int, ArmResult] = field(default_factory=dict)
    """Practised tasks, right after the last stage that practised the taskset."""
    second_pass: dict[int, ArmResult] = field(default_factory=dict)
    """The same tasks by the agent at its end."""

    def own(self, i: int) -> ArmResult:
        """Holdout of taskset i right after the last stage that practised it."""
        return next(stage for stage in reversed(self.stages) if i in stage.practised).exam[i]

    def final(self, i: int) -> ArmResult:
        """Holdout of taskset i by its agent at the end."""
        return self.own(i) if self.protocol == Protocol.ISOLATED else self.stages[-1].exam[i]

    def figures(self) -> dict[str, tuple[float, float, float] | None]:
        """The summary; docs/stream.md defines each figure."""
        every = range(len(self.tasksets))
        one_agent = self.protocol == Protocol.SEQUENTIAL
        earlier = [i for i in every if one_agent and i not in self.stages[-1].practised]
        later = [
            (stage.exam[i], self.base[i])
            for stage, i in zip(self.stages, every[1:], strict=False)
            if one_agent
        ]
        return {
            "plasticity": difference([(self.own(i), self.base[i]) for i in every]),
            "forgetting": difference([(self.own(i), self.final(i)) for i in earlier]),
            "forgetting_first": difference([(self.own(i), self.final(i)) for i in earlier[:1]]),
            "stability": difference([(self.second_pass[i], self.first_pass[i]) for i in every]),
            "generalisation": difference([(self.final(i), self.base[i]) for i in every]),
            "forward_transfer": difference(later),
        }

    def shape(self) -> Json:
        """As printed by --json."""
        return {
            "protocol": self.protocol,
            "tasksets": self.tasksets,
            "n": self.options.n,
            "k": self.options.k,
            "seed": self.options.seed,
            "nights": self.options.nights,
            "base": [arm.shape() for arm in self.base],
            "stages": [
                {
                    "agent": stage.agent,
                    "practised": [self.tasksets[i] for i in stage.practised],
                    "online": [round(x, 4) for x in stage.online],
                    "night": stage.night,
                    "exam": [arm.shape() for arm in stage.exam],
                }
                for stage in self.stages
            ],
            "second_pass": [self.second_pass[i].shape() for i in sorted(self.second_pass)],
            "figures": {
                name: value and [round(x, 4) for x in value]
                for name, value in self.figures().items()
            },
        }


def difference(
    pairs: Sequence[tuple[ArmResult, ArmResult]],
) -> tuple[float, float, float] | None:
    """Mean of the first minus the second of each pair over all their tasks, with its interval;
    None without pairs."""
    rows = [x - y for a, b in pairs for x, y in zip(a.rewards, b.rewards, strict=True)]
    return (sum(rows) / len(rows), *bootstrap(rows)) if rows else None


def schedule(protocol: Protocol, tasksets: int, options: ProtocolOptions) -> list[list[Practice]]:
    """The practice of each stage. Every taskset gets `options.n` tasks in all."""
    if protocol != Protocol.INTERLEAVED:
        return [[Practice(i, options.n, options.seed)] for i in range(tasksets)]
    share, rest = divmod(options.n, tasksets)  # as many stages as tasksets: as many nights
    return [
        [Practice(i, size, options.seed + 1000 * stage) for i in range(tasksets)]
        for stage in range(tasksets)
        if (size := share + (stage < rest))
    ]


def stream(
    settings: Settings,
    tasksets: Sequence[str | Taskset],
    protocol: Protocol,
    options: ProtocolOptions,
    progress: Progress | None = None,
) -> StreamReport:
    """Run the stream in the database of the settings, each agent in a profile of its own. Raises
    UsageError for fewer than two tasksets, one that occurs twice, a database with such a stream, or
    nights of a model without local weights.
    """
    return Stream(settings, tasksets, protocol, options, progress).run()


class Stream:
    """One stream while it runs. A way of learning to compare with overrides `night` and `advice`
    (see scripts/proofs/stream)."""

    def __init__(
        self,
        settings: Settings,
        tasksets: Sequence[str | Taskset],
        protocol: Protocol,
        options: ProtocolOptions,
        progress: Progress | None,
    ) -> None:
        if options.nights and is_remote(settings.model):
            problem = f"A night trains weights, and {settings.model} has none here."
            raise UsageError(problem, "Use --no-nights.")
        self.settings, self.progress = settings, progress
        first = self.agent(protocol, 0)
        self.tasksets = [first.taskset(name) for name in tasksets]
        names = [taskset.name for taskset in self.tasksets]
        if len(set(names)) < max(2, len(names)):
            problem = "A stream needs at least two tasksets, each one once"
            raise UsageError(f"{problem}: {', '.join(names)}.", "See: reflect tasks list")
        if first.lessons.list():
            problem = f"The database {first.path} has lessons of an earlier stream already."
            raise UsageError(problem, "Choose an empty folder with --dir.")
        self.report = StreamReport(protocol, names, options)
        self.practised: dict[int, dict[str, Task]] = {i: {} for i in range(len(names))}
        self.ws = first

    def agent(self, protocol: Protocol, number: int) -> Workspace:
        """The workspace of an agent, in a profile of its own."""
        return Workspace(replace(self.settings, profile=f"stream-{protocol}-{number + 1}"))

    def run(self) -> StreamReport:
        """The two passes."""
        report, options = self.report, self.report.options
        report.base = self.exam(bare=True)
        plan = schedule(report.protocol, len(self.tasksets), options)
        for number, stage in enumerate(plan):
            if number and report.protocol == Protocol.ISOLATED:
                self.repeat(range(number - 1, number))
                self.ws = self.agent(report.protocol, number)
            self.stage(stage, last={p.taskset for later in plan[number + 1 :] for p in later})
        last = len(self.tasksets) - 1
        isolated = report.protocol == Protocol.ISOLATED
        self.repeat(range(last, last + 1) if isolated else range(last + 1))
        return report

    def stage(self, practice: Sequence[Practice], last: set[int]) -> None:
        """Practice, a night, and the exam; `last`: the tasksets that later stages practise."""
        report = self.report
        agent = len(report.stages) if report.protocol == Protocol.ISOLATED else 0
        stage = Stage(agent, [each.taskset for each in practice])
        for each in practice:
            taskset = self.tasksets[each.taskset]
            run = self.ws.run(
                taskset,
                n=each.n,
                k=report.options.k,
                seed=each.seed,
                progress=self.progress,
            )
            stage.online.append(run.reward)
            tasks = taskset.tasks("practice", each.n, each.seed)
            self.practised[each.taskset] |= {task.key: task for task in tasks}
        stage.night = self.night(stage)
        stage.exam = self.exam()
        report.stages.append(stage)
        for i in set(stage.practised) - last:
            report.first_pass[i] = self.ask(i, list(self.practised[i].values()))

    def night(self, stage: Stage) -> str:
        """What follows the practice of a stage: its status and reason, or ""."""
        if not self.report.options.nights:
            return ""
        rows = [x.practised for x in [*self.report.stages, stage] if x.agent == stage.agent]
        met = [self.tasksets[i] for i in sorted({i for row in rows for i in row})]
        night = self.ws.sleep(*met, options=self.report.options.night, progress=self.progress)
        return f"{night.status}: {night.reason}" if night.reason else night.status

    def advice(self, taskset: Taskset, tasks: Sequence[Task]) -> list[Sequence[Advice]]:
        """The lessons in the prompt of each task: those that a run shows."""
        ws = self.ws
        with ws.store.read() as s:
            return [lessons_for(ws.model, s, taskset, task, ws.settings) for task in tasks]

    def repeat(self, tasksets: range) -> None:
        """The second pass."""
        for i in tasksets:
            self.report.second_pass[i] = (
                self.report.first_pass[i]
                if i in self.report.stages[-1].practised  # nothing was learned in between
                else self.ask(i, list(self.practised[i].values()))
            )

    def exam(self, bare: bool = False) -> list[ArmResult]:
        """Every taskset on holdout; `bare`: without lessons and adapter."""
        n = self.report.options.exam
        return [
            self.ask(i, taskset.tasks("holdout", n), bare)
            for i, taskset in enumerate(self.tasksets)
        ]

    def ask(self, i: int, tasks: Sequence[Task], bare: bool = False) -> ArmResult:
        """The agent on these tasks of taskset i, as it is now."""
        model, taskset, settings = self.ws.model, self.tasksets[i], self.ws.settings
        advice = [()] * len(tasks) if bare else self.advice(taskset, tasks)
        rows = list(zip(tasks, advice, strict=True))
        with using(model, None if bare else active_adapter(model)):
            options = SamplingOptions.of(settings)
            return run_arm(model, taskset, rows, options=options, progress=self.progress)
