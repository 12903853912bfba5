"""Any Hugging Face causal LM directory on this machine: chat template, batched sampling, adapters
by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from reflect.config import Settings
from reflect.errors import ContextTooLong, ModelError
from reflect.models import distributed, memory
from reflect.models.base import ACTIVE, Completion, Request
from reflect.models.chat_template import Chat, names
from reflect.models.continuous_batch import ContinuousBatch, joinable
from reflect.models.generation import GenerationRow, decode
from reflect.models.loading import SMALLER, context_of, load
from reflect.models.lora import AdapterSet, merge
from reflect.models.tool_calls import read_calls, shaped
from reflect.tasksets.task import Message
from reflect.types import Json

CACHE_BYTES = (
    2**28
)  # keys and values of one batch on the CPU: larger batches of the pocket model were slower
# a word of the vocabulary in one row: logits, probabilities and their sums, in float32 and float64
PICK_BYTES = 24
LIGHT_BYTES = 2**26  # weights of a network whose steps are too short for several threads to share
CACHE_TOKENS = (
    2**14
)  # but a batch holds at least this many, or a large model would read its weights too often


class LocalModel:
    """One network with its tokenizer and its adapters.

    `network` is the module to call with input_ids, also for training; `device` and `tokenizer`
    belong to it.
    """

    def __init__(self, name: str, folder: Path, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.name = name
        self.folder = folder
        self.tokenizer, self.network = load(name, folder, settings)
        self.device: torch.device = (
            self.network.device
        )  # where ids go; with a device map, of the first layers
        self.chat = Chat(self.tokenizer, name, settings.thinking)
        self.context = context_of(self.network, self.tokenizer, settings.max_context)
        if not self.ends:
            raise ModelError(
                f"The model {name} does not say with which token an answer ends.",
                "Set eos_token in its tokenizer_config.json, or eos_token_id in its generation_config.json.",
            )
        self.memory = settings.memory
        self.memory_limits = memory.MemoryLimits(checkpoints=settings.checkpointing == "on")
        self.may_checkpoint = settings.checkpointing != "off"
        self.share_layers = distributed.share_layers(settings.device_map)  # FSDP in training
        self.adapter_set = AdapterSet(self.network)

    # ---- words and tokens

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer: those that the model names, and the one with which its
        template closes one."""
        found: set[int] = set()
        for source in (self.network.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            found.update(source if isinstance(source, list) else [source])
        special = self.tokenizer.added_tokens_decoder
        found.update(
            i for i in self._ids(self.chat.closing)[:1] if i in special and special[i].special
        )
        return frozenset(i for i in found if i is not None)

    @cached_property
    def end(self) -> int:
        """The id with which the chat template itself ends an answer."""
        return next((i for i in self._ids(self.chat.closing) if i in self.ends), min(self.ends))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode(
        self,
        messages: Sequence[Message],
        answer: str | None = None,
        tools: Sequence[Json] = (),
    ) -> list[int]:
        """Ids of the conversation up to where the assistant speaks; with `answer`, also its ids and
        the end token.

        What the chat template does not know (a system role, tools) is said in words that it does:
        see `chat`.
        """
        ids = self._ids(self.chat.render(messages, tools))
        return ids if answer is None else [*ids, *self._ids(answer), self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of what was sampled, thoughts and calls included."""
        return self.chat.decode(tokens)

    def count_tokens(self, text: str) -> int:
        return len(self._ids(text))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names and contents of weights, config, tokenizer and chat template of the
        base."""
        kept = re.compile(
            r".*\.(safetensors|bin|model)|config\.json|(tokenizer|chat_template|vocab|merges).*"
        )
        total = hashlib.sha256()
        for file in sorted(
            p for p in self.folder.iterdir() if p.is_file() and kept.fullmatch(p.name)
        ):
            total.update(f"{file.name} {_file_hash(file)}\n".encode())
        return total.hexdigest()

    # ---- sampling

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed. A prompt that fills the context is a
        ModelError.

        `tokens` holds every sampled id but the end token; `text` stops before the first stop
        string. An answer that reaches the end of the context counts as "length". Requests of one
        adapter go through the network together, one adapter after the other, so that each is
        answered as in a call of its own. UnknownName for an adapter that is not loaded; then
        nothing is sampled. ModelError when there is too little memory for one answer alone.
        """
        wanted = [
            self.active if request.adapter == ACTIVE else request.adapter for request in requests
        ]
        for name in {name for name in wanted if name is not None}:
            self.adapter_set.known(name)
        groups = [self.rows(request) for request in requests]
        for adapter in dict.fromkeys(wanted):
            mine = zip(wanted, groups, strict=True)
            rows = [
                row for name, group in mine if name == adapter for row in group if row.limit > 0
            ]
            with nullcontext() if adapter == self.active else self.using(adapter):
                for batch in batches(rows, self.cache_tokens(), self._row_tokens()):
                    self._decode(batch)
        return [
            [self.completion(row, r) for row in g] for r, g in zip(requests, groups, strict=True)
        ]

    def rows(self, request: Request) -> list[GenerationRow]:
        """What is to be decoded: one row per seed. ContextTooLong for a prompt that fills the
        context."""
        prompt = self.encode(request.messages, tools=request.tools)
        room = self.context - len(prompt)
        if room < 1 or not prompt:
            raise ContextTooLong(
                f"The prompt has {len(prompt)} tokens, the model {self.name} reads {self.context} with its answer.",
                "Shorten the task, lower lesson_budget, or use a model with a longer context.",
            )
        limit = min(room, request.max_tokens)
        stopped = self._stopper(request.stop)
        return [
            GenerationRow(prompt, s, limit, request.temperature, stopped) for s in request.seeds
        ]

    def _decode(self, batch: list[GenerationRow]) -> None:
        """Decode a batch, in halves when there is too little memory for it; later batches are
        smaller then."""
        try:
            return decode(self.network, batch, self.ends, self._pad())
        except Exception as e:
            if not memory.out_of_memory(e):
                raise
        if len(batch) == 1:
            memory.release()
            raise self.memory_error(batch[0])
        for row in batch:
            row.tokens, row.ended = [], False
        self.shrink_batch(cost(batch, self._row_tokens()))
        half = len(batch) // 2
        self._decode(batch[:half])
        self._decode(batch[half:])

    def memory_error(self, row: GenerationRow) -> ModelError:
        """There is too little memory for this row alone."""
        return ModelError(
            f"There is too little memory for one answer of {self.name}: {len(row.prompt)} tokens of prompt, "
            f"up to {row.limit} of answer.",
            f"Lower max_tokens or lesson_budget. {SMALLER}",
        )

    def shrink_batch(self, tokens: int) -> None:
        """A batch of so many was too much: later ones are half of it at most."""
        memory.release()
        self.memory_limits.sampled = min(self.memory_limits.sampled, tokens) // 2

    def completion(self, row: GenerationRow, request: Request) -> Completion:
        """What a row says, once it is done: its thought, its text, its calls (where tools were
        offered)."""
        thought, text = self.chat.split(self.decode(row.tokens))
        cuts = [at for s in request.stop if s and (at := text.find(s)) >= 0]
        finish: Literal["stop", "length", "tool_calls"] = "stop" if row.ended or cuts else "length"
        text = text[: min(cuts)] if cuts else text
        calls: tuple[Json, ...] = ()
        if request.tools and finish == "stop":  # what was cut off may be half of a call
            text, found = read_calls(text, names(request.tools))
            calls = shaped(found, f"{row.seed}/{len(row.prompt)}")
            finish = "tool_calls" if calls else finish
        tokens = tuple(row.tokens)
        return Completion(
            text, len(row.prompt), len(tokens), finish, row.seed, tokens, calls, thought=thought
        )

    def partial_text(self, row: GenerationRow) -> str:
        """The text of a row so far, without its thought."""
        return self.chat.split(self.decode(row.tokens))[1]

    def continuous_batch(self) -> ContinuousBatch | None:
        """A batch that rows may join while it runs; None for a model whose layers do not allow
        it."""
        return (
            ContinuousBatch(self.network, self.ends, self._pad())
            if joinable(self.network)
            else None
        )

    def use_one_thread_if_small(self) -> None:
        """Get ready to answer beside other work of this process, such as a web server's. A light
        network on a CPU takes one thread from now on: its threads would wait for each other at
        every layer while the others compute."""
        if self.device.type == "cpu" and memory.weights_of(self.network) <= LIGHT_BYTES:
            torch.set_num_threads(1)

    def _stopper(self, stop: Sequence[str]) -> Any:
        words = [s for s in stop if s]
        if not words:
            return None
        # Only the newest words are read at each step: a token may be part of a letter, so more
        # tokens than letters.
        tail = 4 * max(map(len, words)) + 8
        return lambda tokens: any(s in self.decode(tokens[-tail:]) for s in words)

    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def cache_tokens(self) -> int:
        """Tokens whose keys and values fit the budget: the setting `memory` less the weights, else
        a part of what is free on a GPU, else what is fastest on a CPU. Less after an error of too
        little memory."""
        each = self._token_bytes()
        if self.memory:
            room = int(self.memory * memory.GB - memory.weights_of(self.network)) // each
        elif self.device.type == "cuda":
            room = max(CACHE_TOKENS, memory.free(self.device) // 4 // each)
        else:
            room = max(CACHE_TOKENS, CACHE_BYTES // each)
        return int(max(1, min(room, self.memory_limits.sampled)))

    def _token_bytes(self) -> int:
        """Keys and values of one token."""
        c = self.network.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return int(2 * c.num_hidden_layers * heads * width * self.network.dtype.itemsize)

    def _row_tokens(self) -> int:
        """What a row needs to draw a word, in tokens of the cache: much where the vocabulary is
        large."""
        words = int(self.network.config.get_text_config().vocab_size)
        return PICK_BYTES * words // self._token_bytes()

    # ---- adapters

    @property
    def active(self) -> str | None:
        """Name of the active adapter, None for the bare base."""
        return self.adapter_set.active

    @property
    def adapters(self) -> list[str]:
        return self.adapter_set.names

    def new_adapter(self, name: str, rank: int = 8, alpha: float = 32, seed: int = 0) -> None:
        """Add a fresh adapter on all linear layers (B is zero, so it changes nothing yet). It is
        not active."""
        self.adapter_set.new(name, rank, alpha, seed)

    def clone_adapter(self, name: str, new: str) -> None:
        """Add an adapter `new` of the same rank and weights, to train on from there. It is not
        active."""
        self.adapter_set.clone(name, new)

    def load_adapter(self, name: str, path: Path | str) -> None:
        """Load a PEFT folder under `name`. It is not active. AdapterError, AdapterMismatch."""
        self.adapter_set.load(name, path)

    def drop_adapter(self, name: str) -> None:
        self.adapter_set.drop(name)

    def use(self, name: str | None) -> None:
        """Switch to an adapter; None is the bare base, exactly."""
        self.adapter_set.use(name)

    def using(self, name: str | None) -> AbstractContextManager[None]:
        return self.adapter_set.using(name)

    def adapter_parameters(self, name: str) -> list[torch.nn.Parameter]:
        return self.adapter_set.parameters(name)

    def scale_adapter(self, name: str, factor: float) -> None:
        """Strength of an adapter: 1 as trained, 0 as good as off; `save_adapter` keeps it."""
        self.adapter_set.scale(name, factor)

    def save_adapter(self, name: str, folder: Path | str) -> None:
        """Write a plain PEFT folder with safetensors."""
        self.adapter_set.save(name, folder, base=self.name)

    def save_merged(self, adapter: Path | str, folder: Path | str) -> None:
        """Write the base with the PEFT folder `adapter` in its weights as an ordinary model folder
        with its tokenizer.

        It uses the network up: this model answers no more. AdapterError, AdapterMismatch.
        """
        merge(self.network, adapter, folder)
        self.tokenizer.save_pretrained(folder)


def batches(
    rows: Sequence[GenerationRow], budget: int, fixed: int = 0
) -> list[list[GenerationRow]]:
    """Rows of like prompt length together, at most `budget` tokens in a batch (one row is a batch
    at least): padded prompt and answer, and `fixed` for each row."""
    made: list[list[GenerationRow]] = []
    width = limit = 0
    for row in sorted(rows, key=lambda r: (len(r.prompt), r.prompt)):
        width, limit = len(row.prompt), max(limit, row.limit)
        if made and (len(made[-1]) + 1) * (width + limit + fixed) <= budget:
            made[-1].append(row)
        else:
            made.append([row])
            limit = row.limit
    return made


def cost(batch: Sequence[GenerationRow], fixed: int = 0) -> int:
    """Tokens of a batch, as `batches` counts them."""
    return len(batch) * (
        max(len(row.prompt) for row in batch) + max(row.limit for row in batch) + fixed
    )


def _file_hash(file: Path) -> str:
    """sha256 of a file; the Hugging Face cache already names its large files so."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
