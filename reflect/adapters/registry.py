"""Adapters on disk: an immutable folder in the plain PEFT layout, with a sha256 manifest and the
fingerprint of its base model.

A folder is written under a temporary name, flushed and renamed: a folder with an adapter's name is
complete.

Not covered: a person who can write both the folder and the database can forge an adapter.
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
    from collections.abc import Mapping
    from pathlib import Path

    from reflect.config import Settings
    from reflect.models.base import Model

CARD = "reflect.json"
"""How the adapter was made, in its folder, for readers without the database."""
UNFINISHED = ".unfinished-"


def home(settings: Settings) -> Path:
    """The folder of all adapters."""
    return settings.home_path / "adapters"


def name_of(night_key: str) -> str:
    """The name of the adapter that a night makes."""
    return f"night-{night_key[:12]}"


def folder_of(adapter: Adapter, settings: Settings) -> Path:
    """The adapter's folder. Paths in the database are relative to the home folder, so that both
    can be moved together."""
    return settings.home_path / adapter.path


def exists(name: str, settings: Settings) -> bool:
    """Whether an adapter of that name is on disk."""
    return (home(settings) / name).is_dir()


def card(name: str, settings: Settings) -> dict[str, Any]:
    """What `publish` wrote into the adapter's CARD."""
    content: dict[str, Any] = json.loads((home(settings) / name / CARD).read_text())
    return content


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
    """Save the model's adapter `name` as a folder, `under` another name if given. An existing
    folder is not changed."""
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
    """Remove the folder of an adapter without a record."""
    shutil.rmtree(home(settings) / name, ignore_errors=True)


def remove_leftovers(settings: Settings) -> None:
    """Remove unfinished folders of a killed night. The caller must hold the sleep lock."""
    for path in home(settings).glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def files(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def manifest_of(folder: Path) -> dict[str, str]:
    """file name -> sha256 of its bytes."""
    return {str(path.relative_to(folder)): digest_of(path) for path in files(folder)}


def digest_of(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Write a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify(
    adapter: Adapter,
    settings: Settings,
    base_fingerprint: str | None = None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Compare the folder with the manifest, and the base. `digests`: sha256 by name of files that
    were read already; these are not read again.

    AdapterCorrupt when a file differs from the manifest, AdapterMismatch for another base.
    """
    folder = folder_of(adapter, settings)
    hint = "Use its predecessor: `reflect adapters rollback`, or sleep again with another --seed."
    if not folder.is_dir():
        raise AdapterCorrupt(
            f"The folder of adapter {adapter.name} does not exist: {folder}.", hint
        )
    known, paths = dict(digests or {}), {str(p.relative_to(folder)): p for p in files(folder)}
    wrong = paths.keys() ^ adapter.manifest.keys()
    for name in paths.keys() & adapter.manifest.keys():
        if (known.get(name) or digest_of(paths[name])) != adapter.manifest[name]:
            wrong.add(name)
    if wrong:
        names = ", ".join(sorted(wrong))
        message = f"Adapter {adapter.name} is damaged: {names} differs from its manifest."
        raise AdapterCorrupt(message, hint)
    if base_fingerprint is not None and adapter.base_fingerprint != base_fingerprint:
        raise AdapterMismatch(
            f"Adapter {adapter.name} was made for another base: {adapter.base_model} "
            f"({adapter.base_fingerprint[:12]}), not this one ({base_fingerprint[:12]}).",
            "Use the model that it was made for (--model), or sleep again on this one.",
        )
