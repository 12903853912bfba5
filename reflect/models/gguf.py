"""Models in one GGUF file, as llama.cpp and Ollama have them: dequantised once into a Hugging Face
folder, which is kept in the user's cache and loaded like any other model folder.

transformers reads the weights (`GgufConfig(dequantize=True)`) and rebuilds the tokenizer. The
folder is named after the file and a hash of its size, its time of change, its first and last MiB.

Not covered: split files, files with an adapter or a vision part only, architectures that
transformers does not read from GGUF. A file in few bits stays as inexact as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reflect.errors import ModelError, UnknownName, UsageError
from reflect.reading import expand_home, user_cache

if TYPE_CHECKING:
    from reflect.types import Json

PREFIX = "gguf:"
SUFFIX = ".gguf"
MAGIC = b"GGUF"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
INSTALL = "Install it: pip install 'second-nature[gguf]'"
SAMPLE = 2**20  # bytes at each end of the file that are hashed
HALF_FROM = 2**29  # weights from which the folder holds bfloat16 in place of float32
WORK = 1.3  # memory of the conversion, in float32 weights


def is_gguf(name: str) -> bool:
    """Is it the name of a GGUF file: `gguf:PATH`, or a path that ends in .gguf?"""
    if name.startswith(PREFIX):
        return True
    return name.lower().endswith(SUFFIX) and not expand_home(name).is_dir()


def is_installed() -> bool:
    """Is the package of the extra [gguf] here?"""
    return importlib.util.find_spec("gguf") is not None


def folder_of(name: str) -> Path:
    """The folder with the model of a GGUF file, made at the first call. UnknownName for a missing
    file, UsageError without the package gguf, ModelError for a file that is no chat model."""
    file = expand_home(name.removeprefix(PREFIX))
    if not file.is_file():
        raise UnknownName(f"There is no file {file}.", "Write gguf:PATH with the path of a file.")
    with file.open("rb") as f:
        if f.read(4) != MAGIC:
            raise ModelError(
                f"{file} is no GGUF file: it does not begin with {MAGIC.decode()}.",
                "Download it again, or give the path of a Hugging Face model folder.",
            )
    _refuse_part(file, PART.search(file.name))
    folder = cache() / f"{file.stem}-{_key(file)}"
    if not (folder / "config.json").is_file():
        _convert(file, folder)
    return folder


def cache() -> Path:
    """The folder of converted models."""
    return user_cache() / "gguf"


def _refuse_part(file: Path, part: re.Match[str] | None) -> None:
    if part:
        raise ModelError(
            f"{file} is part {int(part[1])} of a model that is split into {int(part[2])} files.",
            "Join them: llama-gguf-split --merge FIRST-PART WHOLE.gguf",
        )


def _key(file: Path) -> str:
    stat = file.stat()
    total = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
    with file.open("rb") as f:
        total.update(f.read(SAMPLE))
        f.seek(max(0, stat.st_size - SAMPLE))
        total.update(f.read(SAMPLE))
    return total.hexdigest()[:16]


def _convert(file: Path, folder: Path) -> None:
    """Write the folder, in one step, so that an interruption leaves none."""
    from filelock import FileLock

    count = _check(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():  # another process was faster
            return
        print(f"Converting {file} to {folder}, once ...", file=sys.stderr)
        work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        try:
            _write(file, work, count)
            work.rename(folder)
        except OSError as e:
            raise ModelError(f"{folder} cannot be written: {e.strerror or e}.") from e
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check(file: Path) -> int:
    """The number of weights. UsageError, ModelError for a file that cannot be used."""
    if not is_installed():
        raise UsageError(f"{file} needs the package gguf.", INSTALL)
    from gguf import GGUFReader

    again = "Download it again: its size must be that of the original."
    try:
        reader = GGUFReader(file)
        tensors = list(reader.tensors)
        fields = {name: _value(field) for name, field in reader.fields.items()}
    except Exception as e:  # ValueError, IndexError, KeyError ... of a damaged file
        raise ModelError(f"{file} is cut off or damaged.", again) from e
    parts, number = (fields.get(f"split.{name}") or 0 for name in ("count", "no"))
    if isinstance(parts, int) and isinstance(number, int) and parts > 1:
        number += 1
        _refuse_part(file, re.match(r"(\d+)-(\d+)", f"{number}-{parts}"))
    kind = fields.get("general.type") or "model"
    if kind != "model" or not tensors:
        raise ModelError(
            f"{file} is no language model: it holds {kind if tensors else 'no weights'}.",
            "Give the file of the model itself.",
        )
    if not fields.get("tokenizer.chat_template"):
        raise ModelError(
            f"{file} has no chat template: it is a base model, or was converted without one.",
            "Use the instruct or chat variant of the model.",
        )
    return sum(int(tensor.n_elements) for tensor in tensors)


def _value(field: Any) -> object:
    return field.contents() if len(field.data) == 1 else None


def _write(file: Path, folder: Path, count: int) -> None:
    import torch
    import transformers

    from reflect.models import memory
    from reflect.models.loading import SMALLER

    small = count < HALF_FROM
    need, free = WORK * 4 * count, memory.free(torch.device("cpu"))
    if need > free:
        raise ModelError(
            f"To convert {file} takes {memory.format_bytes(need)} of memory, "
            f"and there are {memory.format_bytes(free)}.",
            SMALLER,
        )
    need, disk = count * (4 if small else 2), shutil.disk_usage(folder).free
    if need > disk:
        raise ModelError(
            f"The converted model of {file} takes {memory.format_bytes(need)} of disk space in "
            f"{folder.parent}, and there are {memory.format_bytes(disk)}.",
            "Make room, or set REFLECT_CACHE to another folder.",
        )
    transformers.utils.logging.disable_progress_bar()
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    options: Json = {"dtype": torch.float32 if small else torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # before, weights were always dequantised
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            **place, trust_remote_code=False, **options
        )
    except Exception as e:  # ValueError, KeyError ... of an architecture that is not known
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(
            f"transformers cannot read {file}: {why}",
            "Use a Hugging Face folder of the model, or a newer transformers.",
        ) from e
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
