"""The local model: a completion depends on its prompt and seed alone, and adapters come and go
without a trace."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEMPLATE, save_tiny

from reflect.config import Settings
from reflect.errors import AdapterError, AdapterMismatch, ModelError, UnknownName
from reflect.models import load_model
from reflect.models.base import Request
from reflect.models.generation import GenerationRow, nucleus, uniforms
from reflect.models.local import LocalModel, batches


def ask(*words: int, system: str = "") -> list[dict[str, str]]:
    user = {"role": "user", "content": " ".join(f"w{i}" for i in words)}
    return [{"role": "system", "content": system}, user] if system else [user]


MIXED = [
    Request(ask(1, 2, 3), seeds=(1, 2, 3, 4, 5), max_tokens=24),
    Request(ask(*range(20)), seeds=(1, 9), max_tokens=7, temperature=0.5),
    Request(ask(7), seeds=(3,), max_tokens=16, temperature=0.0),
    Request(ask(1, 2, 3), seeds=(1, 6), max_tokens=24, temperature=1.5),
    Request(ask(5, 5), seeds=(), max_tokens=5),
]


def wake(model: LocalModel, name: str, seed: int = 0) -> None:
    """Give a fresh adapter weights that change the answers."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters(name):
        parameter.data.normal_(std=0.3, generator=generator)


# ---- sampling


def test_a_completion_does_not_depend_on_its_batch(tiny: LocalModel) -> None:
    together = tiny.sample(MIXED)
    assert [len(group) for group in together] == [5, 2, 1, 2, 0]
    for request, group in zip(MIXED, together, strict=True):
        alone = [
            tiny.sample(
                [Request(request.messages, (seed,), request.max_tokens, request.temperature)]
            )[0][0]
            for seed in request.seeds
        ]
        assert group == alone
        assert [c.seed for c in group] == list(request.seeds)
        assert all(c.completion_tokens == len(c.tokens) <= request.max_tokens for c in group)
        assert all(c.prompt_tokens == len(tiny.encode(request.messages)) for c in group)
    assert len({c.text for c in together[0]}) > 1, "seeds must matter"


def test_rows_that_end_early_leave_the_others_alone(tiny: LocalModel) -> None:
    tiny.__dict__["ends"] = frozenset(
        range(2, 8)
    )  # half a dozen end tokens: the batch shrinks again and again
    many = [Request(ask(i, i + 1), tuple(range(5 * i, 6 * i)), 30) for i in (30, 3, 1, 8)]
    together = tiny.sample(many)
    assert {len(c.tokens) for group in together for c in group} > {0, 1, 2, 3}
    for request, group in zip(many, together, strict=True):
        assert group == [
            tiny.sample([Request(request.messages, (s,), 30)])[0][0] for s in request.seeds
        ]


def test_most_rows_may_end_at_the_first_token(tiny: LocalModel) -> None:
    long = Request(ask(1, 2), (7,), 20)
    first = tiny.sample([long])
    assert tiny.sample([long, Request(ask(1, 2), tuple(range(7)), max_tokens=1)])[:1] == first
    assert tiny.sample([long, Request(ask(3), tuple(range(20)), max_tokens=1)])[:1] == first


def test_prompts_that_begin_alike_are_read_as_if_alone(tiny: LocalModel) -> None:
    lessons = " ".join(f"w{i}" for i in range(2, 32))
    many = [Request(ask(*range(n), system=lessons), (n, n + 1, n + 2), 20) for n in (1, 5, 2, 20)]
    assert tiny.sample(many) == [tiny.sample([request])[0] for request in many]
    even = [Request(ask(n, system=lessons), (n,), 20) for n in (3, 4)]
    assert tiny.sample(even) == [tiny.sample([request])[0] for request in even]


