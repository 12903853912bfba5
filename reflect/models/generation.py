"""The decode loop: many rows of many prompts in one batch, each row with its own seed.

A prompt is prefilled and stored once for all its rows: up to eight rows of one prompt are the
*slots* of one sequence. A step feeds one token per slot; each slot sees the prompt
and its own tokens, which the mask picks out of the interleaved ones. So attention reads a prompt
once for the whole group, and not once per row. Models with other than plain attention layers
(sliding windows, linear attention) get one slot per sequence, by the same code.

A row samples its tokens by inverse CDF from uniforms of its own generator, so its text does not
depend on other rows (up to the rounding of the matrix products, about 1e-6 of probability).

Suffixes: P prompts, G sequences, K slots, R = G * K rows of the batch, V vocabulary.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from reflect.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from reflect.models.grammar import AnswerForm

GREEDY = 1e-4  # a temperature below this is the argmax
SLOTS = 8  # most rows in one sequence: each computes attention over the tokens of all
SHARED = 16  # shortest common prefix of the prompts that is computed by itself
DROP = 0.75  # the batch is compacted when it can shrink to this share


@dataclass
class GenerationRow:
    """One unfinished completion; `tokens` and `ended` (end token or stop string) are the result."""

    prompt: Sequence[int]
    seed: int
    limit: int  # most tokens to sample, >= 1
    temperature: float = 1.0
    top_p: float = 1.0
    stopped: Callable[[list[int]], bool] | None = None  # whether the text has a stop string
    form: AnswerForm | None = None  # what the answer must be
    tokens: list[int] = field(default_factory=list)
    ended: bool = False


class GrowingCache(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer in buffers with room for the tokens to come.

    transformers' DynamicLayer copies the whole cache at every step, which for a small model costs
    more than the step.
    """

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> Any:
        """Append [G, H, T, D] states; returns views of all states so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold((key_states, value_states), key_states.shape[-2])
            return self.keys, self.values
        before = self.keys.shape[-2]
        size = before + key_states.shape[-2]
        buffers = self._buffers
        if size > buffers[0].shape[-2]:
            buffers = tuple(self._roomy(states, len(states), size) for states in buffers)
            for buffer, states in zip(buffers, (self.keys, self.values), strict=True):
                buffer[:, :, :before] = states
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:size] = states
        self._hold(buffers, size)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep (and repeat) the sequences `beam_idx`."""
        beam_idx = beam_idx.to(self.keys.device)  # of a model spread over several GPUs
        size = self.keys.shape[-2]
        buffers = tuple(self._roomy(states, len(beam_idx), size) for states in self._buffers)
        for buffer, states in zip(buffers, (self.keys, self.values), strict=True):
            torch.index_select(states, 0, beam_idx, out=buffer[:, :, :size])
        self._hold(buffers, size)

    def keep(self, sequence_G: torch.Tensor, slot_GK: torch.Tensor, width: int, slots: int) -> None:
        """Keep some sequences, and in each some of its `slots` interleaved after token `width`."""
        sequence_G, slot_GK = sequence_G.to(self.keys.device), slot_GK.to(self.keys.device)
        steps = (self.keys.shape[-2] - width) // slots
        size = width + steps * slot_GK.shape[1]
        buffers = tuple(self._roomy(states, len(sequence_G), size) for states in self._buffers)
        for buffer, states in zip(buffers, (self.keys, self.values), strict=True):
            torch.index_select(states[:, :, :width], 0, sequence_G, out=buffer[:, :, :width])
            tail_GHTKD = states[:, :, width:].unflatten(2, (steps, slots))
            chosen_GKHTD = tail_GHTKD[sequence_G[:, None], :, :, slot_GK]
            buffer[:, :, width:size].unflatten(2, (steps, slot_GK.shape[1]))[:] = (
                chosen_GKHTD.permute(0, 2, 3, 1, 4)
            )
        self._hold(buffers, size)

    @staticmethod
    def _roomy(states: torch.Tensor, count: int, size: int) -> torch.Tensor:
        return states.new_empty(count, states.shape[1], 2 * size + 32, states.shape[3])

    def _hold(self, buffers: tuple[torch.Tensor, ...], size: int) -> None:
        self._buffers = buffers
        self.keys, self.values = (buffer[:, :, :size] for buffer in buffers)


def uniforms(seed: int, n: int) -> list[float]:
    """The row's random numbers in [0, 1): a function of its seed, whatever number is requested."""
    draw = random.Random(seed).random
    return [draw() for _ in range(n)]


def pick(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor | None, temperature_R: torch.Tensor
) -> torch.Tensor:
    """One token per row by inverse CDF, argmax at temperature 0; [R] ids. None: all rows greedy."""
    if uniforms_R is None:
        return logits_RV.argmax(-1)
    scaled = logits_RV.float() / temperature_R.clamp_min(GREEDY)[:, None]
    cdf = torch.softmax(scaled, -1).cumsum(-1, dtype=uniforms_R.dtype)
    target = uniforms_R * cdf[:, -1]
    drawn = torch.searchsorted(cdf, target[:, None], right=True)[:, 0].clamp_max(cdf.shape[-1] - 1)
    return torch.where(temperature_R < GREEDY, logits_RV.argmax(-1), drawn)


