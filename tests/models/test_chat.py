"""Thoughts and tool calls in what a model wrote, and what of them it reads again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TEMPLATE, save_tiny

from reflect.config import Settings
from reflect.errors import ModelError
from reflect.models import load_model
from reflect.models.base import Completion, Request
from reflect.models.local import LocalModel
from reflect.models.tool_calls import api_calls, read_calls

ADD = {
    "type": "function",
    "function": {"name": "add", "description": "w7", "parameters": {"type": "object"}},
}
ONE = '{"name": "add", "arguments": {"a": 1}}'


def loaded(folder: Path, template: str = TEMPLATE, **settings: str) -> LocalModel:
    return load_model(str(save_tiny(folder, template=template)), Settings(**settings))


# ---- calls


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"<tool_call>\n{ONE}\n</tool_call>", "", [{"a": 1}]),
        (
            f"I add. <tool_call>{ONE}</tool_call>\n<tool_call>{ONE}</tool_call>",
            "I add.",
            [{"a": 1}, {"a": 1}],
        ),
        ('{"name": "add", "parameters": {"a": 1}}', "", [{"a": 1}]),
        (
            '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "add", "parameters": {}}',
            "",
            [{}, {}],
        ),
        (f"[TOOL_CALLS] [{ONE}, {ONE}]", "", [{"a": 1}, {"a": 1}]),
        (
            'Well. [TOOL_CALLS]add[CALL_ID]x1[ARGS]{"a": 2}[TOOL_CALLS]add{"a": 3}',
            "Well.",
            [{"a": 2}, {"a": 3}],
        ),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [{"a": 1}]),
    ],
)
def test_calls_are_read(text: str, rest: str, calls: list[dict[str, object]]) -> None:
    assert read_calls(text, [ADD]) == (rest, [("add", arguments) for arguments in calls])


@pytest.mark.parametrize(
    "text",
    [
        "answer: 3",
        "",
        "[1, 2]",
        '{"a": 1}',
        '{"name": "lucky", "parameters": {}}',  # JSON that is an answer: no tool has that name
        f"{ONE} and more",
        f"It is {ONE}",
        f"<tool_call>{ONE}",
        f"{ONE}</tool_call>",
        # one that cannot be read: none is made
        f"<tool_call>{ONE}</tool_call><tool_call>{{broken}}</tool_call>",
        "<tool_call>add(1)</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        f"[TOOL_CALLS]{ONE[:-1]}",
        f"[TOOL_CALLS] [{ONE}] because",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]" + "[" * 100_000,
    ],
)
def test_what_cannot_be_read_stays_text(text: str) -> None:
    assert read_calls(text, [ADD]) == (text, [])


def test_the_same_calls_have_the_same_ids() -> None:
    calls = read_calls(f"<tool_call>{ONE}</tool_call><tool_call>{ONE}</tool_call>", [ADD])[1]
    made = api_calls(calls, "7/20")
    assert (
        made == api_calls(calls, "7/20")
        and made[0]["id"] != made[1]["id"] != api_calls(calls, "8/20")[1]["id"]
    )
    assert all(len(call["id"]) == 9 and call["id"].isalnum() for call in made)
    assert made[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_a_template_that_knows_no_tools_gets_words(tmp_path: Path) -> None:
    refuses = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    model = loaded(tmp_path / "m", refuses + TEMPLATE)
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "not JSON"}}
    talk = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "x", "content": "w5"},
        {"role": "tool", "tool_call_id": "y", "content": "w6"},
    ]
    text = model.chat.render(talk, [ADD])
    assert text.startswith("<|system|> You may call") and '"description": "w7"' in text
    assert text.count("<|user|>") == 2, "two results in a row are one message: roles take turns"
    assert text.index('"arguments": "not JSON"') < text.index("w5") < text.index("w6")
    assert talk[1]["content"] is None, "the conversation itself stays as it was"


# ---- thoughts


def said(
    model: LocalModel, text: str, stop: tuple[str, ...] = (), ended: bool = True
) -> Completion:
    """The completion of a model that wrote just this."""
    request = Request([{"role": "user", "content": "w1"}], (0,), 60, stop=stop)
    (row,) = model.rows(request)
    row.tokens, row.ended = model.tokenizer(text, add_special_tokens=False)["input_ids"], ended
    return model.completion(row, request)


@pytest.fixture
def thinker(tmp_path: Path) -> LocalModel:
    """A model whose words include the tags, as Qwen3's do."""
    folder = save_tiny(tmp_path / "m", template=QWEN_SWITCH)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"w100"', '"<think>"').replace('"w101"', '"</think>"'))
    return load_model(str(folder))


