"""Trace of the Gauss-Newton matrix of the loss per matrix, streamed block by block, forwards and back.

For cross-entropy the Gauss-Newton matrix G = (1/N) Σ_n J_nᵀ (diag p_n - p_n p_nᵀ) J_n, with J_n the Jacobian of
the logits at token n and p_n the model's own distribution, is the Fisher matrix: with labels y_n drawn from p_n,
g = Σ_n ∇(-log p_n(y_n)) has mean zero and E[g gᵀ] = Σ_n J_nᵀ (diag p_n - p_n p_nᵀ) J_n, since different labels are
independent (Martens, arXiv 1412.1193, sections 8 and 9). So |g_W|² of a window, over its tokens, estimates the
trace for a matrix W without bias, and is never negative. True labels would give the empirical Fisher matrix, which
is neither; exact Hessian-vector products are in ``methods.sensitivity.hutchinson``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.families.base import run_block
from methods.interface import BlockSource, Run, batches
from methods.sensitivity.precise import Precise
from methods.stream.hidden import HiddenStates

__all__ = ["drawn_labels", "fisher"]

_ROWS = 64  # tokens whose distributions over the vocabulary are in memory at once


def fisher(source: BlockSource, tokens: Tensor, run: Run) -> Tensor:
    """Estimated tr(G_W) / weights of W for every matrix, float64 [probes, blocks * matrices].

    ``tokens`` int64 [probes, windows, length]; a window's last token is predicted and predicts nothing, as in
    the loss. Labels are drawn with generators keyed by (seed, window). Computed in float32 from the weights as
    stored. Memory: a block with its gradient, the head, and the inputs of all blocks for as many probes as the
    budget for hidden states holds (one at least, beyond the budget on disk); a pass over the model serves
    these. Raises CheckpointError, MachineError.
    """
    probes, windows, length = tokens.shape
    model = Precise(source)
    blocks = model.shape.blocks
    each = (blocks + 1) * windows * length * model.shape.width * model.dtype.itemsize
    together = max(1, min(probes, run.hidden_budget // each))
    passes = range(0, probes, together)
    run.observer.phase("allocate", 2 * blocks * len(passes))
    norms = []
    for number, first in enumerate(passes):
        part = tokens[first : first + together]
        streamed = _Pass(model, part, first * windows, 2 * blocks * number, run)
        norms.append(streamed.squared_norms())
    sizes = torch.tensor([matrix.size for matrix in model.matrices] * blocks, dtype=torch.float64)
    return torch.cat(norms).view(probes, windows, -1).mean(1) / (max(1, length - 1) * sizes)


def drawn_labels(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Labels [n] from rows of ``probabilities`` [n, vocabulary] by inverse distribution, ``uniform`` [n] in [0, 1)."""
    sums = probabilities.to(torch.float64).cumsum(-1)
    threshold = uniform.to(sums) * sums[:, -1]
    found = torch.searchsorted(sums, threshold[:, None], right=True)[:, 0]
    return found.clamp_(max=probabilities.shape[-1] - 1)


class _Pass:
    """Probes [probes, windows, length] through all blocks, their inputs kept, and the gradients back."""

    def __init__(self, model: Precise, tokens: Tensor, first: int, steps: int, run: Run) -> None:
        self.model, self.run = model, run
        self.tokens = tokens.flatten(0, 1)
        self.first = first  # number of the first window among all probes' windows
        self.steps = steps
        self.windows, self.length = self.tokens.shape
        # batches of one probe each: how many probes go together changes no bit
        probe = list(batches(tokens.shape[1], self.length, run.batch_tokens))
        starts = range(0, self.windows, tokens.shape[1])
        self.parts = [slice(start + part.start, start + part.stop) for start in starts for part in probe]
        size = ((model.shape.blocks + 1) * self.windows, self.length, model.shape.width)
        self.states = HiddenStates(size, model.dtype, model.device, run)

    def squared_norms(self) -> Tensor:
        """|g_W|² of every window, float64 [windows, blocks * matrices]."""
        try:
            with torch.no_grad():
                self._forward()
            self._head()
            found = [self._block(index) for index in reversed(range(self.model.shape.blocks))]
        finally:
            self.states.close()
        return torch.cat(found[::-1], dim=1)

    def _place(self, index: int, part: slice) -> slice:
        """Where the input of block ``index`` lies; the last block's output is that of one block more."""
        return slice(index * self.windows + part.start, index * self.windows + part.stop)

    def _forward(self) -> None:
        model = self.model
        for part in self.parts:
            self.states.put(self._place(0, part), model.embed(self.tokens[part]))
        for index in range(model.shape.blocks):
            block = model.block(index)
            for part in self.parts:
                arguments = model.arguments(part.stop - part.start, self.length)
                hidden = self.states.get(self._place(index, part))
                self.states.put(
                    self._place(index + 1, part), run_block(model.stages, block, hidden, arguments)
                )
            del block
            self._step()

    def _head(self) -> None:
        """Replace the last block's outputs by the gradients of -Σ log p(label)."""
        head = self.model.head()
        for window in range(self.windows):
            place = self._place(self.model.shape.blocks, slice(window, window + 1))
            with torch.enable_grad():
                hidden = self.states.get(place).detach().clone().requires_grad_()
                finished = self.model.finish(hidden)
            generator = self.run.generator(self.first + window, "fisher labels")
            uniform = torch.rand(self.length, dtype=torch.float64, generator=generator).to(hidden.device)
            outer = torch.zeros_like(finished)
            for start in range(0, self.length - 1, _ROWS):
                rows = slice(start, min(start + _ROWS, self.length - 1))
                probabilities = torch.softmax(finished.detach()[0, rows] @ head.T, dim=-1)
                labels = drawn_labels(probabilities, uniform[rows])
                probabilities[torch.arange(len(labels), device=labels.device), labels] -= 1
                outer[0, rows] = probabilities @ head
            self.states.put(place, torch.autograd.grad(finished, hidden, outer)[0])

    def _block(self, index: int) -> Tensor:
        """|g_W|² of a block's matrices [windows, matrices]; its inputs become the gradients by them."""
        model = self.model
        block = model.block(index)
        weights = [block[f"{matrix.name}.weight"].requires_grad_() for matrix in model.matrices]
        arguments = model.arguments(1, self.length)
        norms = torch.zeros(self.windows, len(weights), dtype=torch.float64)
        for window in range(self.windows):
            part = slice(window, window + 1)
            entering = self._place(index, part)
            with torch.enable_grad():
                hidden = self.states.get(entering).detach().clone().requires_grad_()
                leaving = run_block(model.stages, block, hidden, arguments)
            outer = self.states.get(self._place(index + 1, part))
            *gradients, back = torch.autograd.grad(leaving, [*weights, hidden], outer)
            norms[window] = torch.stack(
                [gradient.square().sum(dtype=torch.float64) for gradient in gradients]
            )
            self.states.put(entering, back)
        self._step()
        return norms

    def _step(self) -> None:
        self.steps += 1
        self.run.observer.step(self.steps, "sensitivities")
