"""Training when memory is short: first the layers' values are computed twice, then fewer rows go
through at once.

Activation checkpointing (Chen et al., arXiv 1604.06174): a layer's values are not kept for the
backward pass but made again from its input. Its price is one more forward pass; the gradients are
the same.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint

from reflect.errors import NightError
from reflect.models.fsdp import layers_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from reflect.models.local import LocalModel


@contextmanager
def checkpointed(model: LocalModel) -> Iterator[None]:
    """For the time of a with-block, the network's layers keep only their inputs, if the model is to
    be thrifty.

    transformers' own switch needs the training mode, in which a base with dropout would be another
    model.
    """
    changed: list[tuple[Any, Any]] = []
    for layer in layers_of(model.network) if model.memory_limits.checkpoints else ():
        changed.append((layer, layer.__dict__.get("forward")))
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer, before in changed:
            del layer.forward
            if before is not None:  # a hook of accelerate
                layer.forward = before


def reduce_memory(model: LocalModel, rows: Sequence[Any], most: int) -> None:
    """After an error of too little memory: what is to be done otherwise from now on. NightError
    when nothing is left.

    `most`: the padded tokens of a pass by the plan.
    """
    if model.may_checkpoint and not model.memory_limits.checkpoints:
        model.memory_limits.checkpoints = True
        return
    longest = max((row.width for row in rows), default=0)
    tried = min(model.memory_limits.most(most), len(rows) * longest)  # a pass had no more than this
    if tried <= longest:
        raise NightError(
            f"There is too little memory to train on one answer of {longest} tokens with its prompt.",
            'Lower max_tokens or lesson_budget, or set dtype = "bfloat16", checkpointing = "on", or a smaller model.',
        )
    model.memory_limits.trained = max(longest, tried // 2)
