"""Named LoRA adapters on one network: create, load, switch, scale, save and drop.

peft puts its layers *into* the network, so the same `network` object answers with and without
adapters; with none active each layer runs its own base weights alone, to the last bit.
"""

from __future__ import annotations

import copy
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from reflect.errors import AdapterError, AdapterMismatch, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


class AdapterSet:
    """The adapters of `network`. `active` is the name of the one that is on, None for the bare
    base."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network
        self.active: str | None = None
        self._peft: Any = None  # a PeftModel around `network` while there are adapters
        self._scales: dict[str, float] = {}
        self._weights: dict[str, list[torch.nn.Parameter]] = {}
        self._layers: list[BaseTunerLayer] = []

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._scales)

    def new(self, name: str, rank: int = 8, alpha: float = 32, seed: int = 0) -> None:
        """Add an adapter on all linear layers: A uniform, B zero, no dropout, no bias. It has no
        effect yet."""
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=any(isinstance(m, Conv1D) for m in self.network.modules()),  # GPT-2
            exclude_modules=outside_text(self.network),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._add(name, config)

    def clone(self, name: str, new: str) -> None:
        """Add `new` with the rank and the weights of `name`. The scale of `name` goes into its
        alpha, so both compute the same."""
        self.known(name)
        config = copy.deepcopy(self._peft.peft_config[name])
        config.lora_alpha *= self._scales[name]
        self._add(new, config)
        with torch.no_grad():
            for mine, its in zip(self.parameters(new), self.parameters(name), strict=True):
                mine.copy_(its)

    def load(self, name: str, folder: Path | str) -> None:
        """Load a PEFT folder. AdapterError when it cannot be read, AdapterMismatch when it does not
        fit the network."""
        try:
            config = PeftConfig.from_pretrained(str(folder))
            weights = load_peft_weights(str(folder), device="cpu")
        except Exception as e:
            raise AdapterError(
                f"The adapter in {folder} cannot be read: {e}.", "Rebuild it: reflect sleep."
            ) from e
        try:
            self._add(name, config)
        except (ValueError, TypeError) as e:
            raise self._mismatch(folder, e) from e
        try:
            differ = set(self._state(name)) ^ set(weights)
            if differ:
                raise RuntimeError(f"{len(differ)} weights differ by name")
            set_peft_model_state_dict(self._peft, weights, adapter_name=name)
        except RuntimeError as e:
            self.drop(name)
            raise self._mismatch(folder, e) from e

    def _state(self, name: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self._peft, adapter_name=name, save_embedding_layers=False
        )
        return state

    @staticmethod
    def _mismatch(folder: Path | str, why: Exception) -> AdapterMismatch:
        first = str(why).strip().splitlines()[0]
        return AdapterMismatch(
            f"The adapter in {folder} does not fit this model: {first}.",
            "It was trained for another base model: open that one, "
            "or rebuild the adapter with reflect sleep.",
        )

    def _add(self, name: str, config: Any) -> None:
        if name in self._scales:
            raise AdapterError(f"An adapter named '{name}' is already loaded.")
        if not name or "." in name:
            raise AdapterError(
                f"'{name}' cannot be the name of an adapter: it is empty or has a dot."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
            if self._peft is None:
                self._peft = PeftModel(self.network, config, adapter_name=name)
            else:
                self._peft.add_adapter(name, config)
        self._scales[name] = 1.0
        mine = re.compile(rf"\.lora_[AB]\.{re.escape(name)}\.")
        self._weights[name] = [p for key, p in self.network.named_parameters() if mine.search(key)]
        self._settle()

    def drop(self, name: str) -> None:
        """Forget an adapter; the bare base is on afterwards if it was active."""
        self.known(name)
        if self.active == name:
            self.active = None
        del self._scales[name], self._weights[name]
        if self._scales:
            self._peft.set_adapter(next(iter(self._scales)))  # else peft chooses, and warns
            self._peft.delete_adapter(name)
        else:
            self._peft.unload()
            self._peft = None
        self._settle()

    def use(self, name: str | None) -> None:
        """Switch to the adapter `name`, or to the bare base."""
        if name is not None:
            self.known(name)
        if name != self.active:
            self._switch(name)

    def _switch(self, name: str | None) -> None:
        """The effect of peft's `enable_adapters` and `set_adapter`, without their walk through all
        modules: a training step switches between student and teacher for every batch."""
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self.active = name

    def _settle(self) -> None:
        """Undo what peft does when it adds or removes layers: it activates one adapter, freezes the
        others, and may leave modules in training mode. Inactive adapters stay trainable, because a
        training step switches to the teacher and back."""
        self._layers = [
            module for module in self.network.modules() if isinstance(module, BaseTunerLayer)
        ]
        for parameter in (p for weights in self._weights.values() for p in weights):
            parameter.requires_grad_(True)
        self.network.eval()
        self._switch(self.active)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """`use(name)` for the time of a with-block."""
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    def parameters(self, name: str) -> list[torch.nn.Parameter]:
        """The adapter's trainable tensors, in a fixed order."""
        self.known(name)
        return list(self._weights[name])

    def scale(self, name: str, factor: float) -> None:
        """Set the adapter's strength: 1 as trained, 0 no effect. Absolute, not relative to the last
        factor."""
        self.known(name)
        self._scales[name] = factor
        for module in self.network.modules():
            if hasattr(module, "set_scale"):
                module.set_scale(name, factor)

    def save(self, name: str, folder: Path | str, base: str) -> None:
        """Write a plain PEFT folder (adapter_config.json, adapter_model.safetensors), the scale
        folded into alpha."""
        self.known(name)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            key: value.detach().cpu().contiguous() for key, value in self._state(name).items()
        }
        save_file(weights, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = self._peft.peft_config[name]
        saved = copy.copy(config)
        saved.lora_alpha = config.lora_alpha * self._scales[name]
        saved.inference_mode, saved.base_model_name_or_path = True, base
        saved.target_modules = sorted(config.target_modules)  # a set differs between processes
        saved.save_pretrained(str(folder))

    def known(self, name: str) -> None:
        """UnknownName for an adapter that is not loaded."""
        if name not in self._scales:
            raise UnknownName(
                f"No adapter '{name}' is loaded.",
                f"Loaded are: {', '.join(self._scales) or 'none'}.",
            )


def outside_text(network: PreTrainedModel) -> str | None:
    """A pattern of the modules outside the language model, such as a vision encoder; None without
    such modules."""
    decoder = network.get_decoder()
    name = next((name for name, module in network.named_modules() if module is decoder), "")
    return rf"(?!{re.escape(name)}\.).*" if name and decoder is not network.base_model else None


def merge(network: PreTrainedModel, adapter: Path | str, folder: Path | str) -> None:
    """Write the network with the PEFT folder `adapter` merged into its weights, as safetensors in
    the network's own precision. `network` must have no adapters, and cannot be used afterwards.
    AdapterError, AdapterMismatch."""
    adapters = AdapterSet(network)
    adapters.load("merged", adapter)
    adapters.use("merged")
    adapters._peft.merge_and_unload().save_pretrained(str(folder))
