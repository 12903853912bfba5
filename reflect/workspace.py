"""A workspace: one database, one model, the adapters beside the database. What every surface is a thin layer over.

    ws = reflect.open("lessons.db", model="pocket")
    ws.run("letters", n=16, k=8)
    print(ws.prompt("letters"))
    ws.sleep()

The database and the model are opened when first used, so that a question about lessons never waits for torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.config import Settings
from reflect.errors import NightBusy, UnknownName, UsageError
from reflect.models import processes
from reflect.shelf import Shelf
from reflect.tasksets import scoring
from reflect.tasksets.base import find_task

if TYPE_CHECKING:
    from reflect.book import Lessons
    from reflect.day.summary import Report
    from reflect.evaluate import ArmResult
    from reflect.models import Unloaded
    from reflect.models.base import Model
    from reflect.night.due import Due
    from reflect.night.sleep import NightReport
    from reflect.records import Lesson
    from reflect.store import Store
    from reflect.tasksets.base import Message, Split, Task, Taskset

Progress = Callable[[int, int, str], None]  # (done, total, what)
FOUR_ARMS = {  # arm -> (adapter on, lessons in the prompt)
    "base_out": (False, False),
    "base_in": (False, True),
    "adapter_out": (True, False),
    "adapter_in": (True, True),
}
WEIGHTS = (
    "Sleep on the weights that it serves: reflect sleep -m hf:ORG/NAME, or a path. Until then its lessons work in the "
    "prompt, measured by `reflect trial`."
)


@dataclass(frozen=True)
class Prompt:
    """Exactly what the model will see of a task, and the lessons that stand in it."""

    taskset: str
    task: Task
    messages: list[Message]
    lessons: list[Lesson]

    def __str__(self) -> str:
        return "\n\n".join(f"{m['role']}:\n{m['content']}" for m in self.messages)


class Workspace(Shelf):
    """Lessons, runs, nights and adapters of one profile. Methods raise ReflectError, whose hint is the next step."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.complaints = []
        scoring.limit(settings.verify_seconds, settings.verify_memory)

    # -- what it is made of

    @property
    def path(self) -> str:
        """Where the database is: a full path, or the URL without its password."""
        if "://" not in self.settings.db:
            return str(Path(self.settings.db).expanduser().resolve())
        from reflect.store.dialect import without_password

        return without_password(self.settings.db)

    @cached_property
    def store(self) -> Store:
        """The database, made or migrated when that is needed."""
        from reflect.store import Store

        return Store(self.settings.db)

    @cached_property
    def model(self) -> Model:
        """The model with the profile's active adapter on, verified first."""
        from reflect.models import load_model
        from reflect.night import adapters

        model = load_model(self.settings.model, self.settings)
        adapters.activate(model, self.store, self.settings)
        return model

    @cached_property
    def reflector(self) -> Model | None:
        """The model that reviews the attempts, bare; None where that is the one that makes them."""
        from reflect.models import load_model

        name = self.settings.reflector
        return load_model(name, self.settings) if name and name != self.settings.model else None

    @cached_property
    def lessons(self) -> Lessons:
        """The lessons: list, get, history, search, add, edit, retire, undo."""
        from reflect.book import Lessons

        return Lessons(self)

    def taskset(self, name: str | Path | Taskset) -> Taskset:
        """A taskset by name or file; one that is given is given back."""
        from reflect.day.judge import bind
        from reflect.tasksets import load_taskset

        return bind(load_taskset(name) if isinstance(name, str | Path) else name, self.settings)

    def count_tokens(self, text: str) -> int:
        """Tokens of the model, by its tokenizer alone while the model is not loaded."""
        return self._sizes.count_tokens(text)

    @property
    def _sizes(self) -> Unloaded | Model:
        """What knows the model's tokens and its context: its files while it is not loaded, where they say it."""
        return self.model if "model" in self.__dict__ else self._files or self.model

    @cached_property
    def _files(self) -> Unloaded | None:
        from reflect.models import unloaded

        return unloaded(self.settings.model, self.settings.max_context)

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
        """Practise n tasks k times each and learn from it. The same words continue a run that was interrupted."""
        found = self.taskset(taskset)  # what is wrong with it is said before anything is loaded
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
        """Finish a run in the words in which it was begun; by default the newest unfinished one."""
        from reflect.day.measure import measure
        from reflect.day.resuming import begun, unchanged

        again = begun(self.store, self.settings, run_id)
        run, ws = again.run, Workspace(again.settings)
        if run.config.get("from_traffic"):
            from reflect.day.traffic import finish

            return finish(ws.model, ws.store, ws.settings, run, progress)
        found = ws.taskset(run.taskset)
        unchanged(run, ws.model, ws.reflector, measure(found))
        return ws.run(found, n=run.n, k=run.k, seed=run.seed, progress=progress, **again.flags)

    def prompt(self, taskset: str | Path | Taskset, task: str | Task | None = None) -> Prompt:
        """What the model will see of a task, given by itself or its id; by default of the first holdout task."""
        from reflect.day.episode import messages_for, opening
        from reflect.day.lessons import choose, room_for_lessons

        found = self.taskset(taskset)
        task = find_task(found, task) if task is None or isinstance(task, str) else task
        said, state = opening(found, task)
        with self.store.read() as s:
            lessons = choose(
                s,
                found.name,
                task,
                profile=self.settings.profile,
                budget=room_for_lessons(task, self.settings, self._sizes.context, self.count_tokens),
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
        """The arms on the first n tasks (all when None) of the split, paired: see `reflect.evaluate`."""
        from reflect.evaluate import evaluate

        found, settings = self.taskset(taskset), self.settings
        options: dict[str, Any] = {"arms": arms, "n": n, "split": split, "seed": seed, "progress": progress}
        return evaluate(self.model, self.store, found, settings=settings, **options)

    def arm(
        self,
        taskset: str | Path | Taskset,
        name: str,
        *,
        n: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> ArmResult:
        """One of the four arms base_out, base_in, adapter_out, adapter_in on holdout; `in` is every lesson that is
        held, in text or in weights. With no adapter active its arms are those of the base."""
        from reflect.day.lessons import lessons_for
        from reflect.day.rollout import using
        from reflect.evaluate import HELD_STATUSES, run_arm

        if name not in FOUR_ARMS:
            raise UnknownName(f"There is no arm '{name}'.", f"The arms are: {', '.join(FOUR_ARMS)}.")
        found, model = self.taskset(taskset), self.model
        adapter_on, lessons_in = FOUR_ARMS[name]
        tasks = found.tasks("holdout", n, seed)
        with self.store.read() as s:
            rows = [
                (t, lessons_for(model, s, found, t, self.settings, HELD_STATUSES) if lessons_in else []) for t in tasks
            ]
        with using(model, getattr(model, "active", None) if adapter_on else None):
            most = self.settings.max_tokens
            return run_arm(model, found, rows, max_tokens=most, limits=self.settings.limits, progress=progress)

    def following(
        self, taskset: str | Path | Taskset, *, adapter: bool, n: int = 100, seed: int = 0
    ) -> ArmResult | None:
        """How well new lessons in the prompt are followed, with the active adapter or bare; None without such tasks."""
        from reflect.day.rollout import using
        from reflect.evaluate import following

        found, model = self.taskset(taskset), self.model
        tasks = found.following(n, seed)
        with using(model, getattr(model, "active", None) if adapter else None):
            most, limits = self.settings.max_tokens, self.settings.limits
            return following(model, tasks, found, max_tokens=most, limits=limits) if tasks else None

    # -- the night

    def sleep(
        self,
        *tasksets: str | Path | Taskset,
        dry_run: bool = False,
        if_due: bool = False,
        deadline: float | None = None,
        progress: Progress | None = None,
        **dials: Any,
    ) -> NightReport:
        """One night over all lessons of the profile: train an adapter, judge it, promote it when it is good.

        `dials`: method, divergence, budget (minutes), seed. The same night again does nothing. `if_due`: only when it
        is time (see `due`). `deadline`: minutes from now, after which the night pauses, to go on with the next sleep.
        """
        words: dict[str, Any] = {"dry_run": dry_run, "if_due": if_due, "deadline": deadline, "progress": progress}
        night = partial(self._sleep, *tasksets, **words, **dials)
        if processes.size() == 1:
            return night()
        from reflect.night.parallel import lead

        try:
            return lead(night, lambda: self.model)
        finally:
            if processes.share_layers(self.settings.device_map):  # the others have gone, and their parts with them
                self.__dict__.pop("model", None)

    def _sleep(
        self,
        *tasksets: str | Path | Taskset,
        dry_run: bool,
        if_due: bool,
        deadline: float | None,
        progress: Progress | None,
        **dials: Any,
    ) -> NightReport:
        began = time.monotonic()
        found = [self.taskset(name) for name in tasksets]
        from reflect.models import is_remote
        from reflect.night.sleep import NightReport, sleep
        from reflect.night.workshop import is_running

        if is_remote(self.settings.model):
            raise UsageError(f"A night trains weights, and {self.settings.model} has none here.", WEIGHTS)

        if if_due and not (due := self.due(*found)):
            return NightReport("not due", due.reason)
        if is_running(self.settings):  # said before the model is loaded; who holds the lock decides in the end
            raise NightBusy("Another sleep is running.", "Wait until it is done: `reflect nights`.")
        until = None if deadline is None else began + 60 * deadline
        words: dict[str, Any] = {"tasksets": found, "dry_run": dry_run, "until": until, "progress": progress}
        before = self._active()
        try:
            report = sleep(self.model, self.store, self.settings, **words, **dials)
        except NightBusy as e:
            if not if_due:
                raise
            return NightReport("not due", f"Not due: {e.message}")
        if self._active() != before:
            self.publish()
        return report

    def _active(self) -> int | None:
        from reflect.store import nights

        with self.store.read() as s:
            adapter = nights.active_adapter(s, self.settings.profile)
        return adapter.id if adapter else None

    def due(self, *tasksets: str | Path | Taskset) -> Due:
        """Is it time to sleep? Without loading the model: see `reflect.night.due`."""
        from reflect.night.due import Due, decide
        from reflect.night.workshop import is_running
        from reflect.records import now

        if is_running(self.settings):
            return Due(False, "Not due: another sleep is running.")
        return decide(self.store, self.settings, now(), [self.taskset(name) for name in tasksets])

    # -- health

    def sweep(self) -> list[Path]:
        """Remove what killed nights left and no night will read again, unless one is running. What was removed."""
        from reflect.night import leftovers

        return leftovers.sweep(self.store, self.settings)

    def doctor(self) -> list[str]:
        """What is wrong with the database and the adapters, in sentences; [] when all is well."""
        from reflect.store import doctor

        problems = doctor.check(self.store)
        return problems + [problem for problem in self.verify(base=False).values() if problem]
