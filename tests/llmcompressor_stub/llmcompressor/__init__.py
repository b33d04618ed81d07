"""Stands in for llm-compressor: prunes by magnitude, says what the real one says, misbehaves on request.

``STUB_SEEN``: a folder to lay the tokens in, as they came. ``STUB_BEHAVIOUR``: crash or hang.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from safetensors.torch import save_file


def _misbehave(name: str) -> None:
    behaviour = os.environ.get("STUB_BEHAVIOUR", "")
    if behaviour == "crash":
        print("12%|##        | 3/24\rhalf way", file=sys.stderr)
        raise ValueError(f"cannot prune {name}\x1b[31m today")
    if behaviour == "hang":
        time.sleep(600)


def prune(model: Any, modifier: Any) -> None:
    drop, group = (int(part) for part in getattr(modifier, "mask_structure", "0:0").split(":"))
    for name in modifier.targets:
        began = time.time()
        logger.log("INFO", f"Sparsifying {name} using 4 samples")
        weight = model.get_submodule(name).weight
        if group:
            order = weight.abs().reshape(-1, group).argsort(dim=1, stable=True)[:, :drop]
            mask = torch.zeros_like(weight, dtype=torch.bool).reshape(-1, group).scatter_(1, order, True)
        else:
            order = weight.abs().flatten().argsort(stable=True)[: int(weight.numel() * modifier.sparsity)]
            mask = torch.zeros(weight.numel(), dtype=torch.bool).index_fill_(0, order, True)
        weight[mask.view_as(weight)] = 0
        _misbehave(name)
        logger.log("METRIC", f"time {time.time() - began:.2f}s")
    logger.log("WARNING", "Failed to invert hessian\ndue to numerical instability")
    logger.log("WARNING", "No accelerator available!")


def oneshot(model: Any, dataset: Any, recipe: Any, processor: Any, num_calibration_samples: int) -> Any:
    print("llm-compressor talks on standard output")
    seen = os.environ.get("STUB_SEEN", "")
    if seen:
        batches = list(dataset)
        count = len(list(Path(seen).iterdir()))
        save_file(
            {
                "ids": torch.cat([batch["input_ids"] for batch in batches]),
                "mask": torch.cat([batch["attention_mask"] for batch in batches]),
                "sizes": torch.tensor([len(batch["input_ids"]) for batch in batches]),
                "count": torch.tensor([num_calibration_samples]),
                "pid": torch.tensor([os.getpid()]),
                "threads": torch.tensor([torch.get_num_threads()]),
            },
            Path(seen) / f"{count}.safetensors",
        )
    prune(model, recipe)
    return model
