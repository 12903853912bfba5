"""activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reflect.adapters.registry import folder_of, verify
from reflect.errors import AdapterError
from reflect.models import is_remote
from reflect.store import Store, nights

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.base import Model
    from reflect.records import Adapter


def activate(model: Model, store: Store, settings: Settings) -> Adapter | None:
    """Switch the model to the profile's active adapter, verified first; None and the bare base
    where there is none.

    A model that knows no adapters stays bare; of one behind an API its server must hold the
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
    """Read the profile's active adapter, verified first, beside what is loaded, for requests that
    name it (`Request.adapter`); what is on stays on. None where the profile answers with the bare
    base. AdapterError."""
    with store.read() as s:
        adapter = nights.active_adapter(s, settings.profile)
    if adapter is not None:
        before = model.active
        load(model, adapter, settings)
        model.use(before)
    return adapter


def load(model: Any, adapter: Adapter, settings: Settings) -> None:
    """Read a verified adapter into the model, under its own name, in place of what the model had
    under that name."""
    verify(adapter, settings, model.fingerprint)
    if adapter.name in model.adapters:
        model.drop_adapter(adapter.name)
    model.load_adapter(adapter.name, folder_of(adapter, settings))


def follow(model: Model, store: Store, settings: Settings) -> Adapter | None:
    """Switch a model behind an API to the profile's active adapter, which its server must hold.
    AdapterError else: what the weights were taught has left the prompt."""
    remote: Any = model
    remote.use(None)
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
    if active is not None and not remote.serves(active.name):
        told = f"The profile {settings.profile} answers with the adapter {active.name}, which {remote.url} does not have."
        hint = (
            "Load it there: reflect adapters push (see docs/serving.md). Or name another --profile."
        )
        raise AdapterError(told, hint)
    remote.use(active.name if active else None)
    return active
