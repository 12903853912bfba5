"""Read a LoRA folder in the PEFT layout as data from an untrusted source.

Only plain LoRA is accepted: two matrices per linear layer and one scale. Each key of the
configuration must be in CHECKS or have no effect; each tensor must have the name, the shape and the
type that the network expects. Both files are read once, through one open folder, so that the bytes
that are checked are the bytes that are used; no other file of the folder is opened. Nothing is
mapped into memory: a file that shrinks while it is read is an error, not a crash.

Formats: peft's `LoraConfig`, and safetensors (a header length of 8 bytes, a JSON header, the data).

Not covered: what a well-formed adapter makes the model say.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch

from reflect.errors import AdapterError, AdapterMismatch
from reflect.models import memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name, before the name of the layer
MOST_RANK = 512  # the highest rank that vLLM serves
MOST_ALPHA = 1e6
MOST_JSON = 2**20, 2**9  # bytes of the configuration or a header: in total, and per layer
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PLAIN = "Only plain LoRA is loaded: train it with peft's defaults, or rebuild it: reflect sleep."
REBUILD = "Copy it again, or rebuild it: reflect sleep."
OTHER_BASE = (
    "It was trained for another base model: open that one, "
    "or rebuild the adapter with reflect sleep."
)


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter. `weights`: name of a layer -> (A [rank, in], B [out, rank]), float32, in
    the order of the network; `digests`: file name -> sha256 of the bytes that were read."""

    rank: int
    alpha: float
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    digests: Mapping[str, str]


