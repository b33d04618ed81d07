"""Our own entries of the registry. Free of torch."""

from __future__ import annotations

from methods.entries import AllocationEntry, Method, Parameter, RefinementEntry, Shorthand

__all__ = ["ALLOCATIONS", "METHODS", "REFINEMENTS", "SHORTHANDS"]

_REFERENCE = Parameter(
    bool, False, "follow the published code to the letter (one weight more per block, ties)"
)

_LLMCOMPRESSOR = "methods.external.llmcompressor"
_OUTSIDE = {
    "python": Parameter(
        str,
        "",
        "interpreter of the environment that holds llm-compressor, instead of BENCH_LLMCOMPRESSOR_PYTHON",
        local=True,
    ),
    "silence": Parameter(
        int,
        3600,
        "seconds without a sign of life after which it is ended",
        minimum=1,
        maximum=10_000_000,
        local=True,
    ),
}
_BATCH = {"batch": Parameter(int, 1, "windows per forward pass", minimum=1)}

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
    Method(
        name="llmcompressor-sparsegpt",
        summary="llm-compressor's SparseGPT, in a Python environment of its own",
        paper="Frantar and Alistarh, arXiv 2301.00774",
        factory=f"{_LLMCOMPRESSOR}.pruner:sparsegpt",
        layerwise=False,
        parameters={
            "percdamp": Parameter(
                float, 0.01, "damping, as a share of the Hessian's mean diagonal", minimum=0.0
            ),
            "blocksize": Parameter(int, 128, "columns per block", minimum=1),
            **_BATCH,
            **_OUTSIDE,
        },
        sources=(_LLMCOMPRESSOR,),
        outside=f"{_LLMCOMPRESSOR}.interpreter:outside",
    ),
    Method(
        name="llmcompressor-wanda",
        summary="llm-compressor's Wanda, in a Python environment of its own",
        paper="Sun et al., arXiv 2306.11695",
        factory=f"{_LLMCOMPRESSOR}.pruner:wanda",
        layerwise=False,
        parameters={**_BATCH, **_OUTSIDE},
        sources=(_LLMCOMPRESSOR,),
        outside=f"{_LLMCOMPRESSOR}.interpreter:outside",
    ),
    Method(
        name="llmcompressor-magnitude",
        summary="llm-compressor's magnitude pruning, in a Python environment of its own",
        paper="Han et al., arXiv 1506.02626",
        factory=f"{_LLMCOMPRESSOR}.pruner:magnitude",
        layerwise=False,
        calibrated=False,
        parameters=_OUTSIDE,
        sources=(_LLMCOMPRESSOR,),
        outside=f"{_LLMCOMPRESSOR}.interpreter:outside",
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
