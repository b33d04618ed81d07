"""Speed of greedy decoding at batch 1: several ways of it timed in turns, and whether they choose the same tokens.

Ways are timed round by round in one process, so that what else the machine does meets all of them alike and their ratio
is honest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.inference.decode_loop import Session, continue_greedily, forced_logits
from methods.inference.served import Served
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "REPEATS",
    "TIE",
    "WARMUPS",
    "Agreement",
    "Once",
    "Timings",
    "agreement",
    "by_generate",
    "by_loop",
    "in_turns",
    "spread",
]

REPEATS: Final = 5
WARMUPS: Final = 1
TIE: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Share of the largest logit within which two tokens are alike for rounding: sums in another order, many layers deep."""


@dataclass(frozen=True, slots=True)
class Once:
    """One continuation: its tokens int64 [new], seconds to the first of them, seconds for the others."""

    tokens: Tensor
    first: float
    rest: float


Way = Callable[[], Once]


@dataclass(frozen=True, slots=True)
class Timings:
    """Every repeat of one way, float64 [repeats] in s and token/s, and the tokens chosen, int64 [repeats, new].

    The first token comes out of the prefill and is timed with it; ``rate`` is that of the tokens after it.
    """

    first: NDArray[np.float64]
    rate: NDArray[np.float64]
    tokens: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Greedy choices of one model on another's text: positions compared, and those where they differ.

    ``gaps`` is how far apart the other's logits of the two choices are, for every such position; ``tie`` the gap up to
    which rounding explains it. ``distance``: the largest difference of any logit.
    """

    compared: int
    positions: tuple[int, ...]
    gaps: tuple[float, ...]
    tie: float
    distance: float

    @property
    def wrong(self) -> tuple[tuple[int, float], ...]:
        """Positions, with their gaps, where more than rounding differs."""
        pairs = zip(self.positions, self.gaps, strict=True)
        return tuple((position, gap) for position, gap in pairs if not gap <= self.tie)


def by_loop(model: Served, prompt: Tensor, new_tokens: int) -> Way:
    """Our loop: a way to continue ``prompt`` [1, length] by ``new_tokens``, at least 2, caches included in its time."""
    ids = prompt.to(model.device)

    @torch.inference_mode()
    def run() -> Once:
        _wait(model.device)
        began = time.perf_counter()
        session = Session(model, ids.shape[1] + new_tokens - 1)
        token = session.feed(ids).argmax(keepdim=True)[None]
        _wait(model.device)
        started = time.perf_counter()
        others = continue_greedily(session, token, new_tokens - 1)
        _wait(model.device)
        ended = time.perf_counter()
        return Once(torch.cat((token[0], others)).cpu(), started - began, ended - started)

    return run


def by_generate(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Way:
    """transformers' own ``generate`` with its default cache, greedy, ending at no end token."""
    ids = prompt.to(model.device)
    # As keywords: a whole GenerationConfig would be filled up with the model's own end token.
    settings: dict[str, Any] = {
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }

    def run() -> Once:
        clock = _Clock(model.device)
        _wait(model.device)
        began = time.perf_counter()
        whole = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), streamer=clock, **settings
        )
        _wait(model.device)
        ended = time.perf_counter()
        first = clock.moments[1]  # the prompt itself comes before it
        return Once(whole[0, ids.shape[1] :].cpu(), first - began, ended - first)

    return run


class _Clock:
    """Takes the time whenever ``generate`` hands out tokens."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: list[float] = []

    def put(self, _tokens: Any) -> None:
        """Called with the prompt, then with every token."""
        _wait(self.device)
        self.moments.append(time.perf_counter())

    def end(self) -> None:
        """Called at the end."""


def in_turns(ways: Mapping[str, Way], observer: Observer, *, repeats: int = REPEATS) -> dict[str, Timings]:
    """Warm every way up, then time ``repeats`` rounds of all of them, each round beginning with the next one."""
    names = list(ways)
    observer.phase("decode", (WARMUPS + repeats) * len(names))
    found: dict[str, list[Once]] = {name: [] for name in names}
    done = 0
    for turn in range(WARMUPS + repeats):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            once = ways[name]()
            if turn >= WARMUPS:
                found[name].append(once)
            done += 1
            observer.step(done, name)
    return {
        name: Timings(
            np.array([once.first for once in runs]),
            np.array([(len(once.tokens) - 1) / once.rest for once in runs]),
            np.stack([once.tokens.numpy() for once in runs]),
        )
        for name, runs in found.items()
    }


def agreement(dense: Served, other: Served, prompt: Tensor, tokens: Tensor) -> Agreement:
    """Whether ``other`` makes the choices of ``dense`` at every one of its greedy ``tokens`` [new] after ``prompt``.

    Both read the dense model's tokens, so that one tie does not hide what comes behind it.
    """
    expected = forced_logits(dense, prompt, tokens)
    got = forced_logits(other, prompt, tokens)
    chosen, theirs = expected.argmax(1), got.argmax(1)
    differ = (chosen != theirs).nonzero()[:, 0]
    gaps = expected[differ, chosen[differ]] - expected[differ, theirs[differ]]
    return Agreement(
        compared=len(tokens),
        positions=tuple(differ.tolist()),
        gaps=tuple(gaps.tolist()),
        tie=TIE[dense.dtype] * float(expected.abs().max()),
        distance=float((got - expected).abs().max()),
    )


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
