"""A client of servers that load LoRA adapters at run time: vLLM, `reflect serve`.

The server reads an adapter from a folder. Either it sees this machine's files under the same path,
or `folder` is the place where it looks for adapters by name: vLLM's filesystem resolver, started
with VLLM_LORA_RESOLVER_CACHE_DIR. Then the files are copied there, and a request of one token makes
the server read them.

Not covered: a server that sees neither; it takes no upload.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from reflect.errors import ModelError, UsageError
from reflect.models.credentials import checked_url, hide, the_key
from reflect.reading import expand_home

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.types import Json

PATIENCE = 120.0  # seconds: a server reads the weights before it answers
MOST_REPLY = 2**24  # bytes
NOT_FOUND = 404  # the answer for a folder without an adapter


class AdapterServer:
    """The adapters of the server at `url`, which the setting `name` has. `folder`: where the server
    looks for adapters by name; "" if it sees this machine's files. `again`: what to do after an
    error."""

    def __init__(
        self, url: str, name: str = "serve_url", folder: str = "", again: str = ""
    ) -> None:
        self.root = checked_url(url, name).removesuffix("/v1")
        self.folder = expand_home(folder) if folder else None
        self.again = again

    def load(self, name: str, source: Path) -> None:
        """Load the adapter folder `source` under a new name. ModelError when the server fails."""
        if self.folder:
            self._place(name, source)
            self._resolve(name)
            return
        body = {"lora_name": name, "lora_path": str(source.resolve())}
        try:
            self.post("/v1/load_lora_adapter", body)
        except _Refused as e:
            if e.status != NOT_FOUND:
                raise
            hint = (
                "vLLM loads adapters if it runs with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. If the "
                f"server cannot read {source.resolve().parent}, mount that folder there under the "
                "same path, or set serve_adapters to the folder of its adapter resolver."
            )
            raise ModelError(e.message, f"{hint} {self.again}".strip()) from None

    def unload(self, name: str) -> None:
        """Unload an adapter, and remove the copy that the resolver read."""
        self.post("/v1/unload_lora_adapter", {"lora_name": name})
        if self.folder:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _place(self, name: str, source: Path) -> None:
        """Copy the adapter to where the server looks for it, complete from the first moment. Its
        configuration names the base as the server does, otherwise the resolver skips it."""
        from reflect.models import adapter_files  # torch comes with it

        assert self.folder is not None
        base = next((row for row in self.rows() if not row.get("parent")), {})
        part = self.folder / f".{name}.{os.getpid()}"
        try:
            part.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / adapter_files.WEIGHTS, part / adapter_files.WEIGHTS)
            config = json.loads((source / adapter_files.CONFIG).read_text())
            config["base_model_name_or_path"] = base.get("root") or base.get("id")
            (part / adapter_files.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
            shutil.rmtree(self.folder / name, ignore_errors=True)
            os.rename(part, self.folder / name)
        except OSError as e:
            why = e.strerror or str(e)
            message = f"{self.folder} (serve_adapters) cannot be written: {why}."
            raise UsageError(
                message, "Name a folder that this machine and the server share."
            ) from e
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _resolve(self, name: str) -> None:
        """Make the server look for the adapter: a request of one token to it."""
        body = {"model": name, "prompt": "a", "max_tokens": 1}
        try:
            self.post("/v1/completions", body)
        except _Refused as e:
            raise ModelError(
                e.message,
                "Start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, VLLM_PLUGINS="
                "lora_filesystem_resolver and VLLM_LORA_RESOLVER_CACHE_DIR = its path of "
                f"{self.folder}.",
            ) from None

    def names(self) -> set[str]:
        """The names of its models and adapters."""
        return {str(row.get("id")) for row in self.rows()}

    def rows(self) -> list[Json]:
        """The entries of its list of models."""
        reply = self._ask("/v1/models")
        rows = reply.get("data") if isinstance(reply, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def post(self, path: str, body: Json) -> None:
        """POST a JSON body."""
        self._ask(path, body)

    def _ask(self, path: str, body: Json | None = None) -> object:
        key = the_key()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        data = None if body is None else json.dumps(body).encode()
        route = f"{path} of {self.root}"
        try:
            request = urllib.request.Request(self.root + path, data, headers)
            with urllib.request.build_opener(NoRedirect).open(request, timeout=PATIENCE) as answer:
                text = answer.read(MOST_REPLY).decode(errors="replace")
        except urllib.error.HTTPError as e:  # the reply may repeat the key
            text = " ".join(hide(e.read(MOST_REPLY).decode(errors="replace"), key).split())[:300]
            raise _Refused(e.code, f"{route} failed ({e.code}): {text}", self.again) from None
        except (OSError, http.client.HTTPException) as e:  # URLError is an OSError
            why = hide(str(getattr(e, "reason", None) or e), key)
            raise ModelError(f"{route} does not answer: {why}.", self.again) from None
        try:
            reply: object = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return reply


class _Refused(ModelError):
    """The server answered with an error status."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key is for this server only."""

    def redirect_request(self, *_: Any) -> None:
        """No new request: the redirect is an error."""
        return None
