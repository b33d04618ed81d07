"""One seeded training loop: AdamW, linear warm-up and cosine, the next token's loss, the best step on held-out text.

Float32 throughout, no dropout. What training needs to go on lies in a folder, so that a killed one ends with
the very weights of an uninterrupted one (on one thread; several may add up in another order).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from methods.errors import NonFiniteError
from methods.interface import Calibration, Run
from methods.stream.sink import write_json, write_tensors

__all__ = ["CLIP", "MICRO_TOKENS", "VALIDATIONS", "Trained", "Training", "learning_rate", "train"]

CLIP = 1.0
"""Largest norm of all gradients together."""
MICRO_TOKENS = 2048
"""Tokens whose activations and logits are held at once (one window at least); a batch adds up its parts."""
VALIDATIONS = 10
"""Times that the held-out loss is taken, beside the one before training."""
_SAVE_EVERY = 30.0  # seconds between two resume points


@dataclass(frozen=True, slots=True)
class Training:
    """``steps`` of AdamW with peak rate ``lr`` on ``batch`` windows each; the first share ``warmup`` rises to it."""

    steps: int
    lr: float
    batch: int
    warmup: float


@dataclass(slots=True)
class Trained:
    """How training went: losses in nat/token on held-out text, before it and at the ``best`` step; cost."""

    step: int = 0
    best: int = 0
    loss_before: float = math.nan
    loss_best: float = math.nan
    losses: list[float] = field(default_factory=list)
    """Of every step's batch, on calibration text."""
    tokens: int = 0
    seconds: float = 0.0
    resumed: bool = False


def learning_rate(training: Training, step: int) -> float:
    """Of ``step`` (from 0): a linear rise, then half a cosine down to 0 behind the last step."""
    rise = math.ceil(training.warmup * training.steps)
    if step < rise:
        return training.lr * (step + 1) / rise
    done = (step - rise) / max(1, training.steps - rise)
    return training.lr * 0.5 * (1 + math.cos(math.pi * done))