def read(folder: Path | str, layers: Mapping[str, tuple[int, int]]) -> AdapterFiles:
    """Read and check the folder. `layers`: the linear layers of the network, name -> (in, out).

    AdapterError for a folder that cannot be read or is not plain LoRA, AdapterMismatch for one of
    another network.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as e:
        raise _unreadable(folder, _reason(e)) from e
    most = MOST_JSON[0] + MOST_JSON[1] * len(layers)
    try:
        with _open(descriptor, CONFIG) as file:
            raw = file.read(most)
        config = check_config(_json(raw.data, CONFIG))
        with _open(descriptor, WEIGHTS) as file:
            header = _header(file, most)
            names = _targets(config, layers)
            tensors = _tensors(file, header, _expected(names, config.rank, layers))
        digests = {CONFIG: raw.digest, WEIGHTS: file.hash.hexdigest()}
    except _Unreadable as e:
        raise _unreadable(folder, str(e)) from e
    except Refused as e:
        raise AdapterError(f"The adapter in {shown(folder)} is refused: {e}.", PLAIN) from e
    except _Differs as e:
        message = f"The adapter in {shown(folder)} does not fit this model: {e}."
        raise AdapterMismatch(message, OTHER_BASE) from e
    except (OSError, MemoryError, RecursionError) as e:
        raise _unreadable(folder, _reason(e)) from e
    finally:
        os.close(descriptor)
    pairs = {
        name: (tensors[tensor_name(name, "A")], tensors[tensor_name(name, "B")]) for name in names
    }
    return AdapterFiles(config.rank, config.alpha, pairs, digests)


class _Unreadable(Exception):
    """A file is missing, damaged or too large."""


class Refused(Exception):
    """The adapter is more, or other, than plain LoRA."""


class _Differs(Exception):
    """The adapter belongs to another network."""


def _unreadable(folder: Path | str, why: str) -> AdapterError:
    return AdapterError(f"The adapter in {shown(folder)} cannot be read: {why}.", REBUILD)


def _reason(e: BaseException) -> str:
    if isinstance(e, MemoryError):
        return "there is too little memory"
    return (getattr(e, "strerror", None) or str(e) or type(e).__name__).rstrip(".")


def shown(value: object, most: int = 200) -> str:
    """A value from outside as one short printable line of an error."""
    text = value if isinstance(value, str) else str(value)
    text = "".join(c if c.isprintable() else "\ufffd" for c in text[: most + 1])
    return text if len(text) <= most else f"{text[:most]}..."


# ---- the configuration


@dataclass(frozen=True)
class Config:
    """What the configuration of a plain LoRA says. `alpha` is divided by the rank, also where the
    file asks for a division by its root (rsLoRA, arXiv 2312.03732)."""

    rank: int
    alpha: float
    targets: frozenset[str] | None
    """Names or last parts of names of layers; None for all linear layers."""
    excluded: frozenset[str]


def _is_number(value: object, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "peft_type": (lambda v: v == "LORA", "must be LORA"),
    "r": (
        lambda v: type(v) is int and 1 <= v <= MOST_RANK,
        f"must be an integer from 1 to {MOST_RANK}",
    ),
    "lora_alpha": (lambda v: _is_number(v, 0, MOST_ALPHA), f"must be from 0 to {MOST_ALPHA:g}"),
    "target_modules": (
        lambda v: v == "all-linear" or (_is_names(v) and bool(v)),
        "must be a list of layer names, or all-linear",
    ),
    "exclude_modules": (lambda v: _is_text(v) or _is_names(v), "must be a list of layer names"),
    "task_type": (lambda v: v in (None, "CAUSAL_LM"), "must be CAUSAL_LM"),
    "bias": (lambda v: v == "none", "must be none"),
    "init_lora_weights": (lambda v: v is True, "must be true"),
    "use_rslora": (_is_bool, "must be true or false"),
    # Without effect on a trained plain LoRA.
    "lora_dropout": (lambda v: _is_number(v, 0, 1), "must be from 0 to 1"),
    "fan_in_fan_out": (_is_bool, "must be true or false"),
    "inference_mode": (_is_bool, "must be true or false"),
    "base_model_name_or_path": (_is_text, "must be a text"),
    "revision": (_is_text, "must be a text"),
    "peft_version": (_is_text, "must be a text"),
    "megatron_core": (_is_text, "must be a text"),
    "qalora_group_size": (lambda v: type(v) is int, "must be an integer"),
}
REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


def check_config(config: object) -> Config:
    """Compare every key with CHECKS. A key that is not there is accepted if it is unset: null,
    false or empty; peft writes a key for each of its variants."""
    if not isinstance(config, dict):
        raise _Unreadable(f"{CONFIG} is not a JSON object")
    for key in REQUIRED:
        if key not in config:
            raise Refused(f"{CONFIG} has no '{key}'")
    for key, value in config.items():
        check, why = CHECKS.get(key, (_is_unset, "is not supported"))
        if not check(value):
            text = shown(json.dumps(value), 60)
            raise Refused(f"'{shown(key, 60)}' = {text} in {CONFIG} {why}")
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    excluded = config.get("exclude_modules")
    return Config(
        rank,
        alpha * math.sqrt(rank) if config.get("use_rslora") else alpha,
        None if targets == "all-linear" else frozenset(targets),
        frozenset(excluded if isinstance(excluded, list) else ()),
    )


def _is_unset(value: object) -> bool:
    return value is None or value is False or value in ([], {}, "")


def _targets(config: Config, layers: Mapping[str, tuple[int, int]]) -> list[str]:
    """The layers that the configuration names, by peft's rule: a name, or its last parts."""
    ends = {name: frozenset(_ends(name)) for name in layers}
    names = [
        name
        for name, parts in ends.items()
        if not parts & config.excluded and (config.targets is None or parts & config.targets)
    ]
    absent = sorted((config.targets or frozenset()) - frozenset().union(*ends.values()))
    if absent:
        raise _Differs(f"it has no linear layer '{shown(absent[0], 60)}'")
    if not names:
        raise _Differs("no linear layer is left")
    return names


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


# ---- files


@dataclass(frozen=True)
class _Bytes:
    data: bytearray
    digest: str


class _File:
    """An open regular file; its bytes are hashed as they are read."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.size = os.fstat(descriptor).st_size
        self.left = self.size
        self.hash = hashlib.sha256()

    def take(self, count: int) -> bytearray:
        """The next `count` bytes."""
        if count > self.left:
            raise _Unreadable(f"{self.name} is cut off")
        if count > memory.free(torch.device("cpu")):
            raise MemoryError
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            size = os.readv(self.descriptor, [view[at : at + 2**24]])
            if not size:
                raise _Unreadable(f"{self.name} was changed while it was read")
            at += size
        self.hash.update(view)
        self.left -= count
        return data

    def read(self, most: int) -> _Bytes:
        """The whole file."""
        if self.size > most:
            raise _Unreadable(f"{self.name} has {self.size} bytes, and at most {most} are read")
        return _Bytes(self.take(self.size), self.hash.hexdigest())

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _open(folder: int, name: str) -> _File:
    """A file of the folder: not a link, whose target may change, nor a pipe or a device, which may
    have no end."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = _File(os.open(name, flags, dir_fd=folder), name)
            mode = os.fstat(file.descriptor).st_mode
            if stat.S_ISREG(mode):
                return file
            os.close(file.descriptor)
    except OSError as e:
        raise _Unreadable(f"{name}: {_reason(e)}") from e
    link = stat.S_ISLNK(mode)
    kind = "a symbolic link (copy the folder with cp -rL)" if link else "not a regular file"
    raise _Unreadable(f"{name} is {kind}")


