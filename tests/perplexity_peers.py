"""Losses of the same windows by others: lm-evaluation-harness's scorer, and a plain loop of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["by_harness", "by_transformers"]


def by_harness(scorer: Any, windows: Tensor) -> NDArray[np.float64]:
    """Mean loss of each window [windows], nat/token, by lm-eval's ``HFLM``: the first token is the context."""
    requests = [(("", ""), [int(window[0])], window[1:].tolist()) for window in windows]
    found = scorer._loglikelihood_tokens(requests, disable_tqdm=True)
    return np.array([-total / (windows.shape[1] - 1) for total, _ in found])


@torch.inference_mode()
def by_transformers(model: Any, windows: Tensor, batch: int = 1) -> NDArray[np.float64]:
    """The same as the papers' scripts compute it: cross entropy of shifted logits, in float32 or wider."""
    losses = []
    for part in windows.split(batch):
        logits = model(part).logits[:, :-1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # rows of the vocabulary side by side: along a strided axis torch's float32 softmax is 1e-4 off
        loss = torch.nn.functional.cross_entropy(wide.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        losses.append(loss.double().view(len(part), -1).mean(1))
    found: NDArray[np.float64] = torch.cat(losses).numpy()
    return found
