"""Two processes that share the training of one night: the same gradient, the same figures, and
nobody left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny

from reflect.cli import run_command
from reflect.config import Settings
from reflect.errors import ModelError
from reflect.models import load_model, memory
from reflect.models.base import Request
from reflect.store import Store, lessons
from reflect.tasksets import load_taskset
from reflect.training import collectives, loop
from reflect.training.losses import TrainingRow
from reflect.training.plan import make_plan
from reflect.training.teacher_data import Example, Question, TrainingData

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / "tests"), str(Path(__file__).parent)]

TWO = """
import sys
import torch
from pathlib import Path
torch.set_num_threads(1)
sys.path[:0] = {paths!r}
from test_parallel import data, gradient, night, said, saved_and_loaded
from reflect.config import Settings
from reflect.models import distributed, fsdp, load_model, memory
from reflect.night import workers
model = load_model({folder!r}, Settings(**{settings!r}))
words = said(model)
found = gradient(model)
model.memory_limits.checkpoints = True
found += gradient(model)
held = memory.weights_of(model.network)
if model.share_layers:
    with fsdp.sharded(model.network):
        held = memory.weights_of(model.network)
if distributed.is_first():
    try:
        assert words == said(model)  # the others wait meanwhile
        saved_and_loaded(model, Path({out!r}).parent / "adapter")
        assert words == said(model)  # the first process needs nobody for that
        made = night(model, Path({out!r}).parent / "work")
        torch.save((found, made, words, held), {out!r})
    finally:
        workers.dismiss()
else:
    workers.serve(lambda: model)


def again():  # a second night of the same processes
    assert said(model) == words
    made = night(model, Path({out!r}).parent / "again")
    assert made[1]["step"] > 0


workers.lead(again, lambda: model)
print("done")
"""


def question(asked: str) -> Question:
    words = [{"role": "user", "content": asked}]
    return Question(words, [{"role": "system", "content": "w90 w91"}, *words])


def data() -> TrainingData:
    harvest = [Example(question(f"w{i}"), [30 + i, 31, 2]) for i in range(9)]
    return TrainingData(harvest, harvest[:4], [], max_tokens=5)


def gradient(model) -> list[torch.Tensor]:
    """Of rows of four kinds and several lengths, more than one for each process."""
    model.new_adapter("x", rank=2, alpha=32, seed=0)
    parameters = model.adapter_parameters("x")
    with torch.no_grad():
        for p in parameters:
            p.add_(0.01)
    kinds = ["nll", "forward", "reverse", "jsd", "nll"]
    rows = [
        TrainingRow([5, i], [5, 90, i], [30 + i, 2, 40][: 1 + i % 3], kind)
        for i, kind in enumerate(kinds, 10)
    ]
    loop.shared_backward(model, "x", rows, parameters, 10_000)
    result = [p.grad.clone() for p in parameters]
    model.drop_adapter("x")
    return result


def night(model, folder: Path) -> tuple[list[torch.Tensor], dict]:
    figures = loop.train(model, "y", data(), make_plan(1, budget=0.05, batch=8), folder)
    return [p.detach().clone() for p in model.adapter_parameters("y")], figures


def saved_and_loaded(model, folder: Path) -> None:
    model.new_adapter("kept", rank=2)
    model.save_adapter("kept", folder)
    model.drop_adapter("kept")
    model.load_adapter("kept", folder)
    model.drop_adapter("kept")


def said(model) -> list[tuple[int, ...]]:
    """Answers of several lengths."""
    return [
        done.tokens
        for done in model.sample([Request([{"role": "user", "content": "w7 w8"}], (1, 2, 3), 9)])[0]
    ]


@pytest.mark.parametrize("settings", [{}, {"device_map": "fsdp"}], ids=["whole", "fsdp"])
def test_two_processes_take_the_steps_that_one_takes(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    folder, out = save_tiny(tmp_path / "tiny"), tmp_path / "found.pt"
    script = tmp_path / "two.py"
    script.write_text(TWO.format(paths=PATHS, folder=str(folder), out=str(out), settings=settings))
    done = launched([str(script)])
    assert done.returncode == 0 and done.stdout.count("done") == 2, done.stderr[-3000:]

    model = load_model(str(folder))
    whole = memory.weights_of(model.network)
    layers = sum(
        p.numel() * p.element_size() for p in model.network.get_decoder().layers.parameters()
    )
    alone, (weights, figures) = gradient(model), night(model, tmp_path / "alone")
    result, (shared_weights, shared_figures), words, held = torch.load(out)
    for a, b in zip(alone + alone, result, strict=True):
        assert (
            a.abs().max() > 0 and (a - b).abs().max() < 5e-6 * a.abs().max()
        )  # sums in another order, in float32
    # The first two of these few steps are the same up to rounding, which later ones may enlarge.
    assert (
        shared_figures["step"] == figures["step"]
        and shared_figures["rollouts"] == figures["rollouts"]
    )
    assert all(
        torch.allclose(a, b, atol=2e-2) for a, b in zip(weights, shared_weights, strict=True)
    )
    assert words == said(model)
    assert held == whole - (layers // 2 if settings else 0), (
        "each holds half of the layers while it trains"
    )


def launched(
    words: list[str], *, how: str = "--multi_gpu", cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """The end of two processes."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "REFLECT_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", how, "--num_processes", "2"]
    launch += ["--main_process_port", "0", *words]
    return subprocess.run(
        launch, env=env, capture_output=True, text=True, timeout=400, check=False, cwd=cwd
    )


