"""`load_model(name, settings)`: the model for a name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import Settings
from reflect.errors import ModelError, UnknownName, UsageError
from reflect.models import gguf
from reflect.reading import expand_home

if TYPE_CHECKING:
    from reflect.models.base import Model

# Read when torch is loaded. Threads that spin while they wait take the cores of other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

POCKET = Path(__file__).parent / "pocket"
KNOWN = "Known are: pocket, hf:ORG/NAME, the path of a Hugging Face model directory, "
KNOWN += "gguf:PATH of a GGUF file, or openai:NAME behind an API."
DEFAULT_CONTEXT = 4096  # tokens, when the configuration has no number


def load_model(name: str = "pocket", settings: Settings | None = None) -> Model:
    """`pocket`, `hf:ORG/NAME` (downloaded once, then from the cache), a path, `gguf:PATH` (see
    `reflect.models.gguf`), or `openai:NAME` of a server.

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
    if gguf.is_gguf(name):
        return gguf.folder_of(name)
    folder = expand_home(name)
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise ModelError(f"The folder {name} holds no model: it has no config.json.", KNOWN)
    raise UnknownName(f"There is no model '{name}'.", KNOWN)


class Unloaded:
    """Context and token counts of a local model from its files, without loading torch."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config") or config
        context = int(text.get("max_position_embeddings") or DEFAULT_CONTEXT)
        self.context = min(context, most) if most else context

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def unloaded(name: str, most: int = 0) -> Unloaded | None:
    """The files of a local model; None when the model or its server is needed instead."""
    if is_remote(name):
        return None
    folder = find(name)
    return Unloaded(folder, most) if (folder / "tokenizer.json").is_file() else None
