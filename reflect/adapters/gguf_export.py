"""An adapter, or a whole model, as one GGUF file for llama.cpp, Ollama and programs built on them.

The file has the tensor names, parameters and tokenizer fields that llama.cpp's own converters
(convert_lora_to_gguf.py, convert_hf_to_gguf.py) write; all tensors are float32. For architectures
whose rotary pairs are neighbours in llama.cpp, the rows of q and k are reordered, in a LoRA those
of B.

Not covered: layers with experts, the vision part of a model, tokenizers that split text by another
rule than those of `PRE_TOKENIZERS`. A WordPiece tokenizer (the pocket model's) is written as
llama.cpp's BERT tokenizer, which has no newlines: send token ids for exact prompts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reflect.errors import UsageError
from reflect.models import gguf as gguf_models

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig

    from reflect.models.adapter_files import AdapterFiles
    from reflect.models.local import LocalModel
    from reflect.types import Json


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp computes an architecture. `interleaved`: rotary pairs are neighbours, and not
    halves of a head as in transformers; `norm_offset` is added to the weights of each norm;
    `windows`: layers may attend to a window only."""

    name: str
    activation: str = "silu"
    interleaved: bool = False
    norm_offset: float = 0.0
    windows: bool = False


LLAMA = Architecture("llama", interleaved=True)
GEMMA3 = Architecture("gemma3", "gelu_pytorch_tanh", norm_offset=1.0, windows=True)
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
}
GEMMA3_27B_LAYERS = 62
GEMMA3_PERIOD = 6  # of llama.cpp: each sixth layer attends to all tokens

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
PRE_TOKENIZERS = {  # the rule by which text is split before BPE -> llama.cpp's name of it
    "": "gpt-2",
    "digits": "smollm",
    rf"{_CONTRACTION}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_CONTRACTION}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    rf"{_BEFORE}[{_UPPER}]*[{_LOWER}]+|{_BEFORE}[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
    rf"|{_REST.replace('n]*', 'n/]*', 1)}": "tekken",
}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
OTHER_FORM = "Export it as a PEFT folder: leave out --gguf."


def write_adapter(
    model: LocalModel, files: AdapterFiles, file: Path, about: Mapping[str, str]
) -> None:
    """Write a checked adapter of this model as llama.cpp's LoRA file. `about`: fields of the
    metadata. UsageError for an architecture that cannot be written."""
    import gguf

    architecture = architecture_of(model)
    with _Writer(file, architecture, about, gguf.GGUFType.ADAPTER) as writer:
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # llama.cpp reads an alpha of 0 as "no alpha", so the zero is put into B.
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, files.alpha or files.rank)
        rename = _names(model, architecture)
        reorder = _reorder(model, architecture)
        for layer, (a, b) in files.weights.items():
            b = reorder(layer, b if files.alpha else torch.zeros_like(b))
            name = rename(f"{layer}.weight")
            writer.add_tensor(f"{name}.lora_a", _array(a))
            writer.add_tensor(f"{name}.lora_b", _array(b))


def write_model(model: LocalModel, file: Path, about: Mapping[str, str]) -> None:
    """Write the network with its tokenizer and chat template. `about`: fields of the metadata.
    UsageError for an architecture or a tokenizer that cannot be written."""
    import gguf

    architecture = architecture_of(model)
    with _Writer(file, architecture, about, gguf.GGUFType.MODEL) as writer:
        _add_parameters(writer, model, architecture)
        _add_tokenizer(writer, model)
        rename = _names(model, architecture)
        reorder = _reorder(model, architecture)
        embedding = model.network.get_input_embeddings().weight
        output = model.network.get_output_embeddings().weight
        tied = output.data_ptr() == embedding.data_ptr()
        for name, weight in model.network.state_dict().items():
            if "vision_tower" in name or "multi_modal" in name or (tied and "lm_head" in name):
                continue
            if name.endswith("norm.weight"):
                weight = weight.float() + architecture.norm_offset
            layer = name.rpartition(".")[0]
            writer.add_tensor(rename(name), _array(reorder(layer, weight)))
        factors = _rope_factors(model)
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", _array(factors))