@pytest.mark.slow
def test_a_whole_night_by_two_processes_is_judged_as_by_one(tmp_path: Path) -> None:
    """The command itself, on the pocket model: each process with the whole network, and with half
    of its layers."""
    sleep = ["-m", "reflect", "sleep", "--budget", "20s", "--json"]
    reports = []
    for how in ("", "--multi_gpu", "--use_fsdp"):
        folder = tmp_path / f"workspace{how}"
        folder.mkdir()
        store = Store(str(folder / "lessons.db"))
        with store.write() as s:
            for verb, operation in list(load_taskset("dialect").meanings.items())[:3]:
                lessons.add(
                    s,
                    when=f"the task says {verb}",
                    do=f"use {operation}",
                    author="human",
                    scope="dialect",
                )
        if how:
            done = launched(sleep, how=how, cwd=folder)
        else:
            env = os.environ | {"PYTHONPATH": str(ROOT), "REFLECT_THREADS": "1"}
            words = [sys.executable, *sleep]
            done = subprocess.run(
                words, env=env, capture_output=True, text=True, check=False, cwd=folder
            )
        assert done.returncode == 0, done.stderr[-3000:]
        reports.append(json.loads(done.stdout))
    alone = reports[0]
    assert alone["status"] == "promoted", "or there is little to compare"
    for report in reports[1:]:
        assert [report[name] for name in ("status", "reason", "adapter", "distilled", "plan")] == [
            alone[name] for name in ("status", "reason", "adapter", "distilled", "plan")
        ]
        gate, its = alone["stages"]["gate"], report["stages"]["gate"]
        assert (
            gate["arms"] == its["arms"]
            and gate["lessons"] == its["lessons"]
            and gate["scale"] == its["scale"]
        )
        assert [(c["name"], c["ok"]) for c in gate["checks"]] == [
            (c["name"], c["ok"]) for c in its["checks"]
        ]
        assert [c["value"] for c in its["checks"]] == pytest.approx(
            [c["value"] for c in gate["checks"]], abs=1e-3
        )


def test_only_a_night_takes_several_processes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_command(["lessons"]) == 2 and "only `reflect sleep` shares" in capfd.readouterr().err
    # 2,468,160 numbers in float32: the whole to sample with, and half of it to train with
    with pytest.raises(ModelError, match=r"needs 15\.5 MB .* there are 15\.0 MB") as refused:
        load_model("pocket", Settings(device_map="fsdp", memory=0.015))
    assert "samples with the whole model" in refused.value.hint
    with pytest.raises(ModelError, match="four bits cannot be shared"):
        load_model("pocket", Settings(device_map="fsdp", quantize="4bit"))


def test_one_process_needs_none_of_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert collectives.share([1, 2, 3]) == [1, 2, 3]
    assert collectives.from_first(lambda: 7) == 7
    assert collectives.together({"nll": [1.0]}) == {"nll": [1.0]}


def test_processes_take_the_same_passes_with_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        TrainingRow([5] * i, [5, 90], [30, 2], kind)
        for i in range(1, 6)
        for kind in ("nll", "forward")
    ]
    monkeypatch.setenv("WORLD_SIZE", "3")
    every = []
    for i in range(3):
        monkeypatch.setenv("RANK", str(i))
        every.append(collectives.micro_batches_in_step(rows, 8))
    assert len({len(batches) for batches in every}) == 1
    for batches in zip(*every, strict=True):
        assert len({row.asks_teacher for batch in batches for row in batch}) == 1 and all(batches)
    weighted = [row for batches in every for batch in batches for row in batch if row.weight]
    assert sorted(map(str, weighted)) == sorted(map(str, rows))