def test_a_batch_that_exceeds_the_budget_is_split(
    tiny: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.sample(MIXED)
    monkeypatch.setattr(LocalModel, "cache_tokens", lambda self: 60)
    assert tiny.sample(MIXED) == whole


def test_batches_keep_to_the_budget() -> None:
    rows = [
        GenerationRow((1,) * length, 0, limit)
        for length, limit in [(5, 10), (50, 10), (7, 90), (6, 10), (300, 20)]
    ]
    item = batches(rows, 200)
    assert sorted(map(id, rows)) == sorted(id(row) for batch in item for row in batch)
    for batch in item:
        cost = len(batch) * max(len(row.prompt) for row in batch) + sum(
            max(r.limit for r in batch) for _ in batch
        )
        assert len(batch) == 1 or cost <= 200


def test_greedy_is_the_same_as_generate(tiny: LocalModel) -> None:
    for request in MIXED:
        ids = torch.tensor([tiny.encode(request.messages)])
        with torch.inference_mode():
            out = tiny.network.generate(ids, do_sample=False, max_new_tokens=20)[
                0, ids.shape[1] :
            ].tolist()
        mine = tiny.sample([Request(request.messages, (1, 2), 20, 0.0), *MIXED])[0]
        want = tuple(out[:-1] if out[-1] in tiny.ends else out)
        assert [c.tokens for c in mine] == [want, want]


def test_temperature_one_is_the_models_own_distribution(tiny: LocalModel) -> None:
    ids = torch.tensor([tiny.encode(ask(4, 2))])
    with torch.inference_mode():
        exact = torch.softmax(tiny.network(input_ids=ids).logits[0, -1].double(), -1)
    n = 4000
    drawn = tiny.sample([Request(ask(4, 2), tuple(range(n)), max_tokens=1)])[0]
    counts = Counter(c.tokens[0] if c.tokens else tiny.end for c in drawn)
    chance, chi2, bins = exact.tolist(), 0.0, 0
    for token, p in enumerate(chance):
        if n * p >= 5:
            chi2, bins = chi2 + (counts[token] - n * p) ** 2 / (n * p), bins + 1
    assert chi2 < bins + 4 * (2 * bins) ** 0.5


def test_it_ends_at_the_end_token_and_says_so(tiny: LocalModel) -> None:
    first = tiny.sample([Request(ask(1), (0,), 30, 0.0)])[0][0].tokens
    tiny.__dict__["ends"] = frozenset({2, first[3]})  # as if the model had a second end token
    ended = tiny.sample([Request(ask(1), (0,), 30, 0.0), Request(ask(1), (0,), 2, 0.0)])
    at = first.index(first[3])
    assert ended[0][0].tokens == first[:at] and ended[0][0].finish == "stop"
    assert ended[1][0].tokens == first[:2] and ended[1][0].finish == "length"


def test_stop_strings_cut_the_text(tiny: LocalModel) -> None:
    free = tiny.sample([Request(ask(1), (0, 1, 2), 30)])[0]
    stop = free[0].text.split()[4]
    held = tiny.sample([Request(ask(1), (0, 1, 2), 30, stop=(stop, "never"))])[0]
    for before, after in zip(free, held, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert after.finish == ("stop" if stop in before.text else before.finish)
        assert after.tokens == before.tokens[: len(after.tokens)]
    assert len(held[0].tokens) < len(free[0].tokens)


def test_a_prompt_that_fills_the_context_is_refused_with_its_length(tiny: LocalModel) -> None:
    with pytest.raises(ModelError, match=r"has 20\d tokens.*reads 128"):
        tiny.sample([Request(ask(*range(1, 101), *range(1, 101)))])
    near = tiny.sample([Request(ask(*range(1, 101), *range(1, 20)), (0,), max_tokens=500)])[0][0]
    assert near.prompt_tokens + near.completion_tokens <= 128


def test_an_output_that_is_not_a_number_is_an_error(tiny: LocalModel) -> None:
    tiny.new_adapter("broken")
    for parameter in tiny.adapter_parameters("broken"):
        parameter.data.fill_(float("nan"))
    with tiny.using("broken"), pytest.raises(ModelError, match="not a number"):
        tiny.sample(MIXED)
    assert tiny.sample(MIXED[:1])


def test_uniforms_are_a_function_of_the_seed_alone() -> None:
    assert uniforms(7, 3) == uniforms(7, 100)[:3] != uniforms(8, 3)
    assert all(0 <= u < 1 for u in uniforms(2**63 + 5, 1000))


def test_sliding_windows_answer_by_the_same_code(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny(tmp_path / "m")
    config = MistralConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    model = load_model(str(folder))
    alike = [Request(ask(*range(n), system=" ".join(["w9"] * 20)), (0,), 20, 0.0) for n in (3, 15)]
    for request, others in [*((r, MIXED) for r in MIXED), *((r, alike) for r in alike)]:
        ids = torch.tensor([model.encode(request.messages)])
        with torch.inference_mode():
            out = model.network.generate(ids, do_sample=False, max_new_tokens=20)[
                0, ids.shape[1] :
            ].tolist()
        mine = model.sample([Request(request.messages, (1, 2), 20, 0.0), *others])[0]
        assert [c.tokens for c in mine] == [tuple(t for t in out if t not in model.ends)] * 2


# ---- words and tokens


def test_encode_with_an_answer_ends_as_the_template_does(tiny: LocalModel) -> None:
    talk = ask(1, 2, system="w9")
    prompt, whole = tiny.encode(talk), tiny.encode(talk, "w3 w4")
    words = tiny.tokenizer.convert_ids_to_tokens(whole)
    assert (
        words == "<|system|> w9 <|end|> <|user|> w1 w2 <|end|> <|assistant|> w3 w4 <|end|>".split()
    )
    assert whole[: len(prompt)] == prompt
    assert tiny.count_tokens("w1 w2 w3") == 3


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + TEMPLATE,
        TEMPLATE.replace("for m in messages", "for m in messages if m.role != 'system'"),
    ],
    ids=["refuses", "swallows"],
)
def test_a_template_without_a_system_role_gets_it_in_the_first_user_message(
    tmp_path: Path, template: str
) -> None:
    model = load_model(str(save_tiny(tmp_path / "m", template=template)))
    words = model.tokenizer.convert_ids_to_tokens(model.encode(ask(1, system="w9")))
    assert words == "<|user|> w9 w1 <|end|> <|assistant|>".split()


def test_the_fingerprint_knows_weights_and_template(tmp_path: Path) -> None:
    def of(name: str, **changes: object) -> str:
        return load_model(str(save_tiny(tmp_path / name, **changes))).fingerprint  # type: ignore[arg-type]

    a = of("a")
    assert a == of("b") and len(a) == 64
    assert (
        len({a, of("c", seed=1), of("d", template=TEMPLATE + " "), of("e", rms_norm_eps=1e-4)}) == 4
    )


# ---- adapters


def test_the_sampler_uses_the_adapter_and_the_base_is_untouched(tiny: LocalModel) -> None:
    base = tiny.sample(MIXED)
    tiny.new_adapter("one", rank=4, seed=1)
    assert tiny.active is None and tiny.sample(MIXED) == base
    with tiny.using("one"):
        assert tiny.active == "one" and tiny.sample(MIXED) == base, "B is zero: nothing changes yet"
    wake(tiny, "one")
    tiny.new_adapter("two", rank=8)
    wake(tiny, "two", seed=5)
    ids = torch.tensor([tiny.encode(ask(1, 2, 3))])
    with tiny.using("one"):
        one = tiny.sample(MIXED)
        with tiny.using("two"):
            two = tiny.sample(MIXED)
        assert tiny.sample(MIXED) == one
        with tiny.using(None), torch.no_grad():
            bare = tiny.network(input_ids=ids).logits
    assert one != base != two != one
    tiny.drop_adapter("one")
    tiny.use("two")
    assert tiny.sample(MIXED) == two
    tiny.drop_adapter("two")
    assert tiny.active is None and tiny.adapters == [] and tiny.sample(MIXED) == base
    with torch.no_grad():
        assert torch.equal(tiny.network(input_ids=ids).logits, bare), (
            "the base must be the same to the last bit"
        )
    tiny.new_adapter("three")
    assert tiny.sample(MIXED) == base


def test_an_adapter_survives_the_folder_with_its_scale(tiny: LocalModel, tmp_path: Path) -> None:
    tiny.new_adapter("a", rank=4, alpha=16)
    wake(tiny, "a")
    tiny.use("a")
    full = tiny.sample(MIXED)
    tiny.save_adapter("a", tmp_path / "full")
    tiny.scale_adapter("a", 0.5)
    tiny.scale_adapter("a", 0.25)  # absolute
    quarter = tiny.sample(MIXED)
    tiny.save_adapter("a", tmp_path / "quarter")
    tiny.scale_adapter("a", 1.0)
    assert tiny.sample(MIXED) == full != quarter
    tiny.load_adapter("b", tmp_path / "full")
    tiny.load_adapter("c", tmp_path / "quarter")
    for name, want in (("b", full), ("c", quarter)):
        with tiny.using(name):
            assert tiny.sample(MIXED) == want
    files = sorted(p.name for p in (tmp_path / "full").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "quarter" / "adapter_config.json").read_text())
    assert (
        config["lora_alpha"] == 4
        and config["r"] == 4
        and config["bias"] == "none"
        and config["inference_mode"]
    )


