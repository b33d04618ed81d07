"""Speed of greedy decoding at batch 1: several ways of it timed in turns, and whether they choose the same tokens.

Our loops go in step, a token of one and then that token of the next, so that what else the machine does meets all of them
alike and their ratio is honest; ``generate``, which cannot be stopped between tokens, runs between the rounds.
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

from methods.inference.decode_loop import Session, forced_logits
from methods.inference.served import Served
from methods.interface import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "REPEATS",
    "TIE",
    "WARMUPS",
    "Agreement",
    "Loop",
    "Once",
    "Timings",
    "agreement",
    "by_generate",
    "in_turns",
    "spread",
]

REPEATS: Final = 5
WARMUPS: Final = 1
TIE: Final = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Share of the largest logit within which two tokens are alike for rounding: sums in another order, many layers deep."""


@dataclass(frozen=True, slots=True)
class Once:
    """One continuation: its tokens int64 [new], seconds to the first of them, and for each of the others [new - 1]."""

    tokens: Tensor
    first: float
    steps: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timings:
    """Every repeat of one way: seconds float64 to the first token [repeats] and for each other one [repeats, new - 1],
    and the tokens chosen, int64 [repeats, new]. The first token comes out of the prefill and is timed with it.
    """

    first: NDArray[np.float64]
    steps: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def rate(self) -> NDArray[np.float64]:
        """Token/s of the tokens after the first, one a repeat."""
        found: NDArray[np.float64] = self.steps.shape[1] / self.steps.sum(1)
        return found

    def speedup(self, dense: Timings) -> NDArray[np.float64]:
        """Times as fast as ``dense``, one a repeat: the median over tokens, each against the same one in the same round."""
        found: NDArray[np.float64] = np.median(dense.steps / self.steps, axis=1)
        return found


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


class Loop:
    """Our loop, one token at a time: ``prompt`` [1, length] continued by ``new_tokens``, 2 at least."""

    def __init__(self, model: Served, prompt: Tensor, new_tokens: int) -> None:
        self.model = model
        self.prompt = prompt.to(model.device)
        self.new_tokens = new_tokens
        self.session: Session | None = None
        self.tokens: list[Tensor] = []

    @torch.inference_mode()
    def step(self) -> float:
        """Choose the next token, the first of them in an empty cache; returns the seconds that took."""
        _wait(self.model.device)
        began = time.perf_counter()
        if self.session is None:
            self.session, self.tokens = Session(self.model, self.prompt.shape[1] + self.new_tokens - 1), []
        fed = self.tokens[-1] if self.tokens else self.prompt
        self.tokens.append(self.session.feed(fed).argmax(keepdim=True)[None])
        _wait(self.model.device)
        return time.perf_counter() - began

    def end(self, first: float, steps: NDArray[np.float64]) -> Once:
        """What was chosen, with its times; the next step begins anew."""
        self.session = None
        return Once(torch.cat(self.tokens, dim=1)[0].cpu(), first, steps)

    def run(self) -> Once:
        """A whole continuation."""
        first = self.step()
        return self.end(first, np.array([self.step() for _ in range(self.new_tokens - 1)]))


def by_generate(model: PreTrainedModel, prompt: Tensor, new_tokens: int) -> Callable[[], Once]:
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
        moments = np.array([*clock.moments[1:-1], ended])  # the prompt itself comes first
        return Once(whole[0, ids.shape[1] :].cpu(), float(moments[0]) - began, np.diff(moments))

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


def in_turns(
    loops: Mapping[str, Loop],
    observer: Observer,
    *,
    whole: Mapping[str, Callable[[], Once]] | None = None,
    repeats: int = REPEATS,
) -> dict[str, Timings]:
    """Warm everything up, then time ``repeats`` rounds: the ``loops`` in step, then what can only run ``whole``."""
    between = dict(whole or {})
    observer.phase("decode", WARMUPS + repeats)
    found: dict[str, list[Once]] = {name: [] for name in (*loops, *between)}
    for turn in range(WARMUPS + repeats):
        round_ = {**_in_step(loops), **{name: run() for name, run in between.items()}}
        for name, once in round_.items():
            if turn >= WARMUPS:
                found[name].append(once)
        observer.step(turn + 1)
    return {
        name: Timings(
            np.array([once.first for once in runs]),
            np.stack([once.steps for once in runs]),
            np.stack([once.tokens.numpy() for once in runs]),
        )
        for name, runs in found.items()
    }


def _in_step(loops: Mapping[str, Loop]) -> dict[str, Once]:
    """One continuation by each loop, token by token; who goes first changes with every token."""
    names = list(loops)
    count = min(loop.new_tokens for loop in loops.values())
    seconds = {name: np.zeros(count) for name in names}
    for token in range(count):
        for place in range(len(names)):
            name = names[(token + place) % len(names)]
            seconds[name][token] = loops[name].step()
    return {name: loops[name].end(float(took[0]), took[1:]) for name, took in seconds.items()}


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