def nucleus(logits_RV: torch.Tensor, rows: Sequence[GenerationRow | None]) -> torch.Tensor:
    """The logits, for rows with top_p < 1 without the tokens outside the smallest set of that
    probability (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration")."""
    limited = {i: row for i, row in enumerate(rows) if row and row.top_p < 1}
    if not limited:
        return logits_RV
    logits_RV = logits_RV.clone()
    for i, row in limited.items():
        scaled_V = logits_RV[i].float() / max(row.temperature, GREEDY)
        sorted_V, order_V = torch.softmax(scaled_V, -1).sort(descending=True, stable=True)
        outside_V = sorted_V.cumsum(-1) - sorted_V >= row.top_p
        outside_V[0] = False
        logits_RV[i, order_V[outside_V]] = -torch.inf
    return logits_RV


def in_form(logits_RV: torch.Tensor, rows: Sequence[GenerationRow | None]) -> torch.Tensor:
    """The logits, for rows whose answer has a form without the tokens that may not follow."""
    held = [
        (i, row, row.form)
        for i, row in enumerate(rows)
        if row and row.form and not row.ended and len(row.tokens) < row.limit
    ]
    if not held:
        return logits_RV
    logits_RV = logits_RV.clone()
    for i, row, form in held:
        left = row.limit - len(row.tokens)
        allowed_V = form.allowed(row.tokens, logits_RV.shape[-1], left)
        if allowed_V is not None:
            logits_RV[i].masked_fill_(~allowed_V.to(logits_RV.device), -torch.inf)
    return logits_RV


def decode(
    network: PreTrainedModel, rows: Sequence[GenerationRow], ends: frozenset[int], pad: int
) -> None:
    """Complete the rows in place. `ends` are the ids that end an answer. One transfer to the host
    per step.

    Raises ModelError when the network's output is not finite.
    """
    with torch.inference_mode():
        _decode(network, list(rows), ends, pad)


def _decode(
    network: PreTrainedModel, rows: list[GenerationRow], ends: frozenset[int], pad: int
) -> None:
    device = next(network.parameters()).device
    steps = max(row.limit for row in rows)
    prompts = list(dict.fromkeys(tuple(row.prompt) for row in rows))
    cache, logits_PV, seen_PT, length_P = _prefill(network, prompts, pad)
    width = seen_PT.shape[1]

    owners, live, slots = _seat(rows, prompts, SLOTS if _plain(cache) else 1)
    owner_G = torch.tensor(owners, device=device)
    cache.reorder_cache(owner_G)
    seen_GT, length_G = seen_PT[owner_G], length_P[owner_G]
    logits_RV = logits_PV[owner_G].repeat_interleave(slots, dim=0)
    temperature_R = torch.tensor([row.temperature if row else 0.0 for row in live], device=device)
    drawn_RS = None
    if any(row.temperature >= GREEDY for row in rows):
        # float32 would round the last uniforms to 1; MPS has no float64
        wide = torch.float32 if device.type == "mps" else torch.float64
        draws = [uniforms(row.seed, steps) if row else [0.0] * steps for row in live]
        drawn_RS = torch.tensor(draws, dtype=wide, device=device)
    mask = _mask(seen_GT, slots, steps, network.dtype)

    for step in range(steps):
        drawn_R = None if drawn_RS is None else drawn_RS[:, step]
        token_R = pick(nucleus(in_form(logits_RV, live), live), drawn_R, temperature_R)
        finite_R = logits_RV.amax(-1).isfinite()
        running = _append(live, token_R.where(finite_R, -1).tolist(), ends)
        if not running:
            return
        places, fewer = _compact(running, slots)
        if len(places) <= DROP * len(live):
            live = [live[i] if new else None for i, new in places]
            keep_R = torch.tensor([i for i, _ in places], device=device)
            keep_G = keep_R[::fewer] // slots
            if slots == 1:
                cache.reorder_cache(keep_G)
            else:
                for layer in cache.layers:
                    layer.keep(keep_G, keep_R.view(-1, fewer) % slots, width, slots)
            token_R, temperature_R = token_R[keep_R], temperature_R[keep_R]
            drawn_RS = drawn_RS[keep_R] if drawn_RS is not None else None
            seen_GT, length_G, slots = seen_GT[keep_G], length_G[keep_G], fewer
            mask = _mask(seen_GT, slots, steps, network.dtype)
        out = network(
            input_ids=token_R.view(-1, slots),
            attention_mask=None if mask is None else mask[..., : width + slots * (step + 1)],
            position_ids=(length_G + step)[:, None].expand(-1, slots),
            past_key_values=cache,
            use_cache=True,
        )
        logits_RV = out.logits.flatten(0, 1)


