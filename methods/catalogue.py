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
            "saliency": Parameter(
                str,
                "obs",
                "what ranks weights: obs (w²/[H⁻¹]), isc (w²(H + 1/[H⁻¹])), isc-literal (the whole H's inverse)",
                choices=("obs", "isc", "isc-literal"),
            ),
            "reference": _REFERENCE,
        },
        sources=(
            "methods.layerwise.sparsegpt",
            "methods.layerwise.saliency",
            "methods.moments.factor",
            "methods.kernels",
        ),
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
    AllocationEntry(
        name="mixed",
        summary="what the loss's curvature feels most keeps most",
        paper="Shao et al., arXiv 2310.09499",
        factory="methods.allocate.mixed:Mixed",
        parameters={
            "alpha": Parameter(
                float,
                0.1,
                "shares run from p + alpha (least sensitive) to p - alpha; choose it on validation text",
                minimum=0.0,
                maximum=0.5,
            ),
            "level": Parameter(
                str, "matrix", "what is ranked: matrices, or layers whole", choices=("matrix", "layer")
            ),
            "estimator": Parameter(
                str,
                "fisher",
                "fisher streams; hutchinson: exact products, the whole model in memory; inputs: XᵀX alone, cheap",
                choices=("fisher", "hutchinson", "inputs"),
            ),
            "probes": Parameter(int, 8, "independent estimates that are averaged", minimum=1, maximum=10_000),
            "windows": Parameter(
                int, 16, "windows of 256 tokens that a probe reads", minimum=1, maximum=10_000
            ),
            "file": Parameter(
                str,
                "",
                "sensitivities to use, or a folder of them, such as another run's OUT/sensitivities",
                file=True,
            ),
            "paper_literal": Parameter(
                bool, False, "the paper's shares as they are: their mean over matrices is p, not over weights"
            ),
        },
        sources=("methods.allocate.shares", "methods.sensitivity"),
    ),
)

REFINEMENTS: tuple[RefinementEntry, ...] = ()

SHORTHANDS = (
    Shorthand(
        name="mixed",
        summary="one-shot sensitivity-aware mixed sparsity",
        spelling="sparsegpt@mixed",
        parameters={"saliency": "isc"},
    ),
)