def _json(data: bytes | bytearray, name: str) -> object:
    """The JSON value. Refused: a key twice, NaN, nesting without end."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as e:
        raise _Unreadable(f"{name} is not valid JSON") from e


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice")
    return content


def _no_number(constant: str) -> NoReturn:
    raise ValueError(constant)


# ---- the tensors


def tensor_name(layer: str, part: str) -> str:
    """The name of a tensor in the file; `part` is A or B."""
    return f"{PREFIX}{layer}.lora_{part}.weight"


def _expected(
    names: Iterable[str], rank: int, layers: Mapping[str, tuple[int, int]]
) -> dict[str, list[int]]:
    """Name of a tensor -> its shape."""
    shapes = {}
    for name in names:
        width_in, width_out = layers[name]
        shapes[tensor_name(name, "A")], shapes[tensor_name(name, "B")] = (
            [rank, width_in],
            [width_out, rank],
        )
    return shapes


def _header(file: _File, most: int) -> dict[str, object]:
    """The entry of each tensor, not checked."""
    length = int.from_bytes(file.take(8), "little")
    if length > min(most, file.left):
        raise _Unreadable(f"{file.name} is no safetensors file, or its header is too long")
    header = _json(file.take(length), f"the header of {file.name}")
    if not isinstance(header, dict):
        raise _Unreadable(f"the header of {file.name} is not a JSON object")
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise _Unreadable(f"the metadata of {file.name} is not a JSON object")
    return header


def _tensors(
    file: _File, header: Mapping[str, object], expected: Mapping[str, list[int]]
) -> dict[str, torch.Tensor]:
    """The tensors in float32. The header is checked before the data is read; the tensors must fill
    the file without gap or overlap."""
    unknown, absent = header.keys() - expected.keys(), expected.keys() - header.keys()
    if unknown or absent:
        first = shown(min(unknown or absent), 100)
        raise _Differs(f"{len(unknown) + len(absent)} weights differ by name, such as '{first}'")
    places: dict[str, tuple[int, int, torch.dtype]] = {}
    for name, shape in expected.items():
        places[name] = _place(name, header[name], shape)
    at = 0
    for name, (begin, end, _) in sorted(places.items(), key=lambda item: item[1][:2]):
        if begin != at:
            raise _Unreadable(f"'{name}' does not begin where the tensor before it ends")
        at = end
    if at != file.left:
        raise _Unreadable(f"{file.name} has {file.left} bytes of data, and its tensors have {at}")
    data = file.take(at)
    tensors = {}
    for name, (begin, end, dtype) in places.items():
        flat = torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin)
        tensor = flat.clone().view(dtype).to(torch.float32).reshape(expected[name])
        if not bool(torch.isfinite(tensor).all()):
            raise Refused(f"'{name}' has values that are no finite numbers")
        tensors[name] = tensor
    return tensors


def _place(name: str, entry: object, shape: list[int]) -> tuple[int, int, torch.dtype]:
    """(first byte, byte after the last, type) of a tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Unreadable(f"the header says too little or too much about '{name}'")
    kind, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise Refused(f"'{name}' is not of type {', '.join(DTYPES)}")
    if not _integers(entry["shape"]) or not _integers(offsets):
        raise _Unreadable(f"the shape or the offsets of '{name}' are no pair of integers")
    if entry["shape"] != shape:
        size = shown(entry["shape"], 60)
        raise _Differs(f"'{name}' has the shape {size}, and {shape} is expected")
    dtype = DTYPES[kind]
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise _Unreadable(f"the offsets of '{name}' do not fit its shape")
    return begin, end, dtype


def _integers(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(x) is int for x in value)
