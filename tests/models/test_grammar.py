"""Answers of a local model that are held to a form: random models of real architectures, and the
pocket model with its tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reflect.day.reflection import CLOSE
from reflect.errors import SchemaRefused
from reflect.lessons.edit_format import parse_edits
from reflect.lessons.edit_json import review_schema
from reflect.models import grammar, load_model
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.serve.engine import Engine
from scripts.proofs import _architectures as architectures

ASK = [{"role": "user", "content": "How many r are in strawberry?"}]
FACTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["one", "two words"]},
        "right": {"type": "boolean"},
    },
    "required": ["name", "kind", "right"],
    "additionalProperties": False,
}


def by_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "pocket"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    kind, name = str(request.param), "pocket"
    if kind != "pocket":
        name = str(architectures.build(tmp_path_factory.mktemp("form") / kind, kind))
    loaded = load_model(name)
    assert isinstance(loaded, LocalModel) and loaded.grammars.problem == ""
    return loaded


def test_every_answer_has_the_form_and_ends(model: LocalModel) -> None:
    requests = [
        Request(ASK, (0, 1), 120, temperature, response_format=by_schema(FACTS))
        for temperature in (0.0, 1.0)
    ]
    free = Request(ASK, (0, 1), 12, 1.0)  # an answer without a form in the same batch
    *formed, plain = model.sample([*requests, free])
    assert plain == model.sample([free])[0]
    for answer in [answer for row in formed for answer in row]:
        value = json.loads(answer.text)
        assert answer.finish == "stop" and list(value) == ["name", "kind", "right"]
        assert len(value["name"]) <= 12 and value["kind"] in ("one", "two words")
        assert isinstance(value["right"], bool)


def test_every_review_by_the_schema_is_legal(model: LocalModel) -> None:
    for ids in ([], [3, 7, 12]):
        form = by_schema(review_schema(ids, 160)) | {"close_within": CLOSE}
        (answers,) = model.sample([Request(ASK, (0, 1), 160, 1.0, response_format=form)])
        for answer in answers:
            edits, problems = parse_edits(answer.text, complete=answer.finish == "stop")
            named = [i for edit in edits for i in edit.lesson_ids or (edit.lesson_id or 3,)]
            assert answer.finish == "stop" and set(named) <= {3, *ids}, answer.text
            assert all("contradicts" in problem for problem in problems), answer.text


def test_the_same_answers_in_the_engine_and_after_a_restart(model: LocalModel) -> None:
    if model.continuous_batch() is None:
        pytest.skip("its layers do not let rows join a batch")
    request = Request(ASK, (5, 6), 120, 1.0, response_format=by_schema(FACTS))
    (expected,) = model.sample([request])
    rows = model.rows(request)
    batch = model.continuous_batch()
    assert batch is not None
    batch.join(rows)
    for _ in range(4):
        batch.step()
    for row in rows:  # as after an out-of-memory error: the rows begin again
        batch.drop(row)
        row.tokens, row.ended = [], False
    engine = Engine(model, 8)
    try:
        texts = [a.text for a in engine.submit(request, rows=rows).done.result(60)]
    finally:
        engine.close()
    assert texts == [answer.text for answer in expected]


def test_any_json_object() -> None:
    model = load_model("pocket")
    form = {"type": "json_object"}
    (answers,) = model.sample([Request(ASK, tuple(range(4)), 120, 1.0, response_format=form)])
    whole = [answer for answer in answers if answer.finish == "stop"]
    assert whole and all(isinstance(json.loads(answer.text), dict) for answer in whole)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strin"}, {"$ref": "#/nothing"}, {"type": "string", "format": "nonsense"},
        {"type": "string", "pattern": "(?=a)b"}, {"not": {"type": "string"}},
        {"type": "string", "minLength": 5, "maxLength": 3}, {"type": "array", "uniqueItems": True},
        {"type": "string", "pattern": "("},
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_compiled_is_refused(schema: dict[str, Any]) -> None:
    model = load_model("pocket")
    with pytest.raises(SchemaRefused, match="cannot be compiled"):
        model.sample([Request(ASK, response_format=by_schema(schema))])


def test_a_thought_that_the_template_opens_comes_before_the_form(tmp_path: Path) -> None:
    folder = architectures.build(tmp_path / "thinker", "qwen3")
    loaded = load_model(str(folder))
    template = str(loaded.tokenizer.chat_template)
    (folder / "chat_template.jinja").write_text(
        template.replace(
            "<|im_start|>assistant\n{% if enable", "<|im_start|>assistant\n<think>\n{% if enable"
        )
    )
    model = load_model(str(folder))
    assert isinstance(model, LocalModel) and model.chat.opened == "<think>"
    form = model.grammars.form(by_schema(FACTS))
    assert form is not None
    size, ids = (
        len(model.tokenizer),
        model.tokenizer("so it is", add_special_tokens=False)["input_ids"],
    )
    assert form.allowed(ids, size, 50) is None
    ids += model.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    allowed = form.allowed(ids, size, 50)
    assert allowed is not None
    assert {model.tokenizer.decode([int(i)])[:1] for i in allowed.nonzero()} == {"{"}


def test_without_the_engine_the_answer_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("pocket")
    assert isinstance(model, LocalModel)
    monkeypatch.setattr(grammar, "is_installed", lambda: False)
    assert "second-nature[grammar]" in model.grammars.problem
    request = Request(ASK, (0,), 8)
    (plain,), (formed,) = model.sample(
        [request, Request(ASK, (0,), 8, response_format=by_schema(FACTS))]
    )
    assert plain.text == formed.text
