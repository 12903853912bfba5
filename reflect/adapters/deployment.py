"""Load promoted adapters on a running server: vLLM, `reflect serve`.

An adapter is loaded under its own name, and no name is used twice, so no request is answered by two
adapters. The previous adapter stays loaded for one more version, for running requests and for a
rollback.

Not covered: a server that does not see this machine's files (mount the home folder there, under the
same path).
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reflect.adapters import registry
from reflect.errors import ModelError, UsageError
from reflect.models.credentials import checked_url, hide, the_key
from reflect.store import Store, nights

if TYPE_CHECKING:
    from reflect.config import Settings
    from reflect.records import Adapter

AGAIN = "The promotion is saved. When the server works again: reflect adapters push"
PATIENCE = 120.0  # seconds: a server reads the weights before it answers
MOST_REPLY = 2**24  # bytes


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
    server = AdapterServer(settings.serve_url)
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
        if left is None and active and active.replaced:
            left = nights.get_adapter(s, active.replaced)
        adapters = nights.of_profile(s, settings.profile)
    names = server.names()
    loaded = ""
    if active and active.name not in names:
        registry.verify(active, settings)
        path = str(registry.folder_of(active, settings).resolve())
        server.post("/v1/load_lora_adapter", {"lora_name": active.name, "lora_path": path})
        loaded = active.name
    kept = {adapter.name for adapter in (active, left) if adapter}
    old = [x.name for x in adapters if x.name in names and x.name not in kept]
    for name in old:
        server.post("/v1/unload_lora_adapter", {"lora_name": name})
    return Pushed(server.root, active.name if active else None, loaded, old)


class AdapterServer:
    """A client for the three routes that an adapter server has."""

    def __init__(self, url: str) -> None:
        self.root = checked_url(url, "serve_url").removesuffix("/v1")

    def names(self) -> set[str]:
        """The names of its models and adapters."""
        reply = self._ask("/v1/models")
        rows = reply.get("data") if isinstance(reply, dict) else None
        rows = rows if isinstance(rows, list) else []
        return {str(row.get("id")) for row in rows if isinstance(row, dict)}

    def post(self, path: str, body: dict[str, str]) -> None:
        """POST a JSON body."""
        self._ask(path, body)

    def _ask(self, path: str, body: dict[str, str] | None = None) -> Any:
        key = the_key()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        data = None if body is None else json.dumps(body).encode()
        route = f"{path} of {self.root}"
        try:
            request = urllib.request.Request(self.root + path, data, headers)
            with urllib.request.build_opener(NoRedirect).open(request, timeout=PATIENCE) as reply:
                text = reply.read(MOST_REPLY).decode(errors="replace")
        except urllib.error.HTTPError as e:  # the reply may repeat the key
            text = " ".join(hide(e.read(MOST_REPLY).decode(errors="replace"), key).split())[:300]
            raise ModelError(f"{route} failed ({e.code}): {text}", AGAIN) from None
        except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
            why = hide(str(getattr(e, "reason", None) or e), key)
            raise ModelError(f"{route} does not answer: {why}.", AGAIN) from None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for this server only."""

    def redirect_request(self, *_: Any) -> None:
        """No new request: the redirect is an error."""
        return None
