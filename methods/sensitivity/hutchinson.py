"""Trace of the Hessian of the loss per matrix, by exact Hessian-vector products (Hutchinson's estimator).

tr(H_W) = E[zᵀ H_W z] for z with independent entries of mean 0 and variance 1 (arXiv 2310.09499, equations 5
and 6, with Gaussian z; signs ±1 have the smaller variance, Hutchinson 1990). All matrices are probed at once:
z holds every matrix, and what couples two of them has mean zero. The Hessian is indefinite away from a minimum,
so a trace may be negative. Holds the whole model and two backward passes: for small models, and as an oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from methods.families.base import run_block
from methods.interface import Block, BlockSource, Run
from methods.sensitivity.precise import Precise

__all__ = ["hutchinson", "loss"]


def hutchinson(
    source: BlockSource,
    tokens: Tensor,
    run: Run,
    *,
    gaussian: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Estimated tr(H_W) / weights of W for every matrix, float64 [probes, blocks * matrices].

    H is the Hessian of the mean cross-entropy of a window of ``tokens`` int64 [probes, windows, length], averaged
    over a probe's windows, each with a z of its own. Signs, or ``gaussian`` numbers, come from generators keyed
    by (seed, window). Raises CheckpointError.
    """
    probes, windows, length = tokens.shape
    model = Precise(source, dtype)
    blocks = [model.block(index) for index in range(model.shape.blocks)]
    weights = [block[f"{matrix.name}.weight"] for block in blocks for matrix in model.matrices]
    for weight in weights:
        weight.requires_grad_()
    head = model.head()
    run.observer.phase("allocate", probes * windows)
    traces = torch.zeros(probes * windows, len(weights), dtype=torch.float64)
    for window, ids in enumerate(tokens.reshape(-1, length)):
        generator = run.generator(window, "hutchinson")
        with torch.enable_grad():
            value = loss(model, blocks, head, ids[None])
            gradients = torch.autograd.grad(value, weights, create_graph=True)
        # drawn on the host, so that every device has the same numbers
        probe = [_draw(weight, generator, gaussian) for weight in weights]
        products = torch.autograd.grad(gradients, weights, probe)
        traces[window] = torch.stack(
            [(z * product).sum(dtype=torch.float64) for z, product in zip(probe, products, strict=True)]
        )
        run.observer.step(window + 1, "sensitivities")
    sizes = torch.tensor([weight.numel() for weight in weights], dtype=torch.float64)
    return traces.view(probes, windows, -1).mean(1) / sizes


def loss(model: Precise, blocks: list[Block], head: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nat of predicting ``tokens`` [batch, length] from the second on; twice differentiable."""
    batch, length = tokens.shape
    hidden = model.embed(tokens)
    arguments = model.arguments(batch, length)
    # the fused attention kernels have no second derivative
    with sdpa_kernel(SDPBackend.MATH):
        for block in blocks:
            hidden = run_block(model.stages, block, hidden, arguments)
    logits = functional.linear(model.finish(hidden), head)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(logits.device))


def _draw(weight: Tensor, generator: torch.Generator, gaussian: bool) -> Tensor:
    if gaussian:
        drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    else:
        drawn = torch.randint(0, 2, weight.shape, generator=generator).to(weight.dtype) * 2 - 1
    return drawn.to(weight.device)
