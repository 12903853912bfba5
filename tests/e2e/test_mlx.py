"""mlx_lm itself, on the processor in a virtual environment of its own, loads what
`reflect adapters export --mlx` writes and computes as we do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_gguf_export import KINDS, build

from reflect.adapters import registry
from reflect.adapters.export import write_mlx
from reflect.config import Settings
from reflect.records import Adapter
from scripts._common import NotInstalled, mlx_lm

pytestmark = pytest.mark.slow
WORKER = """
import json, sys
import mlx.core as mx
from mlx_lm import load
job = json.load(sys.stdin)
models = [load(job["model"], adapter_path=path)[0] for path in (None, job["adapter"])]
print(json.dumps([model(mx.array([job["ids"]]))[0, -1].tolist() for model in models]))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    if sys.platform != "linux":
        pytest.skip("The environment of this test is for Linux; on a Mac use mlx_lm itself.")
    try:
        return mlx_lm()
    except NotInstalled as e:
        pytest.skip(str(e))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "gemma3"]
)  # it needs six layers
def test_logits_with_and_without_the_adapter(python: Path, tmp_path: Path, kind: str) -> None:
    model, ids = build(tmp_path / "hf", kind), torch.arange(20, 60)[None]
    settings = Settings(db=str(tmp_path / "lessons.db"))
    folder = settings.home_path / "adapters" / "a"
    model.save_adapter("a", folder)
    ours = []
    for name in (None, "a"):
        with model.using(name), torch.inference_mode():
            ours.append(model.network(input_ids=ids).logits[0, -1])
    model.drop_adapter("a")
    model.network.save_pretrained(tmp_path / "hf")  # `build` has changed its norms and biases
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    rope = config["rope_parameters"]  # as models are published: mlx_lm reads both at the top
    config |= {"rope_theta": rope["rope_theta"]}
    config |= {"rope_scaling": rope} if rope["rope_type"] != "default" else {}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    manifest = registry.manifest_of(folder)
    adapter = Adapter(
        name="a", path="adapters/a", base_model="x", base_fingerprint="", manifest=manifest
    )
    (tmp_path / "mlx").mkdir()
    assert write_mlx(adapter, settings, tmp_path / "mlx") == 4
    job = {"model": str(tmp_path / "hf"), "adapter": str(tmp_path / "mlx"), "ids": ids[0].tolist()}
    done = subprocess.run(
        [python, "-c", WORKER], input=json.dumps(job), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-300:]
    for a, b in zip(ours, json.loads(done.stdout), strict=True):
        torch.testing.assert_close(a, torch.tensor(b), atol=2e-3, rtol=2e-3)
