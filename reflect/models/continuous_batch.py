"""A batch that never ends: rows join it between two steps and leave it when they are done.

Every row holds its keys and values from column 0 on, so a row that joins is written into the first
free place and moves nobody; when one leaves, the last row takes its place. Columns are added while
answers grow, for who asks for an answer of any length seldom gets a long one. A step feeds one
token of every row; the mask hides what lies behind a row's own end. What a row says is a function
of its own prompt and seed, as in `sampling.decode`, which is faster where all rows are known before
the first step.

Not covered: models with other than plain attention layers (sliding windows, linear attention):
`joinable` says so, and whoever serves them decodes batch after batch.

Suffixes: R rows of the batch, T columns, V vocabulary.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from reflect.models.generation import (
    GREEDY,
    SHARED,
    GenerationRow,
    _append,
    _prefill,
    in_form,
    nucleus,
    pick,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

SPARE = 32  # columns beyond what is needed when the buffers grow, at least; else a quarter


class SharedCache(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer: buffers [rows, heads, columns, width] with room for rows and
    tokens to come.

    `place_R` and `columns` say where the next tokens go, and how much is looked at: they are set
    before each step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[torch.Tensor] = []
        self.place_R: torch.Tensor | None = None
        self.columns = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> Any:
        """Write the [R, H, 1, D] states of one step; returns views of the columns that are looked
        at."""
        count = len(key_states)
        self._grow((key_states, value_states), count, self.columns)
        every_R = torch.arange(count, device=key_states.device)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[every_R, :, self.place_R] = states[:, :, 0]
        return tuple(buffer[:count, :, : self.columns] for buffer in self.buffers)

    def get_seq_length(self) -> int:
        """Columns in use, as transformers asks for them."""
        return self.columns

    def seat(
        self, like: tuple[torch.Tensor, torch.Tensor], first: int, lengths: Sequence[int]
    ) -> None:
        """Rows `first` and after get the last `lengths[i]` columns of [N, H, T, D] states."""
        self._grow(like, first + len(lengths), max(lengths))
        for buffer, states in zip(self.buffers, like, strict=True):
            width = states.shape[2]
            for i, length in enumerate(lengths):
                buffer[first + i, :, :length] = states[i, :, width - length :]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of a row to another row."""
        for buffer in self.buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def _grow(self, like: tuple[torch.Tensor, torch.Tensor], rows: int, columns: int) -> None:
        held = self.buffers[0].shape if self.buffers else (0, 0, 0, 0)
        if rows <= held[0] and columns <= held[2]:
            return
        rows = max(rows, 2 * held[0]) if rows > held[0] else held[0]
        columns = columns + max(SPARE, columns // 4) if columns > held[2] else held[2]
        grown = [
            states.new_zeros(rows, states.shape[1], columns, states.shape[3]) for states in like
        ]
        for new, old in zip(grown, self.buffers, strict=False):
            new[: held[0], :, : held[2]] = old
        self.buffers = grown


class ContinuousBatch:
    """Rows in the making on one network, whose adapter is the caller's to keep the same while any
    of them runs."""

    def __init__(self, network: PreTrainedModel, ends: frozenset[int], pad: int) -> None:
        self.network, self.ends, self.pad = network, ends, pad
        self.rows: list[GenerationRow] = []
        self._draws: list[random.Random] = []
        self._lengths: list[int] = []  # tokens of each row that are held
        self._cache: Any = None
        self._logits_RV: torch.Tensor | None = None

    def tokens(self, more: Sequence[GenerationRow] = (), allow: int = 1) -> int:
        """What these rows and `more` hold, padding counted, when each has `allow` tokens more than
        now."""
        ends = [n + allow for n in self._lengths] + [
            len(row.prompt) + min(allow, row.limit) for row in more
        ]
        return len(ends) * max(ends, default=0)

    def join(self, rows: Sequence[GenerationRow]) -> None:
        """Read the prompts of these rows, equal ones once, and let them take part from the next
        step on."""
        if not rows:
            return
        with torch.inference_mode():
            prompts = list(dict.fromkeys(tuple(row.prompt) for row in rows))
            fresh, logits_PV, _, _ = _prefill(self.network, prompts, self.pad, self._known(prompts))
            owners = [prompts.index(tuple(row.prompt)) for row in rows]
            if self._cache is None:
                self._cache = DynamicCache(config=self.network.config)
                self._cache.layers = [SharedCache() for _ in fresh.layers]
            first, lengths = len(self.rows), [len(row.prompt) for row in rows]
            for mine, theirs in zip(self._cache.layers, fresh.layers, strict=True):
                mine.seat((theirs.keys[owners], theirs.values[owners]), first, lengths)
            logits_RV = logits_PV[owners]
            self._logits_RV = (
                logits_RV if self._logits_RV is None else torch.cat([self._logits_RV, logits_RV])
            )
        self.rows += rows
        self._draws += [random.Random(row.seed) for row in rows]
        self._lengths += lengths

    def _known(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[torch.Tensor, ...]]:
        """Keys and values of the longest beginning of all these prompts that a running row has
        read, such as the same lessons; [] where it is short. At least one token of each prompt is
        left to read."""
        ends = [min(prompts), max(prompts)]
        most = min(map(len, prompts)) - 1
        found = [len(os.path.commonprefix([*ends, tuple(row.prompt)])[:most]) for row in self.rows]
        if not found or max(found) < SHARED:
            return []
        i, width = found.index(max(found)), max(found)
        return [
            tuple(buffer[i : i + 1, :, :width] for buffer in layer.buffers)
            for layer in self._cache.layers
        ]

    def step(self) -> list[GenerationRow]:
        """One token for every row. Returns the rows that are done; they have left. ModelError when
        the output is not finite: then nothing that ran is of use (`clear`)."""
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[GenerationRow]:
        if self._logits_RV is None:
            return []
        logits_RV, device = self._logits_RV, self._logits_RV.device
        temperature_R = torch.tensor([row.temperature for row in self.rows], device=device)
        drawn_R = None
        if any(row.temperature >= GREEDY for row in self.rows):
            wide = torch.float32 if device.type == "mps" else torch.float64
            drawn_R = torch.tensor(
                [draw.random() for draw in self._draws], dtype=wide, device=device
            )
        token_R = pick(nucleus(in_form(logits_RV, self.rows), self.rows), drawn_R, temperature_R)
        finite_R = logits_RV.amax(-1).isfinite()
        tokens = token_R.where(finite_R, -1).tolist()
        running = set(_append(list(self.rows), tokens, self.ends))
        done = [row for i, row in enumerate(self.rows) if i not in running]
        for i in sorted(set(range(len(self.rows))) - running, reverse=True):
            self._leave(i, tokens)
        if self.rows:
            self._logits_RV = self._feed(tokens)
        else:
            self.clear()
        return done

    def _feed(self, tokens: list[int]) -> torch.Tensor:
        device = self.network.device
        place_R, columns = torch.tensor(self._lengths, device=device), max(self._lengths) + 1
        mask = None
        if min(self._lengths) + 1 < columns:
            hidden_RT = torch.arange(columns, device=device)[None] > place_R[:, None]
            mask = torch.zeros(hidden_RT.shape, dtype=self.network.dtype, device=device)
            mask = mask.masked_fill_(hidden_RT, torch.finfo(mask.dtype).min)[:, None, None]
        for layer in self._cache.layers:
            layer.place_R, layer.columns = place_R, columns
        out = self.network(
            input_ids=torch.tensor(tokens, device=device)[:, None],
            attention_mask=mask,
            position_ids=place_R[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._lengths = [length + 1 for length in self._lengths]
        return out.logits[:, -1]

    def drop(self, row: GenerationRow) -> None:
        """Nobody waits for it any more. Call it between steps."""
        i = next((i for i, one in enumerate(self.rows) if one is row), None)
        if i is None or self._logits_RV is None:
            return
        last = len(self.rows) - 1
        with torch.inference_mode():
            if i != last:
                self._logits_RV[i] = self._logits_RV[last]
            self._logits_RV = self._logits_RV[:last]
            self._leave(i)
        if not self.rows:
            self.clear()

    def clear(self) -> None:
        """Forget all rows, and give their memory back."""
        self.rows, self._draws, self._lengths, self._logits_RV, self._cache = [], [], [], None, None

    def _leave(self, i: int, *beside: list[Any]) -> None:
        """The last row takes the place of row i, in the lists `beside` too."""
        last = len(self.rows) - 1
        if i != last:
            for layer in self._cache.layers:
                layer.move(last, i, self._lengths[last])
        lists: tuple[list[Any], ...] = (self.rows, self._draws, self._lengths, *beside)
        for one in lists:
            one[i] = one[last]
            one.pop()


def joinable(network: PreTrainedModel) -> bool:
    """Has the network plain attention layers only, so that rows may join a running batch?"""
    cache = DynamicCache(config=network.config)
    return all(type(layer) is DynamicLayer for layer in cache.layers)
