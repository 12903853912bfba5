"""Adapter folders that want to change the base, to be believed, or to hang or crash what reads them.

`folders` copies a good adapter once per attack and damages the copy. Every one must be refused with one sentence;
nothing of them may reach the weights of the base. `SILENT` are folders that differ from a good one where it has no
effect; they may be loaded.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Folder:
    """A copy of a good adapter, with its parts."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path, self.rng = path, rng
        self.config_file, self.weights_file = path / CONFIG, path / WEIGHTS
        self.config: dict[str, Any] = json.loads(self.config_file.read_text())
        raw = self.weights_file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = raw[8 + length :]
        self.names = [name for name in self.header if name != "__metadata__"]

    def write_config(self, **changes: Any) -> None:
        self.config_file.write_text(json.dumps(self.config | changes))

    def write_weights(
        self, header: dict[str, Any] | bytes | None = None, data: bytes | None = None
    ) -> None:
        header = self.header if header is None else header
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.weights_file.write_bytes(
            struct.pack("<Q", len(raw)) + raw + (self.data if data is None else data)
        )

    def any_tensor(self) -> str:
        return self.rng.choice(self.names)

    def replace(self, file: Path) -> Path:
        """The path, with nothing there."""
        file.unlink()
        return file


Attack = Callable[[Folder], object]


def config(**changes: Any) -> Attack:
    return lambda f: f.write_config(**changes)


def raw_config(text: str | bytes) -> Attack:
    return lambda f: f.config_file.write_bytes(text if isinstance(text, bytes) else text.encode())


def without(key: str) -> Attack:
    return lambda f: f.config_file.write_text(
        json.dumps({k: v for k, v in f.config.items() if k != key})
    )


def entry(**changes: Any) -> Attack:
    """Another entry of one tensor in the header."""

    def attack(f: Folder) -> None:
        name = f.any_tensor()
        f.write_weights(f.header | {name: f.header[name] | changes})

    return attack


