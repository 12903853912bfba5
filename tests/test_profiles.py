"""Profiles share a base and a database and nothing else; their adapters answer side by side in one call."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny

import reflect
from reflect.cli import run_command
from reflect.errors import AdapterError, UnknownName, UsageError
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.night import adapters, curriculum
from reflect.records import Adapter
from reflect.store import Store, lessons, nights, profiles
from reflect.workspace import Workspace


def ask(*words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": " ".join(f"w{i}" for i in words)}]


REQUESTS = [
    Request(ask(1, 2, 3), seeds=(1, 2, 3, 4, 5), max_tokens=24),
    Request(ask(*range(20)), seeds=(1, 9), max_tokens=7, temperature=0.5),
    Request(ask(7), seeds=(3,), max_tokens=16, temperature=0.0),
    Request(ask(5, 5), seeds=(), max_tokens=5),
]


def wake(model: LocalModel, name: str, seed: int) -> None:
    """Give a fresh adapter weights that change the answers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters(name):
        parameter.data.normal_(std=0.3, generator=generator)


# -- adapters side by side ---------------------------------------------------------------------------------------------


def test_requests_of_one_call_may_ask_for_different_adapters(tiny: LocalModel) -> None:
    alone: dict[str | None, Any] = {None: tiny.sample(REQUESTS)}
    for seed, name in enumerate(("one", "two")):
        tiny.new_adapter(name, rank=4 * (seed + 1))
        wake(tiny, name, seed)
        with tiny.using(name):
            alone[name] = tiny.sample(REQUESTS)
    assert len({str(answers) for answers in alone.values()}) == 3, "the adapters must differ for this to show anything"
    mixed = [dataclasses.replace(request, adapter=name) for request in REQUESTS for name in ("two", None, "one")]
    expected = [alone[name][i] for i in range(len(REQUESTS)) for name in ("two", None, "one")]
    for active in (None, "one", "two"):
        tiny.use(active)
        assert tiny.sample(mixed) == expected
        assert tiny.active == active, "the call must leave the model as it was"
        assert tiny.sample(REQUESTS) == alone[active], "without a word it is the adapter that is on"


def test_an_adapter_that_is_not_loaded_is_named_and_nothing_is_sampled(tiny: LocalModel) -> None:
    with pytest.raises(UnknownName, match="No adapter 'gone'"):
        tiny.sample([*REQUESTS, dataclasses.replace(REQUESTS[0], adapter="gone")])
    assert tiny.active is None and tiny.sample(REQUESTS[:1])


def test_a_clone_says_the_same_and_learns_on_its_own(tiny: LocalModel) -> None:
    tiny.new_adapter("one", rank=4, alpha=16)
    wake(tiny, "one", 1)
    tiny.scale_adapter("one", 0.5)
    with tiny.using("one"):
        before = tiny.sample(REQUESTS)
    tiny.clone_adapter("one", "two")
    assert tiny.active is None
    with tiny.using("two"):
        assert tiny.sample(REQUESTS) == before
    assert [p.shape for p in tiny.adapter_parameters("two")] == [p.shape for p in tiny.adapter_parameters("one")]
    assert all(p.requires_grad for p in tiny.adapter_parameters("two"))
    wake(tiny, "two", 2)
    with tiny.using("two"):
        assert tiny.sample(REQUESTS) != before
    with tiny.using("one"):
        assert tiny.sample(REQUESTS) == before, "the first must not change with its clone"
    with pytest.raises(AdapterError, match="already loaded"):
        tiny.clone_adapter("one", "two")
    with pytest.raises(UnknownName):
        tiny.clone_adapter("gone", "three")