class _Loop:
    def __init__(
        self,
        name: str,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        calibration: Calibration,
        training: Training,
        run: Run,
        key: str,
        folder: Path,
        identity: str,
    ) -> None:
        self.name, self.model, self.parameters, self.training = name, model, dict(parameters), training
        self.tokens, self.heldout = calibration.tokens, calibration.heldout
        self.run, self.key, self.folder = run, key, folder
        self.identity = f"{identity}/{training!r}"
        self.device = next(iter(self.parameters.values())).device
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=training.lr, weight_decay=0.0, foreach=False
        )
        self.state = Trained()
        self.best: dict[str, Tensor] = {}
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def windows(self, step: int) -> Tensor:
        """The windows [batch, length] of a step: every epoch is a permutation keyed by (seed, epoch)."""
        count, batch = len(self.tokens), self.training.batch
        chosen = []
        for place in range(step * batch, (step + 1) * batch):
            epoch, index = divmod(place, count)
            if self._order[0] != epoch:
                drawn = torch.randperm(count, generator=self.run.generator(epoch, f"{self.key}/order"))
                self._order = (epoch, drawn)
            chosen.append(int(self._order[1][index]))
        return self.tokens[torch.tensor(chosen)]

    def parts(self, windows: Tensor) -> Sequence[Tensor]:
        """So few windows at a time that their logits fit."""
        return torch.split(windows, max(1, MICRO_TOKENS // windows.shape[1]))

    def loss(self, windows: Tensor) -> Tensor:
        """Summed loss of all next tokens of windows [batch, length], nat."""
        windows = windows.to(self.device)
        logits = self.model(input_ids=windows, use_cache=False).logits[:, :-1]
        flat = logits.reshape(-1, logits.shape[-1])
        return functional.cross_entropy(flat, windows[:, 1:].reshape(-1), reduction="sum")

    def validate(self) -> None:
        """Take the held-out loss, and keep the weights where it is the best so far. Raises NonFiniteError."""
        with torch.no_grad():
            total = sum(float(self.loss(part)) for part in self.parts(self.heldout))
        loss = total / (len(self.heldout) * (self.heldout.shape[1] - 1))
        self._finite(loss, "held-out loss")
        if self.state.step == 0:
            self.state.loss_before = loss
        if self.state.step == 0 or loss < self.state.loss_best:
            self.state.best, self.state.loss_best = self.state.step, loss
            self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def step(self) -> None:
        """One step of the optimiser. Raises NonFiniteError."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.training, self.state.step)
        windows = self.windows(self.state.step)
        predicted = len(windows) * (windows.shape[1] - 1)
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for part in self.parts(windows):
            loss = self.loss(part) / predicted
            loss.backward()
            total += float(loss.detach())
        self._finite(total, "loss")
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        self._finite(float(norm), "gradient")
        self.optimiser.step()
        self.state.step += 1
        self.state.tokens += windows.numel()
        self.state.losses.append(total)

    def _finite(self, value: float, what: str) -> None:
        if math.isfinite(value):
            return
        step, steps = self.state.step, self.training.steps
        if step == 0:
            raise NonFiniteError(
                f"{self.name}: the {what} is {value} before any step: the pruned model is broken; prune less"
            )
        raise NonFiniteError(
            f"{self.name}: the {what} is {value} at step {step} of {steps}; "
            f"lower {self.name}.lr, which is {self.training.lr:g}"
        )

    def go(self) -> Trained:
        """Train to the end, and put the best weights into the model."""
        self.load()
        every = max(1, self.training.steps // VALIDATIONS)
        saved = began = time.perf_counter()
        earlier = self.state.seconds
        self.run.observer.phase("recover", self.training.steps)
        if self.state.step == 0:
            self.validate()
        self._show()
        while self.state.step < self.training.steps:
            self.step()
            last = self.state.step == self.training.steps
            if last or self.state.step % every == 0:
                self.validate()
            self._show()
            self.state.seconds = earlier + time.perf_counter() - began
            if last or time.perf_counter() - saved > _SAVE_EVERY:
                self.save()
                saved = time.perf_counter()
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])
        self.state.seconds = earlier + time.perf_counter() - began
        return self.state

    def _show(self) -> None:
        loss = f"loss {self.state.losses[-1]:.3f}" if self.state.losses else ""
        self.run.observer.step(self.state.step, loss)

    def save(self) -> None:
        """Keep what training goes on with; ``state.json`` is replaced last. Raises MachineError."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"now/{name}"] = parameter
            tensors[f"best/{name}"] = self.best[name]
            moments = self.optimiser.state.get(parameter, {})
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        file = f"train-{self.state.step:07d}.safetensors"
        write_tensors(self.folder / file, tensors)
        write_json(
            self.folder / "state.json",
            {"identity": self.identity, "file": file, "trained": asdict(self.state)},
        )
        for path in self.folder.glob("train-*.safetensors"):
            if path.name != file:
                path.unlink(missing_ok=True)

    def load(self) -> None:
        """Go on where a training of the same identity stopped, if there is one that is whole."""
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if state["identity"] != self.identity:
                return
            tensors = load_file(self.folder / str(state["file"]), device=str(self.device))
            trained = Trained(**state["trained"])
            best = {name: tensors[f"best/{name}"] for name in self.parameters}
            moments = {
                name: {key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
                for name in self.parameters
                if f"exp_avg/{name}" in tensors
            }
            now = {name: tensors[f"now/{name}"] for name in self.parameters}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(now[name])
                if name in moments:
                    count = torch.tensor(float(trained.step))
                    self.optimiser.state[parameter] = {"step": count, **moments[name]}
        trained.resumed = True
        self.state, self.best = trained, best


def train(
    name: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    calibration: Calibration,
    training: Training,
    run: Run,
    key: str,
    folder: Path,
    identity: str,
) -> Trained:
    """Train ``parameters`` of ``model`` on the drawn windows of ``calibration``; ``name`` is the recovery's, ``key`` that of
    its random numbers.

    The held-out windows, never trained on, choose the step whose weights the model is left with; step 0 is among
    them, so that recovery makes no model worse there. Goes on from ``folder`` where a killed training of the same
    ``identity`` left its state. Raises NonFiniteError for a loss or gradient that is none, MachineError.
    """
    return _Loop(name, model, parameters, calibration, training, run, key, folder, identity).go()
