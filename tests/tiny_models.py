"""Random models of the three families, small enough for any test, and a source that reads them from memory.

model, source = tiny("llama", num_key_value_heads=1)
source.block(0)["self_attn.q_proj.weight"]
logits(source, tokens, mask)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.families import family_of, shape_of
from methods.families.base import run_block
from methods.interface import Block, Family, ModelShape

CONFIGS: dict[str, dict[str, Any]] = {
    "opt": {
        "vocab_size": 101,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 24,
    },
    "bloom": {"vocab_size": 101, "hidden_size": 24, "n_layer": 3, "n_head": 4, "seq_length": 32},
    "llama": {
        "vocab_size": 101,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
    },
}


class MemoryOuter:
    """Parameters outside the blocks, from a state dict; ``fetched`` records what was asked for."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self._state, self._dtype, self._device = state, dtype, device
        self.fetched: list[str] = []

    def rows(self, name: str, index: Tensor) -> Tensor:
        self.fetched.append(name)
        return self._state[name][index.cpu()].to(self._device, self._dtype)

    def tensor(self, name: str) -> Tensor:
        self.fetched.append(name)
        return self._state[name].to(self._device, self._dtype)


class MemorySource:
    """A BlockSource over a state dict in memory."""

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config: Mapping[str, Any] = config
        self.shape: ModelShape = shape_of(config)
        self.family: Family = family_of(config)
        self.dtype, self.device = dtype, torch.device(device)
        self._state = state
        self._outer = MemoryOuter(state, self.dtype, self.device)

    @property
    def outer(self) -> MemoryOuter:
        return self._outer

    def raw_block(self, index: int) -> Block:
        """The block as it lies in the state dict."""
        prefix = self.family.block_prefix(index)
        return {name: self._state[prefix + name] for name in self.family.block_tensors(self.shape, index)}

    def raw_outer(self, name: str) -> Tensor:
        """A parameter outside the blocks as it lies in the state dict."""
        return self._state[name]

    def block(self, index: int) -> Block:
        prefix = self.family.block_prefix(index)
        names = self.family.block_tensors(self.shape, index)
        return {
            name: self._state[prefix + name].detach().clone().to(self.device, self.dtype) for name in names
        }


def tiny(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> tuple[Any, MemorySource]:
    """A transformers model in evaluation mode with random weights, norms and biases included, and its source.

    Weights are larger than at a usual initialisation, so that attention is far from uniform and a wrong mask,
    position or scale shows in the logits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**CONFIGS[family], **overrides})
    generator = torch.Generator().manual_seed(seed)
    # Not `.to(dtype)`: that would round the rotary frequencies, which loading a checkpoint does not.
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
        elif name.endswith("weight"):
            parameter.copy_(1 + 0.2 * noise)
        else:
            parameter.copy_(0.2 * noise)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    return model, MemorySource(model.config.to_dict(), state, dtype)


def logits(
    source: MemorySource,
    tokens: Tensor,
    mask: Tensor | None = None,
    change: Callable[[int, Block], None] | None = None,
) -> Tensor:
    """Logits [batch, length, vocabulary], block by block; ``change`` may edit each block after it is read."""
    family, config = source.family, source.config
    hidden = family.embed(source.outer, config, tokens, mask)
    arguments = family.arguments(config, mask, tokens.shape[0], tokens.shape[1], hidden)
    stages = family.stages(config)
    for index in range(source.shape.blocks):
        block = source.block(index)
        if change is not None:
            change(index, block)
        hidden = run_block(stages, block, hidden, arguments)
    hidden = family.finish(source.outer, config, hidden)
    return functional.linear(hidden, family.head(source.outer, config))
