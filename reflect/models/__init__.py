"""`load_model(name, settings)`: from the name that a user types to a model that can answer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.config import Settings
from reflect.errors import ModelError, UnknownName, UsageError

if TYPE_CHECKING:
    from reflect.models.local import LocalModel

# Read when torch is loaded. Threads that spin while they wait take the cores from every other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

POCKET = Path(__file__).parent / "pocket"
KNOWN = "Known are: pocket, hf:ORG/NAME, or the path of a Hugging Face model directory."


def load_model(name: str = "pocket", settings: Settings | None = None) -> LocalModel:
    """`pocket`, `hf:ORG/NAME` (downloaded once, then from the cache) or a path.

    UnknownName for a name that is none of these, ModelError for a model that is not there or cannot be loaded.
    """
    settings = settings or Settings()
    folder = find(name)

    from reflect.models.local import LocalModel

    return LocalModel(name, folder, settings)


def find(name: str) -> Path:
    """The folder of a model."""
    if name == "pocket":
        if not (POCKET / "config.json").is_file():
            raise ModelError("The pocket model is not in this installation.", "Reinstall reflect: make setup.")
        return POCKET
    if name.startswith("openai:"):
        raise UsageError("Models behind an API come with a later version.", KNOWN)
    if name.startswith("hf:"):
        from reflect.models.hub import download

        return download(name.removeprefix("hf:"), KNOWN)
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise ModelError(f"The folder {name} holds no model: it has no config.json.", KNOWN)
    raise UnknownName(f"There is no model '{name}'.", KNOWN)
