"""Two processes that share the training of one night: the same gradient, the same figures, and nobody left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

from reflect.models import load_model
from reflect.night import training
from reflect.night.harvest import Data, Example, Question
from reflect.night.losses import Row
from reflect.night.plan import make_plan

ROOT = Path(__file__).parent.parent

TWO = """
import sys
import torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_parallel import data, gradient, night
from reflect.models import load_model
from reflect.night import parallel
model = load_model({folder!r})
found = gradient(model)
if parallel.is_first():
    torch.save(found, {out!r})
    try:
        weights, figures = night(model, Path({out!r}).parent / "work")
        torch.save((weights, figures), {out!r} + ".night")
    finally:
        parallel.dismiss()
else:
    parallel.serve(model)
print("done")
"""


def question(asked: str) -> Question:
    words = [{"role": "user", "content": asked}]
    return Question(words, [{"role": "system", "content": "w90 w91"}, *words])


def data() -> Data:
    harvest = [Example(question(f"w{i}"), [30 + i, 31, 2]) for i in range(9)]
    return Data(harvest, harvest[:4], [], max_tokens=5)


def gradient(model) -> list[torch.Tensor]:
    """Of rows of four kinds and several lengths, more than one for each process."""
    model.new_adapter("x", rank=2, alpha=32, seed=0)
    parameters = model.adapter_parameters("x")
    with torch.no_grad():
        for p in parameters:
            p.add_(0.01)
    kinds = ["nll", "forward", "reverse", "jsd", "nll"]
    rows = [Row([5, i], [5, 90, i], [30 + i, 2, 40][: 1 + i % 3], kind) for i, kind in enumerate(kinds, 10)]
    training.shared_backward(model, "x", rows, parameters, 10_000)
    found = [p.grad.clone() for p in parameters]
    model.drop_adapter("x")
    return found


def night(model, folder: Path) -> tuple[list[torch.Tensor], dict]:
    figures = training.train(model, "y", data(), make_plan(1, budget=0.05, batch=8), folder)
    return [p.detach().clone() for p in model.adapter_parameters("y")], figures


def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path) -> None:
    folder, out = save_tiny(tmp_path / "tiny"), tmp_path / "found.pt"
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(ROOT / "tests"), folder=str(folder), out=str(out)))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", str(script)]
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0 and done.stdout.count("done") == 2, done.stderr[-3000:]

    model = load_model(str(folder))
    alone, (weights, figures) = gradient(model), night(model, tmp_path / "alone")
    for a, b in zip(alone, torch.load(out), strict=True):
        assert a.abs().max() > 0 and torch.allclose(a, b, atol=1e-6)
    shared_weights, shared_figures = torch.load(f"{out}.night")
    # The first two of these few steps are the same up to rounding, which later ones may enlarge.
    assert shared_figures["step"] == figures["step"] and shared_figures["rollouts"] == figures["rollouts"]
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(weights, shared_weights, strict=True))


def test_one_process_needs_none_of_this(monkeypatch: pytest.MonkeyPatch) -> None:
    from reflect.night import parallel

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.from_first(lambda: 7) == 7
    assert parallel.together({"nll": [1.0]}) == {"nll": [1.0]}
