"""Peak memory of a cell by phase, in closed form: what is held at once where the walk is at its widest.

On a CPU it is the anonymous memory of the process, interpreter and libraries included; on a GPU what torch allocates
there. Phases that stream (pruning, perplexity) hold one decoder block: their peak is the larger of what their parts
hold, with `_SLACK` for the allocator's gaps. Slicing has float64
workspaces in place of Hessians. Recovery, zero-shot tasks and decoding hold the model whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from bench.plan.cells import Cell
from bench.plan.formats import sparse_formats
from bench.plan.machine import batch_tokens, scoring_tokens, tile_columns
from bench.plan.work import (
    HELDOUT_WINDOWS,
    ITEMSIZE,
    calibration_tokens,
    evaluation_tokens,
    hessian_columns,
    pruned_shape,
    recovery,
    sensitivities,
    stored_itemsize,
    work_of,
)

if TYPE_CHECKING:
    from methods.interface import ModelShape

__all__ = [
    "BASE",
    "SLACK",
    "evaluation_states",
    "least_terms",
    "outside",
    "phases",
    "prune_states",
    "prune_terms",
]

BASE: Final = 350_000_000
"""Anonymous bytes of a process that has imported torch and transformers, as measured on Linux x86-64."""
SLACK: Final = 1.3
"""Over what a phase that holds the model whole is counted to hold."""
_SLACK: Final = 1.15
_DEVICE_BASE: Final = 64 << 20
"""Work space of the GPU's libraries that torch's allocator holds."""
_LOGITS: Final = 4
"""A tile of logits, its exponentials, and both again for the dense model."""
_ANSWER_BYTES: Final = 4 * (32 << 20)
"""Logits of answers are made in float32 in pieces of 32 MiB, with what is reduced from them."""
_PIECE: Final = 2048
"""Rows of inputs turned to the Hessian's type, or multiplied for errors, at once."""
_FACTORISING: Final = 2.5
"""Matrices of columns x columns: the sum, the factor made in its own memory, half as much while it is inverted."""


def prune_states(cell: Cell, shape: ModelShape) -> int:
    """Bytes of the states of all calibration and held-out windows."""
    return sum(_walked(cell, shape)) * shape.width * ITEMSIZE[cell.dtype]


def evaluation_states(cell: Cell, shape: ModelShape) -> int:
    """Bytes of the states of all windows that perplexity is measured on."""
    return evaluation_tokens(cell, shape)[0] * shape.width * ITEMSIZE[cell.dtype]


