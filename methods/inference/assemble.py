"""A transformers model in memory from a checkpoint and its pruned blocks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from methods.errors import CheckpointError, UnsupportedModel, reason_of
from methods.families.sliced import PREFIX
from methods.stream.source import CheckpointSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["assemble"]

_FOREIGN = ("auto_map", "quantization_config")
"""Config keys that would ask for code or weights of another kind than the ones read here."""


def assemble(source: CheckpointSource) -> PreTrainedModel:
    """The model of ``source``, overlay included, as an ``AutoModelForCausalLM`` in evaluation mode.

    Parameters are copies in the dtype and on the device of ``source``; buffers keep the dtype the architecture
    gives them. A tied head shares the token table. No code of the checkpoint is run. Raises CheckpointError
    where a tensor is missing, unexpected or of another shape, UnsupportedModel for an unknown architecture.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            _config(source.config), dtype=source.dtype, trust_remote_code=False
        )
    tensors = dict(_tensors(source))
    try:
        # What is tied is stored once, so only strictness by name, below, tells a gap from a tie.
        found = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source.folder}: the weights do not fit the config ({reason_of(error)})"
        ) from None
    model.tie_weights()
    empty = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    _check(source, "lack", empty)
    _check(source, "hold the unexpected", found.unexpected_keys)
    model.to(source.device)  # type: ignore[arg-type]  # buffers; the parameters are there already
    model.requires_grad_(False)
    model.train(False)
    return model


def _config(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    plain = {name: value for name, value in config.items() if name not in _FOREIGN}
    kind = str(plain.pop("model_type", ""))
    if kind.startswith(PREFIX):
        importlib.import_module("methods.slicing")  # makes sliced architectures known to transformers
    try:
        return AutoConfig.for_model(kind, **plain)
    except ValueError:
        raise UnsupportedModel(f"model_type '{kind[:60]}' is unknown to transformers") from None


def _tensors(source: CheckpointSource) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by full name, each a copy: a mapped file could not be counted as memory."""
    for name in source.family.outer_tensors(source.shape):
        yield name, source.raw_outer(name).to(device=source.device, dtype=source.dtype, copy=True)
    for index in range(source.shape.blocks):
        prefix = source.family.block_prefix(index)
        for name, tensor in source.block(index).items():
            yield prefix + name, tensor


def _check(source: CheckpointSource, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{source.folder}: the weights {verb} '{names[0]}'{more}; they do not match the config"
        )
