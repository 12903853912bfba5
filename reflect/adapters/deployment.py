"""Promoted adapters on a server that takes them while it runs: vLLM, `reflect serve`.

An adapter is loaded under its own name, which no other weights ever have, so that nobody's request
is answered by half of one and half of another; the one before it stays loaded for one more version,
for what is under way and for a rollback. Nothing is ever loaded in place of another.

Not covered: a server that does not see this machine's files (mount the home folder there, under the
same path).
"""

from __future__ import annotations

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

AGAIN = "What was promoted stands. When that is mended: reflect adapters push"
PATIENCE = 120.0  # seconds: a server reads the weights before it answers


@dataclass(frozen=True)
class Pushed:
    """What a server holds now. `loaded`: the adapter that was given to it, "" where it had it or
    there is none."""

    server: str
    active: str | None
    loaded: str = ""
    unloaded: list[str] = field(default_factory=list)


def push(store: Store, settings: Settings, left: Adapter | None = None) -> Pushed:
    """Load the profile's active adapter, unload those that are older than the one before it
    (`left`, by default the one that it replaced). A second push of the same does nothing.
    ModelError where the server does not do it."""
    if not settings.serve_url:
        raise UsageError(
            "Where to? serve_url is not set.",
            "In reflect.toml: serve_url = 'http://127.0.0.1:8000'",
        )
    server = AdapterServer(settings.serve_url)
    with store.read() as s:
        active = nights.active_adapter(s, settings.profile)
        if left is None and active and active.replaced:
            left = nights.get_adapter(s, active.replaced)
        every = nights.of_profile(s, settings.profile)
    held = server.names()
    loaded = ""
    if active and active.name not in held:
        registry.verify(active, settings)
        path = str(registry.folder_of(active, settings).resolve())
        server.post("/v1/load_lora_adapter", {"lora_name": active.name, "lora_path": path})
        loaded = active.name
    stays = {one.name for one in (active, left) if one}
    old = [one.name for one in every if one.name in held and one.name not in stays]
    for name in old:
        server.post("/v1/unload_lora_adapter", {"lora_name": name})
    return Pushed(server.root, active.name if active else None, loaded, old)


class AdapterServer:
    """The three calls that a server of adapters has."""

    def __init__(self, url: str) -> None:
        self.root = checked_url(url, "serve_url").removesuffix("/v1")

    def names(self) -> set[str]:
        """The models and adapters that it holds."""
        found = self._ask("/v1/models")
        rows = found.get("data") if isinstance(found, dict) else None
        return {str(row.get("id")) for row in rows or () if isinstance(row, dict)}

    def post(self, path: str, words: dict[str, str]) -> None:
        """POST a JSON body."""
        self._ask(path, words)

    def _ask(self, path: str, words: dict[str, str] | None = None) -> Any:
        key = the_key()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        data = None if words is None else json.dumps(words).encode()
        what = f"{path} of {self.root}"
        try:
            request = urllib.request.Request(self.root + path, data, headers)
            with urllib.request.build_opener(_Stay).open(request, timeout=PATIENCE) as reply:
                text = reply.read().decode(errors="replace")
        except urllib.error.HTTPError as e:
            said = " ".join(hide(e.read().decode(errors="replace"), key).split())[:300]
            raise ModelError(
                f"{what} failed ({e.code}): {said}", AGAIN
            ) from None  # the server may repeat the key
        except OSError as e:  # URLError is one
            raise ModelError(
                f"{what} does not answer: {getattr(e, 'reason', None) or e}.", AGAIN
            ) from None
        try:
            return json.loads(text)
        except ValueError:
            return text


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirect is followed: the key is for this server."""

    def redirect_request(self, *_: Any) -> None:
        return None