def architecture_of(model: LocalModel) -> Architecture:
    """How llama.cpp names and computes the model's architecture. UsageError for one that is not
    covered, and without the package gguf."""
    if not gguf_models.is_installed():
        raise UsageError("--gguf needs the package gguf.", gguf_models.INSTALL)
    name = type(model.network).__name__
    if name not in ARCHITECTURES:
        names = ", ".join(sorted(x.removesuffix("ForCausalLM") for x in ARCHITECTURES))
        raise UsageError(f"{name} cannot be written as GGUF; these can: {names}.", OTHER_FORM)
    return ARCHITECTURES[name]


class _Writer:
    """A GGUFWriter for a with-block that writes the file at its end, if no error was raised."""

    def __init__(
        self, file: Path, architecture: Architecture, about: Mapping[str, str], kind: str
    ) -> None:
        import gguf

        self.writer: GGUFWriter = gguf.GGUFWriter(file, architecture.name)
        self.writer.add_type(kind)
        self.writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for key, value in about.items():
            self.writer.add_string(key, value)

    def __enter__(self) -> GGUFWriter:
        return self.writer

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.writer.write_header_to_file()
            self.writer.write_kv_data_to_file()
            self.writer.write_tensors_to_file()
        self.writer.close()


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return array


def _names(model: LocalModel, architecture: Architecture) -> Callable[[str], str]:
    """From the name of a tensor to llama.cpp's name. UsageError for an unknown tensor."""
    import gguf

    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture.name)
    names = gguf.get_tensor_name_map(arch, _config(model).num_hidden_layers)

    def rename(name: str) -> str:
        found = names.get_name(name.replace("language_model.", ""), (".weight", ".bias"))
        if found is None:
            raise UsageError(f"llama.cpp has no name for the weights '{name}'.", OTHER_FORM)
        return found

    return rename


