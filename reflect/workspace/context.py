"""What the parts of a workspace share: settings, database, models. Each opens on first use."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from reflect import models
from reflect.adapters import activation
from reflect.reading import expand_home
from reflect.rollouts import judge
from reflect.rollouts.context import TasksetContext
from reflect.store import Store
from reflect.store.dialect import without_password
from reflect.tasksets import isolation, load_taskset

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlmodel import Session

    from reflect.config import Settings
    from reflect.models import Unloaded
    from reflect.models.base import Model
    from reflect.tasksets.base import Taskset
    from reflect.types import Progress

P = ParamSpec("P")
T = TypeVar("T")


class WorkspaceContext:
    """Settings, store and models of one workspace. Queries about lessons do not load the model."""

    complaints: list[str]
    """Warnings: secondary steps that failed, for the caller to print."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.complaints = []
        isolation.limit(settings.verify_seconds, settings.verify_memory)

    @property
    def path(self) -> str:
        """The database: a full path, or the URL without its password."""
        if "://" in self.settings.db:
            return without_password(self.settings.db)
        return str(expand_home(self.settings.db).resolve())

    @cached_property
    def store(self) -> Store:
        """The database; created or migrated if necessary."""
        return Store(self.settings.db)

    def read(
        self, query: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a function of `reflect.store` in a read transaction."""
        with self.store.read() as s:
            return query(s, *args, **kwargs)

    def write(
        self, change: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """The result of a function of `reflect.store` in a write transaction."""
        with self.store.write() as s:
            return change(s, *args, **kwargs)

    @cached_property
    def model(self) -> Model:
        """The model with the profile's active adapter, whose files are verified first."""
        model = models.load_model(self.settings.model, self.settings)
        activation.activate(model, self.store, self.settings)
        return model

    @property
    def model_is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return "model" in self.__dict__

    @cached_property
    def reflector(self) -> Model | None:
        """The model that reflects, without adapter; None if it is the model of the rollouts."""
        name = self.settings.reflector
        return (
            models.load_model(name, self.settings) if name and name != self.settings.model else None
        )

    def taskset(self, name: str | Path | Taskset) -> Taskset:
        """A taskset by name or file, or a Taskset, bound to the judge of the settings, or else to
        the model. Everything that the workspace does with tasksets begins here."""
        taskset = load_taskset(name) if isinstance(name, str | Path) else name
        return judge.bind(taskset, self.settings, lambda: self.model)

    def practice_on(
        self,
        taskset: str | Path | Taskset,
        progress: Progress | None = None,
        *,
        learn: bool = False,
    ) -> TasksetContext:
        """The model, the database and the settings with a taskset, to practise or to measure; to
        `learn` also the profile's reviewer."""
        bound = self.taskset(taskset)  # its errors come before anything is loaded
        context = TasksetContext(self.model, self.store, bound, self.settings, progress=progress)
        return replace(context, reviewer=self.reviewer) if learn else context

    @property
    def reviewer(self) -> str:
        """The profile's reviewer adapter, loaded into the model that reflects; "" without one."""
        from reflect.reviewer.active import load_reviewer

        return load_reviewer(self.reflector or self.model, self.store, self.settings)

    @property
    def sizes(self) -> Unloaded | Model:
        """Tokenizer and context length, without loading the model if its files contain them."""
        return self.model if self.model_is_loaded else self._unloaded or self.model

    @cached_property
    def _unloaded(self) -> Unloaded | None:
        return models.unloaded(self.settings.model, self.settings.max_context)

    def count_tokens(self, text: str) -> int:
        """The number of the model's tokens in `text`; does not load the model if possible."""
        return self.sizes.count_tokens(text)
