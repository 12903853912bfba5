"""Adapters and whole models as GGUF files: what transformers reads back is what was written, and a
LoRA file added to the base file is the merged file. tests/e2e/test_gguf.py asks llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from test_workspace import make_adapter

import reflect
from reflect.adapters import gguf_export, registry
from reflect.cli import run_command
from reflect.errors import UsageError
from reflect.models import gguf as gguf_models
from reflect.models import load_model
from reflect.models.local import LocalModel
from scripts.proofs import _architectures as architectures

KINDS = {
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"head_dim": 128},  # transformers reads no other
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "llama-bias": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "gemma3": {},
    "mistral": {},
}


def build(folder: Path, kind: str) -> LocalModel:
    """A small random model of that architecture with a trained-looking adapter "a"."""
    changes = KINDS.get(kind, {})
    name = kind.partition("-")[0]
    model = load_model(
        "pocket" if kind == "pocket" else str(architectures.build(folder, name, **changes))
    )
    assert isinstance(model, LocalModel)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if name.endswith((".bias", "norm.weight")):  # zero or one in a new model
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    model.new_adapter("a", rank=4, alpha=6, seed=1)
    for parameter in model.adapter_parameters("a"):
        with torch.no_grad():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {t.name: np.asarray(t.data, dtype=np.float64) for t in gguf.GGUFReader(file).tensors}


def field(file: Path, name: str) -> object:
    return gguf.GGUFReader(file).fields[name].contents()


@pytest.mark.parametrize("kind", [*KINDS, "pocket"])
def test_an_adapter_added_to_the_base_file_is_the_merged_file(kind: str, tmp_path: Path) -> None:
    model = build(tmp_path / "hf", kind)
    model.save_adapter("a", tmp_path / "a")
    files = model.read_adapter(tmp_path / "a")
    gguf_export.write_adapter(model, files, tmp_path / "lora.gguf", {"reflect.adapter": "a"})
    lora = tensors(tmp_path / "lora.gguf")
    assert len(lora) == 2 * len(model.lora_layers)
    assert field(tmp_path / "lora.gguf", "adapter.lora.alpha") == 6
    assert field(tmp_path / "lora.gguf", "general.type") == "adapter"
    model.drop_adapter("a")
    gguf_export.write_model(model, tmp_path / "base.gguf", {})
    model.load_adapter("a", files)
    model.merge_adapter("a")
    gguf_export.write_model(model, tmp_path / "merged.gguf", {})
    base, merged = tensors(tmp_path / "base.gguf"), tensors(tmp_path / "merged.gguf")
    assert base.keys() == merged.keys()
    for name, weight in base.items():
        if f"{name}.lora_a" in lora:
            weight = weight + 6 / 4 * lora[f"{name}.lora_b"] @ lora[f"{name}.lora_a"]
            assert not np.allclose(base[name], merged[name], atol=1e-2), name
        np.testing.assert_allclose(weight, merged[name], atol=2e-2 if kind == "pocket" else 1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama-bias", "mistral"])
def test_what_transformers_reads_back_is_what_was_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFLECT_CACHE", str(tmp_path / "cache"))
    model = build(tmp_path / "hf", kind)
    model.merge_adapter("a")
    gguf_export.write_model(model, tmp_path / "m.gguf", {"general.name": "m"})
    again = load_model(str(tmp_path / "m.gguf"))
    assert isinstance(again, LocalModel) and again.ends == model.ends
    ids = torch.randint(10, 300, (2, 60), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours, theirs = model.network(input_ids=ids).logits, again.network(input_ids=ids).logits
    if kind != "llama-bias":  # transformers reads no biases of a Llama
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    if not kind.startswith("qwen"):  # it splits text for each Qwen as Qwen 2 does
        messages = architectures.messages(3, "say yes")
        assert model.encode(messages) == again.encode(messages)


def test_the_command_writes_a_file_with_the_fingerprint_of_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = architectures.build(tmp_path / "tiny", "llama")
    ws = reflect.open(tmp_path / "lessons.db", model=str(model), max_tokens=8)
    make_adapter(ws, "one", [])
    adapter = ws.adapters.export("one", tmp_path / "plain")
    command = [
        "adapters",
        "export",
        "one",
        "--db",
        ws.settings.db,
        "-m",
        ws.settings.model,
        "--gguf",
    ]
    assert run_command([*command, "--out", str(tmp_path / "lora")]) == 0
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert names == {"one.gguf", "README.md", "reflect.json"}
    sidecar = json.loads((tmp_path / "lora" / "reflect.json").read_text())
    fingerprint = ws.model.fingerprint
    assert sidecar["base_fingerprint"] == fingerprint and sidecar["merged"] is False
    assert field(tmp_path / "lora" / "one.gguf", "reflect.base_fingerprint") == fingerprint
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "llama-server -m BASE.gguf --lora one.gguf" in text and "ADAPTER ./one.gguf" in text
    assert str(tmp_path) not in text and registry.digest_of(tmp_path / "lora" / "one.gguf") in text
    assert run_command([*command, "--merge", "--out", str(tmp_path / "whole")]) == 0
    text = (tmp_path / "whole" / "README.md").read_text()
    assert "llama-server -m one.gguf" in text and "FROM ./one.gguf" in text
    # An export of any form replaces another one.
    for form in (
        {"form": "gguf"},
        {"merge": True},
        {"form": "gguf", "merge": True},
        {"form": "mlx"},
        {},
    ):
        ws.adapters.export("one", tmp_path / "lora", overwrite=True, **form)
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {p.name for p in adapter.iterdir()}
    assert (
        run_command([*command[:-3], "-m", "openai:x", "--gguf", "-o", str(tmp_path / "api")]) == 2
    )
    assert "--gguf needs its weights on this machine" in capsys.readouterr().err


def test_other_architectures_and_a_missing_package_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(tmp_path / "hf", "gpt2")
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel cannot be written .* Gemma3, .*Qwen3"):
        gguf_export.write_model(model, tmp_path / "x.gguf", {})
    llama = build(tmp_path / "llama", "llama")
    for kind, name, value in (
        ("llama", "hidden_act", "gelu"),
        ("llama", "rope_parameters", {"rope_type": "dynamic"}),
        ("qwen2", "head_dim", 64),
        ("qwen3", "attention_bias", True),
        ("gemma3", "query_pre_attn_scalar", 64),
    ):
        other = build(tmp_path / kind / name, kind)
        monkeypatch.setattr(other.network.config, name, value, raising=False)
        with pytest.raises(UsageError, match=rf"llama.cpp's {kind} does not support"):
            gguf_export.write_model(other, tmp_path / "x.gguf", {})
    monkeypatch.setattr(gguf_models, "is_installed", lambda: False)
    with pytest.raises(UsageError, match="--gguf needs the package gguf"):
        gguf_export.write_model(llama, tmp_path / "x.gguf", {})
    assert not (tmp_path / "x.gguf").exists()
