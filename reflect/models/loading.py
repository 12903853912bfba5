"""Load a Hugging Face causal LM folder: its tokenizer, its network in the chosen precision and on
the chosen device, its context length.

Not covered: models with code in their folder; that code would run with the user's rights.
"""

from __future__ import annotations

import importlib.util
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import transformers

from reflect.errors import ModelError
from reflect.models import cpu_precision, distributed, memory
from reflect.models.fsdp import layers_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from reflect.config import Settings
    from reflect.types import Json

CONTEXT = 4096  # tokens, when neither the model nor its tokenizer states a length
ABSURD = 10**7  # larger numbers mean "unknown": tokenizers write 1e30
STRETCHED = ("yarn", "dynamic", "linear", "longrope")  # RoPE scalings that extend the context


def device_of(settings: Settings) -> torch.device:
    """`auto`: a GPU (of this process, when there are several processes), else mps, else the CPU."""
    if settings.device != "auto":
        return torch.device(settings.device)
    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        return torch.device("cuda" if rank is None else f"cuda:{rank}")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def dtype_of(settings: Settings, device: torch.device, weights: int = 0) -> torch.dtype:
    """`auto`: bfloat16 on a GPU that supports it, float16 on other GPUs; on a CPU bfloat16 for a
    model of many weights where it is faster, float32 elsewhere."""
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype
    if device.type != "cuda":
        large = device.type == "cpu" and weights >= cpu_precision.LARGE
        fast = large and cpu_precision.is_bfloat16_faster()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load(name: str, folder: Path, settings: Settings) -> tuple[Any, Any]:
    """(tokenizer, network) in evaluation mode, without gradients. ModelError for a folder that
    cannot be loaded."""
    device = device_of(settings)
    weights = 0
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        weights = memory.parameters_of(folder)  # a damaged file: loading it gives a better error
    dtype = dtype_of(settings, device, weights)
    options: Json = {"dtype": dtype}
    shared = distributed.share_layers(settings.device_map)
    if shared and settings.quantize:
        why = "Weights in four bits cannot be shared between processes."
        raise ModelError(why, 'Leave out FSDP (device_map = "fsdp", --use_fsdp), or quantize.')
    if settings.quantize:
        options["quantization_config"] = _four_bit(dtype)
    if settings.device_map and not shared:
        options["device_map"] = "auto" if settings.device_map == "fsdp" else settings.device_map
    elif device.type == "cuda":
        options["device_map"] = (
            device  # straight to the GPU, not through as much memory of the machine
        )
    check_memory(name, folder, settings, device, dtype)
    transformers.utils.logging.disable_progress_bar()  # stderr has one progress bar, and it is ours
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, **options
        )
        network = network if "device_map" in options else network.to(device)
        network = network.eval().requires_grad_(False)
    except Exception as e:  # transformers raises OSError, ValueError, KeyError for a broken folder
        raise explained(name, folder, e) from e
    if not tokenizer.chat_template:
        raise ModelError(
            f"The model {name} has no chat template.",
            "Use its instruct or chat variant, or put a chat_template.jinja into its folder.",
        )
    if shared and not layers_of(network):
        why = f"The layers of {type(network).__name__} cannot be shared between processes."
        raise ModelError(why, 'Leave out FSDP (device_map = "fsdp", --use_fsdp).')
    return tokenizer, network


def explained(name: str, folder: Path, e: Exception) -> ModelError:
    """The error for a model folder that could not be loaded."""
    if memory.out_of_memory(e):
        return ModelError(f"There was too little memory to load the model {name}.", SMALLER)
    if "trust_remote_code" in str(e) or _own_code(folder):
        return ModelError(
            f"The model {name} needs code from its own folder, "
            "and reflect does not run code of a model folder.",
            "Use a model whose architecture transformers knows, or a newer transformers.",
        )
    why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
    return ModelError(
        f"The model {name} in {folder} cannot be loaded: {why}",
        "It must be a Hugging Face causal LM directory: "
        "config.json, *.safetensors, tokenizer.json.",
    )


def _own_code(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "AutoModelForCausalLM" in (config.get("auto_map") or {})


SMALLER = (
    'Use a smaller model, dtype = "bfloat16", quantize = "4bit" (a GPU with bitsandbytes), '
    'or device_map = "auto" (several GPUs).'
)


def _four_bit(dtype: torch.dtype) -> Any:
    """nf4 with double quantization (QLoRA, arXiv 2305.14314, section 3)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            'quantize = "4bit" needs bitsandbytes, which is not installed.',
            "On a machine with a GPU: pip install bitsandbytes. Else leave `quantize` out.",
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_memory(
    name: str, folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype
) -> None:
    """ModelError when the weights alone exceed the free memory or the setting `memory`. With FSDP a
    process holds the whole model for sampling and its share of the layers."""
    try:
        count = memory.parameters_of(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # a damaged file: loading it gives a better error
    shared = distributed.share_layers(settings.device_map)
    need = memory.SLACK * count * (memory.FOUR_BIT if settings.quantize else dtype.itemsize)
    need *= 1 + 1 / distributed.size() if shared else 1
    have: float = memory.free(device, spread=bool(settings.device_map) and not shared)
    if settings.memory:
        have = min(have, settings.memory * memory.GB)
    if need > have:
        limited = settings.memory and have == settings.memory * memory.GB
        limit = " (the setting memory)" if limited else ""
        precision = "4 bits" if settings.quantize else str(dtype).removeprefix("torch.")
        raise ModelError(
            f"The model {name} needs {memory.format_bytes(need)} of memory in {precision}, "
            f"and there are {memory.format_bytes(have)}{limit}.",
            ("Each process samples with the whole model, with FSDP too. " if shared else "")
            + SMALLER,
        )


def context_of(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most: int = 0) -> int:
    """Tokens of prompt and answer together: what the config says, else the tokenizer, else CONTEXT;
    at most `most`."""
    config = network.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in STRETCHED:
        original = rope.get("original_max_position_embeddings") or 0
        positions = max(positions, int(original * (rope.get("factor") or 1)))
    sizes = (positions, tokenizer.model_max_length)
    context = next((int(size) for size in sizes if size and 0 < size <= ABSURD), CONTEXT)
    return min(context, most) if most else context
