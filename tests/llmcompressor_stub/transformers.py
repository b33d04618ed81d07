"""Stands in for transformers: a model is its linears, by their full names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(folder: str, dtype: torch.dtype) -> Any:
        root = Path(folder)
        assert json.loads((root / "config.json").read_text())["model_type"] in ("opt", "bloom", "llama")
        places = json.loads((root / "model.safetensors.index.json").read_text())["weight_map"]
        model = torch.nn.Module()
        for file in sorted(set(places.values())):
            for name, tensor in load_file(root / file).items():
                assert tensor.dtype == dtype and places[name] == file
                if tensor.ndim == 2:
                    _place(model, name.removesuffix(".weight").split("."), tensor)
        return model


def _place(parent: torch.nn.Module, path: list[str], tensor: torch.Tensor) -> None:
    for word in path:
        if not hasattr(parent, word):
            parent.add_module(word, torch.nn.Module())
        parent = getattr(parent, word)
    parent.weight = torch.nn.Parameter(tensor, requires_grad=False)
