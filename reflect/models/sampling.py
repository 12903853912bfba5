"""The decode loop: many rows of many prompts in one batch, each row with its own seed.

A prompt is prefilled once, however many rows ask for it; its keys and values are then gathered to the rows. A row draws
its tokens by inverse CDF from uniforms of its own generator, so what it says does not depend on its neighbours (up to
the rounding of the matrix products, about 1e-6 of probability).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from reflect.errors import ModelError

GREEDY = 1e-4  # a temperature below this is the argmax
DROP = 0.75  # the batch is compacted when no more than this share of its rows still runs


@dataclass
class Row:
    """One completion in the making. `tokens` and `ended` (by an end token or a stop string) are the result."""

    prompt: Sequence[int]
    seed: int
    limit: int  # most tokens to sample, >= 1
    temperature: float = 1.0
    stopped: Callable[[list[int]], bool] | None = None  # does this row's text hold one of its stop strings?
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room for the tokens to come.

    transformers' DynamicLayer copies the whole cache at every step, which for a small model costs more than the step.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Append [B, H, T, D] states; returns views of everything held so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = (key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        held = self.keys.shape[-2]
        size = held + key_states.shape[-2]
        if size > self._buffers[0].shape[-2]:
            self._grow(size + self.room)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:size] = states
        self.keys, self.values = (buffer[:, :, :size] for buffer in self._buffers)
        return self.keys, self.values

    def _grow(self, size: int) -> None:
        def roomy(states: torch.Tensor) -> torch.Tensor:
            rows, heads, held, width = states.shape
            buffer = states.new_empty(rows, heads, size, width)
            buffer[:, :, :held] = states
            return buffer

        self._buffers = (roomy(self.keys), roomy(self.values))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep (and repeat) the rows `beam_idx`."""
        held, size = self.keys.shape[-2], self._buffers[0].shape[-2]
        if size > held:
            size = held + self.room
        self.keys, self.values = self.keys.index_select(0, beam_idx), self.values.index_select(0, beam_idx)
        self._buffers = (self.keys, self.values)
        if size > held:
            self._grow(size)


def uniforms(seed: int, n: int) -> list[float]:
    """The row's random numbers in [0, 1): a function of its seed alone, and the same however many are asked for."""
    draw = random.Random(seed).random
    return [draw() for _ in range(n)]


def pick(logits_RV: torch.Tensor, uniforms_R: torch.Tensor | None, temperature_R: torch.Tensor) -> torch.Tensor:
    """One token per row by inverse CDF, the argmax where the temperature is 0; [R] ids. `None` = all rows greedy."""
    if uniforms_R is None:
        return logits_RV.argmax(-1)
    scaled = logits_RV.float() / temperature_R.clamp_min(GREEDY)[:, None]
    wide = torch.float32 if logits_RV.device.type == "mps" else torch.float64
    cdf = torch.softmax(scaled, -1).cumsum(-1, dtype=wide)
    target = uniforms_R.to(wide) * cdf[:, -1]
    drawn = torch.searchsorted(cdf, target[:, None], right=True)[:, 0].clamp_max(cdf.shape[-1] - 1)
    return torch.where(temperature_R < GREEDY, logits_RV.argmax(-1), drawn)


def decode(network: Any, rows: Sequence[Row], ends: frozenset[int], pad: int) -> None:
    """Complete the rows in place. `ends` are the ids that end an answer. One transfer to the host per step.

    Raises ModelError when the network's output is not finite.
    """
    with torch.inference_mode():
        _decode(network, list(rows), ends, pad)


def _decode(network: Any, rows: list[Row], ends: frozenset[int], pad: int) -> None:
    device = next(network.parameters()).device
    steps = max(row.limit for row in rows)
    prompts = list(dict.fromkeys(tuple(row.prompt) for row in rows))
    place = {prompt: i for i, prompt in enumerate(prompts)}
    width = max(map(len, prompts))
    lengths_P = torch.tensor([len(p) for p in prompts], device=device)
    ids_PT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    padded = any(len(p) < width for p in prompts)
    mask: torch.Tensor | None = None  # [rows, width + steps], only when some prompt is padded on the left
    if padded:
        mask = torch.arange(width + steps, device=device)[None] >= (width - lengths_P)[:, None]

    cache = DynamicCache(config=network.config)
    cache.layers = [RoomyLayer(steps) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    positions = (torch.arange(width, device=device)[None] - (width - lengths_P)[:, None]).clamp_min(0)
    out = network(
        input_ids=ids_PT, attention_mask=mask[:, :width] if mask is not None else None, position_ids=positions,
        past_key_values=cache, use_cache=True, logits_to_keep=1,
    )  # fmt: skip

    owner_R = torch.tensor([place[tuple(row.prompt)] for row in rows], device=device)
    logits_RV = out.logits[:, -1].index_select(0, owner_R)
    if len(rows) > len(prompts) or padded:
        cache.reorder_cache(owner_R)
    position_R = lengths_P[owner_R]
    mask = mask[owner_R] if mask is not None else None
    temperature_R = torch.tensor([row.temperature for row in rows], device=device)
    drawn = None
    if any(row.temperature >= GREEDY for row in rows):
        drawn = torch.tensor([uniforms(row.seed, steps) for row in rows], device=device)

    live = rows  # row i of the batch; ended rows ride along until the batch is compacted
    for step in range(steps):
        token_R = pick(logits_RV, None if drawn is None else drawn[:, step], temperature_R)
        finite = logits_RV[:, 0].isfinite()
        running = []
        for i, (row, token, good) in enumerate(zip(live, token_R.tolist(), finite.tolist(), strict=True)):
            if row.ended or len(row.tokens) >= row.limit:
                continue
            if not good:
                raise ModelError("The model's output is not a number.", "Its weights or the active adapter are broken.")
            if token in ends:
                row.ended = True
                continue
            row.tokens.append(token)
            if row.stopped and row.stopped(row.tokens):
                row.ended = True
            elif len(row.tokens) < row.limit:
                running.append(i)
        if not running:
            return
        if len(running) <= DROP * len(live):
            keep = torch.tensor(running, device=device)
            cache.reorder_cache(keep)
            token_R, position_R, temperature_R = token_R[keep], position_R[keep], temperature_R[keep]
            mask = mask[keep] if mask is not None else None
            drawn = drawn[keep] if drawn is not None else None
            live = [live[i] for i in running]
        out = network(
            input_ids=token_R[:, None], attention_mask=mask[:, : width + step + 1] if mask is not None else None,
            position_ids=(position_R + step)[:, None], past_key_values=cache, use_cache=True,
        )  # fmt: skip
        logits_RV = out.logits[:, -1]
