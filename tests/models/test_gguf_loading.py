"""GGUF files, written here with the package gguf from tiny random models: what loads, and one clear
sentence for each file that does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from reflect.config import Settings
from reflect.errors import ModelError, ReflectError, UnknownName, UsageError
from reflect.models import find, load_model
from reflect.models import gguf as gguf_files
from reflect.models.base import Request
from reflect.models.local import LocalModel
from scripts.proofs import _architectures as architectures

ASK = Request([{"role": "user", "content": "Is it lucky?"}], (0, 1), 12, 1.0)


def write(
    folder: Path, file: Path, *, arch: str = "qwen3", template: bool = True, **more: Any
) -> Path:
    """The model of a Hugging Face folder as a GGUF file, in float32. `more`: further fields."""
    model = load_model(str(folder))
    assert isinstance(model, LocalModel)
    config, tokenizer = model.network.config, model.tokenizer
    writer = gguf.GGUFWriter(file, arch)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = tokenizer.added_tokens_decoder
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    kinds = gguf.TokenType
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL for i in range(len(words))]
    )
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(model.end)
    if template:
        writer.add_chat_template(str(tokenizer.chat_template))
    for name, value in more.items():
        key = name.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, weight in model.network.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(names.get_name(name, (".weight",)), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.build(tmp_path_factory.mktemp("gguf") / "hf", "qwen3", head_dim=128)


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write(folder, folder.parent / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REFLECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def test_a_file_answers_as_the_model_that_it_was_made_of(
    folder: Path, file: Path, cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    original, loaded = load_model(str(folder)), load_model(f"gguf:{file}")
    assert isinstance(loaded, LocalModel) and isinstance(original, LocalModel)
    for name, weight in original.network.state_dict().items():
        assert torch.equal(weight, loaded.network.state_dict()[name]), name
    assert loaded.chat.render(ASK.messages) == original.chat.render(ASK.messages)
    assert loaded.ends == original.ends and loaded.context == original.context
    pairs = zip(loaded.sample([ASK])[0], original.sample([ASK])[0], strict=True)
    assert all(a.tokens == b.tokens for a, b in pairs)
    assert "once" in capsys.readouterr().err
    (made,) = [path for path in cache.iterdir() if path.is_dir()]
    again = load_model(str(file))  # the plain path, from the cache
    assert isinstance(again, LocalModel) and again.folder == made
    assert again.fingerprint == loaded.fingerprint and capsys.readouterr().err == ""
    again.new_adapter("a")  # it can be trained and saved
    again.save_adapter("a", tmp_path / "a")
    other = shutil.copy(file, tmp_path / "other.gguf")
    assert find(str(other)).parent == cache and len([*cache.glob("*/config.json")]) == 2


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("base.gguf", {"template": False}, "has no chat template: it is a base model"),
        ("a-00002-of-00003.gguf", {}, "is part 2 of a model that is split into 3 files"),
        ("a-00001-of-00003.gguf", {}, "is part 1 of a model that is split into 3 files"),
        (
            "b.gguf",
            {"split__count": 3, "split__no": 1},
            "is part 2 of a model that is split into 3",
        ),
        ("vision.gguf", {"general__type": "mmproj"}, "is no language model: it holds mmproj"),
        ("strange.gguf", {"arch": "xyz-9"}, "transformers cannot read"),
    ],
)
def test_a_file_that_is_no_chat_model_is_one_clear_sentence(
    folder: Path, tmp_path: Path, cache: Path, name: str, fields: dict[str, Any], sentence: str
) -> None:
    bad = write(folder, tmp_path / name, **fields)
    with pytest.raises(ModelError) as e:
        load_model(str(bad))
    assert sentence in e.value.message and name in e.value.message and e.value.hint
    assert e.value.message.count("\n") == 0 and not [*cache.glob("*/config.json")]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_file_that_is_cut_off(file: Path, tmp_path: Path, cache: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    data = file.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut\.gguf is cut off or damaged"):
        load_model(str(cut))
    assert not [*cache.glob("*/*.safetensors")]


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>404</html>", b"ggml" * 100])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="is no GGUF file"):
        load_model(str(tmp_path / "x.gguf"))


def test_no_file_no_package_and_a_folder_of_that_name(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name in ("gguf:", "gguf:nothing", "nothing.gguf", f"gguf:{tmp_path}"):
        with pytest.raises(UnknownName):
            load_model(name)
    assert (
        find(str(shutil.copytree(folder, tmp_path / "hf.gguf"))) == (tmp_path / "hf.gguf").resolve()
    )
    monkeypatch.setattr(gguf_files, "is_installed", lambda: False)
    with pytest.raises(UsageError, match="second-nature\\[gguf\\]"):
        load_model(str(file))


def test_too_little_memory_is_said_before_the_conversion(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reflect.models.memory.free", lambda *_, **__: 1000)
    with pytest.raises(ReflectError, match=r"takes .* of memory"):
        load_model(str(file), Settings())
