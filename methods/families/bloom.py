"""BLOOM: fused query_key_value, ALiBi, norm after the embeddings (arXiv 2211.05100)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.families import base
from methods.families.fields import MOST_BLOCKS, Fields
from methods.interface import (
    Arguments,
    Block,
    Carry,
    Matrix,
    ModelShape,
    OuterTensors,
    Residual,
    Stage,
    Sublayer,
)

__all__ = ["Bloom", "alibi_slopes"]

FUSED = "self_attention.query_key_value"
DENSE = "self_attention.dense"
EXPAND = "mlp.dense_h_to_4h"
CONTRACT = "mlp.dense_4h_to_h"
ATTENTION_NORM = "input_layernorm"
FEEDFORWARD_NORM = "post_attention_layernorm"
DECODER = "transformer."
TOKENS = f"{DECODER}word_embeddings.weight"
EMBEDDING_NORM = f"{DECODER}word_embeddings_layernorm"
FINAL_NORM = f"{DECODER}ln_f"
HEAD = "lm_head.weight"


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """Slope of every head's linear bias, float32 [heads] (arXiv 2108.12409).

    2^(-8i/n) for i = 1 … n where n is a power of two; otherwise those of the next lower power of two, filled
    up with every other slope of the next higher one.
    """
    lower = 1 << (heads.bit_length() - 1)
    exponents = [-8 * i / lower for i in range(1, lower + 1)]
    exponents += [-8 * i / (2 * lower) for i in range(1, 2 * (heads - lower), 2)]
    return torch.tensor([2.0**exponent for exponent in exponents], dtype=torch.float32, device=device)


class Bloom:
    """The BLOOM family, 560M to 176B, and models of its architecture."""

    name = "bloom"
    residual = Residual(
        sublayers=(
            Sublayer(ATTENTION_NORM, (FUSED,), DENSE),
            Sublayer(FEEDFORWARD_NORM, (EXPAND,), CONTRACT),
        ),
        tables=(TOKENS,),
        table_norm=EMBEDDING_NORM,
        final_norm=FINAL_NORM,
        head="lm_head",
        centred=True,
    )

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Sizes from a config. Raises UnsupportedModel where a value is missing or cannot be."""
        fields = Fields(self.name, config)
        width = fields.integer("n_embed", "hidden_size")
        heads = fields.integer("n_head", "num_attention_heads")
        shape = ModelShape(
            family=self.name,
            blocks=fields.integer("n_layer", "num_hidden_layers", high=MOST_BLOCKS),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=fields.divisible("hidden_size", width, "n_head", heads),
            feedforward=4 * width,
            vocabulary=fields.integer("vocab_size"),
            positions=fields.integer("seq_length", default=2048),
            position_rows=0,
            embedding_width=width,
            tied=fields.flag("tie_word_embeddings", default=True),
            post_norm=False,
            final_norm=True,
            attention_bias=True,
            feedforward_bias=True,
            gated=False,
            residual_after_norm=Fields(self.name, config).flag(
                "apply_residual_connection_post_layernorm", default=False
            ),
        )
        self.norm_eps(config)
        return shape

    def norm_eps(self, config: Mapping[str, Any]) -> float:
        """``layer_norm_epsilon``."""
        return Fields(self.name, config).positive("layer_norm_epsilon", default=1e-5)

    def matrices(self, shape: ModelShape, index: int = 0) -> tuple[Matrix, ...]:  # noqa: ARG002 - all blocks alike
        """query_key_value (q, k, v interleaved by head), dense, dense_h_to_4h, dense_4h_to_h."""
        width, inner = shape.width, shape.feedforward
        return (
            Matrix(FUSED, 3 * width, width),
            Matrix(DENSE, width, width),
            Matrix(EXPAND, inner, width),
            Matrix(CONTRACT, width, inner),
        )

    def block_tensors(self, shape: ModelShape, index: int = 0) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - all blocks alike
        """Linears with their biases, and two norms."""
        tensors: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices(shape):
            tensors |= base.linear_tensors(matrix, bias=True)
        for norm in (ATTENTION_NORM, FEEDFORWARD_NORM):
            tensors |= base.norm_tensors(norm, shape.width)
        return tensors

    def outer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Token table and its norm, final norm, untied head."""
        tensors: dict[str, tuple[int, ...]] = {TOKENS: (shape.vocabulary, shape.width)}
        for norm in (EMBEDDING_NORM, FINAL_NORM):
            tensors |= base.norm_tensors(norm, shape.width)
        if not shape.tied:
            tensors[HEAD] = (shape.vocabulary, shape.width)
        return tensors

    def block_prefix(self, index: int) -> str:
        """``transformer.h.3.``"""
        return f"{DECODER}h.{index}."

    def aliases(self, name: str) -> tuple[str, ...]:
        """The published checkpoints lack ``transformer.``."""
        return (name.removeprefix(DECODER),) if name.startswith(DECODER) else ()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """query_key_value | dense | dense_h_to_4h | dense_4h_to_h."""
        shape, eps = self.shape(config), self.norm_eps(config)
        after_norm = shape.residual_after_norm

        def norm(block: Block, name: str, x: Tensor) -> Tensor:
            return base.layer_norm(x, block[f"{name}.weight"], block[f"{name}.bias"], eps)

        def attention_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return norm(block, ATTENTION_NORM, carry[0])

        def attend(block: Block, carry: Carry, inputs: Tensor, arguments: Arguments) -> Carry:
            if arguments.bias is None:
                raise ValueError(
                    "a bloom block needs its ALiBi bias: make its arguments with Bloom.arguments"
                )
            batch, length, _ = inputs.shape
            fused = base.linear(block, FUSED, inputs).view(batch, length, shape.heads, 3, shape.head_dim)
            query, key, value = (fused[..., part, :].transpose(1, 2) for part in range(3))
            mixed = base.attention(query, key, value, arguments, shape.head_dim**-0.5)
            return inputs if after_norm else carry[0], mixed

        def second(_block: Block, carry: Carry, _: Arguments) -> Tensor:
            return carry[1]

        def attention_output(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            return (carry[0] + base.linear(block, DENSE, inputs),)

        def feedforward_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return norm(block, FEEDFORWARD_NORM, carry[0])

        def expand(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            inner = base.ACTIVATIONS[self.activation(config)](base.linear(block, EXPAND, inputs))
            return inputs if after_norm else carry[0], inner

        def contract(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            return (carry[0] + base.linear(block, CONTRACT, inputs),)

        return (
            Stage((FUSED,), attention_input, attend),
            Stage((DENSE,), second, attention_output),
            Stage((EXPAND,), feedforward_input, expand),
            Stage((CONTRACT,), second, contract),
        )

    def arguments(
        self, config: Mapping[str, Any], mask: Tensor | None, batch: int, length: int, like: Tensor
    ) -> Arguments:
        """ALiBi with the causal mask [1, heads, length, length]; one per window only where there is padding.

        A key's bias is slope · its position among real tokens, rounded to ``like``'s dtype.
        """
        real = base.padding(mask, batch, length, like.device)
        if real is None:
            position = torch.arange(length, device=like.device)[None]
        else:
            position = (torch.cumsum(real, dim=1) - 1) * real
        slopes = alibi_slopes(self.shape(config).heads, like.device)
        alibi = slopes[None, :, None, None] * position[:, None, None, :]
        return Arguments(bias=base.causal_bias(real, length, like, alibi))

    def embed(
        self,
        outer: OuterTensors,
        config: Mapping[str, Any],
        tokens: Tensor,
        mask: Tensor | None,  # noqa: ARG002 - positions enter in attention
        first: int = 0,  # noqa: ARG002
    ) -> Tensor:
        """Tokens [batch, length] to their normed embeddings."""
        hidden = base.token_rows(outer, TOKENS, tokens, self.shape(config).vocabulary)
        return self._outer_norm(outer, config, EMBEDDING_NORM, hidden)

    def finish(self, outer: OuterTensors, config: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Final norm."""
        return self._outer_norm(outer, config, FINAL_NORM, hidden)

    def _outer_norm(
        self, outer: OuterTensors, config: Mapping[str, Any], name: str, hidden: Tensor
    ) -> Tensor:
        weight, bias = outer.tensor(f"{name}.weight"), outer.tensor(f"{name}.bias")
        return base.layer_norm(hidden, weight, bias, self.norm_eps(config))

    def head(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor:
        """Output matrix [vocabulary, width]."""
        return outer.tensor(TOKENS if self.shape(config).tied else HEAD)

    def head_bias(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor | None:  # noqa: ARG002 - the contract
        """None: the published head has no bias."""
        return None

    def activation(self, config: Mapping[str, Any]) -> str:  # noqa: ARG002 - for families whose config names it
        """Fixed."""
        return "gelu_pytorch_tanh"
