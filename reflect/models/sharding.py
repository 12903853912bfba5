"""One network over several processes: each holds a part of every layer (FSDP; Zhao et al., arXiv 2304.11277, by torch's
`fully_shard`), and gathers the whole of a layer for as long as it computes it.

FSDP wants the same layers in the same order from all processes. Ours do not keep step: they sample answers of several
lengths, train on rows of their own, and the first one judges alone. So whoever comes to a layer asks for it, whoever
has nothing to compute waits and says so, and in each round all gather what anyone asked for; who did not ask for it
lets it go.

Embeddings and head are whole in every process. The base is frozen: its weights have no gradients to share.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch

from reflect.errors import ModelError
from reflect.models import processes

LOAD = "load"  # the first process's word to the others that it reads a model whose layers are to be shared
NOTHING = -1


def shard(network: Any, device: torch.device) -> Any:
    """Share the network, which is on the CPU, between all processes; what is left of it here is on the device.

    All must call it together: the first tells the others, who wait for its word.
    """
    layers = layers_of(network)
    if not layers:
        why = f"The layers of {type(network).__name__} cannot be shared between processes."
        raise ModelError(why, 'Leave device_map = "fsdp" out.')
    if not processes.led:
        why = "Several processes share a model's layers only for a night: `reflect sleep`."
        raise ModelError(why, 'Start one process; device_map = "fsdp" then spreads the model over its GPUs.')
    if processes.is_first():
        processes.from_first(lambda: LOAD)
    processes.while_waiting(Shards(layers, device).wait)
    return network.to(device)


def layers_of(network: Any) -> list[Any]:
    """The layers of a network that transformers repeats."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


class Shards:
    """The layers of one network, each shared by itself, and the rounds in which they are gathered."""

    def __init__(self, layers: list[Any], device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)  # torch's own use of torch
        processes.connect()
        mesh = init_device_mesh(device.type, (processes.size(),))
        self.layers = layers
        for i, layer in enumerate(layers):
            layer.register_forward_hook(partial(self._before_backward, i))  # before FSDP's own, so that it is first
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
            layer.register_forward_pre_hook(partial(self._before_forward, i), prepend=True)
        self.marks = [_first_weight(layer) for layer in layers]

    def wait(self) -> None:
        """Help the others with their layers, until all wait."""
        while self._round(NOTHING):
            pass

    def _before_forward(self, i: int, *_: Any) -> None:
        self._ask(i)

    def _before_backward(self, i: int, layer: Any, inputs: Any, output: Any) -> None:
        for found in output if isinstance(output, tuple) else (output,):
            if isinstance(found, torch.Tensor) and found.requires_grad:
                found.register_hook(lambda gradient: self._ask(i))

    def _ask(self, i: int) -> None:
        if not self._is_whole(i):
            self._round(i)

    def _round(self, mine: int) -> bool:
        """One round, in which this process asks for the layer `mine`. False when nobody asked for any."""
        asked = [torch.zeros(1, dtype=torch.long) for _ in range(processes.size())]
        torch.distributed.all_gather(asked, torch.tensor([mine]))
        wanted = sorted({int(i) for i in asked} - {NOTHING})
        with torch.inference_mode(False), torch.no_grad():  # the same tensors serve sampling and training
            for i in wanted:
                kept = i == mine or self._is_whole(i)
                self.layers[i].reshard()
                self.layers[i].unshard()
                if not kept:
                    self.layers[i].reshard()
        return bool(wanted)

    def _is_whole(self, i: int) -> bool:
        module, name, shared = self.marks[i]
        return bool(module._parameters[name] is not shared)


def _first_weight(layer: Any) -> tuple[Any, str, Any]:
    """A weight of a layer that is shared: its module, its name, and what stands there for as long as it is shared."""
    weights = ((module, *found) for module in layer.modules() for found in module._parameters.items())
    return next(found for found in weights if found[2] is not None)
