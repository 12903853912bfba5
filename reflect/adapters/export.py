"""Adapters on their way out: a plain PEFT folder with a model card, or an ordinary model folder
with both in one.

Not covered: secrets or licences in the lessons' words, which stand in the card as they are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from reflect.adapters import registry
from reflect.adapters.model_card import Export, card
from reflect.errors import UsageError
from reflect.reading import expand_home
from reflect.records import Adapter, Night
from reflect.store import Store, lessons, nights, revoked_adapters

if TYPE_CHECKING:
    from pathlib import Path

    from reflect.config import Settings

README = "README.md"
PEFT_CONFIG = "adapter_config.json"


def export(
    store: Store,
    settings: Settings,
    name: str,
    target: Path,
    *,
    merge: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the adapter as the folder `target`, whole or not at all; `merge`: the base with the
    adapter in it.

    AdapterCorrupt for damaged files, AdapterMismatch for another base than the settings' model
    (merge only). UsageError for an adapter that knows what was revoked, and where something stands
    that may not be replaced: only an exported folder is, and only with `overwrite`.
    """
    with store.read() as s:
        adapter = nights.get_adapter(s, name)
        night = s.get(Night, adapter.night_id) if adapter.night_id else None
        read = {lesson_id: version for lesson_id, version in (night.lessons if night else [])}  # noqa: C416
        held = [
            lessons.version(s, i, read[i])
            for i in revoked_adapters.still_holds(adapter, night)
            if i in read
        ]
    revoked_adapters.refuse(adapter)
    registry.verify(adapter, settings)
    target = expand_home(target)
    replaceable(target, overwrite)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        rank = json.loads((registry.folder_of(adapter, settings) / PEFT_CONFIG).read_text())["r"]
        (write_merged if merge else write_peft)(adapter, settings, part)
        told = Export(adapter, night, held, rank, registry.manifest_of(part), merge)
        (part / README).write_text(card(told), encoding="utf-8")
        for path in (*registry.files(part), part):
            registry.flush(path)
        if target.exists():
            shutil.rmtree(target)
        os.rename(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def replaceable(target: Path, overwrite: bool) -> None:
    """UsageError when something stands at the target that may not be replaced."""
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    exported = (target / README).is_file() and any(
        (target / x).is_file() for x in (PEFT_CONFIG, "config.json")
    )
    if not exported:
        raise UsageError(
            f"{target} is there already, and is no exported adapter.",
            "Name another folder: --out FOLDER",
        )
    if not overwrite:
        raise UsageError(
            f"{target} is there already.", "Say --yes to replace it, or name another: --out FOLDER"
        )


def write_peft(adapter: Adapter, settings: Settings, folder: Path) -> None:
    """The files as they are. The name of a base from the hub is written as the hub writes it, so
    that peft finds it."""
    for path in registry.files(registry.folder_of(adapter, settings)):
        shutil.copyfile(path, folder / path.name)
    if adapter.base_model.startswith("hf:"):
        config = json.loads((folder / PEFT_CONFIG).read_text())
        config["base_model_name_or_path"] = adapter.base_model.removeprefix("hf:")
        (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))


def write_merged(adapter: Adapter, settings: Settings, folder: Path) -> None:
    """The base, read anew in float32 so that nothing is rounded away, with the adapter in its
    weights."""
    from reflect.models import is_remote, load_model

    if is_remote(settings.model):
        told = f"{settings.model} is behind an API: there are no weights here to merge the adapter into."
        raise UsageError(
            told,
            f"Name them: reflect adapters export {adapter.name} --merge -m {adapter.base_model}",
        )
    whole: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "device_map": "",
        "quantize": "",
        "memory": 0.0,
    }
    model: Any = load_model(settings.model, dataclasses.replace(settings, **whole))
    registry.verify(adapter, settings, model.fingerprint)
    model.save_merged(registry.folder_of(adapter, settings), folder)
