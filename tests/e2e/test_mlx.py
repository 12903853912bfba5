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
model, _ = load(job["model"], adapter_path=job["adapter"] or None)
print(json.dumps(model(mx.array([job["ids"]]))[0, -1].astype(mx.float32).tolist()))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    if sys.platform != "linux":
        pytest.skip("The environment of this test is for Linux; on a Mac use mlx_lm itself.")
    try:
        return mlx_lm()
    except NotInstalled as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("kind", ["pocket", *KINDS])
def test_logits_with_and_without_the_adapter(python: Path, tmp_path: Path, kind: str) -> None:
    model = build(tmp_path / "hf", kind)
    if kind != "pocket":  # `build` has changed its norms and biases
        model.network.save_pretrained(tmp_path / "hf")
    settings = Settings(db=str(tmp_path / "lessons.db"))
    model.save_adapter("a", settings.home_path / "adapters" / "a")
    (tmp_path / "mlx").mkdir()
    adapter = Adapter(name="a", path="adapters/a", base_model="x", base_fingerprint="", manifest={})
    adapter.manifest = registry.manifest_of(settings.home_path / "adapters" / "a")
    assert write_mlx(adapter, settings, tmp_path / "mlx") == 4
    ids = torch.randint(10, 300, (1, 40), generator=torch.Generator().manual_seed(3))
    for name in (None, "a"):
        with model.using(name), torch.inference_mode():
            ours = model.network(input_ids=ids).logits[0, -1].float()
        job = {
            "model": str(model.folder),
            "adapter": str(tmp_path / "mlx") if name else "",
            "ids": ids[0].tolist(),
        }
        done = subprocess.run(
            [python, "-c", WORKER], input=json.dumps(job), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        close = 0.2 if kind == "pocket" else 2e-3  # the pocket model has bfloat16 weights
        torch.testing.assert_close(
            ours, torch.tensor(json.loads(done.stdout)), atol=close, rtol=close
        )
