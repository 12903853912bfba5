"""The scripts that compare reflect with others, and the labs on long horizons and modular adapters."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

from reflect.rollouts.transcript import turns_of

if TYPE_CHECKING:
    from reflect.models.local import LocalModel

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    """A script as a module; the scripts have no suffix."""
    loader = importlib.machinery.SourceFileLoader(Path(name).name, str(ROOT / "scripts" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def horizon() -> ModuleType:
    return script("labs/horizon")


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return script("benchmarks/peers")


class TestModular:
    def test_the_added_adapter_is_the_sum_of_the_changes(self, pocket: LocalModel) -> None:
        """Ranks 2 and 3 side by side; the factors are those of alpha and of a scale."""
        modular = script("labs/modular")
        generator = torch.Generator().manual_seed(0)
        for name, rank in (("one", 2), ("two", 3)):
            pocket.new_adapter(name, rank=rank)
            for parameter in pocket.adapter_parameters(name):
                parameter.data.normal_(std=0.1, generator=generator)
        pocket.scale_adapter("two", 0.5)
        modular.add(pocket, ["one", "two"], "sum")
        one, two, both = (pocket.known_adapter(name) for name in ("one", "two", "sum"))
        for layer, weights in both.layers.items():
            changes = [x.layers[layer].b @ x.layers[layer].a * x.factor for x in (one, two)]
            assert torch.allclose(weights.b @ weights.a * both.factor, sum(changes), atol=1e-5)
        for name in ("one", "two", "sum"):
            pocket.drop_adapter(name)


class TestHorizon:
    def test_rewards(self, pocket: LocalModel, horizon: ModuleType) -> None:
        world = horizon.World(pocket, 3, 0)
        days = [0, 1, 2, 0]
        right = [world.limits[kind] - 1 for kind in world.kinds]  # the index of each right price
        asked = [right[day] for day in days]
        assert world.reward(asked, days, "share") == world.reward(asked, days, "all") == 1.0
        low = [0, *asked[1:]]  # the lowest price on the first day
        assert 0 < world.reward(low, days, "share") < 0.9
        assert world.reward(low, days, "all") == 0.0
        assert world.reward([9] * 4, days, "share") == 0.0  # no price

    @pytest.mark.parametrize("way", ["reviews", "ends", "no book"])
    def test_transcripts(self, pocket: LocalModel, horizon: ModuleType, way: str) -> None:
        world = horizon.World(pocket, 3, 0)
        rng = random.Random(0)
        days = [rng.randrange(3) for _ in range(100)]
        row = horizon.transcript(world, [0] * 100, days, 0.2, 0, way)
        turns = turns_of(row)
        assert len(turns) == (100 if way == "reviews" else horizon.FIRST + horizon.LAST)
        assert all(turn.words == "price: 1" for turn in turns)
        assert ("The book" in turns[-1].back) == (way != "no book")
        assert "The shop closes." in turns[-1].back

    def test_failures_have_no_number(self, horizon: ModuleType) -> None:
        """A run that did not arrive counts as a failure, and not as its last number of rollouts."""
        ways = dict.fromkeys(horizon.MOST, (None, 0.5))
        rows = [
            {"kinds": 3, "reward": "all", "turns": 10, **ways},
            {"kinds": 3, "reward": "all", "turns": 10, **ways, "GRPO": (64, 0.95)},
        ]
        found = {curve["way"]: curve["points"] for curve in horizon.curves(rows)}
        assert found["GRPO"] == [{"turns": 10, "runs": 2, "failures": 1, "rollouts": [64, 64, 64]}]
        assert found["ends"] == [{"turns": 10, "runs": 2, "failures": 2, "rollouts": None}]


class TestPeers:
    def test_a_proposal_takes_the_place_of_its_condition(self, peers: ModuleType) -> None:
        kept = [("a", "use sort"), ("b", "use last")]
        assert peers.replaced(kept, ("a", "use swap")) == [("a", "use swap"), ("b", "use last")]
        assert peers.replaced(kept, ("c", "use swap")) == [*kept, ("c", "use swap")]
        assert peers.LINE.findall(peers.written(kept)) == kept

    def test_the_proposer_is_right_as_often_as_it_should_be(
        self, peers: ModuleType, pocket: LocalModel
    ) -> None:
        world = peers.World(0, pocket)
        verb, op = next(iter(world.before.items()))
        world.pool[verb, op] = [(f"the task says {verb}", f"use {op}")]
        rng = random.Random(0)
        for strength in (0.9, 0.2):
            drawn = [world.propose(verb, strength, rng) for _ in range(2000)]
            share = sum(map(world.right, drawn)) / len(drawn)
            assert abs(share - strength) < 0.04
            assert all(peers.naming([advice], verb) for advice in drawn)
        assert {world.after[v] == world.before[v] for v in world.before} == {True, False}
        assert sum(world.after[v] != world.before[v] for v in world.before) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["benchmarks/peers", "labs/horizon", "labs/modular", "labs/order"])
def test_quick(name: str) -> None:
    """The whole path with few steps; figures, and nothing written."""
    command = [sys.executable, str(ROOT / "scripts" / name), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Could not find a version" in done.stderr or done.returncode == 2:
        pytest.skip("packages that this script needs cannot be installed here")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)
