"""The adapters of a workspace: promote, roll back, push to a server, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reflect.errors import AdapterError, ReflectError

if TYPE_CHECKING:
    from reflect.adapters.deployment import Pushed
    from reflect.records import Adapter
    from reflect.workspace.context import WorkspaceContext


class AdapterManager:
    """The adapters of one profile."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context
        self.settings = context.settings

    def promote(self, name: str) -> Adapter:
        """Make an adapter the active one, as its own night would: lessons in its weights leave the
        prompt.

        Raises AdapterError if it is damaged or for another base, UsageError if the gate rejected it
        or it was trained on a revoked lesson.
        """
        from reflect.adapters import activation, registry
        from reflect.store import nights, revoked_adapters

        with self.context.store.read() as s:
            adapter = nights.get_adapter(s, name)
        revoked_adapters.refuse(adapter)  # before the model is loaded
        registry.verify(adapter, self.settings, self.context.model.fingerprint)
        judged = adapter.gate.get("lessons")
        held = (
            None
            if judged is None
            else [int(i) for i, found in judged.items() if found["verdict"] == "accept"]
        )
        with self.context.store.write() as s:
            nights.promote(s, adapter.id, self.settings.profile, held)
        self.publish()
        activation.activate(self.context.model, self.context.store, self.settings)
        return adapter

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """Undo the last promotion: (the former active adapter, the active one now). Lessons return
        to the prompt."""
        from reflect.store import nights

        with self.context.store.write() as s:
            left, now = nights.rollback(s, self.settings.profile)
        self.switch(left)
        return left, now

    def push(self) -> Pushed:
        """Load the active adapter on the server at `serve_url`: see
        `reflect.adapters.deployment`."""
        from reflect.adapters.deployment import push

        return push(self.context.store, self.settings)

    def publish(self, left: Adapter | None = None) -> None:
        """Push after a change of the active adapter, if `serve_url` is set. A failure is added to
        `complaints`; the change remains. `left`: the adapter that a rollback deactivated."""
        from reflect.adapters.deployment import push

        if self.settings.serve_url:
            try:
                push(self.context.store, self.settings, left)
            except ReflectError as e:
                self.context.complaints.append(str(e))

    def switch(self, left: Adapter | None = None) -> None:
        """Apply a changed active adapter to the server and to the model, if it is loaded."""
        from reflect.adapters import activation

        self.publish(left)
        if self.context.model_is_loaded:
            activation.activate(self.context.model, self.context.store, self.settings)

    def export(
        self,
        name: str,
        out: str | Path | None = None,
        *,
        merge: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """An adapter as a PEFT folder with a model card, or with `merge` the base with the adapter
        in its weights.

        By default into a folder of its name. AdapterError if it is damaged or for another base;
        UsageError if it was trained on a revoked lesson, or if the folder exists and `overwrite` is
        not set.
        """
        from reflect.adapters import export

        return export.export(
            self.context.store,
            self.settings,
            name,
            Path(out or name),
            merge=merge,
            overwrite=overwrite,
        )

    def verify(self, name: str | None = None, *, base: bool = True) -> dict[str, str]:
        """adapter name -> "" if its files are unchanged, else the problem. `base`: also compare the
        base."""
        from reflect.adapters import registry
        from reflect.store import nights

        with self.context.store.read() as s:
            rows = [nights.get_adapter(s, name)] if name else nights.list_adapters(s)
        found = {}
        for row in rows:
            try:
                registry.verify(
                    row, self.settings, self.context.model.fingerprint if base else None
                )
                found[row.name] = ""
            except AdapterError as e:
                found[row.name] = e.message
        return found
