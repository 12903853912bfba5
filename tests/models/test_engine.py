"""The batch that requests join, and the engine that decodes it for everybody."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny

from reflect.errors import ModelError
from reflect.models import load_model
from reflect.models.base import Request
from reflect.models.continuous_batch import ContinuousBatch
from reflect.models.generation import GenerationRow
from reflect.models.local import LocalModel
from reflect.serve.engine import GATHER, Busy, Engine, EngineJob


def test_rows_that_join_and_leave_say_what_they_say_alone(tiny: LocalModel) -> None:
    requests = [
        Request(
            [{"role": "user", "content": " ".join(["w7"] * (1 + i % 5) + [f"w{i}"])}],
            (i,),
            4 + i % 20,
            i % 3 / 2,
        )
        for i in range(24)
    ]
    want = [tiny.sample([request])[0][0] for request in requests]
    batch = tiny.continuous_batch()
    assert batch is not None
    rows = [tiny.rows(request)[0] for request in requests]
    waiting, done = list(rows), 0
    while waiting or batch.rows:
        some, waiting = waiting[: 1 + done % 3], waiting[1 + done % 3 :]
        batch.join(some)
        done += len(batch.step())
    assert done == len(rows)
    assert [
        tiny.completion(row, request) for row, request in zip(rows, requests, strict=True)
    ] == want


def test_what_a_running_row_has_read_is_not_read_again(tiny: LocalModel) -> None:
    lessons = " ".join(f"w{i}" for i in range(2, 40))
    requests = [
        Request(
            [{"role": "system", "content": lessons}, {"role": "user", "content": f"w{i} " * i}],
            (i,),
            20,
        )
        for i in (1, 1, 5, 2)
    ]
    want = [tiny.sample([request])[0][0] for request in requests]
    batch = tiny.continuous_batch()
    rows = [tiny.rows(request)[0] for request in requests]
    read: list[int] = []
    inner = tiny.network.forward
    tiny.network.forward = lambda **words: (
        read.append(words["input_ids"].numel()),
        inner(**words),
    )[1]
    for row in rows:
        batch.join([row])
        batch.step()
    while batch.rows:
        batch.step()
    tiny.network.forward = inner
    assert [
        tiny.completion(row, request) for row, request in zip(rows, requests, strict=True)
    ] == want
    assert read[0] == len(rows[0].prompt) and max(read[1:]) < 12


@pytest.mark.parametrize("running", [0, 1])
def test_rows_that_join_together_with_the_same_beginning(tiny: LocalModel, running: int) -> None:
    lessons = " ".join(f"w{i}" for i in range(2, 60))
    requests = [
        Request(
            [{"role": "system", "content": lessons}, {"role": "user", "content": f"w{i} " * i}],
            (i,),
            20,
            i % 2,
        )
        for i in (4, 1, 9, 2, 30, 3)
    ]
    want = [tiny.sample([request])[0][0] for request in requests]
    batch = tiny.continuous_batch()
    assert batch is not None
    rows = [tiny.rows(request)[0] for request in requests]
    batch.join(rows[:running])
    batch.step()
    batch.join(rows[running:])
    while batch.rows:
        batch.step()
    assert [
        tiny.completion(row, request) for row, request in zip(rows, requests, strict=True)
    ] == want


def test_a_row_that_is_dropped_leaves_the_others_alone(tiny: LocalModel) -> None:
    requests = [Request([{"role": "user", "content": f"w{i}"}], (i,), 12) for i in range(6)]
    want = [tiny.sample([request])[0][0].tokens for request in requests]
    batch = tiny.continuous_batch()
    rows = [tiny.rows(request)[0] for request in requests]
    batch.join(rows)
    batch.step()
    for gone in (rows[0], rows[4], rows[5]):
        batch.drop(gone)
    while batch.rows:
        batch.step()
    assert [tuple(rows[i].tokens) for i in (1, 2, 3)] == [want[i] for i in (1, 2, 3)]
    batch.join([GenerationRow(rows[0].prompt, 0, 12)])
    batch.drop(batch.rows[0])
    assert batch.step() == []


def test_adapters_take_turns_and_a_broken_one_fails_alone(tiny: LocalModel) -> None:
    for name, value in (("a", 0.3), ("bad", float("nan"))):
        tiny.new_adapter(name, seed=1)
        for parameter in tiny.adapter_parameters(name):
            parameter.data.normal_(std=0.3) if value == value else parameter.data.fill_(value)
    talk = [{"role": "user", "content": "w1 w2"}]
    requests = [Request(talk, (i,), 30, adapter=name) for i in range(4) for name in (None, "a")]
    want = tiny.sample(requests)
    engine = Engine(tiny, queue=100)
    jobs = [engine.submit(request) for request in requests]
    broken = engine.submit(Request(talk, (1,), 30, adapter="bad"))
    gone = engine.submit(Request(talk, (1,), 30, adapter="never loaded"))
    assert [job.done.result(60) for job in jobs] == want
    with pytest.raises(Exception, match="not a number"):
        broken.done.result(60)
    with pytest.raises(Exception, match="No adapter 'never loaded'"):
        gone.done.result(60)
    assert engine.submit(requests[0]).done.result(60) == want[0], "the engine goes on"
    engine.close()


def test_a_model_that_no_row_can_join_answers_batch_after_batch(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny(tmp_path / "m")
    MistralForCausalLM(
        MistralConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=6,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).save_pretrained(folder)
    model = load_model(str(folder))
    assert model.continuous_batch() is None
    engine = Engine(model, queue=100)
    requests = [Request([{"role": "user", "content": f"w{i}"}], (i, i + 1), 9) for i in range(5)]
    jobs = [engine.submit(request) for request in requests]
    assert [job.done.result(60) for job in jobs] == model.sample(requests)
    engine.close()


def test_a_full_queue_and_a_job_that_nobody_waits_for(tiny: LocalModel) -> None:
    tiny.__dict__["ends"] = frozenset()
    engine = Engine(tiny, queue=2)
    hold = threading.Event()
    engine.call(hold.wait)
    long = Request([{"role": "user", "content": "w1"}], (1,), 100)
    time.sleep(0.05)
    jobs = [engine.submit(long), engine.submit(long)]
    with pytest.raises(Busy):
        engine.submit(long)
    jobs[0].cancel()
    hold.set()
    jobs[1].done.result(60)
    assert not jobs[0].done.done() and engine.steps <= 101, "what nobody waits for is not computed"
    engine.close()


def test_newcomers_are_read_together_and_none_is_forgotten(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.__dict__["ends"] = frozenset()
    read: list[int] = []
    inner = ContinuousBatch.join
    monkeypatch.setattr(
        ContinuousBatch, "join", lambda batch, rows: (read.append(len(rows)), inner(batch, rows))[1]
    )
    engine = Engine(tiny, queue=100)
    requests = [Request([{"role": "user", "content": f"w{i}"}], (i,), 6) for i in range(2 * GATHER)]
    jobs: list[EngineJob] = []

    def tell(index: int, text: str) -> None:  # one comes at each step of the first
        if len(jobs) < len(requests):
            jobs.append(engine.submit(requests[len(jobs)]))

    engine.submit(Request([{"role": "user", "content": "w9"}], (1,), 30), tell).done.result(60)
    done = [job.done.result(60) for job in jobs]
    engine.close()
    assert [n for n in read if n] == [1, GATHER, GATHER]
    assert done == tiny.sample(requests)


def test_answers_that_outgrow_the_memory_begin_again_later(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.__dict__["ends"] = frozenset()
    requests = [
        Request([{"role": "user", "content": "w1 " * (i + 1)}], (i, i + 9), 70) for i in range(4)
    ]
    want = tiny.sample(requests)
    most, held = 200, []
    monkeypatch.setattr(tiny, "cache_tokens", lambda: most)
    monkeypatch.setattr("reflect.serve.engine.ALLOW", 2)
    step = ContinuousBatch.step
    monkeypatch.setattr(
        ContinuousBatch,
        "step",
        lambda one: (held.append((len(one.rows), one.tokens())), step(one))[1],
    )
    engine = Engine(tiny, queue=100)
    jobs = [engine.submit(request) for request in requests]
    assert [job.done.result(60) for job in jobs] == want
    engine.close()
    assert max(tokens for rows, tokens in held if rows > 1) <= most, (
        "a step of many is never more than fits"
    )
    assert max(rows for rows, _ in held) > 4, "all were let in while they were short"
    assert held[-1][0] < 4


def test_too_little_memory_halves_the_running_batch(tiny: LocalModel) -> None:
    tiny.__dict__["ends"] = frozenset()
    requests = [Request([{"role": "user", "content": f"w{i}"}], (i,), 40) for i in range(8)]
    want = tiny.sample(requests)
    inner, fits = tiny.network.forward, 3

    def forward(**words: Any) -> Any:
        if words["input_ids"].shape[0] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(**words)

    tiny.network.forward = forward
    engine = Engine(tiny, queue=100)
    parts: list[str] = []
    jobs = [engine.submit(request, lambda _, text: parts.append(text)) for request in requests]
    assert [job.done.result(60) for job in jobs] == want
    fits = 0
    with pytest.raises(ModelError, match="too little memory for one answer"):
        engine.submit(requests[0]).done.result(60)
    tiny.network.forward = inner
    assert engine.submit(requests[0]).done.result(60) == want[0], "the engine goes on"
    engine.close()
    assert parts


def test_a_light_network_serves_on_one_thread(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr("reflect.models.local.LIGHT_BYTES", 10)
        tiny.use_one_thread_if_small()
        assert torch.get_num_threads() == 2, "a larger one keeps what it has"
        monkeypatch.undo()
        tiny.use_one_thread_if_small()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
