"""Rotary positions (arXiv 2104.09864), plain and scaled, from either generation of config keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from methods.errors import UnsupportedModel
from methods.families.fields import Fields

__all__ = ["Rope", "rotate", "tables"]

DEFAULT_THETA = 10_000.0
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": (),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
TRAINED_LENGTH = "original_max_position_embeddings"
WITH_TRAINED_LENGTH = ("llama3", "yarn", "longrope")
BY_LENGTH = ("dynamic", "longrope")
"""Kinds whose frequencies depend on the length of the window."""

Setting = float | int | bool | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rope:
    """What frequencies are made from; hashable, so that they are computed once."""

    kind: str
    head_dim: int
    positions: int
    theta: float
    settings: tuple[tuple[str, Setting], ...]

    @classmethod
    def read(cls, fields: Fields, head_dim: int, positions: int) -> Rope:
        """Reads ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` of older configs.

        Raises UnsupportedModel for an unknown kind, a missing key or an impossible value.
        """
        key = "rope_scaling" if fields.config.get("rope_scaling") else "rope_parameters"
        stated: Any = fields.config.get(key) or {}
        if not isinstance(stated, Mapping):
            raise fields.wrong(key, stated, "an object")
        inner = Fields(f"{fields.family} {key}", stated)
        spelling = "type" if stated.get("rope_type") is None else "rope_type"
        kind = inner.choice(spelling, REQUIRED, default="default")
        for owner in (fields, inner):
            if owner.positive("partial_rotary_factor", default=1.0) != 1.0:
                value = owner.config["partial_rotary_factor"]
                raise owner.wrong("partial_rotary_factor", value, "1: a llama model rotates whole heads")

        settings: dict[str, Setting] = {}
        for name in REQUIRED[kind]:
            if stated.get(name) is None:
                raise inner.missing(name)
            settings[name] = inner.positive(name, default=1.0)
        for name in OPTIONAL.get(kind, ()):
            if stated.get(name) is not None:
                settings[name] = inner.positive(name, default=1.0)
        if kind in WITH_TRAINED_LENGTH:
            trained = inner.integer(TRAINED_LENGTH, default=positions)
            settings[TRAINED_LENGTH] = fields.integer(TRAINED_LENGTH, default=trained)
        if kind == "llama3" and settings["high_freq_factor"] <= settings["low_freq_factor"]:  # type: ignore[operator]
            raise inner.wrong("high_freq_factor", stated["high_freq_factor"], "above low_freq_factor")
        if kind == "yarn":
            settings["truncate"] = inner.flag("truncate", default=True)
        if kind == "longrope":
            for name in ("short_factor", "long_factor"):
                settings[name] = _factors(inner, name, head_dim // 2)
        theta = inner.positive("rope_theta", default=fields.positive("rope_theta", default=DEFAULT_THETA))
        return cls(kind, head_dim, positions, theta, tuple(settings.items()))

    def frequencies(self, length: int) -> tuple[Tensor, float]:
        """Inverse frequencies, float32 [head_dim / 2] on the CPU, and the factor on cos and sin."""
        return _frequencies(self, length if self.kind in BY_LENGTH else 0)


def _factors(inner: Fields, name: str, count: int) -> tuple[float, ...]:
    values = inner.config.get(name)
    allowed = f"a list of {count} positive numbers"
    if not isinstance(values, list | tuple) or len(values) != count:
        raise inner.wrong(name, values, allowed)
    return tuple(Fields(inner.family, {name: value}).positive(name, default=1.0) for value in values)


@lru_cache(maxsize=32)
def _frequencies(rope: Rope, length: int) -> tuple[Tensor, float]:
    if rope.kind == "default":
        exponents = torch.arange(0, rope.head_dim, 2, dtype=torch.float32) / rope.head_dim
        return 1.0 / (rope.theta**exponents), 1.0

    # Imported late: it takes seconds, and most models do not scale.
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    parameters |= {name: list(value) if isinstance(value, tuple) else value for name, value in rope.settings}
    try:
        config = LlamaConfig(
            hidden_size=rope.head_dim,
            num_attention_heads=1,
            head_dim=rope.head_dim,
            max_position_embeddings=rope.positions,
            rope_parameters=parameters,
        )
        inverse, scaling = ROPE_INIT_FUNCTIONS[rope.kind](config, torch.device("cpu"), seq_len=length)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"llama rope of kind {rope.kind} cannot be computed: {error}") from error
    return inverse.to(torch.float32), float(scaling)


def tables(rope: Rope, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [1, length, head_dim] for positions 0 to length - 1, in ``like``'s dtype on its device.

    Angles are computed in float32, whatever the dtype.
    """
    inverse, scaling = rope.frequencies(length)
    position = torch.arange(length, device=like.device, dtype=torch.float32)
    half = position[:, None] * inverse.to(like.device)[None, :]
    angles = torch.cat((half, half), dim=-1)[None]
    return (angles.cos() * scaling).to(like.dtype), (angles.sin() * scaling).to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates pairs (i, i + head_dim / 2) of ``x`` [batch, heads, length, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    sine = sin[:, None]
    # into the halves of one product: fewer passes than a tensor of turned pairs, and the same rounding
    turned = x * cos[:, None]
    turned[..., :half] -= second * sine[..., :half]
    turned[..., half:] += first * sine[..., half:]
    return turned
