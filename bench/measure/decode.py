"""Speed of greedy decoding at batch 1, with a key-value cache: tokens per second, time to the first token, memory.

Measured on the model as it lies in memory: zeros in dense weights cost what any weight costs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.measure.memory import PeakMemory
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["REPEATS", "WARMUPS", "Decoding", "decode", "greedy", "spread"]

REPEATS = 5
WARMUPS = 1


@dataclass(frozen=True, slots=True)
class Decoding:
    """Timings of every repeat, float64 [repeats], in s and token/s, and the tokens chosen, int64 [repeats, new].

    The first token comes out of the prefill and is timed with it; ``rate`` is that of the tokens after it.
    """

    first: NDArray[np.float64]
    rate: NDArray[np.float64]
    tokens: NDArray[np.int64]
    peak_memory: int


def decode(
    model: PreTrainedModel, prompt: Tensor, new_tokens: int, observer: Observer, *, repeats: int = REPEATS
) -> Decoding:
    """Time ``repeats`` greedy continuations of ``prompt`` [1, length] by ``new_tokens`` (2 at least) tokens.

    Warm-ups come first and are not timed. ``peak_memory``, in bytes, holds model, cache and activations.
    """
    observer.phase("decode", WARMUPS + repeats)
    first, rate, chosen = [], [], []
    with PeakMemory(str(model.device)) as memory:
        for done in range(WARMUPS + repeats):
            tokens, to_first, rest = greedy(model, prompt, new_tokens)
            if done >= WARMUPS:
                first.append(to_first)
                rate.append((new_tokens - 1) / rest)
                chosen.append(tokens.cpu().numpy())
            observer.step(done + 1)
    return Decoding(np.array(first), np.array(rate), np.stack(chosen), memory.peak)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> tuple[Tensor, float, float]:
    """Tokens int64 [new_tokens], seconds to the first of them, seconds for the others; ends at no end token."""
    ids = prompt.to(model.device)
    _wait(model.device)
    began = time.perf_counter()
    output: Any = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    _wait(model.device)
    started = time.perf_counter()
    chosen = [token]
    for _ in range(new_tokens - 1):
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(token)
    _wait(model.device)
    ended = time.perf_counter()
    return torch.cat(chosen, dim=1)[0], started - began, ended - started


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Median, quartiles and extremes of repeated timings."""
    lowest, lower, median, upper, highest = (
        float(value) for value in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    )
    return {"median": median, "q25": lower, "q75": upper, "min": lowest, "max": highest}


def _wait(device: torch.device) -> None:
    """On a GPU work is queued: wait for its end before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
