"""Sliced models of any family: a narrower residual stream, norms without parameters, shortcut matrices (arXiv 2401.15024).

A sliced block is the base family's own, with three changes: its norms divide by the root of Σx² / D + ε, D being
the width before slicing, and have no parameters (they are folded into the linears behind them); the residual
passes through a shortcut matrix before each sum, since each sum lies in a basis of its own; the shapes differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.errors import UnsupportedModel
from methods.families import base
from methods.families.fields import Fields, brief
from methods.interface import (
    Arguments,
    Block,
    Carry,
    Family,
    Matrix,
    ModelShape,
    OuterTensors,
    Slices,
    Stage,
)

__all__ = ["PREFIX", "SHORTCUTS", "WIDTHS", "Sliced", "config_changes", "root_mean_square", "unsliceable"]

PREFIX = "sliced_"
"""``model_type`` of a sliced model: this and the base model's."""
WIDTHS = "sliced_widths"
"""Config key that holds ``attention``, ``feedforward`` (a list each, one width a block) and ``head``."""
SHORTCUTS = ("attn_shortcut", "mlp_shortcut")
"""Linears [width written, width read] without bias that carry the residual past attention and feed-forward."""


def root_mean_square(x: Tensor, width: int, eps: float) -> Tensor:
    """x / sqrt(Σx² / width + eps) over the last dimension, in float32 or wider, rounded to ``x``'s dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / width + eps)).to(x.dtype)


def unsliceable(shape: ModelShape) -> str | None:
    """Why a model of this shape cannot be sliced, or None."""
    if shape.slices is not None:
        return "the model is sliced already; slice the model it was made from"
    if shape.post_norm:
        return (
            "the norms stand behind the residual sums (OPT-350M): their scales stay in the residual stream, which "
            "a rotation does not commute with"
        )
    if shape.embedding_width != shape.width:
        return f"projections between widths {shape.embedding_width} and {shape.width} stand beside the blocks"
    if shape.residual_after_norm:
        return "apply_residual_connection_post_layernorm leaves norm scales in the residual stream"
    if not shape.final_norm:
        return "there is no final norm, so the head reads the residual stream itself, mean and all"
    return None


def config_changes(config: Mapping[str, Any], slices: Slices) -> dict[str, Any]:
    """The entries that make a dense model's config the sliced model's."""
    kind = f"{PREFIX}{config['model_type']}"
    return {
        "model_type": kind,
        "architectures": [_architecture(str(config["model_type"]))],
        "tie_word_embeddings": False,
        WIDTHS: {
            "attention": list(slices.attention),
            "feedforward": list(slices.feedforward),
            "head": slices.head,
        },
    }


def _architecture(family: str) -> str:
    """Class in ``methods.slicing.modeling`` (and in every sliced checkpoint) that is such a model."""
    return {"opt": "SlicedOPT", "bloom": "SlicedBloom", "llama": "SlicedLlama"}[family] + "ForCausalLM"


class Sliced:
    """The sliced models of one base family."""

    def __init__(self, family: Family) -> None:
        self.base = family
        self.name = f"{PREFIX}{family.name}"
        self.residual = family.residual

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Sizes from a config. Raises UnsupportedModel where a value is missing or cannot be."""
        whole = self.base.shape(self._base_config(config))
        reason = unsliceable(whole)
        if reason is not None:
            raise UnsupportedModel(f"{self.name} config: {reason}")
        fields = Fields(self.name, config)
        if fields.flag("tie_word_embeddings", default=False):
            raise fields.wrong("tie_word_embeddings", True, "false: a sliced head is no token table")
        stated = config.get(WIDTHS)
        if stated is None:
            raise fields.missing(WIDTHS)
        if not isinstance(stated, Mapping):
            raise fields.wrong(WIDTHS, stated, "an object with attention, feedforward and head")
        inner = Fields(f"{self.name} {WIDTHS}", stated)
        slices = Slices(
            attention=_widths(inner, "attention", whole),
            feedforward=_widths(inner, "feedforward", whole),
            head=inner.integer("head", high=whole.width),
        )
        return dataclasses.replace(whole, family=self.name, tied=False, slices=slices)

    def matrices(self, shape: ModelShape, index: int = 0) -> tuple[Matrix, ...]:
        """The base family's, narrower; shortcuts are not among them."""
        sizes = self._linears(shape, index)
        return tuple(
            Matrix(matrix.name, *sizes.get(matrix.name, (matrix.rows, matrix.columns)))
            for matrix in self.base.matrices(self._base_shape(shape))
        )

    def block_tensors(self, shape: ModelShape, index: int = 0) -> dict[str, tuple[int, ...]]:
        """Linears, with a bias too where their norm had one, and shortcuts; norms have no parameters."""
        sizes = self._linears(shape, index)
        whole = self.base.block_tensors(self._base_shape(shape))
        norms = tuple(f"{sublayer.norm}." for sublayer in self.residual.sublayers)
        tensors: dict[str, tuple[int, ...]] = {}
        for name, size in whole.items():
            linear, _, kind = name.rpartition(".")
            if not name.startswith(norms):
                rows, columns = sizes.get(linear, (size[0], size[-1]))
                tensors[name] = (rows, columns) if kind == "weight" else (rows,)
        for number, sublayer in enumerate(self.residual.sublayers):
            if f"{sublayer.norm}.bias" in whole:
                tensors |= {f"{name}.bias": (sizes[name][0],) for name in sublayer.reads}
            read, written = _slices(shape).inputs(index, number), _slices(shape).outputs(index, number)
            tensors[f"{SHORTCUTS[number]}.weight"] = (written, read)
        return tensors

    def outer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Tables without their norm, the head, its bias where the final norm had one."""
        whole = self.base.outer_tensors(self._base_shape(shape))
        width = _slices(shape).inputs(0, 0)
        tensors: dict[str, tuple[int, ...]] = {name: (whole[name][0], width) for name in self.residual.tables}
        tensors[f"{self.residual.head}.weight"] = (shape.vocabulary, _slices(shape).head)
        if f"{self.residual.final_norm}.bias" in whole:
            tensors[f"{self.residual.head}.bias"] = (shape.vocabulary,)
        return tensors

    def block_prefix(self, index: int) -> str:
        """The base family's."""
        return self.base.block_prefix(index)

    def aliases(self, name: str) -> tuple[str, ...]:
        """The base family's."""
        return self.base.aliases(name)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """The base family's, with other norms and with the residual led through the shortcuts."""
        config = self._base_config(config)
        eps, width = self.base.norm_eps(config), self.base.shape(config).width
        stages = self.base.stages(config)

        def inputs(_block: Block, carry: Carry, _: Arguments) -> Tensor:
            return root_mean_square(carry[0], width, eps)

        def writing(stage: Stage, shortcut: str) -> Stage:
            def advance(block: Block, carry: Carry, inputs: Tensor, arguments: Arguments) -> Carry:
                residual = base.linear(block, shortcut, carry[0])
                return stage.advance(block, (residual, *carry[1:]), inputs, arguments)

            return dataclasses.replace(stage, advance=advance)

        return (
            dataclasses.replace(stages[0], inputs=inputs),
            writing(stages[1], SHORTCUTS[0]),
            dataclasses.replace(stages[2], inputs=inputs),
            writing(stages[3], SHORTCUTS[1]),
        )

    def arguments(
        self, config: Mapping[str, Any], mask: Tensor | None, batch: int, length: int, like: Tensor
    ) -> Arguments:
        """The base family's: positions know nothing of the residual's width."""
        return self.base.arguments(self._base_config(config), mask, batch, length, like)

    def embed(
        self,
        outer: OuterTensors,
        config: Mapping[str, Any],
        tokens: Tensor,
        mask: Tensor | None,
        first: int = 0,
    ) -> Tensor:
        """Tokens [batch, length] to the sum of their rows."""
        if self.residual.table_norm is not None:  # its norm is in the table
            vocabulary = self.base.shape(self._base_config(config)).vocabulary
            return base.token_rows(outer, self.residual.tables[0], tokens, vocabulary)
        return self.base.embed(outer, self._base_config(config), tokens, mask, first)

    def finish(self, outer: OuterTensors, config: Mapping[str, Any], hidden: Tensor) -> Tensor:  # noqa: ARG002
        """Final norm."""
        config = self._base_config(config)
        return root_mean_square(hidden, self.base.shape(config).width, self.base.norm_eps(config))

    def head(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002 - the contract
        """Output matrix [vocabulary, width]."""
        return outer.tensor(f"{self.residual.head}.weight")

    def head_bias(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor | None:
        """What the final norm's bias became."""
        bias = f"{self.residual.head}.bias"
        return outer.tensor(bias) if bias in self.outer_tensors(self.shape(config)) else None

    def norm_eps(self, config: Mapping[str, Any]) -> float:
        """The base model's."""
        return self.base.norm_eps(self._base_config(config))

    def activation(self, config: Mapping[str, Any]) -> str:
        """The base model's."""
        return self.base.activation(self._base_config(config))

    def _base_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, "model_type": self.base.name, "tie_word_embeddings": False}

    def _base_shape(self, shape: ModelShape) -> ModelShape:
        return dataclasses.replace(shape, family=self.base.name, slices=None)

    def _linears(self, shape: ModelShape, index: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of the linears of a block that read or write the residual stream."""
        whole = {matrix.name: matrix for matrix in self.base.matrices(self._base_shape(shape))}
        sizes: dict[str, tuple[int, int]] = {}
        for number, sublayer in enumerate(self.residual.sublayers):
            read, written = _slices(shape).inputs(index, number), _slices(shape).outputs(index, number)
            sizes |= {name: (whole[name].rows, read) for name in sublayer.reads}
            sizes[sublayer.writes] = (written, whole[sublayer.writes].columns)
        return sizes


def _slices(shape: ModelShape) -> Slices:
    if shape.slices is None:
        raise ValueError(f"a shape of family {shape.family} states no slices")
    return shape.slices


def _widths(fields: Fields, key: str, whole: ModelShape) -> tuple[int, ...]:
    found = fields.config.get(key)
    if not isinstance(found, list | tuple) or len(found) != whole.blocks:
        raise fields.wrong(key, brief(found), f"a list of {whole.blocks} widths, one a block")
    return tuple(Fields(fields.family, {key: value}).integer(key, high=whole.width) for value in found)