def _prefill(
    network: PreTrainedModel, prompts: list[tuple[int, ...]], pad: int, known: Any = ()
) -> tuple[Any, ...]:
    """(cache, logits of the last token [P, V], which tokens are no padding [P, T], lengths [P]).

    What all prompts begin with, such as the same lessons, is read once; the rest is padded on the
    left. `known`: keys and values by layer of a common prefix, which is not computed again.
    """
    device = next(network.parameters()).device
    cache = DynamicCache(config=network.config)
    cache.layers = [GrowingCache() if type(x) is DynamicLayer else x for x in cache.layers]
    width, shortest = max(map(len, prompts)), min(map(len, prompts))
    shared = min(len(os.path.commonprefix([min(prompts), max(prompts)])), shortest - 1)
    if known:
        shared = known[0][0].shape[2]
        for layer, states in zip(cache.layers, known, strict=True):
            layer.update(*states)
        cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.long, device=device))
    elif len(prompts) == 1 or shared < SHARED or not _plain(cache):
        shared = 0  # also where padding between the two would count, as it does in a sliding window
    else:
        ids = torch.tensor([prompts[0][:shared]], device=device)
        network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.long, device=device))

    length_P = torch.tensor([len(p) for p in prompts], device=device)
    rest = [[pad] * (width - len(p)) + list(p[shared:]) for p in prompts]
    rest_PT = torch.tensor(rest, device=device)
    place_PT = torch.arange(shared, width, device=device)[None] - (width - length_P)[:, None]
    prefix_PT = place_PT.new_ones(len(prompts), shared, dtype=torch.bool)
    seen_PT = torch.cat([prefix_PT, place_PT >= shared], dim=1)
    out = network(
        input_ids=rest_PT,
        attention_mask=None if shortest == width else seen_PT,
        position_ids=place_PT.clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache, out.logits[:, -1], seen_PT, length_P


def _plain(cache: DynamicCache) -> bool:
    return all(isinstance(layer, GrowingCache) for layer in cache.layers)


def _seat(
    rows: list[GenerationRow], prompts: list[tuple[int, ...]], most: int
) -> tuple[list[int], list[GenerationRow | None], int]:
    """Place rows in sequences of equally many slots: prompts, the row or None per slot, slots."""
    of: dict[tuple[int, ...], list[GenerationRow]] = {prompt: [] for prompt in prompts}
    for row in rows:
        of[tuple(row.prompt)].append(row)
    slots = min(most, max(map(len, of.values())))
    owners: list[int] = []
    live: list[GenerationRow | None] = []
    for i, prompt in enumerate(prompts):
        for start in range(0, len(of[prompt]), slots):
            group = of[prompt][start : start + slots]
            owners.append(i)
            live += [*group, *[None] * (slots - len(group))]
    return owners, live, slots


def _mask(seen_GT: torch.Tensor, slots: int, steps: int, dtype: torch.dtype) -> torch.Tensor | None:
    """What each slot may see of the prompt and of `slots` x `steps` tokens after it.

    With one slot the ordinary [G, T + steps] mask, which every model understands, or None where
    nothing is padded; with more an additive [G, 1, K, T + K * steps].
    """
    count, _width = seen_GT.shape
    if slots == 1:
        if bool(seen_GT.all()):
            return None
        return torch.cat([seen_GT, seen_GT.new_ones(count, steps)], dim=1)
    own = torch.eye(slots, dtype=torch.bool, device=seen_GT.device).repeat(1, steps)
    parts = [seen_GT[:, None].expand(-1, slots, -1), own[None].expand(count, -1, -1)]
    seen = torch.cat(parts, dim=2)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _append(live: list[GenerationRow | None], tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Give each row its token (-1: not finite logits); returns the places of rows that continue."""
    running = []
    for i, (row, token) in enumerate(zip(live, tokens, strict=True)):
        if row is None or row.ended or len(row.tokens) >= row.limit:
            continue
        if token < 0:
            problem = "The model's output is not a number."
            raise ModelError(problem, "Its weights or the active adapter are broken.")
        if token in ends:
            row.ended = True
            continue
        row.tokens.append(token)
        if row.stopped and row.stopped(row.tokens):
            row.ended = True
        elif len(row.tokens) < row.limit:
            running.append(i)
    return running


def _compact(running: list[int], slots: int) -> tuple[list[tuple[int, bool]], int]:
    """The smallest batch that holds the running rows: (old place of each new one, and is it a
    running row?, new slots).

    A sequence with fewer running rows than the new slots repeats one of them; its output is unused.
    """
    by: dict[int, list[int]] = {}
    for i in running:
        by.setdefault(i // slots, []).append(i)
    fewer = max(map(len, by.values()))
    places: list[tuple[int, bool]] = []
    for seats in by.values():
        places += [(i, True) for i in seats] + [(seats[0], False)] * (fewer - len(seats))
    return places, fewer
