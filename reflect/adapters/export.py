"""Export of an adapter: a plain PEFT folder with a model card, a model folder with the adapter
merged into the base, either as one GGUF file, or the adapter as mlx_lm reads it.

Not covered: secrets or licences in the texts of lessons, which are in the card unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from reflect.adapters import activation, registry
from reflect.adapters.model_card import Export, Form, base_name, card
from reflect.errors import AdapterCorrupt, UsageError
from reflect.reading import expand_home
from reflect.records import Adapter, Night
from reflect.store import Store, lessons, nights, revoked_adapters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reflect.config import Settings
    from reflect.models.local import LocalModel
    from reflect.types import Json

README = "README.md"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ANOTHER = "Name another folder: --out FOLDER"
MLX_WEIGHTS = "adapters.safetensors"
MLX_LAYER = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.[\w.]+)\.lora_([AB])\.weight")
FILE_ROW = re.compile(r"^\| ([\w.-]+) \| `([0-9a-f]{64})` \|$", re.MULTILINE)
"""A row of the card's table of files. A name has no slash: it is a file of the folder itself."""


def export(
    store: Store,
    settings: Settings,
    name: str,
    target: Path,
    *,
    merge: bool = False,
    form: Form = "peft",
    overwrite: bool = False,
) -> Path:
    """Write the adapter as the folder `target`; `merge`: the base with the adapter in its weights.

    All files are written next to the folder first. A new folder appears complete; in an existing
    export (only with `overwrite`) each file is replaced as a whole, the card last, and files that
    reflect did not write stay.

    AdapterCorrupt for damaged files, AdapterMismatch for another base than the settings' model
    (`merge` and gguf). UsageError for an adapter that was trained on a revoked lesson, for a
    target that cannot be written or may not be replaced, and for an architecture without that form.
    """
    if merge and form == "mlx":
        raise UsageError("mlx_lm reads a merged model folder as it is.", "Leave out --mlx.")
    with store.read() as s:
        adapter = nights.get_adapter(s, name)
        night = s.get(Night, adapter.night_id) if adapter.night_id else None
        versions = {pair[0]: pair[1] for pair in (night.lessons if night else [])}
        rows = [
            lessons.version(s, i, versions[i])
            for i in revoked_adapters.still_holds(adapter, night)
            if i in versions
        ]
    revoked_adapters.refuse(adapter)
    registry.verify(adapter, settings)
    target = expand_home(target)
    try:
        old = replaceable(target, overwrite)
        whole = Path(os.path.abspath(target))  # `.` has no name
        part = whole.with_name(f".{whole.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        raise UsageError(f"The folder {target} cannot be written: {why}.", ANOTHER) from e
    try:
        if form == "gguf":
            rank = write_gguf(adapter, settings, part, merge)
        else:
            write = write_merged if merge else write_mlx if form == "mlx" else write_peft
            rank = write(adapter, settings, part)
        content = Export(adapter, night, rows, rank, registry.manifest_of(part), merge, form)
        (part / README).write_text(card(content), encoding="utf-8")
        for path in (*registry.files(part), part):
            registry.flush(path)
        if old is None:
            os.rename(part, target)
        else:
            replace_files(part, target, old)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def replaceable(target: Path, overwrite: bool) -> dict[str, str] | None:
    """The files of the export at the target (see `written_files`), none for an empty folder; None
    where there is no folder. UsageError for anything else, and for an export without
    `overwrite`."""
    if target.is_symlink():
        raise UsageError(f"{target} is a symbolic link.", "Name the folder that it points to.")
    if not os.path.lexists(target):
        return None
    if target.is_dir() and not any(target.iterdir()):
        return {}
    files = written_files(target)
    if not files:
        raise UsageError(f"{target} exists and is no exported adapter.", ANOTHER)
    if not overwrite:
        raise UsageError(f"{target} exists.", f"Add --yes to replace its files. {ANOTHER}")
    return files


def written_files(folder: Path) -> dict[str, str]:
    """The files that an export wrote into the folder, from its card: name -> sha256. The card
    itself has no sha256; of a card that a person has rewritten, the names of an adapter's files
    are known. Empty for a folder without an export."""
    card_file, names = folder / README, (CONFIG, "config.json", registry.CARD)
    if not card_file.is_file() or not any((folder / x).is_file() for x in names):
        return {}
    table = FILE_ROW.findall(card_file.read_text(encoding="utf-8", errors="replace"))
    names = (CONFIG, WEIGHTS, registry.CARD)
    return {README: ""} | (dict(table) or dict.fromkeys(names, ""))


def replace_files(part: Path, target: Path, old: Mapping[str, str]) -> None:
    """Move the files of a new export over those of an old one. An old file without successor is
    removed if it is unchanged. UsageError, before any change, where the name of a new file belongs
    to a file that no export wrote."""
    names = [str(path.relative_to(part)) for path in registry.files(part)]
    for name in names:
        path = target / name
        if os.path.lexists(path) and (name not in old or path.is_dir()):
            raise UsageError(f"{path} exists and is not from an export.", ANOTHER)
    for name in sorted(names, key=lambda name: name == README):  # the card last
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(part / name, target / name)
    for name in old.keys() - set(names):
        path = target / name
        if path.is_file() and not path.is_symlink() and registry.digest_of(path) == old[name]:
            path.unlink()
    registry.flush(target)


def write_peft(adapter: Adapter, settings: Settings, folder: Path) -> int:
    """Copy the adapter's files; the copies are compared with the manifest. The name of a base from
    the hub is written as the hub writes it, so that peft finds it. Returns the rank. Raises
    AdapterCorrupt."""
    for name, digest in adapter.manifest.items():
        shutil.copyfile(registry.folder_of(adapter, settings) / name, folder / name)
        if registry.digest_of(folder / name) != digest:
            raise AdapterCorrupt(f"{name} of adapter {adapter.name} was changed meanwhile.")
    config = json.loads((folder / CONFIG).read_text())
    if adapter.base_model.startswith("hf:"):
        config["base_model_name_or_path"] = adapter.base_model.removeprefix("hf:")
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    rank: int = config["r"]
    return rank


def write_mlx(adapter: Adapter, settings: Settings, folder: Path) -> int:
    """Write the adapter as `mlx_lm` reads it: other names, and transposed matrices. Returns the
    rank. UsageError where a layer has no name there."""
    from safetensors.torch import load_file, save_file

    rank = write_peft(adapter, settings, folder)
    config = json.loads((folder / CONFIG).read_text())
    tensors, layers = {}, []
    for name, tensor in load_file(folder / WEIGHTS).items():
        match = MLX_LAYER.fullmatch(name)
        if not match or config["fan_in_fan_out"]:
            raise UsageError(f"mlx_lm has no name for {name}.", "Leave out --mlx.")
        tensors[f"{match[1]}.lora_{match[3].lower()}"] = tensor.T.contiguous()
        layers.append((match[1], int(match[2])))
    scale = config["lora_alpha"] / rank
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    content = {
        "fine_tune_type": "lora",
        "num_layers": 1 + max(number for _, number in layers),
        "lora_parameters": parameters | {"keys": sorted({layer for layer, _ in layers})},
    }
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / MLX_WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True))
    return rank


