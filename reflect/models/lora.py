"""Named LoRA adapters on one network: create, load, switch, scale, save and drop.

LoRA (arXiv 2106.09685) adds `B A x * alpha / rank` to the output of a frozen linear layer. While
there are adapters, each adapted layer of the network is wrapped in a LoraLayer; with no adapter
active it returns the output of the layer alone, to the last bit. Weights of the base are never
written, except by `merge`.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from reflect.errors import AdapterError, UnknownName
from reflect.models import adapter_files
from reflect.models.adapter_files import AdapterFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraWeights:
    """The part of an adapter that belongs to one layer: A [rank, in], B [out, rank]."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter


@dataclass
class Lora:
    """A loaded adapter. `scale` multiplies its strength: 1 as trained, 0 no effect; `number` is
    unique within an AdapterSet; `digests`: sha256 by name of the files that it was read from."""

    number: int
    rank: int
    alpha: float
    layers: dict[str, LoraWeights]
    digests: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def factor(self) -> float:
        """The factor of B A x."""
        return self.scale * self.alpha / self.rank


class Switch:
    """The adapter that is on in all layers of a network, None for the bare base."""

    active: Lora | None = None


class LoraLayer(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer with the weights of the adapters that change it, by adapter number."""

    def __init__(self, base_layer: torch.nn.Module, switch: Switch) -> None:
        super().__init__()
        self.training = base_layer.training
        self.base_layer = base_layer
        self.switch = switch
        self.loras: dict[int, LoraWeights] = {}

    def add(self, number: int, weights: LoraWeights) -> None:
        """Add the weights of an adapter as parameters of this module."""
        self.register_parameter(f"lora_A_{number}", weights.a)
        self.register_parameter(f"lora_B_{number}", weights.b)
        self.loras[number] = weights

    def remove(self, number: int) -> None:
        """Remove the weights of an adapter, if they are there."""
        self._parameters.pop(f"lora_A_{number}", None)
        self._parameters.pop(f"lora_B_{number}", None)
        self.loras.pop(number, None)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The output of the layer [..., out], in its own type, plus that of the active adapter."""
        result = self.base_layer(x, *args, **kwargs)
        active = self.switch.active
        weights = None if active is None else self.loras.get(active.number)
        if active is None or weights is None:
            return result
        x = x.to(weights.a.dtype)
        change = functional.linear(functional.linear(x, weights.a), weights.b)
        return (result + change * active.factor).to(result.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the layer; models read its type and device."""
        weight: torch.Tensor = self.base_layer.weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the layer."""
        bias: torch.Tensor | None = self.base_layer.bias
        return bias


class AdapterSet:
    """The adapters of `network`, by name. `name`: of the network itself."""

    def __init__(self, name: str, network: PreTrainedModel) -> None:
        self.name, self.network = name, network
        self.lora_layers = linear_layers(network)
        self._switch = Switch()
        self._loras: dict[str, Lora] = {}
        self._number = 0

    @property
    def active(self) -> str | None:
        """Name of the active adapter, None for the bare base."""
        return next((name for name, x in self._loras.items() if x is self._switch.active), None)

    @property
    def adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._loras)

    def new_adapter(self, name: str, rank: int = 8, alpha: float = 32, seed: int = 0) -> None:
        """Add an adapter on all layers: A uniform, B zero. It has no effect yet.

        The numbers are those that peft draws for the same seed: it makes two linear layers, then
        draws A again.
        """
        weights = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for layer, (width_in, width_out) in self.lora_layers.items():
                a = torch.nn.Linear(width_in, rank, bias=False).weight
                b = torch.nn.Linear(rank, width_out, bias=False).weight
                torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                torch.nn.init.zeros_(b)
                base = self._base_layer(layer).weight
                if base.is_floating_point():  # peft rounds to the precision of the base
                    a = a.to(base.dtype).float()
                weights[layer] = a, b
        self._add(name, rank, alpha, weights)

    def clone_adapter(self, name: str, new: str) -> None:
        """Add `new` with the rank and the weights of `name`. The scale of `name` goes into its
        alpha, so both compute the same."""
        lora = self.known_adapter(name)
        weights = {layer: (x.a.clone(), x.b.clone()) for layer, x in lora.layers.items()}
        self._add(new, lora.rank, lora.alpha * lora.scale, weights)

    def read_adapter(self, folder: Path | str) -> AdapterFiles:
        """Read and check a PEFT folder; changes nothing, so any thread may call it. AdapterError,
        AdapterMismatch."""
        return adapter_files.read(folder, self.lora_layers)

    def load_adapter(self, name: str, files: AdapterFiles | Path | str) -> None:
        """Add an adapter from a PEFT folder, or from what `read_adapter` returned for it. It is not
        active. AdapterError when it is not plain LoRA or the name is taken, AdapterMismatch when it
        does not fit the network."""
        if not isinstance(files, AdapterFiles):
            files = self.read_adapter(files)
        self._add(name, files.rank, files.alpha, files.weights, files.digests)

    def _add(
        self,
        name: str,
        rank: int,
        alpha: float,
        weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Add an adapter that is not active. After an error nothing is changed."""
        if name in self._loras:
            raise AdapterError(f"An adapter named '{name}' is already loaded.")
        if not name:
            raise AdapterError("An adapter needs a name that is not empty.")
        self._number += 1
        layers = {}
        for layer, (a, b) in weights.items():
            device = self._device(layer)
            layers[layer] = LoraWeights(
                torch.nn.Parameter(a.detach().to(device)), torch.nn.Parameter(b.detach().to(device))
            )
        lora = Lora(self._number, rank, alpha, layers, digests or {})
        try:
            for layer, pair in layers.items():
                self._wrap(layer).add(lora.number, pair)
        except BaseException:
            self._remove(lora)
            raise
        self._loras[name] = lora

    def _base_layer(self, layer: str) -> Any:
        module = self.network.get_submodule(layer)
        return module.base_layer if isinstance(module, LoraLayer) else module

    def _device(self, layer: str) -> torch.device:
        """The device of a layer's inputs; accelerate offloads its weight, then that has none."""
        base = self._base_layer(layer)
        if base.weight.is_meta:
            return torch.device(base._hf_hook.execution_device)
        device: torch.device = base.weight.device
        return device

    def _wrap(self, layer: str) -> LoraLayer:
        module = self.network.get_submodule(layer)
        if not isinstance(module, LoraLayer):
            module = LoraLayer(module, self._switch)
            self.network.set_submodule(layer, module)
        return module

    def _remove(self, lora: Lora) -> None:
        """Remove an adapter's weights, and the wrappers of layers without another adapter."""
        for layer in lora.layers:
            module = self.network.get_submodule(layer)
            if isinstance(module, LoraLayer):
                module.remove(lora.number)
                if not module.loras:
                    self.network.set_submodule(layer, module.base_layer)

    def drop_adapter(self, name: str) -> None:
        """Remove an adapter; the bare base is on afterwards if it was active."""
        lora = self.known_adapter(name)
        if self._switch.active is lora:
            self._switch.active = None
        del self._loras[name]
        self._remove(lora)

    def use(self, name: str | None) -> None:
        """Switch to the adapter `name`, or to the bare base."""
        self._switch.active = None if name is None else self.known_adapter(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """`use(name)` for the time of a with-block."""
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def adapter_parameters(self, name: str) -> list[torch.nn.Parameter]:
        """The adapter's trainable tensors: A and B of each layer, in the order of the network."""
        return [p for x in self.known_adapter(name).layers.values() for p in (x.a, x.b)]

    def scale_adapter(self, name: str, factor: float) -> None:
        """Set the adapter's strength: 1 as trained, 0 no effect. Absolute, not relative to the last
        factor."""
        self.known_adapter(name).scale = factor

    def save_adapter(self, name: str, folder: Path | str) -> None:
        """Write a plain PEFT folder (adapter_config.json, adapter_model.safetensors), the scale
        folded into alpha."""
        lora = self.known_adapter(name)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for layer, x in lora.layers.items():
            for part, parameter in (("A", x.a), ("B", x.b)):
                key = adapter_files.tensor_name(layer, part)
                tensors[key] = parameter.detach().cpu().contiguous()
        save_file(tensors, str(folder / adapter_files.WEIGHTS), metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": self.name,
            "bias": "none",
            "fan_in_fan_out": any(isinstance(self._base_layer(x), Conv1D) for x in lora.layers),
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": lora.alpha * lora.scale,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": lora.rank,
            "target_modules": self._targets(lora),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }
        text = json.dumps(config, indent=2, sort_keys=True)
        (folder / adapter_files.CONFIG).write_text(text)

    def _targets(self, lora: Lora) -> list[str]:
        """The layers for the configuration: the last parts of their names (`q_proj`) where no other
        module of the network ends with these, else their names."""
        last = {name.rpartition(".")[2] for name in lora.layers}
        named = {x for x, _ in self.network.named_modules() if x.rpartition(".")[2] in last}
        return sorted(last if named == lora.layers.keys() else lora.layers)

    def known_adapter(self, name: str) -> Lora:
        """The adapter. UnknownName for one that is not loaded."""
        if name not in self._loras:
            raise UnknownName(
                f"No adapter '{name}' is loaded.",
                f"Loaded are: {', '.join(self._loras) or 'none'}.",
            )
        return self._loras[name]

    def merge_adapter(self, name: str) -> None:
        """Add an adapter to the weights of the base, rounded to their precision, and drop it."""
        lora = self.known_adapter(name)
        with torch.no_grad():
            for layer, x in lora.layers.items():
                base = self._base_layer(layer)
                change = (x.b @ x.a) * lora.factor
                base.weight += change.T if isinstance(base, Conv1D) else change
        self.drop_adapter(name)


def linear_layers(network: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """The layers that an adapter can change, in the order of the network: name -> (in, out).

    All linear layers of the language model except the output layer, which often shares its weights
    with the embedding.
    """
    decoder, head = network.get_decoder(), network.get_output_embeddings()
    prefix = ""
    if decoder is not None and decoder is not network.base_model:  # there is a vision tower too
        prefix = next((f"{name}." for name, x in network.named_modules() if x is decoder), "")
    sizes = {}
    for name, module in network.named_modules():
        if module is head or not name.startswith(prefix):
            continue
        if isinstance(module, torch.nn.Linear):
            sizes[name] = module.in_features, module.out_features
        elif isinstance(module, Conv1D):  # GPT-2
            sizes[name] = module.nx, module.nf
    return sizes


def merge(network: PreTrainedModel, adapter: AdapterFiles | Path | str, folder: Path | str) -> None:
    """Write the network with the PEFT folder `adapter` merged into its weights, as safetensors in
    the network's own precision. `network` must have no adapters, and cannot be used afterwards.
    AdapterError, AdapterMismatch."""
    adapters = AdapterSet("", network)
    adapters.load_adapter("merged", adapter)
    adapters.merge_adapter("merged")
    network.save_pretrained(str(folder))
