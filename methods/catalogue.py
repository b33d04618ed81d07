"""Our own entries of the registry. Free of torch."""

from __future__ import annotations

from methods.entries import AllocationEntry, Method, Parameter, RecoveryEntry, RefinementEntry, Shorthand
from methods.external import catalogue as external

__all__ = ["ALLOCATIONS", "METHODS", "RECOVERIES", "REFINEMENTS", "SHORTHANDS"]

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
            "grid": Parameter(
                str,
                "minmax",
                "how grids are made (--bits): spanning the weights, or shrunk to the least squared error",
                choices=("minmax", "mse"),
                grids=True,
            ),
            "groupsize": Parameter(
                int,
                0,
                "columns of a row that share a grid (--bits); 0 is the whole row",
                minimum=0,
                grids=True,
            ),
            "reference": _REFERENCE,
        },
        sources=(
            "methods.layerwise.sparsegpt",
            "methods.layerwise.saliency",
            "methods.moments.factor",
            "methods.quantise",
            "methods.kernels",
        ),
    ),
    Method(
        name="wanda",
        summary="weights times the norms of their inputs, compared within each row; nothing else moves",
        paper="Sun et al., arXiv 2306.11695",
        factory="methods.layerwise.wanda:Wanda",
        parameters={
            "reference": Parameter(
                bool, False, "follow the published code: every row loses its share rounded down"
            )
        },
        workspace=0,
        products=0,
    ),
    Method(
        name="ria",
        summary="a weight's share of its row and column, times a power of its input's norm; nothing else moves",
        paper="Zhang et al., Plug-and-Play, ICLR 2024",
        factory="methods.layerwise.ria:RIA",
        parameters={
            "power": Parameter(float, 0.5, "exponent of the input's norm", minimum=0.0),
            "per_row": Parameter(bool, False, "compare within rows, not over the matrix"),
            "reference": _REFERENCE,
        },
        workspace=0,
        products=0,
    ),
    Method(
        name="alps",
        summary="layer-wise least squares under the budget, by ADMM and conjugate gradients",
        paper="Meng et al., arXiv 2406.07831",
        factory="methods.layerwise.alps:ALPS",
        parameters={
            "percdamp": Parameter(
                float, 0.01, "damping, as a share of the Hessian's mean diagonal", minimum=0.0
            ),
            "rho": Parameter(float, 0.1, "first penalty of ADMM", minimum=1e-6, maximum=1e6),
            "iterations": Parameter(int, 300, "of ADMM at most", minimum=1),
            "steps": Parameter(int, 10, "of conjugate gradients on the support found", minimum=0),
        },
        workspace=14,
        products=90,
    ),
    Method(
        name="slicegpt",
        summary="the residual stream keeps its principal directions; every matrix gets narrower",
        paper="Ashkboos et al., arXiv 2401.15024",
        factory="methods.slicing.pruner:SliceGPT",
        layerwise=False,
        parameters={
            "round_interval": Parameter(
                int, 8, "widths are rounded down to multiples of this", minimum=1, maximum=65536
            ),
            "slice_head": Parameter(bool, False, "slice the last block's output and the head too"),
            "orientation": Parameter(
                str,
                "pca",
                "kept directions as the PCA orders them, or turned at random",
                choices=("pca", "random"),
            ),
            "slope": Parameter(
                float,
                0.0,
                "by how much the sliced share grows from first to last layer (0: constant schedule)",
                minimum=-1.0,
                maximum=1.0,
            ),
        },
        sources=("methods.slicing",),
        default_target="slice25%",
        targets=("slice",),
        scheduled=False,
    ),
    *external.METHODS,
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
        name="owl",
        summary="blocks with more outlying scores |W|·|X| keep more",
        paper="Yin et al., arXiv 2310.05175",
        factory="methods.allocate.owl:OWL",
        parameters={
            "multiple": Parameter(
                float, 5.0, "a score this many times the block's mean is an outlier", minimum=1.0
            ),
            "lambda": Parameter(
                float,
                0.08,
                "half of the widest difference between two blocks' shares",
                minimum=0.0,
                maximum=0.5,
            ),
        },
        sources=("methods.allocate.shares", "methods.layerwise.wanda"),
        passes=1,
    ),
    AllocationEntry(
        name="levels",
        summary="the least sum of relative layer errors, looked up in a database of every matrix at several sparsities",
        paper="after Frantar and Alistarh, arXiv 2201.13096",
        factory="methods.allocate.levels:Levels",
        parameters={
            "rule": Parameter(
                str,
                "sparsegpt",
                "whose errors, on dense inputs, the database holds",
                choices=("magnitude", "wanda", "ria", "sparsegpt", "alps"),
            ),
            "steps": Parameter(int, 10, "levels are multiples of 1/steps, and 95 %", minimum=2, maximum=100),
        },
        sources=(
            "methods.allocate.shares",
            "methods.allocate.database",
            "methods.layerwise",
            "methods.kernels",
        ),
        passes=1,
        products=20,
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
            "probes": Parameter(int, 8, "independent estimates that are averaged", minimum=1, maximum=512),
            "windows": Parameter(int, 16, "windows of 256 tokens that a probe reads", minimum=1, maximum=512),
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

REFINEMENTS = (
    RefinementEntry(
        name="dsnot",
        summary="swaps within each row that cancel its expected output error",
        paper="Zhang et al., arXiv 2310.08915",
        factory="methods.refine.dsnot:DSnoT",
        parameters={
            "cycles": Parameter(
                int,
                50,
                "exchanges of a row at most; 50 is for 4,096 columns, narrower ones want fewer",
                minimum=0,
            ),
            "threshold": Parameter(
                float,
                0.1,
                "a row with no larger error, summed over a window's tokens, is left alone",
                minimum=0.0,
            ),
            "power": Parameter(float, 1.0, "exponent of the variance that regrowing divides by", minimum=0.0),
        },
    ),
)


def _training(lr: float) -> dict[str, Parameter]:
    """What every recovery can be told of its training."""
    return {
        "steps": Parameter(
            int, 300, "of AdamW, all stages of --gradual together", minimum=1, maximum=10_000_000
        ),
        "lr": Parameter(float, lr, "highest learning rate; choose it on validation text", minimum=1e-9),
        "batch": Parameter(int, 8, "calibration windows of a step", minimum=1, maximum=65536),
        "warmup": Parameter(
            float, 0.05, "share of the steps over which the rate rises", minimum=0.0, maximum=1.0
        ),
    }


_RECOVER = ("methods.recover", "methods.inference.assemble", "methods.slicing.modeling")

RECOVERIES = (
    RecoveryEntry(
        name="lora",
        summary="low-rank updates of the pruned matrices, masked as they train and merged in the end",
        paper="Hu et al., arXiv 2106.09685; masked as in Zimmer et al., arXiv 2312.15230",
        factory="methods.recover.lora:LoRA",
        parameters={
            "rank": Parameter(int, 8, "of the updates", minimum=1, maximum=65536),
            "alpha": Parameter(float, 16.0, "the updates count alpha / rank times", minimum=1e-6),
            **_training(1e-3),
        },
        sources=_RECOVER,
        libraries=("transformers", "peft"),
    ),
    RecoveryEntry(
        name="full",
        summary="every weight that stayed trains under its mask, and norms and biases",
        paper="after Han et al., arXiv 1506.02626",
        factory="methods.recover.full:Full",
        parameters=_training(1e-4),
        sources=_RECOVER,
    ),
)

SHORTHANDS = (
    Shorthand(
        name="mixed",
        summary="one-shot sensitivity-aware mixed sparsity",
        spelling="sparsegpt@mixed",
        parameters={"saliency": "isc"},
    ),
)
