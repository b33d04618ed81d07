"""The three model families, and sliced models of each: how to read their sizes and run their blocks.

A block is a plain dict of tensors, so nothing here depends on how transformers writes its modules; tests hold
the results equal to transformers' own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from methods.errors import UnsupportedModel
from methods.families.bloom import Bloom
from methods.families.fields import brief
from methods.families.llama import Llama
from methods.families.opt import OPT
from methods.families.sliced import Sliced
from methods.interface import Family, ModelShape

__all__ = ["family_of", "shape_of"]

_BASES: tuple[Family, ...] = (OPT(), Bloom(), Llama())
_FAMILIES: dict[str, Family] = {family.name: family for family in (*_BASES, *map(Sliced, _BASES))}


def family_of(model: Mapping[str, Any] | ModelShape) -> Family:
    """The adapter for a Hugging Face config (by its ``model_type``) or a shape.

    Raises UnsupportedModel for any other architecture.
    """
    named = model.family if isinstance(model, ModelShape) else model.get("model_type")
    family = _FAMILIES.get(named) if isinstance(named, str) else None
    if family is None:
        seen = "no model_type" if named is None else f"model_type {brief(named)}"
        raise UnsupportedModel(f"config has {seen}; supported are {', '.join(sorted(_FAMILIES))}")
    return family


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Sizes of the model that a Hugging Face config describes.

    Raises UnsupportedModel, naming key and value, for a config that is not of a known family, lacks a key,
    holds an impossible value, or describes quantised weights.
    """
    family = family_of(config)
    quantised = config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise UnsupportedModel(
            f"{family.name} config: weights are quantised ({brief(method)}); take unquantised weights"
        )
    shape = family.shape(config)
    stated = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    return dataclasses.replace(shape, itemsize=stated.itemsize) if isinstance(stated, torch.dtype) else shape
