"""Any Hugging Face causal LM directory on this machine: chat template, batched sampling, adapters by name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from reflect.errors import ModelError
from reflect.models.base import ACTIVE, Completion, Request
from reflect.models.lora import Loras, merge
from reflect.models.running import Running, joinable
from reflect.models.sampling import Row, decode
from reflect.tasksets.base import Message

CACHE_BYTES = 2**28  # keys and values of one batch on the CPU: larger batches of the pocket model were slower
CACHE_TOKENS = 2**14  # but a batch holds at least this many, or a large model would read its weights too often


class LocalModel:
    """One network with its tokenizer and its adapters. Weights are float32, on CUDA bfloat16.

    `network` is the module to call with input_ids, also for training; `device` and `tokenizer` belong to it.
    """

    def __init__(self, name: str, folder: Path, *, device: str = "auto", threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.name = name
        self.folder = folder
        self.device = torch.device(_device() if device == "auto" else device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        transformers.utils.logging.disable_progress_bar()  # stderr has one progress bar, and it is ours
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            self.network: Any = network.to(self.device).eval().requires_grad_(False)
        except Exception as e:  # transformers raises OSError, ValueError, KeyError, ... for a broken folder
            why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ModelError(
                f"The model {name} in {folder} cannot be loaded: {why}",
                "It must be a Hugging Face causal LM directory: config.json, *.safetensors, tokenizer.json.",
            ) from e
        if not self.tokenizer.chat_template:
            raise ModelError(f"The model {name} has no chat template.", "Use its instruct or chat variant.")
        self.context = int(getattr(self.network.config.get_text_config(), "max_position_embeddings", 0) or 4096)
        self.loras = Loras(self.network)

    # ---- words and tokens

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer; a model may have several."""
        found: set[int] = set()
        for source in (self.network.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            found.update(source if isinstance(source, list) else [source])
        return frozenset(i for i in found if i is not None)

    @cached_property
    def end(self) -> int:
        """The id with which the chat template itself ends an answer."""
        ask = [{"role": "user", "content": "a"}]
        whole = self.tokenizer.apply_chat_template([*ask, {"role": "assistant", "content": "b"}], tokenize=False)
        after = self._ids(whole[whole.rfind("b") + 1 :])
        return next((i for i in after if i in self.ends), min(self.ends, default=self.tokenizer.eos_token_id))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _render(self, messages: Sequence[Message]) -> str:
        def render(words: Sequence[Message]) -> str:
            return self.tokenizer.apply_chat_template(list(words), add_generation_prompt=True, tokenize=False)

        system = [m["content"].strip() for m in messages if m["role"] == "system"]
        try:
            text = render(messages)
            if all(part in text for part in system):  # some templates swallow the role without a word
                return text
        except Exception as e:  # jinja2's TemplateError: whatever the template's author raises
            if not system:
                raise ModelError(f"The chat template of {self.name} refuses these messages: {e}.") from e
        try:
            return render(fold_system(messages))
        except Exception as e:
            raise ModelError(f"The chat template of {self.name} refuses these messages: {e}.") from e

    def encode(self, messages: Sequence[Message], answer: str | None = None) -> list[int]:
        """Ids of the conversation up to where the assistant speaks; with `answer`, also its ids and the end token.

        A system message that the template does not know is folded into the first user message.
        """
        ids = self._ids(self._render(messages))
        return ids if answer is None else [*ids, *self._ids(answer), self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def count_tokens(self, text: str) -> int:
        return len(self._ids(text))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of weights, config, tokenizer and chat template of the base."""
        kept = re.compile(r".*\.(safetensors|bin|model)|config\.json|(tokenizer|chat_template|vocab|merges).*")
        total = hashlib.sha256()
        for file in sorted(p for p in self.folder.iterdir() if p.is_file() and kept.fullmatch(p.name)):
            total.update(f"{file.name} {_file_hash(file)}\n".encode())
        return total.hexdigest()

    # ---- sampling

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed. A prompt that fills the context is a ModelError.

        `tokens` holds every sampled id but the end token; `text` stops before the first stop string. An answer that
        reaches the end of the context counts as "length". Requests of one adapter go through the network together,
        one adapter after the other, so that each is answered as in a call of its own. UnknownName for an adapter that
        is not loaded; then nothing is sampled.
        """
        wanted = [self.active if request.adapter == ACTIVE else request.adapter for request in requests]
        for name in {name for name in wanted if name is not None}:
            self.loras.known(name)
        groups = [self.rows(request) for request in requests]
        for adapter in dict.fromkeys(wanted):
            mine = zip(wanted, groups, strict=True)
            rows = [row for name, group in mine if name == adapter for row in group if row.limit > 0]
            with nullcontext() if adapter == self.active else self.using(adapter):
                for batch in batches(rows, self.cache_tokens()):
                    decode(self.network, batch, self.ends, self._pad())
        return [[self.completion(row, r) for row in g] for r, g in zip(requests, groups, strict=True)]

    def rows(self, request: Request) -> list[Row]:
        """What is to be decoded: one row per seed. ModelError for a prompt that fills the context."""
        prompt = self.encode(request.messages)
        room = self.context - len(prompt)
        if room < 1 or not prompt:
            raise ModelError(
                f"The prompt has {len(prompt)} tokens, the model {self.name} reads {self.context} with its answer.",
                "Shorten the task, lower lesson_budget, or use a model with a longer context.",
            )
        limit = min(room, request.max_tokens)
        stopped = self._stopper(request.stop)
        return [Row(prompt, s, limit, request.temperature, stopped) for s in request.seeds]

    def completion(self, row: Row, request: Request) -> Completion:
        """What a row says, once it is done."""
        text = self.said(row)
        cuts = [at for s in request.stop if s and (at := text.find(s)) >= 0]
        finish: Literal["stop", "length"] = "stop" if row.ended or cuts else "length"
        text = text[: min(cuts)] if cuts else text
        return Completion(text, len(row.prompt), len(row.tokens), finish, row.seed, tuple(row.tokens))

    def said(self, row: Row) -> str:
        """The text of a row so far."""
        return self.decode(row.tokens)

    def running(self) -> Running | None:
        """A batch that rows may join while it runs; None for a model whose layers do not allow it."""
        return Running(self.network, self.ends, self._pad()) if joinable(self.network) else None

    def _stopper(self, stop: Sequence[str]) -> Any:
        words = [s for s in stop if s]
        if not words:
            return None
        # Only the newest words are read at each step: a token may be part of a letter, so more tokens than letters.
        tail = 4 * max(map(len, words)) + 8
        return lambda tokens: any(s in self.decode(tokens[-tail:]) for s in words)

    def _pad(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def cache_tokens(self) -> int:
        """Tokens whose keys and values fit the cache budget."""
        c = self.network.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        each = 2 * c.num_hidden_layers * heads * width * self.network.dtype.itemsize
        room = torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else CACHE_BYTES
        return max(CACHE_TOKENS, room // each)

    # ---- adapters

    @property
    def active(self) -> str | None:
        """Name of the active adapter, None for the bare base."""
        return self.loras.active

    @property
    def adapters(self) -> list[str]:
        return self.loras.names

    def new_adapter(self, name: str, rank: int = 8, alpha: float = 32, seed: int = 0) -> None:
        """Add a fresh adapter on all linear layers (B is zero, so it changes nothing yet). It is not active."""
        self.loras.new(name, rank, alpha, seed)

    def clone_adapter(self, name: str, new: str) -> None:
        """Add an adapter `new` of the same rank and weights, to train on from there. It is not active."""
        self.loras.clone(name, new)

    def load_adapter(self, name: str, path: Path | str) -> None:
        """Load a PEFT folder under `name`. It is not active. AdapterError, AdapterMismatch."""
        self.loras.load(name, path)

    def drop_adapter(self, name: str) -> None:
        self.loras.drop(name)

    def use(self, name: str | None) -> None:
        """Switch to an adapter; None is the bare base, exactly."""
        self.loras.use(name)

    def using(self, name: str | None) -> AbstractContextManager[None]:
        return self.loras.using(name)

    def adapter_parameters(self, name: str) -> list[torch.nn.Parameter]:
        return self.loras.parameters(name)

    def scale_adapter(self, name: str, factor: float) -> None:
        """Strength of an adapter: 1 as trained, 0 as good as off; `save_adapter` keeps it."""
        self.loras.scale(name, factor)

    def save_adapter(self, name: str, folder: Path | str) -> None:
        """Write a plain PEFT folder with safetensors."""
        self.loras.save(name, folder, base=self.name)

    def save_merged(self, adapter: Path | str, folder: Path | str) -> None:
        """Write the base with the PEFT folder `adapter` in its weights as an ordinary model folder with its tokenizer.

        It uses the network up: this model answers no more. AdapterError, AdapterMismatch.
        """
        merge(self.network, adapter, folder)
        self.tokenizer.save_pretrained(folder)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with its system text at the head of the first user message."""
    system = "\n".join(m["content"] for m in messages if m["role"] == "system").strip()
    rest = [dict(m) for m in messages if m["role"] != "system"]
    for message in rest:
        if message["role"] == "user":
            message["content"] = f"{system}\n\n{message['content']}"
            return rest
    return [{"role": "user", "content": system}, *rest]


def batches(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Rows of like prompt length together, at most `budget` tokens (padded prompt and answer) in a batch."""
    made: list[list[Row]] = []
    width = limit = 0
    for row in sorted(rows, key=lambda r: (len(r.prompt), r.prompt)):
        width, limit = len(row.prompt), max(limit, row.limit)
        if made and (len(made[-1]) + 1) * (width + limit) <= budget:
            made[-1].append(row)
        else:
            made.append([row])
            limit = row.limit
    return made


def _device() -> str:
    if torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"  # one of several processes
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _file_hash(file: Path) -> str:
    """sha256 of a file; the Hugging Face cache already names its large files so."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