def phases(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> dict[str, int]:
    """Peak bytes of every phase of a cell, where its placement (see ``bench.plan.budget``) puts things."""
    from methods import registry
    from methods.families.sizes import parameters

    base = BASE if cell.device == "cpu" else _DEVICE_BASE
    pruning = base if cell.dense else base + int(_SLACK * sum(prune_terms(cell, config, shape).values()))
    whole = max(sensitivities(cell, shape).memory, recovery(cell, shape).memory)
    found = {"prune": max(pruning, BASE + int(SLACK * whole) if whole else 0)}
    if not cell.dense and registry.method(registry.spelling(cell.method).rule).outside:
        found["prune"] = max(found["prune"], outside(cell, shape)[0])
    pruned = pruned_shape(cell, shape)
    size = parameters(pruned) + 2 * shape.vocabulary
    itemsize = ITEMSIZE[cell.dtype]
    for evaluation in cell.evaluations:
        if evaluation == "perplexity":
            found[evaluation] = base + int(_SLACK * _evaluation(cell, shape))
        elif evaluation == "zeroshot":
            found[evaluation] = BASE + int(SLACK * (size * itemsize + _ANSWER_BYTES))
        elif evaluation == "decode":
            # packed models lie beside the dense one, each with outer tensors of its own
            forms = len(sparse_formats(cell.target)) if pruned.slices is None else 0
            found[evaluation] = BASE + int(SLACK * (size + forms * parameters(pruned)) * itemsize)
    return found


def prune_terms(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> dict[str, int]:
    """Bytes that pruning holds at once, by what they are, at the step where they are most."""
    from methods.families import family_of
    from methods.families.sizes import block_parameters

    itemsize = ITEMSIZE[cell.dtype]
    block = block_parameters(shape) * itemsize
    protocol = cell.calibration or cell.heldout
    length = protocol.length if protocol is not None else 0
    batch = _batch(cell, sum(_walked(cell, shape)), length, shape)
    found = {
        "block": block,
        "states": _states(cell, prune_states(cell, shape), 1 + shape.feedforward / shape.width),
    }
    passing = _activations(cell, shape, batch, length)
    if pruned_shape(cell, shape).slices is not None:
        return {**found, "activations": passing, "slicing": _slicing(shape)}
    work, wide = work_of(cell), ITEMSIZE[cell.hessian_dtype]
    family = family_of(shape)
    matrices = {matrix.name: matrix for matrix in family.matrices(shape)}
    gathered = work.products_before or (work.workspace and cell.schedule == "blockwise")
    held = sum(columns**2 for columns, _ in hessian_columns(cell, config, shape)) if gathered else 0
    steps = []
    for stage in family.stages(config):
        linears = [matrices[name] for name in stage.linears]
        columns = linears[0].columns
        square, dense = columns**2 * wide, 4 * max(matrix.size for matrix in linears)
        rows = min(_PIECE, batch)
        held_now = max(work.workspace, _FACTORISING if work.products_before else 0)
        errors = 2 * 4 * sum(matrix.size for matrix in linears)
        errors += 4 * rows * (columns + max(matrix.rows for matrix in linears))
        wider = wide * rows * columns if held_now else 0
        steps += [
            (min(1, held_now) * square, wider, passing),  # inputs are gathered
            (held_now * square, dense, 0),  # solving needs most Hessians
            (min(2, held_now) * square, 3 * dense, 0),  # looking at what came of it most copies of the weight
            (0, errors, passing),  # errors on held-out text
        ]
    hessians, weights, activations = max(steps, key=sum)
    stored = stored_itemsize(cell.model, shape)
    # in float32 what is stored and what goes on are one tensor
    finished = 0 if stored == itemsize == 4 else stored * sum(matrix.size for matrix in matrices.values())
    hessians = int(hessians) + held * wide
    return {
        **found,
        "activations": activations,
        "hessians": hessians,
        "weights": weights,
        "finished": finished,
    }


def least_terms(cell: Cell, shape: ModelShape) -> dict[str, int]:
    """Bytes that streaming cannot do without, which measured peaks are held against: a block, three of the largest
    float32 Hessian, the states of the drawn windows, the token table.
    """
    from methods.families import family_of
    from methods.families.sizes import block_parameters

    itemsize = ITEMSIZE[cell.dtype]
    hessian = 4 * max(matrix.columns for matrix in family_of(shape).matrices(shape)) ** 2
    return {
        "block": block_parameters(shape) * itemsize,
        "hessians": 3 * hessian if work_of(cell).workspace else 0,
        "states": calibration_tokens(cell, shape)[0] * shape.width * itemsize,
        "embedding": shape.vocabulary * shape.embedding_width * itemsize,
    }


def outside(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Bytes of memory and disk that another program takes where one does the work; this one waits meanwhile.

    It holds the model whole in float32, a Hessian for every matrix of a block, and states of all windows; a copy
    of the model and its result lie on disk.
    """
    from methods import registry
    from methods.families import family_of
    from methods.families.sizes import parameters

    if cell.dense or not registry.method(registry.spelling(cell.method).rule).outside:
        return 0, 0
    matrices = family_of(shape).matrices(shape)
    hessians = sum(matrix.columns**2 for matrix in matrices) if work_of(cell).workspace else 0
    states = 2 * calibration_tokens(cell, shape)[0] * shape.width
    size = parameters(shape)
    return BASE + int(SLACK * 4 * (size + hessians + states)), 2 * 4 * size


def _evaluation(cell: Cell, shape: ModelShape) -> int:
    """Blocks pass first; then the head's table is read, once where the dense model has the same."""
    from methods.families.sizes import block_parameters

    itemsize = ITEMSIZE[cell.dtype]
    block = block_parameters(shape) * itemsize
    tokens, length = evaluation_tokens(cell, shape)
    batch = _batch(cell, tokens, length, shape, scored=True)
    states = _states(cell, evaluation_states(cell, shape))
    passing = block + _activations(cell, shape, batch, length)
    tables = 1 if pruned_shape(cell, shape).slices is None else 2
    scoring = tables * shape.vocabulary * shape.embedding_width * itemsize + _logits(cell, batch, shape)
    return states + max(passing, scoring + 2 * batch * shape.width * itemsize)


def _logits(cell: Cell, batch: int, shape: ModelShape) -> int:
    columns = min(shape.vocabulary, tile_columns(batch, on_cuda=cell.device != "cpu"))
    # the sums of every tile are kept until the last: float32, then float64 of both models
    return batch * (_LOGITS * 4 * columns + 24 * -(-shape.vocabulary // columns))


def _walked(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Tokens of the drawn and of the held-out windows; without calibration the held-out ones are walked alone."""
    if cell.calibration is None and cell.heldout is not None:
        return 0, HELDOUT_WINDOWS * (cell.heldout.length or shape.positions)
    return calibration_tokens(cell, shape)


def _batch(cell: Cell, tokens: int, length: int, shape: ModelShape, *, scored: bool = False) -> int:
    """Tokens of a forward batch: whole windows, one at least."""
    window = length or shape.positions
    most = cell.placement.batch_tokens or batch_tokens(cell.device)
    if scored:
        most = scoring_tokens(most, on_cuda=cell.device != "cpu")
    return min(max(window, most // window * window), max(tokens, window))


def _activations(cell: Cell, shape: ModelShape, batch: int, length: int) -> int:
    itemsize, length = ITEMSIZE[cell.dtype], length or shape.positions
    bias = 2 * shape.heads * length**2 if shape.family == "bloom" else 0
    return (batch * (2 * shape.feedforward + 4 * shape.width) + bias) * itemsize


def _states(cell: Cell, size: int, carried: float = 1.0) -> int:
    """States in the memory that is counted: none of them on disk, or on the host where the cell runs on a GPU.

    ``carried``: with what is kept between two stages, at most, of every window; the feed-forward's inside is widest.
    """
    if cell.device != "cpu" and not cell.placement.device_states:
        return 0
    return min(int(carried * size), cell.hidden_budget) if size <= cell.hidden_budget else 0


def _slicing(shape: ModelShape) -> int:
    """Two bases, the Gram matrix, its eigenvectors and the solver's workspace; a linear, folded and rotated: float64."""
    return 8 * (7 * shape.width**2 + 2 * shape.feedforward * shape.width)
