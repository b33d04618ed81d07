"""Quick replacements for what is slow in training on a CPU: dropout and attention."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Dropout", "quicken"]

ATTENTION = "prune_bench_nano"


class Dropout:
    """Drops outputs of the named modules, by NumPy's bits: torch's CPU sampler costs a fifth of a step."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...], rate: float) -> None:
        self._threshold = round(256 * rate)
        self._scale = 256 / (256 - self._threshold)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in names:
                module.register_forward_hook(self._drop)

    def reseed(self, seed: int, step: int) -> None:
        """Start the stream of one training step."""
        import numpy as np

        self._draw = np.random.Generator(np.random.SFC64([seed, step]))

    def _drop(self, module: torch.nn.Module, _: Any, output: Tensor) -> Tensor:
        import numpy as np
        import torch

        if not module.training or self._threshold == 0:
            return output
        bits = torch.from_numpy(np.frombuffer(bytearray(self._draw.bytes(output.numel())), dtype=np.uint8))
        kept = (bits >= self._threshold).view(output.shape)
        return output * (kept.to(output.dtype) * self._scale)


def quicken(model: PreTrainedModel) -> None:
    """Give OPT and LLaMA a plain causal attention; parameters and results stay what they are.

    Only for whole windows without padding, as training has them. BLOOM's own attention is plain already.
    """
    from transformers import AttentionInterface

    if model.config.model_type != "bloom":
        AttentionInterface.register(ATTENTION, attend)
        model.set_attn_implementation(ATTENTION)


def attend(
    _module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention in transformers' form: [batch, heads, tokens, width] in, tokens before heads out.

    Without a mask argument: torch's fused attention takes twice as long backwards on a CPU.
    """
    import torch

    batch, heads, tokens, width = query.shape
    repeats, shape = heads // key.shape[1], (batch * heads, tokens, width)
    key, value = (x.repeat_interleave(repeats, dim=1).reshape(shape) for x in (key, value))
    query, key = query.reshape(shape).to(value.dtype), key.to(value.dtype)
    future = torch.full((tokens, tokens), -math.inf, dtype=value.dtype).triu(1).expand(batch * heads, -1, -1)
    # Autocast would turn the scores into float32 and back: most of the memory traffic of a step.
    with torch.autocast("cpu", enabled=False):
        scores = torch.baddbmm(future, query, key.transpose(1, 2), alpha=scaling)
        output = torch.bmm(torch.softmax(scores, dim=-1), value)
    return output.view(batch, heads, tokens, width).transpose(1, 2).contiguous(), None
