"""A Hugging Face causal LM folder: chat template, batched sampling, adapters by name."""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from reflect.config import Settings
from reflect.errors import ContextTooLong, ModelError, SchemaRefused
from reflect.models import distributed, memory
from reflect.models.base import ACTIVE, Completion, Request, Sampler
from reflect.models.chat_template import Chat
from reflect.models.continuous_batch import ContinuousBatch, can_join
from reflect.models.generation import GenerationRow, decode
from reflect.models.grammar import Grammars
from reflect.models.loading import SMALLER, context_of, load
from reflect.models.lora import AdapterSet, merge
from reflect.models.tool_calls import api_calls, read_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reflect.models.adapter_files import AdapterFiles
    from reflect.tasksets.task import Message
    from reflect.types import Json

# KV cache of one batch on the CPU: larger batches of the pocket model were slower.
CACHE_BYTES = 2**28
# A batch holds at least this many tokens, or a large model would read its weights too often.
CACHE_TOKENS = 2**14
# Per vocabulary entry and row: logits, probabilities and their sums, in float32 and float64.
PICK_BYTES = 24
FINGERPRINTED = re.compile(
    r".*\.(safetensors|bin|model)|config\.json|(tokenizer|chat_template|vocab|merges).*"
)
OWN_REFLECTION = "reflect.jinja"
"""A file of the model's folder: the wording of the reflection on which it was trained."""
OWN_TASKSETS = "tasksets.txt"
"""A file of the model's folder: names of the shipped tasksets on which it was trained."""
SHORT = 2**16  # characters of a prompt that is tokenised without further checks
PIECE = 2**16  # characters that are tokenised at a time to find that a prompt is too long
LIGHT_BYTES = 2**26  # weights of a network whose steps are too short for several threads


