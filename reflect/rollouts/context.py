"""Contexts: what the functions of a run share, in one value instead of long parameter lists."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.base import Model
    from reflect.records import Run
    from reflect.store import Store
    from reflect.tasksets.base import Taskset
    from reflect.types import Progress


@dataclass(frozen=True)
class TasksetContext:
    """A model, a database, a taskset and the settings: what practising and measuring need."""

    model: Model
    store: Store
    taskset: Taskset
    settings: Settings
    _: KW_ONLY
    progress: Progress | None = None
    reviewer: str = ""
    """The reviewer adapter of the model that reflects; "": its base reflects."""

    def report(self, done: int, total: int, what: str) -> None:
        """Report progress, if a callback is set."""
        if self.progress:
            self.progress(done, total, what)

    def in_run(self, run: Run, reflector: Model | None = None) -> RunContext:
        """The same with a run. `reflector` reflects; by default the model itself."""
        return RunContext(**vars(self), run=run, reflector=reflector or self.model)


@dataclass(frozen=True, kw_only=True)
class RunContext(TasksetContext):
    """One run: its row, and the model that reflects on its rollouts."""

    run: Run
    reflector: Model
