"""A workspace: one database, one model, and the adapters. The command line and the server use it.

    ws = reflect.open("lessons.db", model="pocket")
    ws.run("letters", n=16, k=8)
    print(ws.prompt("letters"))
    ws.sleep()

The database and the model are opened on first use, so a query about lessons does not load torch.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from reflect.errors import NightBusy, StoreError, UsageError
from reflect.lessons import selection
from reflect.models import distributed, is_remote
from reflect.records import HELD_STATUSES
from reflect.rollouts.episode import messages_for, opening
from reflect.store import doctor, nights, runs
from reflect.tasksets.base import find_task
from reflect.types import OLD_ARMS, Arm
from reflect.workspace.context import WorkspaceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reflect.config import Settings
    from reflect.day.report import Report
    from reflect.day.run import RunArguments
    from reflect.evaluation.arms import ArmResult
    from reflect.models.base import Model
    from reflect.night.due import Due
    from reflect.night.sleep import NightReport, Trainer
    from reflect.records import Adapter, Lesson, Run
    from reflect.store import Store
    from reflect.tasksets.base import Taskset
    from reflect.tasksets.task import Message, Split, Task
    from reflect.training.plan import NightOptions
    from reflect.types import Json, Progress
    from reflect.workspace.adapters import AdapterManager
    from reflect.workspace.grades import Grades
    from reflect.workspace.lessons import Lessons
    from reflect.workspace.reviewers import Reviewers
    from reflect.workspace.sessions import Sessions

WEIGHTS = (
    "Sleep with local weights of that model: reflect sleep -m hf:ORG/NAME, or a path. Its lessons "
    "work in the prompt meanwhile; `reflect trial` measures them."
)


@dataclass(frozen=True)
class Prompt:
    """The exact messages that the model receives for a task, and the lessons in them."""

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
    def reviewers(self) -> Reviewers:
        """The adapters for reflections: train, listing, rollback."""
        from reflect.workspace.reviewers import Reviewers

        return Reviewers(self.context)

    @cached_property
    def grades(self) -> Grades:
        """Grades given by people: waiting, give, load, save, review."""
        from reflect.workspace.grades import Grades

        return Grades(self.context)

    @cached_property
    def sessions(self) -> Sessions:
        """Sessions of coding agents: listing, load, export, connect."""
        from reflect.workspace.sessions import Sessions

        return Sessions(self.context)

    def refresh_hooks(self) -> None:
        """Write the lessons for connected hooks anew, if this workspace has used the database."""
        if "store" in vars(self.context):
            self.sessions.refresh()

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
        """See `adapters.promote`."""
        return self.adapters.promote(name)

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """See `adapters.rollback`."""
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
        join: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Practise n tasks k times each and learn from it. The same arguments continue an
        interrupted run. `join`: share the run with other processes that have this database."""
        from reflect.day.run import RunArguments

        settings = self.settings
        n, k = settings.n if n is None else n, settings.k if k is None else k
        arguments = RunArguments(
            n=n, k=k, seed=seed, learn=learn, use_lessons=use_lessons, join=join
        )
        return self._practice(taskset, arguments, progress)

    def _practice(
        self, taskset: str | Path | Taskset, arguments: RunArguments, progress: Progress | None
    ) -> Report:
        from reflect.day.practice import run_practice

        context = self.context.practice_on(taskset, progress, learn=arguments.learn)
        return run_practice(context, arguments, self.reflector if arguments.learn else None)

    def resume(
        self,
        run_id: int | None = None,
        *,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Finish a run with the settings that it was started with, by default the newest unfinished
        run. Raises UsageError or ModelError if its tasks, model, adapter or verifier have changed.

        `restart`: begin another run in its place, with its settings and everything else as it is
        now. The first one is closed as abandoned; its rollouts stay.
        """
        from reflect.day.run import RunArguments, ensure_unchanged, resume
        from reflect.trials.reward_version import reward_version

        resumed = resume(self.store, self.settings, run_id, restart=restart)
        run, ws = resumed.run, Workspace(resumed.settings)
        if run.from_traffic:
            from reflect.day.traffic import finish

            return finish(ws.model, ws.store, ws.settings, run, progress)
        taskset = ws.taskset(run.taskset)
        if not restart:
            ensure_unchanged(run, ws.model, ws.reflector, reward_version(taskset))
        arguments = RunArguments(
            n=run.n,
            k=run.k,
            seed=run.seed,
            learn=resumed.flags.get("learn", True),
            use_lessons=resumed.flags.get("use_lessons", True),
            continues=None if restart else run,
            replaces=run if restart else None,
        )
        return ws._practice(taskset, arguments, progress)

    def abandon(self, run_id: int) -> Run:
        """Close an unfinished run. Its rollouts stay, and count as evidence on its lessons."""
        return self.context.write(runs.abandon, run_id)

    def prompt(self, taskset: str | Path | Taskset, task: str | Task | None = None) -> Prompt:
        """The prompt of a task, given by itself or its id; by default of the first holdout task."""
        bound = self.taskset(taskset)
        task = find_task(bound, task) if task is None or isinstance(task, str) else task
        messages, state = opening(bound, task)
        room = selection.room_for_lessons(
            task, self.settings, self.context.sizes.context, self.count_tokens
        )
        lessons = self.context.read(
            selection.select_lessons,
            bound.name,
            task,
            profile=self.settings.profile,
            budget=room,
            limit=self.settings.lesson_limit,
            count_tokens=self.count_tokens,
            state=state,
        )
        return Prompt(bound.name, task, messages_for(task, lessons, messages), lessons)

    # -- measuring

    def evaluate(
        self,
        taskset: str | Path | Taskset,
        *,
        arms: Sequence[str] = (Arm.BASE, Arm.LESSONS),
        n: int | None = None,
        split: Split = "holdout",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> dict[Arm, ArmResult]:
        """The arms on the first n tasks (all when None) of the split, paired: see
        `reflect.evaluation.arms`."""
        from reflect.evaluation.arms import evaluate

        ctx = self.context.practice_on(taskset, progress)
        return evaluate(ctx, arms=arms, n=n, split=split, seed=seed)

    def arm(
        self,
        taskset: str | Path | Taskset,
        name: str,
        *,
        n: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ArmResult:
        """One arm on holdout: base, lessons, adapter or both (the old names base_out, base_in,
        adapter_out, adapter_in work until 0.2).

        Here `both` has all lessons in the prompt, also those in the weights, as `lessons` has.
        Without an active adapter, `adapter` equals `base` and `both` equals `lessons`.
        """
        from reflect.evaluation.arms import arm_of, evaluate
        from reflect.models.base import active_adapter

        arm, ctx = OLD_ARMS.get(name) or arm_of(name), self.context.practice_on(taskset, progress)
        if active_adapter(self.model) is None:
            arm = Arm.LESSONS if arm.has_lessons else Arm.BASE
        return evaluate(ctx, arms=[arm], n=n, seed=seed, both_statuses=HELD_STATUSES)[arm]

    def following(
        self, taskset: str | Path | Taskset, *, adapter: bool, n: int = 100, seed: int = 0
    ) -> ArmResult | None:
        """How well new lessons in the prompt are followed, with the active adapter or bare; None
        without such tasks."""
        from reflect.evaluation.arms import following
        from reflect.models.base import SamplingOptions, active_adapter, using

        bound, model = self.taskset(taskset), self.model
        tasks, options = bound.following(n, seed), SamplingOptions.of(self.settings)
        with using(model, active_adapter(model) if adapter else None):
            return following(model, tasks, bound, options=options) if tasks else None

    # -- the night

    def sleep(
        self,
        *tasksets: str | Path | Taskset,
        options: NightOptions | None = None,
        dry_run: bool = False,
        if_due: bool = False,
        deadline: float | None = None,
        trainer: Trainer | None = None,
        progress: Progress | None = None,
        **changes: object,
    ) -> NightReport:
        """One night over all lessons of the profile: train an adapter, evaluate it, promote it if
        it passes the gate. A finished night is not repeated.

        `if_due`: only if a night is due (see `due`). `deadline`: minutes from now after which the
        night pauses; the next sleep continues it. `trainer`: see `reflect.night.job`. `changes`:
        single fields of `options` or of the plan, such as `budget=1`.
        """
        from reflect.night.sleep import sleep
        from reflect.training.plan import NightOptions

        chosen = (options or NightOptions()).changed(changes)
        bound = [self.taskset(name) for name in tasksets]
        until = None if deadline is None else time.monotonic() + 60 * deadline

        def night() -> NightReport:
            return sleep(
                self.model,
                self.store,
                self.settings,
                chosen,
                tasksets=bound,
                load=self.taskset,
                dry_run=dry_run,
                until=until,
                trainer=trainer,
                progress=progress,
            )

        def checked() -> NightReport:
            return self._night(night, bound, if_due)

        if distributed.size() == 1:
            return checked()
        from reflect.night.workers import lead

        return lead(checked, lambda: self.model)

    def export_night(
        self,
        folder: Path,
        *tasksets: str,
        options: NightOptions | None = None,
        progress: Progress | None = None,
        **changes: object,
    ) -> NightReport:
        """Begin a night and write its training as a job for another machine: see
        `reflect.night.job`. UsageError if the folder has anything in it."""
        from reflect.night import job
        from reflect.training.plan import NightOptions

        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder.", "Name a new one.")
        chosen = (options or NightOptions()).changed(changes)
        export = functools.partial(job.export, folder, chosen, list(tasksets))
        return self.sleep(*tasksets, options=chosen, trainer=export, progress=progress)

    def work_on_night(self, folder: Path, *, progress: Progress | None = None) -> Json:
        """Train a job with the model of the settings; opens no database: see
        `reflect.night.job.work`."""
        from reflect import models
        from reflect.models.local import LocalModel
        from reflect.night import job

        job.read_job(folder)  # before the model is loaded
        model = models.load_model(self.settings.model, self.settings)
        if not isinstance(model, LocalModel):
            raise UsageError(f"The model {model.name} has no weights here to train.", WEIGHTS)
        return job.work(model, folder, self.settings, progress)

    def import_night(self, folder: Path, *, progress: Progress | None = None) -> NightReport:
        """Check the result of a job and continue its night with the gate."""
        from reflect.night import job

        options, tasksets = job.exported(self.store, self.settings, folder)
        take = functools.partial(job.take_result, folder)
        return self.sleep(*tasksets, options=options, trainer=take, progress=progress)

    def _night(
        self, night: Callable[[], NightReport], tasksets: Sequence[Taskset], if_due: bool
    ) -> NightReport:
        from reflect.night.sleep import NightReport
        from reflect.night.workdir import is_running

        if is_remote(self.settings.model):
            message = f"A night trains weights, and {self.settings.model} has none here."
            raise UsageError(message, WEIGHTS)
        if if_due and not (due := self.due(*tasksets)):
            return NightReport("not due", due.reason)
        if is_running(self.settings):  # before the model is loaded; the lock itself decides
            raise NightBusy("Another sleep is running.", "Wait until it is done: `reflect nights`.")
        before = self._active_id()
        try:
            report = night()
        except NightBusy as e:
            if not if_due:
                raise
            return NightReport("not due", f"Not due: {e.message}")
        if self._active_id() != before:
            self.adapters.publish()
        return report

    def _active_id(self) -> int | None:
        adapter = self.context.read(nights.active_adapter, self.settings.profile)
        return adapter.id if adapter else None

    def due(self, *tasksets: str | Path | Taskset) -> Due:
        """Whether a night should start, and why, without loading the model: see
        `reflect.night.due`."""
        from reflect.night.due import Due, decide
        from reflect.night.workdir import is_running
        from reflect.records import now

        if is_running(self.settings):
            return Due(False, "Not due: another sleep is running.")
        return decide(self.store, self.settings, now(), [self.taskset(name) for name in tasksets])

    # -- health

    def sweep(self) -> list[Path]:
        """Remove the files of killed nights, unless a night is running. Returns their paths."""
        from reflect.night import cleanup

        return cleanup.remove_leftovers(self.store, self.settings)

    def doctor(self, *, deep: bool = False, accept: bool = False) -> list[str]:
        """Problems of the database and the adapters, one sentence each; [] if there are none.

        `deep`: compare every row with the hash that was saved with it. `accept`: first take the
        rows as they are now as right, after a change by another program.
        """
        try:
            if accept:
                doctor.accept(self.store)
            problems = doctor.check(self.store, deep=deep)
        except StoreError as e:
            return [str(e)]
        if problems:
            return problems  # the rows of adapters may be unreadable
        return [problem for problem in self.adapters.verify(base=False).values() if problem]
