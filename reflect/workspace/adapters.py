"""The adapters of a workspace: promote, roll back, push to a server, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reflect.adapters import activation, deployment, export, registry
from reflect.errors import AdapterError, ReflectError, UsageError
from reflect.store import nights, reviewers, revoked_adapters

if TYPE_CHECKING:
    from reflect.adapters.model_card import Form
    from reflect.records import Adapter
    from reflect.workspace.context import WorkspaceContext


class AdapterManager:
    """The adapters of one profile."""

    def __init__(self, context: WorkspaceContext) -> None:
        self.context = context
        self.settings = context.settings

    def promote(self, name: str) -> Adapter:
        """Make an adapter the active one, as its own night would. The lessons in its weights leave
        the prompt.

        Raises AdapterError if it is damaged or for another base, UsageError if the gate rejected it
        or it was trained on a revoked lesson.
        """
        adapter = self.context.read(nights.get_adapter, name)
        if reviewers.is_reviewer(adapter):
            raise UsageError(
                f"{adapter.name} is for reflections and answers no task.",
                "See `reflect reviewer list`.",
            )
        revoked_adapters.refuse(adapter)  # before the model is loaded
        registry.verify(adapter, self.settings, self.context.model.fingerprint)
        # Without a gate report, the adapter holds the lessons of its night: None.
        lesson_ids = (
            revoked_adapters.still_holds(adapter, None) if "lessons" in adapter.gate else None
        )
        self.context.write(nights.promote, adapter.id, self.settings.profile, lesson_ids)
        self.publish()
        activation.activate(self.context.model, self.context.store, self.settings)
        return adapter

    def rollback(self) -> tuple[Adapter, Adapter | None]:
        """Undo the last promotion: (the former active adapter, the active one now). Lessons return
        to the prompt."""
        left, now = self.context.write(nights.rollback, self.settings.profile)
        self.switch(left)
        return left, now

    def push(self) -> deployment.Pushed:
        """Load the active adapter on the server at `serve_url`."""
        return deployment.push(self.context.store, self.settings)

    def publish(self, left: Adapter | None = None) -> None:
        """Push after a change of the active adapter, if `serve_url` is set. A failure is added to
        `complaints`; the change remains. `left`: the adapter that a rollback deactivated."""
        if self.settings.serve_url:
            try:
                deployment.push(self.context.store, self.settings, left)
            except ReflectError as e:
                self.context.complaints.append(str(e))

    def switch(self, left: Adapter | None = None) -> None:
        """Apply a changed active adapter to the server and to the model, if it is loaded."""
        self.publish(left)
        if self.context.model_is_loaded:
            activation.activate(self.context.model, self.context.store, self.settings)

    def export(
        self,
        name: str,
        out: str | Path | None = None,
        *,
        merge: bool = False,
        form: Form = "peft",
        overwrite: bool = False,
    ) -> Path:
        """An adapter as a PEFT folder with a model card, or with `merge` the base with the adapter
        in its weights. `form`: "gguf" for one GGUF file in the folder, "mlx" for mlx_lm. The folder
        is `out`, by default one of the adapter's name.

        Raises AdapterError if it is damaged or for another base, UsageError if it was trained on a
        revoked lesson, if the folder exists and `overwrite` is not set, or for an architecture that
        cannot be written in that form.
        """
        return export.export(
            self.context.store,
            self.settings,
            name,
            Path(out or name),
            merge=merge,
            form=form,
            overwrite=overwrite,
        )

    def verify(self, name: str | None = None, *, base: bool = True) -> dict[str, str]:
        """adapter name -> "" if its files are unchanged, else the problem. `base`: also compare the
        base."""
        with self.context.store.read() as s:
            rows = [nights.get_adapter(s, name)] if name else nights.list_adapters(s)
        return {row.name: self._problem(row, base) for row in rows}

    def _problem(self, row: Adapter, base: bool) -> str:
        try:
            registry.verify(row, self.settings, self.context.model.fingerprint if base else None)
        except AdapterError as e:
            return e.message
        return ""
