"""Load promoted adapters on a running server: vLLM, `reflect serve`.

An adapter is loaded under its own name, and no name is used twice, so no request is answered by two
adapters. The previous adapter stays loaded for one more version, for running requests and for a
rollback.

Not covered: a server that sees neither this machine's files nor the folder `serve_adapters`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reflect.adapters import registry
from reflect.errors import UsageError
from reflect.models.adapter_server import AdapterServer
from reflect.store import Store, nights

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.records import Adapter

AGAIN = "The promotion is saved. When the server works again: reflect adapters push"


@dataclass(frozen=True)
class Pushed:
    """The adapters of a server after a push. `loaded`: the adapter that was loaded; "" when it was
    loaded already or there is none."""

    server: str
    active: str | None
    loaded: str = ""
    unloaded: list[str] = field(default_factory=list)


def push(store: Store, settings: Settings, left: Adapter | None = None) -> Pushed:
    """Load the profile's active adapter, and unload those older than its predecessor (`left`, by
    default the adapter that it replaced). A second push changes nothing. ModelError when the
    server fails."""
    if not settings.serve_url:
        raise UsageError(
            "No adapter server is configured: serve_url is not set.",
            "Set serve_url in reflect.toml: serve_url = 'http://127.0.0.1:8000'",
        )
    server = AdapterServer(settings.serve_url, "serve_url", settings.serve_adapters, AGAIN)
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
        if left is None and active and active.replaced:
            left = nights.get_adapter(s, active.replaced)
        adapters = nights.of_profile(s, settings.profile)
    names = server.names()
    loaded = ""
    if active and active.name not in names:
        registry.verify(active, settings)
        server.load(active.name, registry.folder_of(active, settings))
        loaded = active.name
    kept = {adapter.name for adapter in (active, left) if adapter}
    old = [x.name for x in adapters if x.name in names and x.name not in kept]
    for name in old:
        server.unload(name)
    return Pushed(server.root, active.name if active else None, loaded, old)
