"""llama.cpp itself, by llama-cpp-python in a virtual environment of its own, reads the files of
`reflect adapters export --gguf` and answers as we do. Slow: compiled once, in about 15 minutes."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_gguf_export import KINDS, build
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reflect.adapters import gguf_export
from reflect.config import Settings
from reflect.models import load_model
from reflect.models.base import Request
from reflect.models.local import LocalModel
from reflect.rollouts.episode import messages_for
from reflect.tasksets import load_taskset
from scripts._common import NotInstalled, llama_cpp, smollm2
from scripts.proofs import _architectures as architectures

pytestmark = pytest.mark.slow
PROMPTS = 50
WORKER = """
import json, sys
from llama_cpp import Llama
job = json.load(sys.stdin)
out = {"tokens": [], "logits": [], "ids": []}
llm = Llama(job["model"], lora_path=job["lora"] or None, n_ctx=job["context"], n_batch=512, n_threads=1,
            logits_all=job["logits"], verbose=False)
for ids in job["prompts"]:
    llm.reset()
    tokens = []
    for token in llm.generate(ids, temp=0.0, repeat_penalty=1.0):
        if not tokens:
            out["logits"].append(llm.scores[llm.n_tokens - 1].tolist() if job["logits"] else [])
        if token in job["ends"] or len(tokens) == job["most"]:
            break
        tokens.append(token)
    out["tokens"].append(tokens)
for text in job["texts"]:
    out["ids"].append(llm.tokenize(text.encode(), add_bos=False, special=True))
