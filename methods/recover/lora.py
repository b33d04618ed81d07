"""LoRA (Hu et al., arXiv 2106.09685) through peft, under the mask of the pruned weights."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from methods.interface import Run
from methods.recover.masked import Places
from methods.recover.training import Training

__all__ = ["LoRA"]

_ADAPTER = "default"  # peft's own name for the first one


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank updates of the pruned matrices, merged in the end: W + M ⊙ (alpha / rank · B A).

    The model trains as it will be merged, with the product masked in every forward pass (as MaskLoRA in Zimmer et
    al., arXiv 2312.15230), so that merging loses nothing. ``steps`` are those of all stages together; ``lr``: peak
    rate; ``batch``: windows a step; ``warmup``: share of the steps over which the rate rises.
    """

    rank: int = 8
    alpha: float = 16.0
    steps: int = 300
    lr: float = 1e-3
    batch: int = 8
    warmup: float = 0.05
    name: str = "lora"

    @property
    def training(self) -> Training:
        """The loop's settings."""
        return Training(self.steps, self.lr, self.batch, self.warmup)

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if importlib.util.find_spec("peft") is None:
            return (
                "lora needs peft; install it with: pip install 'prune-bench[recover]', or use --recover full"
            )
        return None

    def attach(self, model: nn.Module, places: Places, run: Run, key: str) -> _Adapters:
        """Put adapters beside the matrices; A is drawn by the run's seed, B is zero."""
        return _Adapters(model, places, self.rank, self.alpha, run, key)


class _Adapters:
    def __init__(self, model: nn.Module, places: Places, rank: int, alpha: float, run: Run, key: str) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        modules = [name.removesuffix(".weight") for name in places.matrices]
        settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none"}
        config = LoraConfig(target_modules=modules, **settings)
        with torch.random.fork_rng(devices=[]):  # peft draws from torch's own generator
            inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        model.requires_grad_(False)
        model.train(False)
        self.parameters: dict[str, nn.Parameter] = {}
        self._layers: dict[str, tuple[Any, Tensor | None]] = {}
        for module, (name, mask) in zip(modules, places.matrices.items(), strict=True):
            layer: Any = model.get_submodule(module)
            down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            with torch.no_grad():
                drawn = torch.empty(down.shape)
                generator = run.generator(-1, f"{key}/{module}")
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                down.copy_(drawn)
                up.zero_()
            for key, parameter in ((f"{module}.A", down), (f"{module}.B", up)):
                parameter.requires_grad_(True)
                self.parameters[key] = parameter
            self._layers[name] = (layer, mask)
            if mask is not None:
                layer.forward = functools.partial(_forward, layer, mask)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Every matrix by full name with its adapter merged in, float32."""
        with torch.no_grad():
            for name, (layer, mask) in self._layers.items():
                yield name, _weight(layer, mask).detach()


def _weight(layer: Any, mask: Tensor | None) -> Tensor:
    """W + M ⊙ (scale · B A), [rows, columns]."""
    delta = layer.scaling[_ADAPTER] * (layer.lora_B[_ADAPTER].weight @ layer.lora_A[_ADAPTER].weight)
    whole: Tensor = layer.base_layer.weight + (delta if mask is None else mask * delta)
    return whole


def _forward(layer: Any, mask: Tensor, x: Tensor) -> Tensor:
    """What peft's layer computes, x Wᵀ + scale · x Aᵀ Bᵀ + bias, with the product masked."""
    return functional.linear(x, _weight(layer, mask), layer.base_layer.bias)
