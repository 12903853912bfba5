"""`load_model(name, settings)`: from the name that a user types to a model that can answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import Settings
from reflect.errors import ModelError, UnknownName, UsageError

if TYPE_CHECKING:
    from reflect.models.base import Model

# Read when torch is loaded. Threads that spin while they wait take the cores from every other
# process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

POCKET = Path(__file__).parent / "pocket"
KNOWN = "Known are: pocket, hf:ORG/NAME, the path of a Hugging Face model directory, or openai:NAME behind an API."
UNTOLD = 4096  # tokens of context where a configuration does not say


def load_model(name: str = "pocket", settings: Settings | None = None) -> Model:
    """`pocket`, `hf:ORG/NAME` (downloaded once, then from the cache), a path, or `openai:NAME` of a
    server.

    UnknownName for a name that is none of these, ModelError for a model that is not there or cannot
    be loaded. A server is not asked before its model is used.
    """
    settings = settings or Settings()
    if is_remote(name):
        from reflect.models.remote import RemoteModel

        return RemoteModel(name, settings)
    folder = find(name)

    from reflect.models.local import LocalModel

    return LocalModel(name, folder, settings)


def is_remote(name: str) -> bool:
    """Is it a model behind an API? Then its weights are not here."""
    return name.startswith("openai:")


def find(name: str) -> Path:
    """The folder of a model."""
    if name == "pocket":
        if not (POCKET / "config.json").is_file():
            raise ModelError(
                "The pocket model is not in this installation.", "Reinstall reflect: make setup."
            )
        return POCKET
    if is_remote(name):
        raise UsageError(
            f"{name} is behind an API: it has no weights here.",
            "Use pocket, hf:ORG/NAME or a path.",
        )
    if name.startswith("hf:"):
        from reflect.models.hub import download

        return download(name.removeprefix("hf:"), KNOWN)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise ModelError(f"The folder {name} holds no model: it has no config.json.", KNOWN)
    raise UnknownName(f"There is no model '{name}'.", KNOWN)


class Unloaded:
    """What a local model's files say of it: as `Model` has it, without waiting for torch."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        said = int((config.get("text_config") or config).get("max_position_embeddings") or UNTOLD)
        self.context = min(said, most) if most else said

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def unloaded(name: str, most: int = 0) -> Unloaded | None:
    """None where it must be loaded, or its server asked, to know."""
    if is_remote(name):
        return None
    folder = find(name)
    return Unloaded(folder, most) if (folder / "tokenizer.json").is_file() else None
