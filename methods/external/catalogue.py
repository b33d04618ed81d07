"""Registry entries of other implementations. Free of torch."""

from __future__ import annotations

from methods.entries import Method, Parameter

__all__ = ["METHODS"]

_LLMCOMPRESSOR = "methods.external.llmcompressor"
_SOURCES = (_LLMCOMPRESSOR,)
_VERSIONS = f"{_LLMCOMPRESSOR}.interpreter:outside"
_ELSEWHERE = {
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
            **_ELSEWHERE,
        },
        sources=_SOURCES,
        outside=_VERSIONS,
    ),
    Method(
        name="llmcompressor-wanda",
        summary="llm-compressor's Wanda, in a Python environment of its own",
        paper="Sun et al., arXiv 2306.11695",
        factory=f"{_LLMCOMPRESSOR}.pruner:wanda",
        layerwise=False,
        parameters={**_BATCH, **_ELSEWHERE},
        sources=_SOURCES,
        outside=_VERSIONS,
        workspace=0,
        products=0,
    ),
    Method(
        name="llmcompressor-magnitude",
        summary="llm-compressor's magnitude pruning, in a Python environment of its own",
        paper="Han et al., arXiv 1506.02626",
        factory=f"{_LLMCOMPRESSOR}.pruner:magnitude",
        layerwise=False,
        calibrated=False,
        parameters=_ELSEWHERE,
        sources=_SOURCES,
        outside=_VERSIONS,
        workspace=0,
        products=0,
    ),
)
