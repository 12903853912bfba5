"""Adapters on disk: an immutable folder in the plain PEFT layout, with a sha256 manifest and the
base it was made for.

A folder is written under a temporary name, flushed and renamed, so that one that can be seen is
whole.

Not covered: somebody who can write both the folder and the database can forge an adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from reflect.errors import AdapterCorrupt, AdapterMismatch
from reflect.records import Adapter

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.config import Settings
    from reflect.models.base import Model

# what we know about the adapter, in its folder, for those who meet it without the database
CARD = "reflect.json"
UNFINISHED = ".unfinished-"


def home(settings: Settings) -> Path:
    """The folder of all adapters."""
    return settings.home_path / "adapters"


def name_of(night_key: str) -> str:
    """The name of the adapter that a night makes."""
    return f"night-{night_key[:12]}"


def folder_of(adapter: Adapter, settings: Settings) -> Path:
    """Where the adapter lies. Paths in the database are relative to the home folder, so that both
    can move together."""
    return settings.home_path / adapter.path


def exists(name: str, settings: Settings) -> bool:
    """Whether an adapter of that name is on disk."""
    return (home(settings) / name).is_dir()


def card(name: str, settings: Settings) -> dict[str, Any]:
    """What `publish` wrote about it."""
    found: dict[str, Any] = json.loads((home(settings) / name / CARD).read_text())
    return found


def row(model: Model, name: str, settings: Settings, night_id: int | None = None) -> Adapter:
    """The record of a published adapter of this model, not saved yet."""
    return Adapter(
        name=name,
        path=f"{home(settings).name}/{name}",
        manifest=manifest_of(home(settings) / name),
        base_model=model.name,
        base_fingerprint=model.fingerprint,
        night_id=night_id,
    )


def publish(
    model: Any, name: str, settings: Settings, about: dict[str, Any], under: str | None = None
) -> Path:
    """Save the model's adapter `name` as a folder, `under` another name if given. A folder that
    stands is left."""
    target = home(settings) / (under or name)
    if not target.exists():
        temporary = home(settings) / f"{UNFINISHED}{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        model.save_adapter(name, temporary)
        card = {
            **about,
            "name": target.name,
            "base_model": model.name,
            "base_fingerprint": model.fingerprint,
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1, sort_keys=True))
        for path in (*files(temporary), temporary):
            flush(path)
        os.rename(temporary, target)
        flush(target.parent)
    return target


def discard(name: str, settings: Settings) -> None:
    """Remove the folder of an adapter that no record speaks of."""
    shutil.rmtree(home(settings) / name, ignore_errors=True)


def remove_leftovers(settings: Settings) -> None:
    """Remove what a killed night left unfinished. Only for who holds the sleep lock."""
    for path in home(settings).glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def files(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def manifest_of(folder: Path) -> dict[str, str]:
    """file name -> sha256 of its bytes."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files(folder)
    }


def flush(path: Path) -> None:
    """To the disk itself, file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(adapter: Adapter, settings: Settings, base_fingerprint: str | None = None) -> None:
    """AdapterCorrupt when a file differs from the manifest, AdapterMismatch when it was made for
    another base."""
    folder = folder_of(adapter, settings)
    again = "Go back with `reflect adapters rollback`, or sleep again with another --seed."
    if not folder.is_dir():
        raise AdapterCorrupt(f"The folder of adapter {adapter.name} is gone: {folder}.", again)
    found = manifest_of(folder)
    wrong = sorted(
        n for n in found.keys() | adapter.manifest.keys() if found.get(n) != adapter.manifest.get(n)
    )
    if wrong:
        raise AdapterCorrupt(
            f"Adapter {adapter.name} is damaged: {', '.join(wrong)} differs from its manifest.",
            again,
        )
    if base_fingerprint is not None and adapter.base_fingerprint != base_fingerprint:
        raise AdapterMismatch(
            f"Adapter {adapter.name} was made for another base: {adapter.base_model} "
            f"({adapter.base_fingerprint[:12]}), not this one ({base_fingerprint[:12]}).",
            "Use the model it was made for (--model), or sleep again on this one.",
        )