def test_the_same_seed_makes_the_same_adapter(tiny: LocalModel) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        tiny.new_adapter(name, seed=seed)
    a, b, c = (torch.cat([p.flatten() for p in tiny.adapter_parameters(name)]) for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (
        len(tiny.adapter_parameters("a")) == 2 * 7 * 2
    )  # A and B of seven linear layers in each of two blocks


def test_gradients_survive_a_look_at_the_teacher(tiny: LocalModel) -> None:
    tiny.new_adapter("a")
    tiny.use("a")
    ids = torch.tensor([tiny.encode(ask(1, 2, 3))])
    student = tiny.network(input_ids=ids).logits
    with tiny.using(None), torch.no_grad():
        teacher = tiny.network(input_ids=ids).logits
    (student - teacher - 1).square().mean().backward()
    parameters = tiny.adapter_parameters("a")
    assert all(p.requires_grad and p.grad is not None for p in parameters)
    assert any(p.grad.abs().sum() > 0 for p in parameters if p.grad is not None)
    assert all(p.grad is None for n, p in tiny.network.named_parameters() if "lora_" not in n)


def test_adapters_that_do_not_fit_are_refused_and_leave_nothing(
    tiny: LocalModel, tmp_path: Path
) -> None:
    base = tiny.sample(MIXED)
    other = load_model(str(save_tiny(tmp_path / "wide", hidden_size=32)))
    other.new_adapter("a")
    other.save_adapter("a", tmp_path / "wide-adapter")
    deeper = load_model(str(save_tiny(tmp_path / "deep", num_hidden_layers=3)))
    deeper.new_adapter("a")
    deeper.save_adapter("a", tmp_path / "deep-adapter")
    for folder in ("wide-adapter", "deep-adapter"):
        with pytest.raises(AdapterMismatch, match="does not fit"):
            tiny.load_adapter("a", tmp_path / folder)
    with pytest.raises(AdapterError, match="cannot be read"):
        tiny.load_adapter("a", tmp_path / "nowhere")
    (tmp_path / "deep-adapter" / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        tiny.load_adapter("a", tmp_path / "deep-adapter")
    assert tiny.adapters == [] and tiny.sample(MIXED) == base
    for call in (tiny.use, tiny.drop_adapter, tiny.adapter_parameters):
        with pytest.raises(UnknownName, match="No adapter 'a'"):
            call("a")


# ---- names


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("pockte", UnknownName, "no model 'pockte'"),
        ("hf:not a name!", UnknownName, "no name of a model"),
        (".", ModelError, "no config.json"),
    ],
)
def test_a_name_that_is_no_model_says_what_there_is(
    name: str, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as caught:
        load_model(name, Settings())
    assert "Known are: pocket" in str(caught.value)


def test_a_model_that_cannot_be_fetched_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf:nobody/nothing is not on this machine"):
        load_model("hf:nobody/nothing")


def test_broken_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        load_model(str(save_tiny(tmp_path / "bare", template=None)))
    folder = save_tiny(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder))


