"""What the parts of a workspace share: settings, database and models. Each is opened on first
use."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import Settings
from reflect.tasksets import isolation

if TYPE_CHECKING:
    from reflect.models import Unloaded
    from reflect.models.base import Model
    from reflect.store import Store
    from reflect.tasksets.base import Taskset


class WorkspaceContext:
    """Settings, store and models of one workspace. A question about lessons never loads the
    model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.complaints: list[
            str
        ] = []  # warnings: secondary steps that failed, for the caller to print
        isolation.limit(settings.verify_seconds, settings.verify_memory)

    @property
    def path(self) -> str:
        """The database: a full path, or the URL without its password."""
        if "://" not in self.settings.db:
            return str(Path(self.settings.db).expanduser().resolve())
        from reflect.store.dialect import without_password

        return without_password(self.settings.db)

    @cached_property
    def store(self) -> Store:
        """The database; created or migrated if necessary."""
        from reflect.store import Store

        return Store(self.settings.db)

    @cached_property
    def model(self) -> Model:
        """The model with the profile's active adapter, whose files are verified first."""
        from reflect.adapters import activation
        from reflect.models import load_model

        model = load_model(self.settings.model, self.settings)
        activation.activate(model, self.store, self.settings)
        return model

    @property
    def model_is_loaded(self) -> bool:
        return "model" in self.__dict__

    @cached_property
    def reflector(self) -> Model | None:
        """The model that reflects, without adapter; None if it is the model that makes the
        rollouts."""
        from reflect.models import load_model

        name = self.settings.reflector
        return load_model(name, self.settings) if name and name != self.settings.model else None

    def taskset(self, name: str | Path | Taskset) -> Taskset:
        """A taskset by name or file, bound to the judge of the settings; a Taskset is bound as it
        is."""
        from reflect.rollouts.judge import bind
        from reflect.tasksets import load_taskset

        return bind(load_taskset(name) if isinstance(name, str | Path) else name, self.settings)

    @property
    def sizes(self) -> Unloaded | Model:
        """Tokenizer and context length: from the model's files while it is not loaded, if they
        contain them."""
        return self.model if self.model_is_loaded else self._files or self.model

    @cached_property
    def _files(self) -> Unloaded | None:
        from reflect.models import unloaded

        return unloaded(self.settings.model, self.settings.max_context)

    def count_tokens(self, text: str) -> int:
        """The number of the model's tokens in `text`. Does not load the model if its tokenizer is
        available."""
        return self.sizes.count_tokens(text)