class LocalModel(AdapterSet):
    """One network with its tokenizer and its adapters.

    `network` is the module to call with input_ids, also for training; `device` and `tokenizer`
    belong to it.
    """

    def __init__(self, name: str, folder: Path, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.folder = folder
        self.tokenizer, network = load(name, folder, settings)
        super().__init__(name, network)
        # The device of the input ids; with a device map, of the first layers.
        self.device: torch.device = self.network.device
        self.chat = Chat(self.tokenizer, name, settings.thinking)
        self.context = context_of(self.network, self.tokenizer, settings.max_context)
        if not self.ends:
            raise ModelError(
                f"The model {name} does not define the token that ends an answer.",
                "Set eos_token in its tokenizer_config.json, "
                "or eos_token_id in its generation_config.json.",
            )
        self.memory = settings.memory
        self.memory_limits = memory.MemoryLimits(checkpoints=settings.checkpointing == "on")
        self.may_checkpoint = settings.checkpointing != "off"
        own = folder / OWN_REFLECTION
        self.reflection_template = own.read_text() if own.is_file() else ""
        self.sampler: Sampler | None = None  # answers `sample` in place of the network
        own = folder / OWN_TASKSETS
        self.own_tasksets = tuple(own.read_text().split()) if own.is_file() else ()
        self.share_layers = distributed.share_layers(settings.device_map)  # FSDP in training

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer: those that the model names, and the one that its chat
        template writes after an answer."""
        ids: set[int | None] = set()
        for source in (self.network.generation_config.eos_token_id, self.tokenizer.eos_token_id):
            ids.update(source if isinstance(source, list) else [source])
        special = self.tokenizer.added_tokens_decoder
        first = self.encode_text(self.chat.closing)[:1]
        ids.update(i for i in first if i in special and special[i].special)
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def end(self) -> int:
        """The id with which the chat template itself ends an answer."""
        return next(
            (i for i in self.encode_text(self.chat.closing) if i in self.ends), min(self.ends)
        )

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text as it is, without special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode(
        self, messages: Sequence[Message], answer: str | None = None, tools: Sequence[Json] = ()
    ) -> list[int]:
        """Ids of the conversation up to the start of the assistant's turn; with `answer`, also its
        ids and the end token. See `chat_template` for templates without a system role or tools."""
        ids = self.encode_text(self.chat.render(messages, tools))
        return ids if answer is None else [*ids, *self.encode_text(answer), self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of sampled ids, with thoughts and calls."""
        return self.chat.decode(tokens)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode_text(text))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the names and contents of base weights, config, tokenizer, template."""
        total = hashlib.sha256()
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and FINGERPRINTED.fullmatch(file.name):
                total.update(f"{file.name} {_file_hash(file)}\n".encode())
        return total.hexdigest()

    def sample(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """One list per request, one completion per seed.

        `tokens` holds every sampled id except the end token; `text` stops before the first stop
        string. An answer that reaches the end of the context has the finish "length". Requests of
        one adapter are decoded together, one adapter after the other. UnknownName for an adapter
        that is not loaded; then nothing is sampled. ContextTooLong for a prompt that fills the
        context. ModelError when there is too little memory for one answer alone.
        """
        if self.sampler:
            return self.sampler.sample(requests)
        adapters = [self.active if r.adapter == ACTIVE else r.adapter for r in requests]
        for name in {name for name in adapters if name is not None}:
            self.known_adapter(name)
        groups = [self.rows(request) for request in requests]
        for adapter in dict.fromkeys(adapters):
            same = [g for name, g in zip(adapters, groups, strict=True) if name == adapter]
            with nullcontext() if adapter == self.active else self.using(adapter):
                self.decode_rows([row for group in same for row in group])
        pairs = zip(requests, groups, strict=True)
        return [[self.completion(row, request) for row in group] for request, group in pairs]

    def rows(self, request: Request) -> list[GenerationRow]:
        """One row to decode per seed. ContextTooLong for a prompt that fills the context,
        SchemaRefused for a form that cannot be compiled."""
        return self.rows_of(self.encode(request.messages, tools=request.tools), request)

    def rows_of(self, prompt: Sequence[int], request: Request) -> list[GenerationRow]:
        """The rows of a prompt in token ids. Errors as in `rows`."""
        room = self.context - len(prompt)
        if room < 1 or not prompt:
            raise ContextTooLong(
                f"The prompt has {len(prompt)} tokens, "
                f"the model {self.name} reads {self.context} with its answer.",
                "Shorten the task, lower lesson_budget, or use a model with a longer context.",
            )
        limit = min(room, request.max_tokens)
        stopped = self._stopper(request.stop)
        form = self.grammars.form
        return [
            GenerationRow(
                prompt,
                s,
                limit,
                request.temperature,
                request.top_p,
                stopped,
                form(request.response_format),
            )
            for s in request.seeds
        ]

    @cached_property
    def grammars(self) -> Grammars:
        """The forms to which answers can be held."""
        return Grammars(self.chat, self.ends, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """The number of token ids that the network knows."""
        return int(self.network.config.get_text_config().vocab_size)

    def decode_rows(self, rows: Sequence[GenerationRow]) -> None:
        """Decode rows with the active adapter, in batches that fit the memory. Errors as in
        `sample`."""
        unfinished = [row for row in rows if row.limit > 0]
        for batch in batches(unfinished, self.cache_tokens(), self._row_tokens()):
            self._decode(batch)

    def check_length(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> None:
        """ContextTooLong for a conversation that is far too long, before all of it is rendered and
        tokenised: by its characters, then by the tokens of its first pieces."""
        characters, most = text_length([*messages, *tools]), self.context * self._longest_token
        if characters <= SHORT:
            return
        message = f"The prompt has {characters} characters, the model {self.name} reads "
        hint = "Shorten the messages, or use a model with a longer context."
        if characters > max(most, SHORT):
            raise ContextTooLong(
                f"{message}at most {most}: {self.context} tokens with its answer.", hint
            )
        count = 0
        for text in (m["content"] for m in messages if m["role"] != "assistant"):
            for at in range(0, len(text), PIECE):
                # A cut within a word can add a few tokens.
                count += max(0, self.count_tokens(text[at : at + PIECE]) - 8)
                if count > self.context:
                    raise ContextTooLong(f"{message}{self.context} tokens with its answer.", hint)

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token of the vocabulary."""
        return max(map(len, self.tokenizer.get_vocab()))

    def _decode(self, batch: list[GenerationRow]) -> None:
        """Decode a batch. After an out-of-memory error in halves; later batches are smaller."""
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
        """The error for a row that does not fit the memory alone."""
        return ModelError(
            f"There is too little memory for one answer of {self.name}: "
            f"{len(row.prompt)} tokens of prompt, up to {row.limit} of answer.",
            f"Lower max_tokens or lesson_budget. {SMALLER}",
        )

    def shrink_batch(self, tokens: int) -> None:
        """A batch of `tokens` did not fit: later ones are at most half of it."""
        memory.release()
        self.memory_limits.sampled = min(self.memory_limits.sampled, tokens) // 2

    def completion(self, row: GenerationRow, request: Request) -> Completion:
        """The result of a finished row: thought, text, and calls where tools were offered."""
        if row.form and (problem := row.form.problem):
            raise SchemaRefused(f"The form of the answer is too complex: {problem[:200]}")
        thought, text = self.chat.split(self.decode(row.tokens))
        cuts = [(at, s) for s in request.stop if s and (at := text.find(s)) >= 0]
        finish: Literal["stop", "length", "tool_calls"] = "stop" if row.ended or cuts else "length"
        end, stop = min(cuts, default=(len(text), ""))
        text = text[:end]
        calls: tuple[Json, ...] = ()
        if request.tools and finish == "stop":  # a cut text may end within a call
            text, parsed = read_calls(text, request.tools)
            calls = api_calls(parsed, f"{row.seed}/{len(row.prompt)}")
            finish = "tool_calls" if calls else finish
        tokens = tuple(row.tokens)
        return Completion(
            text,
            len(row.prompt),
            len(tokens),
            finish,
            row.seed,
            tokens,
            calls,
            thought=thought,
            stop=stop,
        )

    def continuous_batch(self) -> ContinuousBatch | None:
        """A batch that rows can join while it runs; None when the layers do not allow it."""
        if not can_join(self.network):
            return None
        return ContinuousBatch(self.network, self.ends, self._pad())

    def use_one_thread_if_small(self) -> None:
        """Use one thread for a small network on a CPU, next to other work such as a web server:
        several threads would wait for each other at every layer."""
        if self.device.type == "cpu" and memory.weights_of(self.network) <= LIGHT_BYTES:
            torch.set_num_threads(1)

    def _stopper(self, stop: Sequence[str]) -> Callable[[list[int]], bool] | None:
        """A test for a stop string at the end of the tokens; None without stop strings."""
        strings = [s for s in stop if s]
        if not strings:
            return None
        # Decode the last tokens only. A token may be a part of a letter: more tokens than letters.
        tail = 4 * max(map(len, strings)) + 8
        return lambda tokens: any(s in self.decode(tokens[-tail:]) for s in strings)

    def _pad(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    def cache_tokens(self) -> int:
        """Tokens whose keys and values fit: the setting `memory` minus the weights, else a quarter
        of a GPU's free memory, else the fastest size on a CPU; less after out-of-memory errors."""
        each = self._token_bytes()
        if self.memory:
            room = int(self.memory * memory.GB - memory.weights_of(self.network)) // each
        elif self.device.type == "cuda":
            room = max(CACHE_TOKENS, memory.free(self.device) // 4 // each)
        else:
            room = max(CACHE_TOKENS, CACHE_BYTES // each)
        return int(max(1, min(room, self.memory_limits.sampled)))

    def _token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        c = self.network.config.get_text_config()
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return int(2 * c.num_hidden_layers * heads * width * self.network.dtype.itemsize)

    def _row_tokens(self) -> int:
        """Memory that a row needs to draw a token, in tokens of the cache."""
        return PICK_BYTES * self.vocabulary // self._token_bytes()

    def save_merged(self, adapter: AdapterFiles | Path | str, folder: Path | str) -> None:
        """Write the base with the PEFT folder `adapter` merged into its weights, as a model folder
        with tokenizer. This model cannot answer afterwards. AdapterError, AdapterMismatch."""
        merge(self.network, adapter, folder)
        self.tokenizer.save_pretrained(folder)


def text_length(value: object) -> int:
    """The characters of all texts in a JSON value, names of fields included."""
    total, stack = 0, [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, dict):
            stack += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            stack += one
    return total


def batches(
    rows: Sequence[GenerationRow], budget: int, fixed: int = 0
) -> list[list[GenerationRow]]:
    """Rows of similar prompt length together, at most `budget` tokens per batch of two rows or
    more: padded prompt and answer, plus `fixed` per row."""
    groups: list[list[GenerationRow]] = []
    limit = 0
    for row in sorted(rows, key=lambda r: (len(r.prompt), r.prompt)):
        limit = max(limit, row.limit)
        if groups and (len(groups[-1]) + 1) * (len(row.prompt) + limit + fixed) <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
            limit = row.limit
    return groups


def cost(batch: Sequence[GenerationRow], fixed: int = 0) -> int:
    """Tokens of a batch, as `batches` counts them."""
    prompt, answer = max(len(row.prompt) for row in batch), max(row.limit for row in batch)
    return len(batch) * (prompt + answer + fixed)


def _file_hash(file: Path) -> str:
    """sha256 of a file. The Hugging Face cache already names large files by it."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