QWEN_SWITCH = TEMPLATE.replace(
    "'<|assistant|>'",
    "'<|assistant|>' + ('' if enable_thinking | default(true) else ' <think> </think>')",
)


def test_a_thought_is_no_part_of_the_answer(thinker: LocalModel) -> None:
    done = said(thinker, "<think> w3 w4 </think> w5 w6")
    assert (done.thought, done.text, done.finish) == ("w3 w4", "w5 w6", "stop")
    assert len(done.tokens) == done.completion_tokens == 6, "training sees all of it"
    cut = said(thinker, "<think> w3 w4", ended=False)
    assert (cut.thought, cut.text, cut.finish) == ("w3 w4", "", "length")
    assert (
        said(thinker, "w5 <think> w6 </think>").text == "w5 <think> w6 </think>"
    )  # no thought of its own
    stopped = said(thinker, "<think> w9 </think> w5 w9 w6", stop=("w9",))
    assert (stopped.thought, stopped.text.strip()) == ("w9", "w5")


def test_an_earlier_thought_is_not_read_again(thinker: LocalModel) -> None:
    talk = [
        {"role": "user", "content": "w1"},
        {
            "role": "assistant",
            "content": "<think> w3 </think> w5",
            "thought": "w3",
            "reasoning_content": "w3",
        },
        {"role": "user", "content": "w2"},
    ]
    text = thinker.chat.render(talk)
    assert "w3" not in text and "think" not in text and "<|assistant|> w5" in text


def test_the_switch_of_the_template_is_used(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "w1"}]
    for thinking, end in (
        ("auto", "<|assistant|>"),
        ("on", "<|assistant|>"),
        ("off", "<think> </think>"),
    ):
        assert (
            loaded(tmp_path / thinking, QWEN_SWITCH, thinking=thinking)
            .chat.render(ask)
            .endswith(end)
        )
    assert (
        loaded(tmp_path / "none", thinking="off").chat.render(ask).endswith("<|assistant|>")
    )  # it has no switch


def test_a_template_may_begin_the_thought_itself(tmp_path: Path) -> None:
    model = loaded(
        tmp_path / "m", TEMPLATE.replace("'<|assistant|>'", "'<|assistant|> <think>\\n'")
    )
    assert model.chat.split("w3 w4\n</think>\n\nw5") == ("w3 w4", "w5")
    assert model.chat.split("w3 w4") == ("w3 w4", "")


def test_marks_that_count_as_special_tokens_are_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    table = json.loads((folder / "tokenizer.json").read_text())
    for word, mark in (("w100", "<think>"), ("w101", "</think>"), ("w102", "<|secret|>")):
        number = table["model"]["vocab"].pop(word)
        table["model"]["vocab"][mark] = number
        plain = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        table["added_tokens"].append({"id": number, "content": mark, **plain})
    (folder / "tokenizer.json").write_text(json.dumps(table))
    model = load_model(str(folder))
    done = said(model, "<think> w3 <|secret|> </think> w5")
    assert (done.thought, done.text) == ("w3", "w5")


# ---- ends


def test_the_end_is_where_the_template_ends_an_answer(tmp_path: Path) -> None:
    """A fine-tuned model whose config still names the end token of its base."""
    folder = save_tiny(tmp_path / "m")
    for file in ("generation_config.json", "config.json"):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | {"eos_token_id": 1}))
    model = load_model(str(folder))
    assert model.ends == {1, 2} and model.end == 2


def test_a_model_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", template=TEMPLATE.replace(" <|end|> ", " "))
    for file in ("generation_config.json", "config.json", "tokenizer_config.json"):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(
            json.dumps({k: v for k, v in config.items() if not k.startswith("eos_token")})
        )
    with pytest.raises(ModelError, match="token that ends an answer"):
        load_model(str(folder))