def values(pattern: bytes) -> Attack:
    """One number of the data is replaced: little-endian float32."""

    def attack(f: Folder) -> None:
        at = 4 * f.rng.randrange(len(f.data) // 4)
        f.write_weights(data=f.data[:at] + pattern + f.data[at + 4 :])

    return attack


def length(value: int) -> Attack:
    return lambda f: f.weights_file.write_bytes(
        struct.pack("<Q", value) + f.weights_file.read_bytes()[8:]
    )


def sparse(size: int) -> Attack:
    return lambda f: os.truncate(f.weights_file, size)


def renamed(change: Callable[[str], str]) -> Attack:
    """A tensor under another name."""

    def attack(f: Folder) -> None:
        name = f.any_tensor()
        f.write_weights(
            {change(key) if key == name else key: value for key, value in f.header.items()}
        )

    return attack


def extra_tensor(name: str) -> Attack:
    def attack(f: Folder) -> None:
        end = len(f.data)
        row = {"dtype": "F32", "shape": [1, 1], "data_offsets": [end, end + 4]}
        f.write_weights(f.header | {name: row}, f.data + bytes(4))

    return attack


def missing(f: Folder) -> None:
    name = f.any_tensor()
    f.write_weights({key: value for key, value in f.header.items() if key != name})


def overlapping(f: Folder) -> None:
    """Two tensors of one shape share their bytes; the file is shorter by one of them."""
    shapes: dict[str, list[str]] = {}
    for name in f.names:
        shapes.setdefault(str(f.header[name]["shape"]), []).append(name)
    a, b = next(same for same in shapes.values() if len(same) > 1)[:2]
    f.write_weights(f.header | {b: f.header[a]})


def gap(f: Folder) -> None:
    """All offsets are moved by 64 bytes that no tensor has."""
    header = {
        name: row
        if name == "__metadata__"
        else row | {"data_offsets": [x + 64 for x in row["data_offsets"]]}
        for name, row in f.header.items()
    }
    f.write_weights(header, bytes(64) + f.data)


def twice(f: Folder) -> None:
    text = json.dumps(f.header)
    name = f.any_tensor()
    f.write_weights((text[:-1] + f", {json.dumps(name)}: {json.dumps(f.header[name])}}}").encode())


def pickled(f: Folder) -> None:
    """The format that can run code, in place of safetensors."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(f.path / "executed"),)

    data = pickle.dumps(Bomb())
    f.replace(f.weights_file)
    (f.path / "adapter_model.bin").write_bytes(data)


def pickle_in_safetensors(f: Folder) -> None:
    pickled(f)
    (f.path / "adapter_model.bin").rename(f.weights_file)


def link(name: str, target: str) -> Attack:
    def attack(f: Folder) -> None:
        f.replace(f.path / name).symlink_to(target)

    return attack


def link_to_itself(f: Folder) -> None:
    moved = f.path / "real.safetensors"
    f.weights_file.rename(moved)
    f.weights_file.symlink_to(moved.name)


def fifo(name: str) -> Attack:
    return lambda f: os.mkfifo(f.replace(f.path / name))


def folder_instead(name: str) -> Attack:
    return lambda f: f.replace(f.path / name).mkdir()


def million_keys(f: Folder) -> None:
    row = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    f.write_weights({f"t{i}": row for i in range(1_000_000)}, b"")


def deep(f: Folder) -> None:
    f.write_weights(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


ATTACKS: dict[str, Attack] = {
    # initialisations and variants that write to the base or need other layers
    "pissa": config(init_lora_weights="pissa"),
    "pissa_niter": config(init_lora_weights="pissa_niter_4"),
    "olora": config(init_lora_weights="olora"),
    "eva": config(init_lora_weights="eva", eva_config={"rho": 2.0}),
    "corda": config(init_lora_weights="corda", corda_config={"corda_method": "kpm"}),
    "loftq": config(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}),
    "lora_ga": config(init_lora_weights="lora_ga"),
    "mica": config(init_lora_weights="mica"),
    "orthogonal": config(init_lora_weights="orthogonal"),
    "gaussian": config(init_lora_weights="gaussian"),
    "init false": config(init_lora_weights=False),
    "layer_replication": config(layer_replication=[[0, 1], [0, 1]]),
    "dora": config(use_dora=True),
    "qalora": config(use_qalora=True),
    "bias all": config(bias="all"),
    "bias lora_only": config(bias="lora_only"),
    "lora_bias": config(lora_bias=True),
    "modules_to_save": config(modules_to_save=["lm_head"]),
    "trainable_token_indices": config(trainable_token_indices=[0, 1]),
    "target_parameters": config(target_parameters=["mlp.experts"]),
    "rank_pattern": config(rank_pattern={"q_proj": 10**9}),
    "rank_pattern regex": config(rank_pattern={"(a+)+$": 4}),
    "alpha_pattern": config(alpha_pattern={"q_proj": 1e9}),
    "layers_to_transform": config(layers_to_transform=[0], layers_pattern="layers"),
    "megatron": config(megatron_config={"x": 1}, megatron_core="os"),
    "auto_mapping": config(auto_mapping={"base_model_class": "x", "parent_library": "os"}),
    "alora": config(alora_invocation_tokens=[1, 2]),
    "arrow": config(arrow_config={"top_k": 1}),
    "bdlora": config(use_bdlora={"nblocks": 2}),
    "weight tying": config(ensure_weight_tying=True),
    "unknown key": config(hook="os.system"),
    "another method": config(peft_type="IA3"),
    "prompt tuning": config(peft_type="PROMPT_TUNING", num_virtual_tokens=10**9),
    "another task": config(task_type="SEQ_CLS"),
    # senseless numbers and types
    "rank 0": config(r=0),
    "rank -1": config(r=-1),
    "rank 10**9": config(r=10**9),
    "rank true": config(r=True),
    "rank 1.5": config(r=1.5),
    "rank text": config(r="4"),
    "rank off by one": lambda f: f.write_config(r=f.config["r"] + 1),
    "alpha nan": lambda f: f.config_file.write_text(
        json.dumps(f.config | {"lora_alpha": float("nan")})
    ),
    "alpha inf": lambda f: f.config_file.write_text(
        json.dumps(f.config).replace('"lora_alpha": ', '"lora_alpha": 1e999, "x": ')
    ),
    "alpha 10**400": config(lora_alpha=10**400),
    "alpha negative": config(lora_alpha=-8),
    "alpha null": config(lora_alpha=None),
    "dropout nan": config(lora_dropout=float("nan")),
    "dropout list": config(lora_dropout=[0.1]),
    "rslora text": config(use_rslora="yes"),
    "targets regex": config(target_modules="(.*)*q_proj"),
    "targets catastrophic": config(target_modules="^(([a-z])+.)+[A-Z]([a-z])+$"),
    "targets none left": lambda f: f.write_config(exclude_modules=f.config["target_modules"]),
    "targets by half a name": config(target_modules=["_proj"]),
    "targets in other case": config(target_modules="ALL-LINEAR"),
    "targets empty": config(target_modules=[]),
    "targets null": config(target_modules=None),
    "targets head": config(target_modules=["lm_head"]),
    "targets embedding": config(target_modules=["embed_tokens"]),
    "targets beyond the network": lambda f: f.write_config(
        target_modules=[*f.config["target_modules"], "layers.99.q"]
    ),
    "targets numbers": config(target_modules=[1, 2]),
    "targets fewer": lambda f: f.write_config(target_modules=f.config["target_modules"][1:]),
    "targets 100,000": lambda f: f.write_config(target_modules=[f"x{i}" for i in range(100_000)]),
    **{
        f"without {key}": without(key) for key in ("peft_type", "r", "lora_alpha", "target_modules")
    },
    # damaged configurations
    "config empty": raw_config(""),
    "config list": raw_config("[]"),
    "config null": raw_config("null"),
    "config text": raw_config('"LORA"'),
    "config deep": raw_config("[" * 100_000 + "]" * 100_000),
    "config deep value": lambda f: f.config_file.write_text(
        json.dumps(f.config)[:-1] + ', "x": ' + '{"a":' * 700 + "1" + "}" * 700 + "}"
    ),
    "config latin-1": raw_config(b'{"peft_type": "LOR\xc4"}'),
    "config utf-16": lambda f: f.config_file.write_bytes(json.dumps(f.config).encode("utf-16")),
    "config bom": lambda f: f.config_file.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(f.config).encode()
    ),
    "config digits": lambda f: f.config_file.write_text(
        json.dumps(f.config)[:-1] + ', "x": ' + "9" * 10_000 + "}"
    ),
    "config key twice": lambda f: f.config_file.write_text(json.dumps(f.config)[:-1] + ', "r": 4}'),
    "config python": raw_config("{'peft_type': 'LORA'}"),
    "config gzip": lambda f: f.config_file.write_bytes(gzip.compress(f.config_file.read_bytes())),
    "config of 50 MB": lambda f: f.write_config(x=["y" * 99] * 500_000),
    "config nul": lambda f: f.config_file.write_bytes(b"\0" * 4096),
    "config surrogate": config(**{"\ud83d": 1}),
    "config key of 500 KB": config(**{"k" * 500_000: 1}),
    "config newline": config(**{"a\nError: all is well\x1b[2J": 1}),
    "config 10 GB": lambda f: os.truncate(f.config_file, 10 * 2**30),
    "config fifo": fifo(CONFIG),
    "config endless": link(CONFIG, "/dev/zero"),
    "config folder": folder_instead(CONFIG),
    "config link": link(CONFIG, "/etc/passwd"),
    "config link loop": link(CONFIG, CONFIG),
    # damaged weights
    "weights empty": lambda f: f.weights_file.write_bytes(b""),
    "weights 7 bytes": lambda f: f.weights_file.write_bytes(b"\0" * 7),
    "weights zeros": lambda f: f.weights_file.write_bytes(bytes(4096)),
    "weights noise": lambda f: f.weights_file.write_bytes(f.rng.randbytes(4096)),
    "weights missing": lambda f: f.weights_file.unlink(),
    "weights cut": lambda f: os.truncate(f.weights_file, f.weights_file.stat().st_size - 1),
    "weights longer": lambda f: f.write_weights(data=f.data + b"\0"),
    "weights 10 GB": sparse(10 * 2**30),
    "weights 8 TB": sparse(8 * 2**40),
    "weights fifo": fifo(WEIGHTS),
    "weights endless": link(WEIGHTS, "/dev/zero"),
    "weights terminal": link(WEIGHTS, "/dev/tty"),
    "weights folder": folder_instead(WEIGHTS),
    "weights zip": lambda f: f.weights_file.write_bytes(b"PK\x03\x04" + f.data),
    "weights gguf": lambda f: f.weights_file.write_bytes(b"GGUF" + f.data),
    "weights gzip": lambda f: f.weights_file.write_bytes(gzip.compress(f.weights_file.read_bytes())),
    "weights in shards": lambda f: f.weights_file.rename(f.path / "adapter_model-00001-of-00001.safetensors"),
    "weights link": link_to_itself,
    "weights pickle": pickled,
    "weights pickle by name": pickle_in_safetensors,
    "header 0": length(0),
    "header 2**63": length(2**63),
    "header 2**64 - 1": length(2**64 - 1),
    "header longer than the file": lambda f: length(f.weights_file.stat().st_size)(f),
    "header list": lambda f: f.write_weights(b"[]"),
    "header no JSON": lambda f: f.write_weights(b"{" * 64),
    "header deep": deep,
    "header a million keys": million_keys,
    "header 100 MB of spaces": lambda f: f.write_weights(b"{" + b" " * (100 * 2**20) + b"}"),
    "header name twice": twice,
    "header empty": lambda f: f.write_weights({}, b""),
    "offsets overlap": overlapping,
    "offsets gap": gap,
    "offsets negative": entry(data_offsets=[-4, 0]),
    "offsets 2**63": entry(data_offsets=[0, 2**63]),
    "offsets backwards": entry(data_offsets=[8, 0]),
    "offsets floats": entry(data_offsets=[0.0, 4.0]),
    "offsets null": entry(data_offsets=None),
    "shape 2**63": entry(shape=[2**62, 2]),
    "shape negative": entry(shape=[-1, -64]),
    "shape empty": entry(shape=[]),
    "shape floats": entry(shape=[4.0, 64.0]),
    "shape booleans": entry(shape=[True, True]),
    "shape text": entry(shape="4x64"),
    "dtype F64": entry(dtype="F64"),
    "dtype F8": entry(dtype="F8_E4M3"),
    "dtype of half the size": entry(dtype="BF16"),
    "dtype I32": entry(dtype="I32"),
    "dtype list": entry(dtype=["F32"]),
    "entry text": lambda f: f.write_weights(f.header | {f.any_tensor(): "F32"}),
    "entry with more": entry(hook="os.system"),
    "nan": values(b"\0\0\xc0\x7f"),
    "infinity": values(b"\0\0\x80\x7f"),
    "minus infinity": values(b"\0\0\x80\xff"),
    "signalling nan": values(b"\1\0\x80\x7f"),
    "tensor of the base": renamed(lambda _: "base_model.model.model.norm.weight"),
    "tensor with a path": renamed(lambda name: "../../" + name),
    "tensor with dots": renamed(lambda name: name.replace(".lora_", "..lora_")),
    "tensor of a lookalike": renamed(lambda name: name.replace("lora", "l\u043era")),
    "tensor of another adapter": renamed(lambda name: name.replace(".weight", ".default.weight")),
    "tensor with nul": renamed(lambda name: name + "\0"),
    "tensor of the embedding": renamed(
        lambda _: "base_model.model.model.embed_tokens.lora_embedding_A"
    ),
    "tensor magnitude": extra_tensor(
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
    ),
    "tensor extra": extra_tensor("base_model.model.lm_head.weight"),
    "tensor with a bias": extra_tensor("base_model.model.model.layers.0.self_attn.q_proj.bias"),
    "tensor without name": extra_tensor(""),
    "tensor missing": missing,
    "metadata no object": lambda f: f.write_weights(f.header | {"__metadata__": 5}),
    "metadata in place of tensors": lambda f: f.write_weights(
        {"__metadata__": {"format": "pt"}}, b""
    ),
}
LARGE = ("config of 50 MB", 
    "header a million keys",
    "header 100 MB of spaces",
    "config 10 GB",
)  # seconds each, or much disk
SILENT: dict[str, Attack] = {
    "unset keys": config(
        use_dora=False, modules_to_save=None, rank_pattern={}, new_variant=None, more=[]
    ),
    "other files": lambda f: (f.path / "adapter_model.bin").write_bytes(b"\x80\x04never read"),
    "another fifo": lambda f: os.mkfifo(f.path / "training_args.bin"),
    "dropout": config(lora_dropout=0.05),
    "targets by their last part": lambda f: f.write_config(
        target_modules=sorted({name.rsplit(".", 1)[-1] for name in f.config["target_modules"]})
    ),
    "all-linear": config(target_modules="all-linear"),
    "metadata": lambda f: f.write_weights(
        f.header | {"__metadata__": {"hook": "os.system", "x" * 999: "y"}}
    ),
}


def folders(
    good: Path, top: Path, attacks: dict[str, Attack], seed: int = 0
) -> Iterator[tuple[str, Path]]:
    """(name of the attack, its folder) for each attack on a copy of `good`; the copy is removed afterwards."""
    for i, (name, attack) in enumerate(attacks.items()):
        path = top / f"hostile-{i}"
        shutil.copytree(good, path)
        attack(Folder(path, random.Random(f"{seed} {name}")))
        yield name, path
        shutil.rmtree(path)
