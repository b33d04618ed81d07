"""OPT: learned positions, pre-norm (post-norm in 350M), separate q, k, v (arXiv 2205.01068)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from methods.errors import UserError
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

__all__ = ["OPT"]

OFFSET = 2
"""Rows of the position table before position 0."""
EPS = 1e-5
"""Fixed in OPT: its config has no key for it."""

ATTENTION = "self_attn"
ATTENTION_NORM = "self_attn_layer_norm"
FEEDFORWARD_NORM = "final_layer_norm"
DECODER = "model.decoder."
TOKENS = f"{DECODER}embed_tokens.weight"
POSITIONS = f"{DECODER}embed_positions.weight"
PROJECT_IN = f"{DECODER}project_in.weight"
PROJECT_OUT = f"{DECODER}project_out.weight"
FINAL_NORM = f"{DECODER}final_layer_norm"
HEAD = "lm_head.weight"


def _norm(block: Block, name: str, x: Tensor) -> Tensor:
    return base.layer_norm(x, block.get(f"{name}.weight"), block.get(f"{name}.bias"), EPS)


class OPT:
    """The OPT family, 125M to 175B, and models of its architecture."""

    name = "opt"
    residual = Residual(
        sublayers=(
            Sublayer(
                ATTENTION_NORM,
                (f"{ATTENTION}.q_proj", f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj"),
                f"{ATTENTION}.out_proj",
            ),
            Sublayer(FEEDFORWARD_NORM, ("fc1",), "fc2"),
        ),
        tables=(TOKENS, POSITIONS),
        table_norm=None,
        final_norm=FINAL_NORM,
        head="lm_head",
        centred=True,
    )

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Sizes from a config. Raises UnsupportedModel where a value is missing or cannot be."""
        fields = Fields(self.name, config)
        width = fields.integer("hidden_size")
        heads = fields.integer("num_attention_heads")
        positions = fields.integer("max_position_embeddings")
        pre_norm = fields.flag("do_layer_norm_before", default=True)
        bias = fields.flag("enable_bias", default=True)
        fields.choice("activation_function", base.ACTIVATIONS, default="relu")
        return ModelShape(
            family=self.name,
            blocks=fields.integer("num_hidden_layers", high=MOST_BLOCKS),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=fields.divisible("hidden_size", width, "num_attention_heads", heads),
            feedforward=fields.integer("ffn_dim"),
            vocabulary=fields.integer("vocab_size"),
            positions=positions,
            position_rows=positions + OFFSET,
            embedding_width=fields.integer("word_embed_proj_dim", default=width),
            tied=fields.flag("tie_word_embeddings", default=True),
            post_norm=not pre_norm,
            final_norm=pre_norm and not fields.flag("_remove_final_layer_norm", default=False),
            attention_bias=bias,
            feedforward_bias=bias,
            gated=False,
            norm_parameters=fields.flag("layer_norm_elementwise_affine", default=True),
        )

    def matrices(self, shape: ModelShape, index: int = 0) -> tuple[Matrix, ...]:  # noqa: ARG002 - all blocks alike
        """q, k, v, out, fc1, fc2."""
        width, inner = shape.width, shape.feedforward
        square = tuple(Matrix(f"{ATTENTION}.{part}_proj", width, width) for part in ("q", "k", "v", "out"))
        return (*square, Matrix("fc1", inner, width), Matrix("fc2", width, inner))

    def block_tensors(self, shape: ModelShape, index: int = 0) -> dict[str, tuple[int, ...]]:  # noqa: ARG002 - all blocks alike
        """Linears with their biases, and two norms."""
        tensors: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices(shape):
            tensors |= base.linear_tensors(matrix, bias=shape.attention_bias)
        if shape.norm_parameters:
            tensors |= base.norm_tensors(ATTENTION_NORM, shape.width)
            tensors |= base.norm_tensors(FEEDFORWARD_NORM, shape.width)
        return tensors

    def outer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Token and position tables, projections of 350M, final norm, untied head."""
        narrow, width = shape.embedding_width, shape.width
        tensors: dict[str, tuple[int, ...]] = {
            TOKENS: (shape.vocabulary, narrow),
            POSITIONS: (shape.position_rows, width),
        }
        if narrow != width:
            tensors |= {PROJECT_IN: (width, narrow), PROJECT_OUT: (narrow, width)}
        if shape.final_norm and shape.norm_parameters:
            tensors |= base.norm_tensors(FINAL_NORM, width)
        if not shape.tied:
            tensors[HEAD] = (shape.vocabulary, narrow)
        return tensors

    def block_prefix(self, index: int) -> str:
        """``model.decoder.layers.3.``"""
        return f"{DECODER}layers.{index}."

    def aliases(self, name: str) -> tuple[str, ...]:
        """Checkpoints saved from the bare decoder lack ``model.``."""
        return (name.removeprefix("model."),) if name.startswith(DECODER) else ()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """q, k, v | out | fc1 | fc2."""
        shape = self.shape(config)
        post = shape.post_norm
        activation = base.ACTIVATIONS[self.activation(config)]

        def attention_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return carry[0] if post else _norm(block, ATTENTION_NORM, carry[0])

        def attend(block: Block, carry: Carry, inputs: Tensor, arguments: Arguments) -> Carry:
            # Scaling the query rather than the scores rounds as transformers does in half precision.
            query = base.linear(block, f"{ATTENTION}.q_proj", inputs) * shape.head_dim**-0.5
            query, key, value = (
                base.split_heads(x, shape.heads)
                for x in (
                    query,
                    base.linear(block, f"{ATTENTION}.k_proj", inputs),
                    base.linear(block, f"{ATTENTION}.v_proj", inputs),
                )
            )
            return carry[0], base.attention(query, key, value, arguments, scale=1.0)

        def second(_block: Block, carry: Carry, _: Arguments) -> Tensor:
            return carry[1]

        def attention_output(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            hidden = carry[0] + base.linear(block, f"{ATTENTION}.out_proj", inputs)
            return (_norm(block, ATTENTION_NORM, hidden) if post else hidden,)

        def feedforward_input(block: Block, carry: Carry, _: Arguments) -> Tensor:
            return carry[0] if post else _norm(block, FEEDFORWARD_NORM, carry[0])

        def expand(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            return carry[0], activation(base.linear(block, "fc1", inputs))

        def contract(block: Block, carry: Carry, inputs: Tensor, _: Arguments) -> Carry:
            hidden = carry[0] + base.linear(block, "fc2", inputs)
            return (_norm(block, FEEDFORWARD_NORM, hidden) if post else hidden,)

        names = tuple(f"{ATTENTION}.{part}_proj" for part in ("q", "k", "v"))
        return (
            Stage(names, attention_input, attend),
            Stage((f"{ATTENTION}.out_proj",), second, attention_output),
            Stage(("fc1",), feedforward_input, expand),
            Stage(("fc2",), second, contract),
        )

    def arguments(
        self,
        config: Mapping[str, Any],  # noqa: ARG002 - for families whose bias depends on it
        mask: Tensor | None,
        batch: int,
        length: int,
        like: Tensor,
    ) -> Arguments:
        """A bias where there is padding, else nothing: plain causal."""
        real = base.padding(mask, batch, length, like.device)
        return Arguments() if real is None else Arguments(bias=base.causal_bias(real, length, like))

    def embed(
        self,
        outer: OuterTensors,
        config: Mapping[str, Any],
        tokens: Tensor,
        mask: Tensor | None,
        first: int = 0,
    ) -> Tensor:
        """Tokens [batch, length] to hidden states; positions count real tokens only.

        Raises UserError for windows longer than the position table.
        """
        shape = self.shape(config)
        batch, length = tokens.shape
        real = base.padding(mask, batch, length, tokens.device)
        if real is None:
            index = torch.arange(first, first + length, device=tokens.device)
        else:
            # A padding token takes row 1, the one before position 0.
            index = torch.cumsum(real, dim=1) * real - 1
        longest = first + length if real is None else int(real.sum(dim=1).max())
        if longest > shape.positions:
            raise UserError(
                f"windows of {longest} tokens on an opt model that has {shape.positions} positions: "
                f"choose a length of at most {shape.positions}"
            )
        hidden = base.token_rows(outer, TOKENS, tokens, shape.vocabulary)
        if shape.embedding_width != shape.width:
            hidden = functional.linear(hidden, outer.tensor(PROJECT_IN))
        return hidden + outer.rows(POSITIONS, index + OFFSET)

    def finish(self, outer: OuterTensors, config: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Final norm and projection out, each where the model has it."""
        shape = self.shape(config)
        if shape.final_norm and shape.norm_parameters:
            weight, bias = outer.tensor(f"{FINAL_NORM}.weight"), outer.tensor(f"{FINAL_NORM}.bias")
            hidden = base.layer_norm(hidden, weight, bias, EPS)
        elif shape.final_norm:
            hidden = base.layer_norm(hidden, None, None, EPS)
        if shape.embedding_width != shape.width:
            hidden = functional.linear(hidden, outer.tensor(PROJECT_OUT))
        return hidden

    def head(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor:
        """Output matrix [vocabulary, embedding width]."""
        return outer.tensor(TOKENS if self.shape(config).tied else HEAD)

    def head_bias(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor | None:  # noqa: ARG002 - the contract
        """None: the published head has no bias."""
        return None

    def norm_eps(self, config: Mapping[str, Any]) -> float:  # noqa: ARG002 - for families whose epsilon is in it
        """Fixed."""
        return EPS

    def activation(self, config: Mapping[str, Any]) -> str:
        """``activation_function``."""
        return str(config.get("activation_function") or "relu")
