"""Fully sharded data parallelism (FSDP; Zhao et al., arXiv 2304.11277) by torch's `fully_shard`.

While gradients are computed, each process keeps a share of every layer and gathers a layer when it
runs it. Between training steps each process holds the whole network, so it can sample and evaluate
without the others. FSDP therefore leaves more memory for activations; a model whose weights do not
fit one process cannot be trained this way.

Embeddings and head are never sharded. The base is frozen: only the gradients of the adapter are
shared.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from reflect.errors import ModelError
from reflect.models import distributed, memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class OutOfStep(ModelError):
    """A process failed within a sharded pass; the launcher has to end the others, which wait."""


def layers_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers of a transformers network."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [x for x in network.modules() if isinstance(x, GradientCheckpointingLayer)]


@contextmanager
def sharded(network: torch.nn.Module) -> Iterator[None]:
    """Hold a share of every layer within the block, and the whole network again after it.

    All processes must enter together and run the same passes. Any error within the block raises
    OutOfStep.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    layers = layers_of(network)
    try:
        if not isinstance(layers[0], FSDPModule):
            distributed.connect()
            # Raised within torch itself.
            warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
            mesh = init_device_mesh(next(network.parameters()).device.type, (distributed.size(),))
            for layer in layers:
                ours = {p for p in layer.parameters() if p.requires_grad}
                fully_shard(layer, mesh=mesh, ignored_params=ours)
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
        yield
        for layer in layers:
            layer.set_reshard_after_forward(False)
            layer.unshard()
            for module in layer.modules():
                # FSDP would shard the layer again when an adapter is saved or loaded.
                module._state_dict_pre_hooks.clear()
                module._load_state_dict_pre_hooks.clear()
                module._load_state_dict_post_hooks.clear()
    except Exception as e:
        memory_ended = memory.out_of_memory(e)
        why = "there was too little memory" if memory_ended else f"{type(e).__name__}: {e}"
        raise OutOfStep(
            f"A training step over several processes (FSDP) failed: {why}.",
            "Run the command again: it continues from the last checkpoint. "
            'checkpointing = "on" needs less memory.',
        ) from e
