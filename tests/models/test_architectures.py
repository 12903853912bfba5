"""Five architectures, small and random but for one skill: a day, a night and a way back each; the
same code for all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import reflect
from reflect.gate import drift
from reflect.models import load_model
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.store import doctor, nights
from reflect.training import losses
from scripts.proofs import _architectures as architectures
from scripts.proofs._architectures import ADVICE, KINDS, LESSON, messages, write_tasks

NIGHT = {
    "budget": 0.15,
    "batch": 16,
    "anchors": 24,
    "tasks_per_lesson": 8,
    "fewest_tasks": 16,
    "gate_tasks": 12,
}
NIGHT |= {"placebo": False}  # a model that says "yes" to any lesson at all would not pass it
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}


@pytest.fixture(scope="module", params=list(KINDS))
def taught_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The taught model, and a taskset beside it."""
    top = tmp_path_factory.mktemp(request.param)
    write_tasks(top / "luck.jsonl")
    return architectures.taught(top / request.param, request.param, steps=40, advice=ADVICE[:2])


@pytest.fixture
def model(taught_folder: Path) -> LocalModel:
    return load_model(str(taught_folder))


def test_a_day_a_night_and_the_way_back(
    taught_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(taught_folder.parent)
    ws = reflect.open(
        tmp_path / "lessons.db", model=str(taught_folder), max_tokens=6, reflect_tokens=16
    )
    run = ws.run(
        "luck.jsonl", n=2, k=3
    )  # without lessons most attempts fail, and the reviews are noise
    with ws.store.read() as s:
        assert run.reward < 0.5 and run.errors == 0 and doctor.check(s) == []
    assert run.reflections == 2 and set(run.outcomes) <= {"problem"}, "noise is no lesson"
    ws.lessons.add(*LESSON, scope="luck.jsonl")
    arms = ws.evaluate("luck.jsonl", arms=["base", "lessons"], n=12)
    assert arms["base"].reward <= 0.1 and arms["lessons"].reward >= 0.9

    def say() -> list[str]:
        requests = [Request(messages(i), (0,), 6, 0.0) for i in (3, 1003)]
        return [done[0].text for done in ws.model.sample(requests)]

    before = say()
    night = ws.sleep("luck.jsonl", **NIGHT)
    assert night.status in ("promoted", "rejected"), (
        night.reason
    )  # the gate may see that so small a model is changed
    gate = night.stages["gate"]["arms"]["luck.jsonl"]
    assert gate["adapter"]["reward"] >= 0.9 > gate["base"]["reward"] + 0.5, (
        "the weights have learned it"
    )
    if night.status == "rejected":
        assert say() == before
        with ws.store.write() as s:
            nights.set_adapter(s, nights.get_adapter(s, night.adapter).id, status="candidate")
            nights.promote(
                s, nights.get_adapter(s, night.adapter).id, "default", night.lessons, night.night_id
            )
        ws.adapters.switch()
    assert say() == ["yes", "yes"] and ws.model.active == night.adapter
    ws.rollback()
    assert say() == before and ws.model.active is None
    assert {lesson.status for lesson in ws.lessons} <= {"active", "candidate"}
    assert ws.adapters.verify() == {night.adapter: ""} and ws.doctor() == []


def test_an_answer_does_not_depend_on_its_batch(model: LocalModel) -> None:
    many = [
        Request(messages(i, do), (i, 7), 10, heat)
        for i, do, heat in [(1, "", 1.0), (40, "say no", 2.0), (2, "", 0.0)]
    ]
    together = model.sample(many)
    for request, group in zip(many, together, strict=True):
        assert group == [
            model.sample([Request(request.messages, (s,), 10, request.temperature)])[0][0]
            for s in request.seeds
        ]
    ids = torch.tensor([model.encode(messages(2))])
    with torch.inference_mode():
        out = model.network.generate(ids, do_sample=False, max_new_tokens=10, pad_token_id=0)[
            0, ids.shape[1] :
        ].tolist()
    assert list(together[2][0].tokens) == [t for t in out if t not in model.ends]


def test_every_linear_layer_of_the_text_learns(model: LocalModel) -> None:
    model.new_adapter("a", rank=2)
    rows = [losses.TrainingRow([5, 6, 7], [5, 6, 7], [8, 9], "nll")]
    losses.backward(model, "a", rows, 100)
    moved = [
        name
        for name, p in model.network.named_parameters()
        if ".lora_B" in name and p.grad.abs().sum() > 0
    ]
    layers = {"gpt2": 4}.get(
        model.folder.name, 7
    )  # GPT-2 has one layer for queries, keys and values, and no gate
    assert len(moved) == 2 * layers


def rows_of_all_losses(model: LocalModel) -> list[losses.TrainingRow]:
    student, teacher = model.encode(messages(3)), model.encode(messages(3, "say yes"))
    answer = [*range(20, 31), model.end]
    rows = [
        losses.TrainingRow(student, teacher, answer, kind)
        for kind in ("nll", "forward", "reverse", "jsd")
    ]
    return [
        *rows,
        losses.TrainingRow(
            student, student, answer, "policy", advantage=0.5, old=[-2.0] * 12, beta=0.1
        ),
    ]


def gradients(model: LocalModel, name: str) -> list[torch.Tensor]:
    for p in model.adapter_parameters(name):
        p.grad = None
    losses.backward(model, name, rows_of_all_losses(model), 10_000)
    return [p.grad.clone() for p in model.adapter_parameters(name)]


def test_pieces_and_recomputed_layers_have_the_same_gradients(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.new_adapter("a")
    for p in model.adapter_parameters("a"):
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    want = gradients(model, "a")
    monkeypatch.setattr(losses, "LOGITS", 5 * len(model.tokenizer))  # pieces of five tokens
    pieces = gradients(model, "a")
    model.memory_limits.checkpoints = True
    for result in (pieces, gradients(model, "a")):
        for mine, its in zip(result, want, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)
    assert "forward" not in model.network.base_model.__dict__


def test_tools_are_told_called_and_answered(model: LocalModel) -> None:
    ask = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 and 3?"},
    ]
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'},
    }
    talk = [
        *ask,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "5"},
    ]
    assert model.chat.knows_tools == (model.folder.name in ("qwen3", "llama", "mistral"))
    rendered = model.chat.render(talk, [ADD])
    for words in ("Be brief.", "Add two numbers.", "What is 2 and 3?", '"a": 2', "5"):
        assert words in rendered
    assert rendered.index("Add two numbers.") < rendered.index('"a": 2') < rendered.rindex("5")
    assert "Add two numbers." not in model.chat.render(talk)
    written = {
        "llama": '{"name": "add", "parameters": {"a": 2, "b": 3}}',
        "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 2, "b": 3}}]',
    }.get(
        model.folder.name,
        '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
    )
    request = Request(ask, (4,), 80, tools=(ADD,))
    (row,) = model.rows(request)
    row.tokens, row.ended = model.tokenizer(written, add_special_tokens=False)["input_ids"], True
    done = model.completion(row, request)
    assert done.finish == "tool_calls" and done.text == ""
    assert [
        (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in done.calls
    ] == [("add", {"a": 2, "b": 3})]
    unasked = model.completion(row, Request(ask, (4,), 80))
    assert not unasked.calls and unasked.finish == "stop" and "add" in unasked.text


def test_the_drift_is_the_same_in_pieces(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reflect.training.plan import make_plan
    from reflect.training.teacher_data import Example, Question, TrainingData

    model.new_adapter("a")
    for p in model.adapter_parameters("a"):
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    data: Any = TrainingData(
        [], [], [Example(Question(messages(i), messages(i)), [20, 21, 22, 23]) for i in (1, 2)], 8
    )
    whole = drift.probe(model, "a", data, make_plan(10))
    monkeypatch.setattr(losses, "LOGITS", 3 * len(model.tokenizer))
    for mine, its in zip(drift.probe(model, "a", data, make_plan(10)), whole, strict=True):
        assert mine == pytest.approx(its, rel=1e-4) and its[1] > 0


def test_of_a_model_that_sees_the_language_alone_learns(tmp_path: Path) -> None:
    import transformers

    folder = architectures.build(tmp_path / "m", "gemma3")
    text = transformers.Gemma3TextConfig.from_pretrained(folder)
    eyes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    eyes |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config=eyes, mm_tokens_per_image=4
    )
    network = transformers.Gemma3ForConditionalGeneration(config)
    network.generation_config = transformers.GenerationConfig(eos_token_id=0, pad_token_id=2)
    network.save_pretrained(folder)
    model = load_model(str(folder))
    model.new_adapter("a", rank=2)
    layers = {
        name.split(".lora_")[0] for name, _ in model.network.named_parameters() if ".lora_" in name
    }
    assert len(layers) == 14 and not any("vision" in name or "projector" in name for name in layers)
    assert model.sample([Request(messages(1), (1,), 6)])[0][0].tokens