json.dump(out, sys.stdout)
"""
TEXTS = (
    "Hello world", "  two  spaces", "a\n\nb", "a\n b \n", "It's 12345 o'clock, we'LL go", "ünïcode ß 漢字 🙂",
    "tab\there", "x=1;y=[2,3]", "CamelCaseWord HTTPServer", "1,000.50%", "", " ", "\n", "don't", "e\u0301",
)  # fmt: skip


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return llama_cpp()
    except NotInstalled as e:
        pytest.skip(str(e))


def ask(
    python: Path,
    file: Path,
    prompts: Sequence[Sequence[int]] = (),
    *,
    lora: Path | None = None,
    ends: Sequence[int] = (),
    most: int = 24,
    context: int = 1024,
    logits: bool = False,
    texts: Sequence[str] = (),
) -> dict[str, list[list[int]]]:
    job = {
        "model": str(file), "lora": str(lora or ""), "context": context, "prompts": prompts,
        "ends": list(ends), "most": most, "logits": logits, "texts": texts,
    }  # fmt: skip
    done = subprocess.run(
        [python, "-c", WORKER], input=json.dumps(job), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, list[list[int]]] = json.loads(done.stdout)
    return answer


def greedy(
    model: LocalModel, messages: Sequence[list[dict[str, str]]], most: int
) -> list[list[int]]:
    requests = [Request(m, max_tokens=most, temperature=0.0) for m in messages]
    return [list(row[0].tokens) for row in model.sample(requests)]


@pytest.mark.parametrize("name", ["pocket", "smollm2"])
def test_greedy_answers_are_ours_with_the_adapter_and_others_without(
    python: Path, tmp_path: Path, name: str
) -> None:
    folder = str(smollm2()) if name == "smollm2" else name
    model = load_model(folder, Settings(dtype="float32", device="cpu"))
    assert isinstance(model, LocalModel)
    model.network.float()
    model.new_adapter("a", rank=8, alpha=16, seed=1)
    noise = torch.Generator().manual_seed(7)
    for parameter in model.adapter_parameters("a"):
        with torch.no_grad():
            parameter += (0.1 if name == "pocket" else 0.02) * torch.randn(
                parameter.shape, generator=noise
            )
    model.save_adapter("a", tmp_path / "a")
    files = model.read_adapter(tmp_path / "a")
    gguf_export.write_adapter(model, files, tmp_path / "lora.gguf", {})
    tasks = load_taskset("letters").tasks("practice", PROMPTS)
    messages = [list(messages_for(task)) for task in tasks]
    prompts = [model.encode(m) for m in messages]
    assert len(prompts) == PROMPTS
    most = 24
    bare = greedy(model, messages, most)
    with model.using("a"):
        adapted = greedy(model, messages, most)
    model.drop_adapter("a")
    gguf_export.write_model(model, tmp_path / "base.gguf", {})
    model.load_adapter("a", files)
    model.merge_adapter("a")
    gguf_export.write_model(model, tmp_path / "merged.gguf", {})
    ends = sorted(model.ends)
    files_asked = [("base", None, bare), ("base", "lora", adapted), ("merged", None, adapted)]
    for base, lora, ours in files_asked:
        path = tmp_path / f"{lora}.gguf" if lora else None
        theirs = ask(python, tmp_path / f"{base}.gguf", prompts, lora=path, ends=ends, most=most)[
            "tokens"
        ]
        assert theirs == ours, (base, lora, sum(a == b for a, b in zip(theirs, ours, strict=True)))
    assert sum(a != b for a, b in zip(bare, adapted, strict=True)) > PROMPTS / 2
    if name == "smollm2":  # byte-level BPE: the same ids from the text
        ids = ask(python, tmp_path / "base.gguf", texts=TEXTS)["ids"]
        assert ids == [model.tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_every_architecture(python: Path, tmp_path: Path, kind: str) -> None:
    model = build(tmp_path / "hf", kind)
    model.save_adapter("a", tmp_path / "a")
    files = model.read_adapter(tmp_path / "a")
    gguf_export.write_adapter(model, files, tmp_path / "lora.gguf", {})
    model.drop_adapter("a")
    gguf_export.write_model(model, tmp_path / "base.gguf", {})
    model.load_adapter("a", files)
    rng = random.Random(3)
    # Longer than the windows; mistral's window is the context of its file.
    lengths = (5, 60) if kind == "mistral" else (5, 60, 150, 400)
    prompts = [[rng.randrange(20, 300) for _ in range(n)] for n in lengths]
    for adapter in (None, "a"):
        with model.using(adapter), torch.inference_mode():
            ours = [model.network(input_ids=torch.tensor([ids])).logits[0, -1] for ids in prompts]
        lora = tmp_path / "lora.gguf" if adapter else None
        theirs = ask(
            python, tmp_path / "base.gguf", prompts, lora=lora, most=1, context=512, logits=True
        )
        for a, b in zip(ours, theirs["logits"], strict=True):
            torch.testing.assert_close(a, torch.tensor(b), atol=2e-3, rtol=2e-3)


def byte_level(rule: str) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in ("", "digits"))]
    if rule == "digits":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif rule:
        steps.insert(0, pre_tokenizers.Split(Regex(rule), "isolated"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps) if rule else steps[0]
    inner.decoder = decoders.ByteLevel()
    return inner


def byte_fallback(prefix: bool) -> Tokenizer:
    """As Gemma has it (no space before the text), or Llama 2 (with it)."""
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "\u2581")
    inner.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return inner


@pytest.mark.parametrize("rule", [*gguf_export.PRE_TOKENIZERS, "gemma", "llama-2"])
def test_text_becomes_the_same_tokens(python: Path, tmp_path: Path, rule: str) -> None:
    fallback = rule in ("gemma", "llama-2")
    inner = byte_fallback(rule == "llama-2") if fallback else byte_level(rule)
    special = ["<unk>", "</s>", "<s>", *(f"<0x{i:02X}>" for i in range(256) if fallback)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, show_progress=False,
        initial_alphabet=[] if fallback else pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    corpus = [*TEXTS, *(Path(__file__).read_text().splitlines())]
    inner.train_from_iterator(corpus, trainer)
    state = json.loads(inner.to_str())  # bytes are plain tokens of the vocabulary in real models
    state["added_tokens"] = [x for x in state["added_tokens"] if not x["content"].startswith("<0x")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = architectures.PLAIN.replace("<|endoftext|>", "</s>")
    architectures.build(
        tmp_path / "hf", "qwen3", vocab_size=len(tokenizer), head_dim=16, eos_token_id=1
    )
    tokenizer.save_pretrained(tmp_path / "hf")
    model = load_model(str(tmp_path / "hf"))
    assert isinstance(model, LocalModel)
    gguf_export.write_model(model, tmp_path / "m.gguf", {})
    texts = [*TEXTS, *corpus[20:120]]
    theirs = ask(python, tmp_path / "m.gguf", texts=texts)["ids"]
    for text, ids in zip(texts, theirs, strict=True):
        assert ids == model.tokenizer(text, add_special_tokens=False).input_ids, text