# ---- the pocket model


def test_the_pocket_model_answers_in_groups(pocket: LocalModel) -> None:
    talk = [{"role": "user", "content": "sort 3 1 2"}]
    group = pocket.sample([Request(talk, tuple(range(8)), 32)])[0]
    assert len(group) == 8 and all(c.text for c in group)
    assert pocket.encode(talk, group[0].text)[-1] == pocket.end
    greedy = pocket.sample([Request(talk, (0,), 32, 0.0)])[0][0]
    ids = torch.tensor([pocket.encode(talk)])
    with torch.inference_mode():
        out = pocket.network.generate(ids, do_sample=False, max_new_tokens=32)[
            0, ids.shape[1] :
        ].tolist()
    assert list(greedy.tokens) == [t for t in out if t not in pocket.ends]


def test_top_p_samples_from_the_most_probable_tokens(tiny: LocalModel) -> None:
    seeds = tuple(range(8))
    free = Request(ask(1, 2), seeds, 20)
    plain = tiny.sample([free])
    assert tiny.sample([replace(free, top_p=1.0)]) == plain
    greedy = tiny.sample([replace(free, temperature=0.0)])[0][0].text
    assert {x.text for x in tiny.sample([replace(free, top_p=0.0)])[0]} == {greedy}
    # Rows with and without it share a batch, and each answers as it does alone.
    some = replace(free, top_p=0.5)
    assert tiny.sample([free, some]) == [*plain, *tiny.sample([some])] != [*plain, *plain]


def test_the_nucleus_is_the_smallest_set_of_that_probability() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.1, 0.3]] * 4))
    rows = [GenerationRow((1,), 0, 1, top_p=p) for p in (1.0, 0.45, 0.7, 0.0)]
    kept = nucleus(logits, rows).isfinite().tolist()
    assert kept == [
        [True] * 4,
        [False, True, False, False],
        [False, True, False, True],
        [False, True, False, False],
    ]
    assert nucleus(logits, rows[:1]) is logits
