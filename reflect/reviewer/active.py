"""Load the reviewer of a profile into the model that reflects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reflect.adapters import activation
from reflect.models import is_remote
from reflect.store import Store, reviewers

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.models.base import Model


def load_reviewer(model: Model, store: Store, settings: Settings) -> str:
    """The name of the profile's promoted reviewer, loaded and verified, for requests that name it;
    "" if the base reflects. The adapter that is on stays on. AdapterError."""
    if is_remote(model.name):
        return ""
    from reflect.models.local import LocalModel

    if not isinstance(model, LocalModel):
        return ""
    with store.read() as s:
        adapter = reviewers.active(s, settings.profile, model.fingerprint)
    if adapter is None:
        return ""
    if adapter.name not in model.adapters:
        before = model.active
        activation.load(model, adapter, settings)
        model.use(before)
    return adapter.name
