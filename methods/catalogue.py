"""Our own entries of the registry. Free of torch."""

from __future__ import annotations

from methods.entries import AllocationEntry, Method, Parameter, RefinementEntry, Shorthand

__all__ = ["ALLOCATIONS", "METHODS", "REFINEMENTS", "SHORTHANDS"]

_REFERENCE = Parameter(
    bool, False, "follow the published code to the letter (one weight more per block, ties)"
)

METHODS = (
    Method(
        name="magnitude",
        summary="the smallest weights of each matrix go; nothing else moves",
        paper="Han et al., arXiv 1506.02626",
        factory="methods.layerwise.magnitude:Magnitude",
        calibrated=False,
        parameters={"reference": _REFERENCE},
        sources=("methods.layerwise.magnitude",),
    ),
    Method(
        name="sparsegpt",
        summary="column sweep with optimal-brain-surgeon updates",
        paper="Frantar and Alistarh, arXiv 2301.00774",
        factory="methods.layerwise.sparsegpt:SparseGPT",
        parameters={
            "percdamp": Parameter(
                float, 0.01, "damping, as a share of the Hessian's mean diagonal", minimum=0.0
            ),
            "blocksize": Parameter(int, 128, "columns per block", minimum=1),
            "reference": _REFERENCE,
        },
        sources=("methods.layerwise.sparsegpt", "methods.moments.factor", "methods.kernels"),
    ),
)

ALLOCATIONS = (
    AllocationEntry(
        name="uniform",
        summary="the same share of every matrix",
        paper="",
        factory="methods.allocate.uniform:Uniform",
        calibrated=False,
    ),
    AllocationEntry(
        name="global",
        summary="one magnitude threshold over the whole model",
        paper="Han et al., arXiv 1506.02626",
        factory="methods.allocate.global_:Global",
        calibrated=False,
    ),
)

REFINEMENTS: tuple[RefinementEntry, ...] = ()

SHORTHANDS: tuple[Shorthand, ...] = ()
