"""Random models of the three families saved as Hugging Face folders, small enough for any test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import tiny

__all__ = ["saved", "saved_with_tokenizer"]


def saved(
    folder: Path, family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> Path:
    """Save a random model of ``family`` to ``folder`` in ``dtype``; returns the folder."""
    torch.manual_seed(seed)
    model, source = tiny(family, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to(dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if not (name == "lm_head.weight" and source.shape.tied)
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {key: value for key, value in model.config.to_dict().items() if value is not None}
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    return folder


def saved_with_tokenizer(folder: Path, family: str, **more: Any) -> Path:
    """The same with a byte tokenizer beside it: a model that `bench run --models path:…` takes."""
    from byte_tokenizer import byte_tokenizer

    saved(folder, family, vocab_size=300, **more)
    byte_tokenizer().save_pretrained(folder)
    return folder
