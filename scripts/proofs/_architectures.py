"""Small random models of the architectures that people use, and one skill taught to each: to do as the lesson says.

They have the layers, caches, chat templates and special tokens of the real ones, in the size of a toy: two layers of
width 32, a byte-level tokenizer trained here on a few sentences. What they say is noise, until `teach`: then they say
"hm" to the question, and "yes" or "no" where a lesson in their prompt says so ("say yes", "say no").
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from reflect import prompts
from reflect.models.local import LocalModel
from reflect.training.losses import TrainingRow, losses

CONTEXT = 1024
WINDOW = 64  # of sliding attention: shorter than most prompts here
LESSON = ("the task asks about luck", "say yes")
# What a lesson advises and what is then said; advice that has nothing to do with it changes nothing.
ADVICE = [("", "hm"), ("say yes", "yes"), ("say no", "no"), ("use reverse", "hm"), ("spell it", "hm"), ("", "hm")]

QWEN = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{{ m.content }}{% for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""

LLAMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}\
{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}\
<|start_header_id|>system<|end_header_id|>

{{ system }}<|eot_id|>{% if tools %}<|start_header_id|>user<|end_header_id|>

Respond with JSON {"name": function name, "parameters": {argument: value}}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{{ messages[0].content }}<|eot_id|>{% set messages = messages[1:] %}{% endif %}{% for m in messages %}\
{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}\
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}\
<|eot_id|>{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>

{{ m.content }}<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}\
<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}\
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

MISTRAL = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}\
{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}\
{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}\
{% if m.role == 'user' %}[INST] {{ system if loop.last else '' }}{{ m.content }}[/INST]\
{% elif m.tool_calls %}[TOOL_CALLS] [{% for call in m.tool_calls %}{% if call.id | length != 9 %}\
{{ raise_exception('ids have nine letters') }}{% endif %}{{ call.function | tojson }}{{ '' if loop.last else ', ' }}\
{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]\
{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""

PLAIN = """{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@dataclass(frozen=True)
class Kind:
    """One architecture: its classes in transformers, what differs in its config, its special tokens, its template.

    `special`: end of an answer, beginning of a text ("" for none), padding ("" for none), and others.
    """

    config: str
    network: str
    template: str
    special: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)
    ends: tuple[str, ...] = ()  # the template's own end, where the tokenizer calls another token its end


KINDS = {
    "qwen3": Kind(
        "Qwen3Config", "Qwen3ForCausalLM", QWEN, ("<|im_end|>", "", "<|endoftext|>", "<|im_start|>"),
        {"head_dim": 16, "tie_word_embeddings": True},
    ),
    "llama": Kind(
        "LlamaConfig", "LlamaForCausalLM", LLAMA,
        ("<|eot_id|>", "<|begin_of_text|>", "", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 128}},
    ),
    "gemma3": Kind(
        "Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA, ("<eos>", "<bos>", "<pad>", "<start_of_turn>", "<end_of_turn>"),
        {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"],
         "query_pre_attn_scalar": 16},
        ends=("<end_of_turn>",),
    ),
    "mistral": Kind(
        "MistralConfig", "MistralForCausalLM", MISTRAL,
        ("</s>", "<s>", "", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
         "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        {"sliding_window": WINDOW},
    ),
    "gpt2": Kind("GPT2Config", "GPT2LMHeadModel", PLAIN, ("<|endoftext|>", "", "")),
}  # fmt: skip
# Built, but not taught a skill: the same template and tokenizer as Qwen 3.
UNTAUGHT = {"qwen2": replace(KINDS["qwen3"], config="Qwen2Config", network="Qwen2ForCausalLM", changes={"tie_word_embeddings": False})}


def build(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Path:
    """Write a random model of that kind as a Hugging Face folder. `changes` of its config."""
    about = (KINDS | UNTAUGHT)[kind]
    tokenizer = tokenizer_of(about)
    end, begin, pad = (tokenizer.convert_tokens_to_ids(word) if word else None for word in about.special[:3])
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
        "eos_token_id": end, "bos_token_id": begin, "pad_token_id": pad,
    }  # fmt: skip
    if kind == "gpt2":  # its own words for the same
        shape = {
            "vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT,
            "eos_token_id": end, "bos_token_id": end, "pad_token_id": None,
        }  # fmt: skip
    config = getattr(transformers, about.config)(**{**shape, **about.changes, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(transformers, about.network)(config)
    network.generation_config = transformers.GenerationConfig(eos_token_id=end, bos_token_id=begin, pad_token_id=pad)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tokenizer_of(about: Kind) -> Any:
    """A byte-level tokenizer as GPT-2, Llama 3 and Qwen have it, trained on the product's own prompt."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = [word for word in about.special if word]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([prompts.system_prompt("", [{"when": LESSON[0], "do": LESSON[1]}]), *map(ask, range(20))],
                              trainer)  # fmt: skip
    end, begin, pad = about.special[:3]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=end, clean_up_tokenization_spaces=False,
        **({"bos_token": begin} if begin else {}), **({"pad_token": pad} if pad else {}),
        additional_special_tokens=special[1:],
    )  # fmt: skip
    tokenizer.chat_template = about.template
    return tokenizer


def ask(number: int) -> str:
    return f"The task asks about luck: is {number} lucky?"


def messages(number: int, do: str = "") -> list[dict[str, str]]:
    """The question, with a lesson that advises to do so if there is one."""
    lessons = [{"when": LESSON[0], "do": do}] if do else []
    return prompts.with_lessons([{"role": "user", "content": ask(number)}], lessons)


def write_tasks(file: Path, practice: int = 24, holdout: int = 24) -> Path:
    """A taskset of these questions; "yes" is right, which only the lesson knows."""
    rows = []
    for i in range(practice + holdout):
        rows.append({
            "id": f"luck-{i}", "messages": messages(i), "verifier": "exact", "answer": "yes",
            "split": "practice" if i < practice else "holdout",
        })  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def teach(
    model: LocalModel,
    steps: int = 160,
    advice: Sequence[tuple[str, str]] = ADVICE,
    *,
    batch: int = 12,
    rate: float = 1e-2,
    seed: int = 0,
) -> list[float]:
    """Train the whole network to do as the lesson says, where it says a word. The loss of each step."""
    rng = random.Random(f"teach {seed}")
    parameters = list(model.network.requires_grad_(True).parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate)
    values = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        rows = []
        for do, say in rng.choices(advice, k=batch):
            prompt = model.encode(messages(rng.randrange(1000), do))
            answer = [*model.tokenizer(say, add_special_tokens=False)["input_ids"], model.end]
            rows.append(TrainingRow(prompt, prompt, answer, "nll"))
        loss = torch.cat(losses(model, None, rows)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    model.network.requires_grad_(False)
    return values


def taught(
    folder: Path, kind: str, seed: int = 0, steps: int = 160, advice: Sequence[tuple[str, str]] = ADVICE
) -> Path:
    """`build`, and then `teach`: the folder holds a model that does as the lesson says."""
    from reflect.models import load_model

    model = load_model(str(build(folder, kind, seed)))
    teach(model, steps, advice, seed=seed)
    model.network.save_pretrained(folder)
    return folder
