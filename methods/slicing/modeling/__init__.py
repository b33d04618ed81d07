"""Makes sliced models known to transformers: ``AutoModelForCausalLM.from_pretrained`` loads them once this is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from methods.slicing.modeling.modeling_sliced import (
    SlicedBloomConfig,
    SlicedBloomForCausalLM,
    SlicedLlamaConfig,
    SlicedLlamaForCausalLM,
    SlicedOPTConfig,
    SlicedOPTForCausalLM,
)

__all__ = ["MODELS"]

MODELS = (
    (SlicedOPTConfig, SlicedOPTForCausalLM),
    (SlicedBloomConfig, SlicedBloomForCausalLM),
    (SlicedLlamaConfig, SlicedLlamaForCausalLM),
)
"""Config and model of every family."""

for _config, _model in MODELS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
