"""The adapters of a workspace: promoted, rolled back, pushed to a server, written out, verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import Settings
from reflect.errors import AdapterError, ReflectError

if TYPE_CHECKING:
    from reflect.models.base import Model
    from reflect.night.serving import Pushed
    from reflect.records import Adapter
    from reflect.store import Store


class Shelf:
    """What a `Workspace` does with adapters."""

    settings: Settings
    complaints: list[str]  # what went wrong beside what was asked for, in sentences

    @property
    def store(self) -> Store:
        raise NotImplementedError

    @property
    def model(self) -> Model:
        raise NotImplementedError

    def promote(self, name: str) -> Adapter:
        """Make an adapter the active one, as its own night would have: what it holds leaves the prompt.

        Raises AdapterError when it is damaged or for another base, UsageError when the gate rejected it or it knows a
        lesson that was revoked.
        """
        from reflect.night import adapters
        from reflect.store import marks, nights

        with self.store.read() as s:
            adapter = nights.get_adapter(s, name)
        marks.refuse(adapter)  # before the model is loaded
        adapters.verify(adapter, self.settings, self.model.fingerprint)
        judged = adapter.gate.get("lessons")
        held = None if judged is None else [int(i) for i, found in judged.items() if found["verdict"] == "accept"]
        with self.store.write() as s:
            nights.promote(s, adapter.id, self.settings.profile, held)
        self.publish()
        adapters.activate(self.model, self.store, self.settings)
        return adapter

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """Undo the last promotion: (the adapter that was left, the one that is active now). Lessons return with it."""
        from reflect.store import nights

        with self.store.write() as s:
            left, now = nights.rollback(s, self.settings.profile)
        self.switch(left)
        return left, now

    def push(self) -> Pushed:
        """Give the active adapter to the server at `serve_url`: see `reflect.night.serving`."""
        from reflect.night.serving import push

        return push(self.store, self.settings)

    def publish(self, left: Adapter | None = None) -> None:
        """The same after a change of the active adapter, where there is such a server. Where it fails, the change
        stands and `complaints` says so. `left`: the adapter that was left by a rollback."""
        from reflect.night.serving import push

        if self.settings.serve_url:
            try:
                push(self.store, self.settings, left)
            except ReflectError as e:
                self.complaints.append(str(e))

    def switch(self, left: Adapter | None = None) -> None:
        """The active adapter may be another one now: a server of it and a model that is loaded already follow."""
        from reflect.night import adapters

        self.publish(left)
        if "model" in self.__dict__:
            adapters.activate(self.model, self.store, self.settings)

    def export_adapter(
        self, name: str, out: str | Path | None = None, *, merge: bool = False, overwrite: bool = False
    ) -> Path:
        """An adapter as a PEFT folder with a model card, or with `merge` the base with the adapter in its weights.

        By default into a folder of its name. AdapterError for a damaged one or another base's, UsageError for one that
        knows what was revoked, and when something stands there and `overwrite` is not set.
        """
        from reflect.night import carry

        return carry.export(self.store, self.settings, name, Path(out or name), merge=merge, overwrite=overwrite)

    def verify(self, name: str | None = None, *, base: bool = True) -> dict[str, str]:
        """adapter name -> "" when its files are what they were, else what is wrong. `base`: also for this model?"""
        from reflect.night import adapters
        from reflect.store import nights

        with self.store.read() as s:
            rows = [nights.get_adapter(s, name)] if name else nights.list_adapters(s)
        found = {}
        for row in rows:
            try:
                adapters.verify(row, self.settings, self.model.fingerprint if base else None)
                found[row.name] = ""
            except AdapterError as e:
                found[row.name] = e.message
        return found