def write_merged(adapter: Adapter, settings: Settings, folder: Path) -> int:
    """Write the base, loaded again in float32 so that nothing is rounded, with the adapter in its
    weights. Returns the rank."""
    model = load_base(adapter, settings, "float32", "--merge")
    files = activation.read(model, adapter, settings)
    model.save_merged(files, folder)
    return files.rank


def write_gguf(adapter: Adapter, settings: Settings, folder: Path, merge: bool) -> int:
    """Write NAME.gguf, of the adapter or (`merge`) of the base with the adapter in its weights, and
    next to it what it was made of, the fingerprint of the base included. Returns the rank."""
    from reflect.adapters import gguf_export

    model = load_base(adapter, settings, "float32" if merge else settings.dtype, "--gguf")
    files = activation.read(model, adapter, settings)
    name, base = adapter.name, base_name(adapter.base_model)
    about = {
        "general.name": f"{base} with {name}" if merge else name,
        "general.base_model.0.name": base,
        "reflect.adapter": name,
        "reflect.base_fingerprint": adapter.base_fingerprint,
    }
    if merge:
        model.load_adapter(name, files)
        model.merge_adapter(name)
        gguf_export.write_model(model, folder / f"{name}.gguf", about)
    else:
        gguf_export.write_adapter(model, files, folder / f"{name}.gguf", about)
    sidecar: Json = {"name": name, "base_model": base, "base_fingerprint": adapter.base_fingerprint}
    sidecar |= {"rank": files.rank, "alpha": files.alpha, "merged": merge}
    (folder / registry.CARD).write_text(json.dumps(sidecar, indent=1, sort_keys=True))
    return files.rank


def load_base(adapter: Adapter, settings: Settings, dtype: str, flag: str) -> LocalModel:
    """The settings' model as a whole on the CPU. UsageError for a model behind an API."""
    from reflect.models import is_remote, load_model
    from reflect.models.local import LocalModel

    if is_remote(settings.model):
        raise UsageError(
            f"{settings.model} is behind an API: {flag} needs its weights on this machine.",
            f"Name them: reflect adapters export {adapter.name} {flag} -m {adapter.base_model}",
        )
    whole = dataclasses.replace(
        settings, device="cpu", dtype=dtype, device_map="", quantize="", memory=0.0
    )
    model = load_model(settings.model, whole)
    if not isinstance(model, LocalModel):
        raise UsageError(f"{settings.model} has no weights on this machine.", "Name another: -m")
    return model
