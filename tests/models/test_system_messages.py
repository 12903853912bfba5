"""Lessons extend the first system message only; every other message keeps its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TEMPLATE, save_tiny

from reflect import prompts
from reflect.models import load_model
from reflect.models.local import LocalModel
from scripts.proofs import _architectures as architectures

LESSONS = [{"when": "always", "do": "w9"}]
TALK = [
    {"role": "system", "content": "w1", "name": "first"},
    {"role": "user", "content": "w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "system", "content": "w4"},
    {"role": "user", "content": "w5"},
]
NO_LATER = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}{% endfor %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_lessons_extend_the_first_system_message_wherever_it_is(start: int) -> None:
    talk = TALK[start:]
    at = 0 if start == 0 else 3 - start
    extended = prompts.with_lessons(talk, LESSONS)
    assert extended[at] == {**talk[at], "content": extended[at]["content"]}
    assert extended[at]["content"].startswith(f"{talk[at]['content']}\nLessons from practice.")
    assert all(
        new is old for i, (new, old) in enumerate(zip(extended, talk, strict=True)) if i != at
    )


def test_lessons_without_a_system_message_come_first() -> None:
    talk = [m for m in TALK if m["role"] != "system"]
    assert prompts.with_lessons(talk, []) == talk
    first, *rest = prompts.with_lessons(talk, LESSONS)
    assert first["role"] == "system" and rest == talk


@pytest.mark.parametrize(
    ("refusals", "order"),
    [
        ("", "<|system|> w1 <|user|> w2 <|assistant|> w3 <|system|> w4 <|user|> w5"),
        (NO_LATER, "<|system|> w1 w4 <|user|> w2 <|assistant|> w3 <|user|> w5"),
        (NO_SYSTEM, "<|user|> w1 w4 w2 <|assistant|> w3 <|user|> w5"),
    ],
)
def test_a_later_system_message_stays_where_the_template_allows_it(
    tmp_path: Path, refusals: str, order: str
) -> None:
    model = load_model(str(save_tiny(tmp_path / "m", template=refusals + TEMPLATE)))
    text = model.chat.render(TALK).replace("<|end|>", " ")
    assert " ".join(text.split()).startswith(order)


def test_tools_are_described_in_the_first_system_message(tmp_path: Path) -> None:
    model = load_model(str(save_tiny(tmp_path / "m")))
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    text = model.chat.render(TALK, [tool])
    places = [text.index(part) for part in ("w1", '"add"', "w2", "w3", "w4", "w5")]
    assert places == sorted(places)


DEFAULT = """{% if messages[0].role != 'system' %}<|im_start|>system
You are a helpful assistant named Tiny.<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_lessons_do_not_replace_the_default_system_text_of_the_template(tmp_path: Path) -> None:
    folder = architectures.build(tmp_path / "qwen", "qwen3")
    (folder / "chat_template.jinja").write_text(DEFAULT)
    model = load_model(str(folder))
    assert isinstance(model, LocalModel)
    assert model.chat.default_system == "You are a helpful assistant named Tiny."
    task = [{"role": "user", "content": "Is it lucky?"}]
    lessons = [{"when": "the task asks about luck", "do": "say yes"}]
    bare, shown = model.chat.render(task), model.chat.render(prompts.with_lessons(task, lessons))
    text = prompts.system_prompt("", lessons)
    assert shown == bare.replace("named Tiny.", f"named Tiny.\n{text}")
    own = [{"role": "system", "content": "Be brief."}, *task]
    shown = model.chat.render(prompts.with_lessons(own, lessons))
    assert shown == model.chat.render(own).replace("Be brief.", f"Be brief.\n{text}")
    assert "Tiny" not in shown


def test_templates_without_a_default_system_text_stay_as_they_are(tmp_path: Path) -> None:
    task = [{"role": "user", "content": "Is it lucky?"}]
    lessons = prompts.with_lessons(task, [{"when": "the task asks about luck", "do": "say yes"}])
    for kind in ("qwen3", "llama", "gemma3", "mistral", "gpt2"):
        model = load_model(str(architectures.build(tmp_path / kind, kind)))
        assert isinstance(model, LocalModel) and model.chat.default_system == ""
        assert lessons[0]["content"] in model.chat.render(lessons)
