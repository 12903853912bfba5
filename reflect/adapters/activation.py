"""Switch a model to the active adapter of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflect.adapters import registry
from reflect.errors import AdapterError
from reflect.models import is_remote
from reflect.store import Store, nights

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.adapter_files import AdapterFiles
    from reflect.models.base import Model
    from reflect.records import Adapter


def activate(model: Model, store: Store, settings: Settings) -> Adapter | None:
    """Switch the model to the profile's active adapter, verified first; None and the bare base
    when there is none.

    A model that knows no adapters stays bare; for a model behind an API, its server must have the
    adapter. Raises AdapterError; the model is left bare then.
    """
    if is_remote(model.name):
        return follow(model, store, settings)
    from reflect.models.local import LocalModel

    if not isinstance(model, LocalModel):
        return None
    model.use(None)
    adapter = load_active(model, store, settings)
    model.use(adapter.name if adapter else None)
    return adapter


def load_active(model: Any, store: Store, settings: Settings) -> Adapter | None:
    """Load the profile's active adapter, verified first, for requests that name it
    (`Request.adapter`); the adapter that is on stays on. None when the profile answers with the
    bare base. AdapterError."""
    with store.read() as s:
        adapter = nights.active_adapter(s, settings.profile)
    if adapter is not None:
        before = model.active
        load(model, adapter, settings)
        model.use(before)
    return adapter


def load(model: Any, adapter: Adapter, settings: Settings) -> None:
    """Load a verified adapter under its own name, in place of an adapter that the model has under
    that name."""
    attach(model, adapter, read(model, adapter, settings))


def read(model: Any, adapter: Adapter, settings: Settings) -> AdapterFiles:
    """Read and verify an adapter's files for this model, from any thread: the bytes that were
    verified are the ones that `attach` loads. AdapterError."""
    files: AdapterFiles
    try:
        files = model.read_adapter(registry.folder_of(adapter, settings))
    except AdapterError:
        registry.verify(adapter, settings, model.fingerprint)  # says more about a known adapter
        raise
    registry.verify(adapter, settings, model.fingerprint, files.digests)
    return files


def attach(model: Any, adapter: Adapter, files: AdapterFiles) -> None:
    """Load what `read` returned, in place of an adapter that the model has under that name."""
    if adapter.name in model.adapters:
        model.drop_adapter(adapter.name)
    model.load_adapter(adapter.name, files)


def follow(model: Model, store: Store, settings: Settings) -> Adapter | None:
    """Switch a model behind an API to the profile's active adapter. AdapterError when its server
    does not have it: the lessons in its weights are no longer in the prompt."""
    remote: Any = model
    remote.use(None)
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
    if active is not None and not remote.serves(active.name):
        raise AdapterError(
            f"The profile {settings.profile} answers with the adapter {active.name}, "
            f"which {remote.url} does not have.",
            "Load it there: reflect adapters push (see docs/serving.md). "
            "Or name another --profile.",
        )
    remote.use(active.name if active else None)
    return active
