"""Reading a model's folder: precision, context, memory, and one clear sentence for whatever is
missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import save_tiny

from reflect.config import Settings, load
from reflect.errors import ModelError, NightError, UsageError
from reflect.models import cpu_precision, load_model, memory
from reflect.models.base import Request
from reflect.models.loading import context_of, dtype_of
from reflect.models.local import LocalModel
from reflect.training import loop, losses


def ask(*words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(f"w{i}" for i in words)}]


MANY = [Request(ask(*range(n, 2 * n)), tuple(range(n)), 12, 1.0) for n in (3, 9, 5)]


# ---- precision and place


@pytest.mark.parametrize(("instructions", "gain"), [(True, 3.0), (True, 1.1), (False, 3.0)])
def test_a_large_model_on_a_cpu_uses_bfloat16_where_it_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: bool, gain: float
) -> None:
    timed = []

    def seconds(dtype: torch.dtype) -> float:
        timed.append(dtype)
        return gain if dtype == torch.float32 else 1.0

    monkeypatch.setenv("REFLECT_CACHE", str(tmp_path))
    monkeypatch.setattr(cpu_precision, "has_instructions", lambda: instructions)
    monkeypatch.setattr(cpu_precision, "seconds", seconds)
    cpu, large = torch.device("cpu"), cpu_precision.LARGE
    expected = torch.bfloat16 if instructions and gain > 2 else torch.float32
    assert dtype_of(Settings(), cpu, large) == dtype_of(Settings(), cpu, large) == expected
    assert len(timed) == (2 if instructions else 0), "it is measured once, and then remembered"
    assert dtype_of(Settings(), cpu, large - 1) == dtype_of(Settings(), cpu) == torch.float32
    assert dtype_of(Settings(dtype="float32"), cpu, large) == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_have_the_precision_that_was_asked_for(tmp_path: Path, dtype: str) -> None:
    model = load_model(str(save_tiny(tmp_path / "m")), Settings(dtype=dtype))
    assert model.network.dtype == getattr(torch, dtype)
    model.new_adapter("a")
    assert {p.dtype for p in model.adapter_parameters("a")} == {torch.float32}, (
        "small steps would be rounded away"
    )
    sums = losses.backward(model, "a", [losses.TrainingRow([5, 6], [5, 6], [7, 8], "nll")], 100)
    assert sums["nll"][0] > 0 and any(p.grad.abs().sum() > 0 for p in model.adapter_parameters("a"))
    assert model.sample(MANY[:1])[0][0].tokens


def test_a_device_map_answers_the_same(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "m"))
    assert load_model(folder, Settings(device_map="auto", device="cpu")).sample(MANY) == load_model(
        folder
    ).sample(MANY)


def test_four_bits_without_bitsandbytes_say_so(tmp_path: Path) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(ModelError, match=r"needs bitsandbytes.*pip install"):
            load_model(str(save_tiny(tmp_path / "m")), Settings(quantize="4bit"))
    else:
        pytest.skip("bitsandbytes is here")


@pytest.mark.parametrize(
    "setting",
    [
        {"dtype": "int8"},
        {"quantize": "8bit"},
        {"thinking": "yes"},
        {"memory": -1},
        {"max_context": -5},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        load(**setting)


# ---- context


@pytest.mark.parametrize(
    ("config", "tokenizer", "most", "want"),
    [
        ({"max_position_embeddings": 2048}, 1e30, 0, 2048),
        ({"max_position_embeddings": 2048}, 512, 1000, 1000),
        ({}, 1e30, 0, 4096),
        ({}, 2048, 0, 2048),
        ({"max_position_embeddings": None}, 1e30, 0, 4096),
        ({"max_position_embeddings": 10**12}, 8192, 0, 8192),
        ({"max_position_embeddings": 10**12}, 10**20, 100, 100),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            1e30,
            0,
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            1e30,
            0,
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            1e30,
            0,
            131072,
        ),
    ],
)
def test_the_context_is_what_can_be_believed(
    config: dict[str, Any], tokenizer: float, most: int, want: int
) -> None:
    network = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))
    )
    assert context_of(network, SimpleNamespace(model_max_length=tokenizer), most) == want


def test_a_context_too_long_for_the_machine_can_be_cut(tmp_path: Path) -> None:
    model = load_model(str(save_tiny(tmp_path / "m")), Settings(max_context=40))
    with pytest.raises(ModelError, match=r"has 5\d tokens.*reads 40"):
        model.sample([Request(ask(*range(50)))])


# ---- memory


def test_too_little_memory_says_how_much_it_takes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    network = load_model(str(folder)).network
    assert memory.parameters_of(folder) == sum(p.numel() for p in network.parameters())
    assert memory.weights_of(network) == 4 * memory.parameters_of(folder)
    with pytest.raises(
        ModelError, match=r"needs 0\.[34] MB of memory in float32, and there are 0\.1 MB .*memory\)"
    ):
        load_model(str(folder), Settings(memory=1e-4))


def small(network: Any, most: int) -> Any:
    """A machine that can take so many rows of the network at once and no more; returns what takes
    it away again."""

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    return network.register_forward_pre_hook(look, with_kwargs=True)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_too_large_is_halved_and_says_the_same(tiny: LocalModel, most: int) -> None:
    want = tiny.sample(MANY)
    hook = small(tiny.network, most)
    before = tiny.cache_tokens()
    assert tiny.sample(MANY) == want
    assert tiny.cache_tokens() < before, "what was too large is not tried again"
    assert tiny.sample(MANY) == want
    hook.remove()
    small(tiny.network, 0)
    with pytest.raises(ModelError, match=r"too little memory for one answer of .*tokens of prompt"):
        tiny.sample(MANY)


def test_the_budget_bounds_the_batch(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "m"))
    free, held = load_model(folder), load_model(folder, Settings(memory=2e-3))
    assert held.cache_tokens() < free.cache_tokens()
    assert held.sample(MANY) == free.sample(MANY)


def test_training_with_too_little_memory_goes_on_with_less(tiny: LocalModel) -> None:
    rows = [
        losses.TrainingRow([5, 6, i], [5, 9, i], [7, 8, i], kind)
        for i in range(4)
        for kind in ("nll", "reverse")
    ]
    tiny.new_adapter("a")
    mine = tiny.adapter_parameters("a")
    for p in mine:
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    sums = loop.shared_backward(tiny, "a", rows, mine, 4096)
    want = [p.grad.clone() for p in mine]
    for p in mine:
        p.grad = None
    small(tiny.network, 2)
    less = loop.shared_backward(tiny, "a", rows, mine, 4096)
    assert less == {kind: pytest.approx(value, rel=1e-5) for kind, value in sums.items()}
    for p, its in zip(mine, want, strict=True):
        torch.testing.assert_close(p.grad, its, rtol=1e-4, atol=1e-6)
    assert tiny.memory_limits.checkpoints and tiny.memory_limits.trained < 20
    small(tiny.network, 0)
    with pytest.raises(NightError, match="too little memory to train on one answer of 6 tokens"):
        loop.shared_backward(tiny, "a", rows, mine, 4096)


def test_an_error_of_another_kind_is_not_mistaken(tiny: LocalModel) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("expected scalar type Float")

    tiny.network.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="scalar type"):
        tiny.sample(MANY)
    assert memory.out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
    )


# ---- what cannot be loaded


def test_a_model_with_code_of_its_own_is_refused_and_asks_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "made_up",
        "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "c.py").write_text("raise SystemExit('this must never run')")
    with pytest.raises(ModelError, match="needs code from its own folder"):
        load_model(str(folder))


class Hub(BaseHTTPRequestHandler):
    """A hub on which every model is gated, but for those called missing."""

    def do_GET(self) -> None:
        missing = "missing" in self.path
        self.send_response(404 if missing else 403)
        self.send_header("X-Error-Code", "RepoNotFound" if missing else "GatedRepo")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_models_of_the_hub_that_cannot_be_had_say_why(tmp_path: Path, hub: str) -> None:
    code = """
from reflect.errors import ModelError
from reflect.models import find
from huggingface_hub import constants
for name in ("hf:org/gated", "hf:org/missing", "offline"):
    if name == "offline":
        constants.HF_HUB_OFFLINE, name = True, "hf:org/gated"
    try:
        find(name)
    except ModelError as e:
        print(e)
"""
    env = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    gated, missing, offline = done.stdout.splitlines()
    assert (
        "hf:org/gated is gated" in gated
        and "Accept it at https://huggingface.co/org/gated" in gated
    )
    assert "There is no model hf:org/missing" in missing
    assert "not on this machine and cannot be fetched: HF_HUB_OFFLINE is set." in offline
