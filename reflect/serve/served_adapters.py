"""The adapters of a server: those that clients load and unload, and the profile's own.

A client's adapter has a key of its own in the model for each load, so that its name can neither
replace nor reach the weights of the profile, and a name that is loaded again never gets weights of
before. Files are read in another thread than the engine's, which goes on answering.
"""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reflect.adapters import activation
from reflect.models import adapter_files
from reflect.serve.schema import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from reflect.config import Settings
    from reflect.records import Adapter
    from reflect.serve.engine import Engine

NAME = re.compile(r"[!-~]{1,200}")  # it is sent in headers


@dataclass(frozen=True)
class ClientAdapter:
    """An adapter that a client has loaded: its key in the model and its folder."""

    key: str
    path: str


class ServedAdapters:
    """Loads and unloads adapters on the model of `engine`. `reserved`: the model's own names."""

    def __init__(self, engine: Engine, settings: Settings, reserved: Collection[str]) -> None:
        self.engine, self.model, self.settings = engine, engine.model, settings
        self.reserved = reserved
        self.loaded: dict[str, ClientAdapter] = {}
        self.activated: list[str] = []  # the profile's adapters since the start, oldest first
        self._loading: set[str] = set()
        self._number = 0
        self._activating = asyncio.Lock()

    async def _call(self, work: Callable[[], Any]) -> Any:
        """The result of `work` in the engine's thread."""
        return await asyncio.wrap_future(self.engine.call(work))

    async def ensure_active(self, adapter: Adapter) -> str:
        """Load the profile's adapter when it is new. Of the older ones, the last one stays loaded,
        and those in use. AdapterError."""

        def attach() -> None:
            if files is not None:
                activation.attach(self.model, adapter, files)
            older = [name for name in self.activated if name != adapter.name]
            self.activated = [*older, adapter.name]
            for name in self.activated[:-2]:
                if not self.engine.uses(name):
                    self.model.drop_adapter(name)
                    self.activated.remove(name)

        async with self._activating:
            if self.activated[-1:] != [adapter.name]:
                files = None
                if adapter.name not in self.model.adapters:
                    read = activation.read
                    files = await asyncio.to_thread(read, self.model, adapter, self.settings)
                await self._call(attach)
        return adapter.name

    async def load(self, name: str, path: str) -> None:
        """Load a PEFT folder under a new name. ApiError 400 when the name is taken or cannot be
        used, 404 when the folder has no adapter; AdapterError when it is refused."""
        if not NAME.fullmatch(name):
            message = "'lora_name' must be 1 to 200 printable ASCII characters without spaces."
            raise ApiError(400, message, param="lora_name", code="invalid_value")
        if name in self.loaded or name in self.reserved or name in self._loading:
            message = f"The lora adapter '{name}' has already been loaded."
            raise ApiError(400, message, param="lora_name")

        def read() -> adapter_files.AdapterFiles:
            if not os.path.lexists(os.path.join(path, adapter_files.CONFIG)):
                message = f"There is no adapter in {adapter_files.shown(path)}."
                raise ApiError(404, message, param="lora_path", code="not_found")
            return self.model.read_adapter(path)

        self._loading.add(name)
        try:
            files = await asyncio.to_thread(read)
            self._number += 1
            key = f"client {self._number}: {name}"
            await self._call(lambda: self.model.load_adapter(key, files))
            self.loaded[name] = ClientAdapter(key, path)
        finally:
            self._loading.discard(name)

    async def unload(self, name: str) -> None:
        """Unload an adapter after its running requests are answered. ApiError 404 when it was not
        loaded."""
        adapter = self.loaded.pop(name, None)
        if adapter is None:
            message = f"The lora adapter '{name}' cannot be found."
            raise ApiError(404, message, param="lora_name", code="not_found")
        key = adapter.key

        def drop() -> bool:
            if self.engine.uses(key):
                return False
            self.model.drop_adapter(key)
            return True

        while not await self._call(drop):
            await asyncio.sleep(0.05)
