"""A workspace: one database, one model, and the adapters. The command line and the server are thin
layers over it.

    ws = reflect.open("lessons.db", model="pocket")
    ws.run("letters", n=16, k=8)
    print(ws.prompt("letters"))
    ws.sleep()

The database and the model are opened on first use, so that a question about lessons never loads
torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.config import Settings
from reflect.errors import NightBusy, UnknownName, UsageError
from reflect.models import distributed
from reflect.tasksets.base import find_task
from reflect.workspace.context import WorkspaceContext

if TYPE_CHECKING:
    from reflect.day.report import Report
    from reflect.evaluation.arms import ArmResult
    from reflect.models.base import Model
    from reflect.night.due import Due
    from reflect.night.sleep import NightReport
    from reflect.records import Adapter, Lesson
    from reflect.store import Store
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Message, Split, Task
    from reflect.types import Progress
    from reflect.workspace.adapters import AdapterManager
    from reflect.workspace.grades import Grades
    from reflect.workspace.lessons import Lessons

FOUR_ARMS = {  # arm -> (adapter on, lessons in the prompt)
    "base_out": (False, False),
    "base_in": (False, True),
    "adapter_out": (True, False),
    "adapter_in": (True, True),
}
WEIGHTS = (
    "Sleep with local weights of that model: reflect sleep -m hf:ORG/NAME, or a path. Its lessons work in the prompt "
    "meanwhile; `reflect trial` measures them."
)


@dataclass(frozen=True)
class Prompt:
    """Exactly what the model will see of a task, and the lessons in it."""

    taskset: str
    task: Task
    messages: list[Message]
    lessons: list[Lesson]

    def __str__(self) -> str:
        return "\n\n".join(f"{m['role']}:\n{m['content']}" for m in self.messages)


class Workspace:
    """Lessons, runs, nights and adapters of one profile. Methods raise ReflectError with the next
    step as its hint."""

    def __init__(self, settings: Settings) -> None:
        self.context = WorkspaceContext(settings)
        self.settings = settings
        self.complaints = self.context.complaints
        self.taskset = self.context.taskset
        self.count_tokens = self.context.count_tokens

    # -- parts

    @cached_property
    def lessons(self) -> Lessons:
        """The lessons: list, get, history, search, add, edit, retire, undo, export, import ..."""
        from reflect.workspace.lessons import Lessons

        return Lessons(self.context)

    @cached_property
    def adapters(self) -> AdapterManager:
        """The adapters: promote, rollback, push, export, verify."""
        from reflect.workspace.adapters import AdapterManager

        return AdapterManager(self.context)

    @cached_property
    def grades(self) -> Grades:
        """Grades given by people: waiting, give, load, save, review."""
        from reflect.workspace.grades import Grades

        return Grades(self.context)

    @property
    def path(self) -> str:
        """The database: a full path, or the URL without its password."""
        return self.context.path

    @property
    def store(self) -> Store:
        """The database, opened on first use."""
        return self.context.store

    @property
    def model(self) -> Model:
        """The model with the profile's active adapter, loaded on first use."""
        return self.context.model

    @property
    def reflector(self) -> Model | None:
        """The model that reflects; None if it is the model that makes the rollouts."""
        return self.context.reflector

    def promote(self, name: str) -> Adapter:
        """Make an adapter the active one: see `adapters.promote`."""
        return self.adapters.promote(name)

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """Undo the last promotion: see `adapters.rollback`."""
        return self.adapters.rollback()

    # -- the day

    def run(
        self,
        taskset: str | Path | Taskset,
        *,
        n: int | None = None,
        k: int | None = None,
        seed: int | None = None,
        learn: bool = True,
        use_lessons: bool = True,
        progress: Progress | None = None,
    ) -> Report:
        """Practise n tasks k times each and learn from it. The same arguments continue an
        interrupted run."""
        found = self.taskset(taskset)  # its errors come before anything is loaded
        from reflect.day.practice import practice

        return practice(
            self.model,
            self.store,
            found,
            self.settings,
            n=self.settings.n if n is None else n,
            k=self.settings.k if k is None else k,
            seed=seed,
            learn=learn,
            use_lessons=use_lessons,
            reflector=self.reflector if learn else None,
            progress=progress,
        )

    def resume(self, run_id: int | None = None, *, progress: Progress | None = None) -> Report:
        """Finish a run with the settings that it was started with; by default the newest unfinished
        one."""
        from reflect.day.resume import begun, unchanged
        from reflect.trials.reward_version import measure

        again = begun(self.store, self.settings, run_id)
        run, ws = again.run, Workspace(again.settings)
        if run.from_traffic:
            from reflect.day.traffic import finish

            return finish(ws.model, ws.store, ws.settings, run, progress)
        found = ws.taskset(run.taskset)
        unchanged(run, ws.model, ws.reflector, measure(found))
        return ws.run(found, n=run.n, k=run.k, seed=run.seed, progress=progress, **again.flags)

    def prompt(self, taskset: str | Path | Taskset, task: str | Task | None = None) -> Prompt:
        """What the model will see of a task, given by itself or its id; by default of the first
        holdout task."""
        from reflect.lessons.selection import room_for_lessons, select_lessons
        from reflect.rollouts.episode import messages_for, opening

        found = self.taskset(taskset)
        task = find_task(found, task) if task is None or isinstance(task, str) else task
        said, state = opening(found, task)
        with self.store.read() as s:
            lessons = select_lessons(
                s,
                found.name,
                task,
                profile=self.settings.profile,
                budget=room_for_lessons(
                    task, self.settings, self.context.sizes.context, self.count_tokens
                ),
                limit=self.settings.lesson_limit,
                count_tokens=self.count_tokens,
                state=state,
            )
        return Prompt(found.name, task, messages_for(task, lessons, said), lessons)

    # -- measuring

    def evaluate(
        self,
        taskset: str | Path | Taskset,
        *,
        arms: Sequence[str] = ("base", "lessons"),
        n: int | None = None,
        split: Split = "holdout",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> dict[str, ArmResult]:
        """The arms on the first n tasks (all when None) of the split, paired: see
        `reflect.evaluation.arms`."""
        from reflect.evaluation.arms import evaluate

        found = self.taskset(taskset)
        return evaluate(
            self.model,
            self.store,
            found,
            settings=self.settings,
            arms=arms,
            n=n,
            split=split,
            seed=seed,
            progress=progress,
        )

    def arm(
        self,
        taskset: str | Path | Taskset,
        name: str,
        *,
        n: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ArmResult:
        """One of the four arms base_out, base_in, adapter_out, adapter_in on holdout; `in`: with
        all lessons, also those in the weights. Without an active adapter, the adapter arms equal
        the base arms."""
        from reflect.evaluation.arms import HELD_STATUSES, run_arm
        from reflect.lessons.selection import lessons_for
        from reflect.models.base import SamplingOptions, active_adapter, using

        if name not in FOUR_ARMS:
            raise UnknownName(
                f"There is no arm '{name}'.", f"The arms are: {', '.join(FOUR_ARMS)}."
            )
        found, model = self.taskset(taskset), self.model
        adapter_on, lessons_in = FOUR_ARMS[name]
        tasks = found.tasks("holdout", n, seed)
        with self.store.read() as s:
            rows = [
                (
                    t,
                    lessons_for(model, s, found, t, self.settings, HELD_STATUSES)
                    if lessons_in
                    else [],
                )
                for t in tasks
            ]
        with using(model, active_adapter(model) if adapter_on else None):
            return run_arm(
                model, found, rows, options=SamplingOptions.of(self.settings), progress=progress
            )

    def following(
        self, taskset: str | Path | Taskset, *, adapter: bool, n: int = 100, seed: int = 0
    ) -> ArmResult | None:
        """How well new lessons in the prompt are followed, with the active adapter or bare; None
        without such tasks."""
        from reflect.evaluation.arms import following
        from reflect.models.base import SamplingOptions, active_adapter, using

        found, model = self.taskset(taskset), self.model
        tasks = found.following(n, seed)
        with using(model, active_adapter(model) if adapter else None):
            return (
                following(model, tasks, found, options=SamplingOptions.of(self.settings))
                if tasks
                else None
            )

    # -- the night

    def sleep(
        self,
        *tasksets: str | Path | Taskset,
        dry_run: bool = False,
        if_due: bool = False,
        deadline: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> NightReport:
        """One night over all lessons of the profile: train an adapter, evaluate it, promote it if
        it passes the gate.

        `options`: method, divergence, budget (minutes), seed, continued. A finished night is not
        repeated. `if_due`: only if a night is due (see `due`). `deadline`: minutes from now after
        which the night pauses; the next sleep continues it.
        """
        until = None if deadline is None else time.monotonic() + 60 * deadline
        night = partial(
            self._sleep,
            tasksets,
            dry_run=dry_run,
            if_due=if_due,
            until=until,
            progress=progress,
            **options,
        )
        if distributed.size() == 1:
            return night()
        from reflect.night.workers import lead

        return lead(night, lambda: self.model)

    def _sleep(
        self,
        tasksets: Sequence[str | Path | Taskset],
        *,
        if_due: bool,
        **options: Any,
    ) -> NightReport:
        found = [self.taskset(name) for name in tasksets]
        from reflect.models import is_remote
        from reflect.night.sleep import NightReport, sleep
        from reflect.night.workdir import is_running

        if is_remote(self.settings.model):
            raise UsageError(
                f"A night trains weights, and {self.settings.model} has none here.", WEIGHTS
            )

        if if_due and not (due := self.due(*found)):
            return NightReport("not due", due.reason)
        if is_running(self.settings):  # before the model is loaded; the lock itself decides
            raise NightBusy("Another sleep is running.", "Wait until it is done: `reflect nights`.")
        before = self._active()
        try:
            report = sleep(self.model, self.store, self.settings, tasksets=found, **options)
        except NightBusy as e:
            if not if_due:
                raise
            return NightReport("not due", f"Not due: {e.message}")
        if self._active() != before:
            self.adapters.publish()
        return report

    def _active(self) -> int | None:
        from reflect.store import nights

        with self.store.read() as s:
            adapter = nights.active_adapter(s, self.settings.profile)
        return adapter.id if adapter else None

    def due(self, *tasksets: str | Path | Taskset) -> Due:
        """Whether a night is due, decided without the model: see `reflect.night.due`."""
        from reflect.night.due import Due, decide
        from reflect.night.workdir import is_running
        from reflect.records import now

        if is_running(self.settings):
            return Due(False, "Not due: another sleep is running.")
        return decide(self.store, self.settings, now(), [self.taskset(name) for name in tasksets])

    # -- health

    def sweep(self) -> list[Path]:
        """Remove files that killed nights left behind, unless a night is running. Returns what was
        removed."""
        from reflect.night import cleanup

        return cleanup.remove_leftovers(self.store, self.settings)

    def doctor(self) -> list[str]:
        """Problems of the database and the adapters, one sentence each; [] if there are none."""
        from reflect.store import doctor

        problems = doctor.check(self.store)
        return problems + [
            problem for problem in self.adapters.verify(base=False).values() if problem
        ]
