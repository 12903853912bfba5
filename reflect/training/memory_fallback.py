"""Training with little memory: first layers are computed twice, then fewer rows go through at once.

Activation checkpointing (Chen et al., arXiv 1604.06174): a layer's values are computed again from
its input in the backward pass. It costs one more forward pass; the gradients are equal.
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
    """Within a with-block the layers keep only their inputs, if `memory_limits.checkpoints` is set.

    transformers' own switch needs the training mode, in which dropout would change the base.
    """
    changed: list[tuple[Any, Any]] = []
    for layer in layers_of(model.network) if model.memory_limits.checkpoints else ():
        changed.append((layer, layer.__dict__.get("forward")))
        options = {"use_reentrant": False, "preserve_rng_state": False}
        layer.forward = partial(checkpoint, layer.forward, **options)
    try:
        yield
    finally:
        for layer, before in changed:
            del layer.forward
            if before is not None:  # a hook of accelerate
                layer.forward = before


def reduce_memory(model: LocalModel, rows: Sequence[Any], most: int) -> None:
    """Use less memory from now on. `most`: padded tokens of a pass by the plan. NightError if
    nothing is left to reduce."""
    if model.may_checkpoint and not model.memory_limits.checkpoints:
        model.memory_limits.checkpoints = True
        return
    longest = max((row.width for row in rows), default=0)
    tried = min(model.memory_limits.most(most), len(rows) * longest)  # a pass had no more than this
    if tried <= longest:
        raise NightError(
            "There is too little memory to train on one answer of "
            f"{longest} tokens with its prompt.",
            'Lower max_tokens or lesson_budget, or set dtype = "bfloat16", checkpointing = "on", '
            "or a smaller model.",
        )
    model.memory_limits.trained = max(longest, tried // 2)