def _reorder(
    model: LocalModel, architecture: Architecture
) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """From a layer's name and rows (a weight, a bias, or B of a LoRA) to rows in the order of
    llama.cpp: the halves of each head of q and k interleaved."""
    config = _config(model)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def reorder(layer: str, rows: torch.Tensor) -> torch.Tensor:
        count = heads.get(layer.rpartition(".")[2])
        if count is None or not architecture.interleaved:
            return rows
        halves = rows.reshape(count, 2, rows.shape[0] // count // 2, *rows.shape[1:])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    return reorder


def _config(model: LocalModel) -> PreTrainedConfig:
    return model.network.config.get_text_config()


def _rope(model: LocalModel) -> Json:
    """The rotary parameters of the layers that attend to all tokens."""
    rope: Json = _config(model).rope_parameters
    full: Json = rope.get("full_attention", rope)
    return full


def _add_parameters(writer: GGUFWriter, model: LocalModel, architecture: Architecture) -> None:
    import gguf

    config, rope, scaling = _config(model), _rope(model), gguf.RopeScalingType
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    kind = rope.get("rope_type", "default")
    problem = (
        f"the activation {activation}"
        if activation != architecture.activation
        else f"rotary positions of type {kind}"
        if kind not in ("default", "linear", "yarn", "llama3")
        else "biases of attention"
        if architecture.name == "qwen3" and config.attention_bias
        else f"heads of {head}, which are not the width together"
        if architecture.name == "qwen2" and head * config.num_attention_heads != config.hidden_size
        else f"attention divided by the root of {config.query_pre_attn_scalar}"
        if architecture is GEMMA3 and config.query_pre_attn_scalar != _gemma3_scalar(config, head)
        else ""
    )
    if problem:
        raise UsageError(f"llama.cpp's {architecture.name} does not support {problem}.", OTHER_FORM)
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    if window and architecture.windows:
        writer.add_sliding_window(window)
        local = [kind == "sliding_attention" for kind in config.layer_types]
        if local != [bool((i + 1) % GEMMA3_PERIOD) for i in range(len(local))]:
            writer.add_sliding_window_pattern(local)
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    elif window:  # llama.cpp attends to all tokens: within the window both compute the same
        context = min(context, window)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(scaling.LINEAR if kind == "linear" else scaling.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3_scalar(config: PreTrainedConfig, head: int) -> int:
    """What llama.cpp divides by, which it knows from the number of layers."""
    is_27b = config.num_hidden_layers == GEMMA3_27B_LAYERS
    return int(config.hidden_size // config.num_attention_heads if is_27b else head)


def _rope_factors(model: LocalModel) -> torch.Tensor | None:
    """The divisors of the rotary frequencies of Llama 3.1 and later, from the network itself."""
    rope = _rope(model)
    if rope.get("rope_type") != "llama3":
        return None
    scaled = model.network.get_decoder().rotary_emb.inv_freq.double()
    steps = torch.arange(len(scaled), dtype=torch.float64) / len(scaled)
    return rope["rope_theta"] ** -steps / scaled.cpu()


def _add_tokenizer(writer: GGUFWriter, model: LocalModel) -> None:
    """The vocabulary, its rules, the special tokens and the chat template."""
    import gguf

    tokenizer, kinds = model.tokenizer, gguf.TokenType
    state: Json = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, by_byte = state["model"]["type"], bool(state["model"].get("byte_fallback"))
    added = tokenizer.added_tokens_decoder
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for i in range(model.network.get_input_embeddings().weight.shape[0]):
        token = known.get(i)
        if token is None:
            token, type_ = f"[PAD{i}]", kinds.UNUSED
        elif i in added:
            type_ = kinds.CONTROL if added[i].special else kinds.USER_DEFINED
            token = token.replace("\u2581", " ") if by_byte else token
        else:
            type_ = kinds.BYTE if by_byte and BYTE.fullmatch(token) else kinds.NORMAL
            if kind == "WordPiece":  # "\u2581" marks the beginning of a word, not "##" its rest
                token = token[2:] if token.startswith("##") else f"\u2581{token}"
        tokens.append(token)
        types.append(type_)
    merges = [x if isinstance(x, str) else " ".join(x) for x in state["model"].get("merges", ())]
    if kind == "BPE" and by_byte:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(tokens, merges))
        begin = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False).input_ids)
        writer.add_add_space_prefix(begin[0].startswith("\u2581"))
    elif kind == "BPE":
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(state, model.name))
        writer.add_token_merges(merges)
    elif kind == "WordPiece":
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
        writer.add_token_type_count(1)
        writer.add_add_sep_token(False)
    else:
        raise UsageError(f"A tokenizer of type {kind} cannot be written as GGUF.", OTHER_FORM)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    ids = tokenizer("a").input_ids
    writer.add_add_bos_token(
        tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    )
    writer.add_add_eos_token(False)
    writer.add_eos_token_id(model.end)
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (min(model.ends - {model.end}, default=None), writer.add_eot_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_chat_template(str(tokenizer.chat_template))


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """Scores with which llama.cpp's merges (the pair whose token has the highest score first) are
    those of the list."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _pre_tokenizer(state: Json, name: str) -> str:
    """llama.cpp's name of the rule that splits the text. UsageError for an unknown rule."""
    top = state["pre_tokenizer"] or {"type": "none"}
    *steps, last = top.get("pretokenizers", [top])
    rule = "".join(
        "digits" if x.get("individual_digits") else x.get("pattern", {}).get("Regex", x["type"])
        for x in steps
    )
    fits = last["type"] == "ByteLevel" and not last["add_prefix_space"]
    if not fits or rule not in PRE_TOKENIZERS or last["use_regex"] != (rule in ("", "digits")):
        raise UsageError(
            f"The tokenizer of {name} splits text by a rule that is not known to have a name in "
            "llama.cpp.",
            "Export the adapter alone (--gguf without --merge), for a GGUF file of the base.",
        )
    return PRE_TOKENIZERS[rule]
