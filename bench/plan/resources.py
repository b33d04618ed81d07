"""What a cell will need, in closed form from the model's sizes: download, disk, memory and, roughly, time.

Nothing is loaded. Memory follows the walk, one decoder block at a time:
base + 1.3 x (two blocks + Hessian workspace + hidden states + activations of a batch + the token table +
logits + the dense model's last states, which divergence is measured against). Slicing has float64 workspaces in
place of Hessians, and what it writes and what is evaluated is the narrower model. Recovery holds the model whole,
with gradients and moments of what trains; a gradual schedule prunes once a stage.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.plan import saving
from bench.plan.capacity import Machine, machine
from bench.plan.cells import Cell, Plan
from bench.plan.formats import sparse_formats
from bench.plan.machine import batch_tokens
from bench.plan.suites import tasks_of

if TYPE_CHECKING:
    from methods.interface import ModelShape
    from methods.recover.cost import Cost as Training
    from methods.sensitivity.cost import Cost

__all__ = [
    "Estimate",
    "estimate",
    "fit",
    "needs",
]

_BASE = 350_000_000
"""Anonymous bytes of a process that has imported torch and transformers, as measured on Linux x86-64."""
_SLACK = 1.3
_TOKENS = {"wikitext2": 300_000, "ptb": 110_000, "c4": 524_288, "kjv": 60_000}
"""Rough token counts of whole evaluation texts; for the time estimate only."""
_HELDOUT_WINDOWS = 8
_LOGIT_BYTES = 3 * (24 << 20)
"""Logits are made in pieces of 24 MiB; their softmax and the dense model's stand beside them."""
_TASK_ITEMS = 2000
"""Rough items of a zero-shot task, and tokens scored per item; for the time estimate only."""
_ITEM_TOKENS = 75
"""Shared beginnings counted once: 73 in the mean over the eleven standard tasks with SmolLM2's tokenizer."""
_ANSWER_BYTES = 4 * (32 << 20)
"""Logits of answers are made in float32 in pieces of 32 MiB, with what is reduced from them."""
_ITEMSIZE = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Needs of a cell; ``download_bytes`` is 0 for a model on disk, ``seconds`` None without a rate."""

    download_bytes: int
    disk_bytes: int
    """Under the run's folder while the cell runs: pruned blocks or the dense last states, hidden states, saved copies."""
    memory_bytes: int
    """Host memory, or memory of the GPU where the cell runs on one."""
    flops: float
    seconds: float | None = None
    saved_bytes: int = 0
    """Of the disk, what stays: the pruned model in the forms asked for."""


def estimate(cell: Cell, *, rate: float | None = None, saved: tuple[str, ...] = ()) -> Estimate:
    """Needs of one cell, kept in the forms ``saved``; ``rate`` in FLOP/s, as from ``measured_rate``, gives it a time."""
    config, shape = _sizes(cell.model)
    flops = _flops(cell, config, shape)
    kept = _saved_bytes(cell, shape, saved)
    return Estimate(
        download_bytes=_download(cell.model),
        disk_bytes=_disk(cell, shape) + kept,
        memory_bytes=_memory(cell, config, shape),
        flops=flops,
        seconds=None if rate is None else flops / rate,
        saved_bytes=kept,
    )


def fit(plan: Plan, there: Machine | None = None, stored: Collection[Cell] = ()) -> Plan:
    """The plan with those cells refused, figures in the reason, that need more than the machine has.

    A download beyond what may pass unasked is refused without ``--yes``. ``stored`` cells need nothing.
    """
    reasons: dict[Cell, str] = {}
    elsewhere = plan.settings.ray_address is not None
    saved = 0
    fetched: dict[str, int] = {}
    for cell in plan.cells:
        if cell in stored:
            continue
        free = there or machine(plan.settings.out, "cpu" if elsewhere else cell.device)
        if elsewhere:
            free = replace(free, memory=sys.maxsize)  # the executor asks the nodes
        need = estimate(cell, saved=plan.settings.saved)
        download = 0 if cell.model in fetched else need.download_bytes
        pending = sum(fetched.values())
        reason = _withheld(cell.model) or needs(
            need, free, saved=saved, pending=pending, yes=plan.settings.yes, model=cell.model
        )
        if reason:
            reasons[cell] = reason
            continue
        if download:
            fetched[cell.model] = download
        saved += need.saved_bytes
    return plan.refuse(reasons)


def needs(
    need: Estimate, free: Machine, *, saved: int = 0, pending: int = 0, yes: bool = False, model: str = ""
) -> str | None:
    """Why the machine cannot serve a cell, or None; ``saved``, ``pending``: bytes that earlier cells take."""
    from bench.models.hub import ASK_FROM

    if need.memory_bytes > free.memory:
        return f"needs about {_size(need.memory_bytes)} of memory, {_size(free.memory)} are free"
    if need.download_bytes > ASK_FROM and not yes:
        return f"downloads {_size(need.download_bytes)}; add --yes, or run: bench pull {model} --yes"
    if need.download_bytes + pending > free.cache:
        left = max(0, free.cache - pending)
        return f"needs {_size(need.download_bytes)} of disk for the model, {_size(left)} are free"
    disk = need.disk_bytes + saved + (need.download_bytes + pending if free.one_disk else 0)
    if disk > free.disk:
        return f"needs about {_size(disk)} of disk, {_size(free.disk)} are free"
    return None


@cache
def _sizes(model: str) -> tuple[Mapping[str, Any], ModelShape]:
    from bench.plan.cells import config_of

    return config_of(model)


def _download(model: str) -> int:
    from bench.models import registry
    from bench.models.load import cached

    if registry.is_path(model) or cached(model):
        return 0
    return registry.get(model).download_bytes


def _withheld(model: str) -> str:
    """Why a run cannot fetch the model's weights, or an empty string."""
    from bench.models import registry
    from bench.models.load import cached

    if registry.is_path(model) or cached(model):
        return ""
    entry = registry.get(model)
    # Only `bench pull` converts pickled weights, in a process of its own.
    pickled = f"{model} ships pickled weights only; run: bench pull {model}" if entry.bin_only else ""
    return entry.withheld or pickled


def _calibration_tokens(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Tokens of the drawn and of the held-out windows."""
    if cell.calibration is None:
        return 0, 0
    length = cell.calibration.length or shape.positions
    return cell.calibration.samples * length, _HELDOUT_WINDOWS * length


def _evaluation_tokens(cell: Cell, shape: ModelShape) -> tuple[int, int]:
    """Tokens read for perplexity, and the window's length."""
    length = cell.evaluation.length or shape.positions
    if "perplexity" not in cell.evaluations:
        return 0, length
    windows = cell.evaluation.windows
    whole = _TOKENS.get(cell.evaluation.dataset, 300_000)
    return (whole if windows is None else min(whole, windows * length)), length


def _pruned(cell: Cell, shape: ModelShape) -> ModelShape:
    """Sizes of the model that the cell stores and evaluates."""
    from methods.target import Target

    pruner = saving.reshaping(cell)
    return shape if pruner is None else pruner.pruned_shape(shape, Target.parse(cell.target))


def _hessian_columns(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> list[tuple[int, int]]:
    """(columns, rows that share it) of every Hessian in a block."""
    from methods.families import family_of

    if not _calibrated(cell) or _pruned(cell, shape).slices is not None:
        return []
    family = family_of(shape)
    matrices = {matrix.name: matrix for matrix in family.matrices(shape)}
    stages = [[matrices[name] for name in stage.linears] for stage in family.stages(config)]
    return [(linears[0].columns, sum(matrix.rows for matrix in linears)) for linears in stages]


def _calibrated(cell: Cell) -> bool:
    """Whether the pruning itself reads calibration text; training behind it always does."""
    from methods import registry

    return cell.calibration is not None and (not cell.recovery or registry.calibrated(cell.method))


def _recovery(cell: Cell, shape: ModelShape) -> Training:
    """What training takes where the cell has any."""
    from methods import registry
    from methods.recover.cost import Cost, cost

    if cell.calibration is None or not cell.recovery:
        return Cost(0, 0, 0.0)
    heldout = _calibration_tokens(cell, shape)[1]
    length = cell.calibration.length or shape.positions
    kind = registry.recovery(cell.recovery).kind
    return cost(_pruned(cell, shape), kind, dict(cell.parameters), length, heldout)


def _hidden_bytes(cell: Cell, shape: ModelShape) -> int:
    drawn, heldout = _calibration_tokens(cell, shape)
    tokens = max(drawn + heldout, _evaluation_tokens(cell, shape)[0])
    return tokens * shape.width * _ITEMSIZE[cell.dtype]


def _memory(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> int:
    from methods.families.sizes import block_parameters

    itemsize = _ITEMSIZE[cell.dtype]
    columns = [width for width, _ in _hessian_columns(cell, config, shape)]
    work = _work(cell)
    workspace = max(work.workspace, 3 if work.products_before else 0) * max(columns, default=0) ** 2
    if work.products_before or (work.workspace and cell.schedule == "blockwise"):
        # All Hessians of a block are held at once.
        workspace += sum(width**2 for width in columns)
    sliced = _pruned(cell, shape).slices is not None
    table = shape.vocabulary * shape.embedding_width * itemsize
    evaluated = _evaluation_tokens(cell, shape)[0]
    batch = min(batch_tokens(cell.device), max(evaluated, _calibration_tokens(cell, shape)[0]))
    activations = batch * (2 * shape.feedforward + 4 * shape.width) * itemsize
    states = 2 * evaluated * shape.width * itemsize
    parts = (
        2 * block_parameters(shape) * itemsize
        + workspace * _ITEMSIZE[cell.hessian_dtype]
        + (_slicing_bytes(shape) if sliced else 0)
        + min(_hidden_bytes(cell, shape), cell.hidden_budget)
        + activations
        + table
        + _LOGIT_BYTES
        + states
    )
    whole = max(_whole_model(cell, shape), _sensitivities(cell, shape).memory, _recovery(cell, shape).memory)
    ours = _BASE + int(_SLACK * max(parts, whole))
    return max(ours, _BASE + _outside(cell, shape)[0])


def _sensitivities(cell: Cell, shape: ModelShape) -> Cost:
    """What mixed sparsity's sensitivities take where the cell has them estimated."""
    from methods.sensitivity.cost import Cost, cost

    set_to = dict(cell.parameters)
    if cell.calibration is None or "mixed.estimator" not in set_to or set_to["mixed.file"]:
        return Cost(0, 0, 0.0)
    drawn = cell.calibration.length or shape.positions
    length = min(drawn, 256)
    windows = min(int(set_to["mixed.windows"]), cell.calibration.samples * (drawn // length))
    probes = int(set_to["mixed.probes"])
    return cost(shape, str(set_to["mixed.estimator"]), probes, windows, length, cell.hidden_budget)


def _slicing_bytes(shape: ModelShape) -> int:
    """Two bases, the Gram matrix, its eigenvectors and the solver's workspace; a linear, folded and rotated: float64."""
    return 8 * (7 * shape.width**2 + 2 * shape.feedforward * shape.width)


def _outside(cell: Cell, shape: ModelShape) -> tuple[int, int]:
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
    hessians = sum(matrix.columns**2 for matrix in matrices) if _work(cell).workspace else 0
    states = 2 * _calibration_tokens(cell, shape)[0] * shape.width
    size = parameters(shape)
    return _BASE + int(_SLACK * 4 * (size + hessians + states)), 2 * 4 * size


def _whole_model(cell: Cell, shape: ModelShape) -> int:
    """Bytes of the model in memory with the logits made at a time, where a phase needs it whole."""
    from methods.families.sizes import parameters

    if not {"zeroshot", "decode"} & set(cell.evaluations):
        return 0
    pruned = _pruned(cell, shape)
    size = parameters(pruned) + 2 * shape.vocabulary
    if "decode" in cell.evaluations and pruned.slices is None:
        # packed models lie beside the dense one, each with outer tensors of its own
        size += len(sparse_formats(cell.target)) * parameters(pruned)
    return size * _ITEMSIZE[cell.dtype] + (_ANSWER_BYTES if "zeroshot" in cell.evaluations else 0)


def _disk(cell: Cell, shape: ModelShape) -> int:
    from methods.families.sizes import parameters

    spilt = max(0, 2 * _hidden_bytes(cell, shape) - cell.hidden_budget)
    spilt = max(spilt, _sensitivities(cell, shape).spilt)
    itemsize = _ITEMSIZE[cell.dtype]
    states = _evaluation_tokens(cell, shape)[0] * shape.width * itemsize
    own = states if cell.dense else parameters(_pruned(cell, shape)) * itemsize
    # beside the result: a pruned model, its training's state, and what the stage before left
    stages = own * _stages(cell) + _recovery(cell, shape).state
    return spilt + own + stages + _outside(cell, shape)[1]


def _stages(cell: Cell) -> int:
    """Models that lie under the run's folder beside the result while a recovery runs."""
    from methods import registry

    return min(2, registry.recovery(cell.recovery).stages) if cell.recovery else 0


def _saved_bytes(cell: Cell, shape: ModelShape, asked: tuple[str, ...]) -> int:
    forms = [form for form in saving.forms_of(cell, asked) if saving.refused(cell, form) is None]
    if not forms:
        return 0
    pruned = replace(_pruned(cell, shape), itemsize=_stored_itemsize(cell.model, shape))
    return sum(saving.saved_bytes(cell, pruned, form) for form in forms)


def _stored_itemsize(model: str, shape: ModelShape) -> int:
    """Bytes of a weight on disk: as the config says, or as a download of two bytes a parameter shows."""
    from bench.models import registry

    if registry.is_path(model):
        return shape.itemsize
    entry = registry.get(model)
    return 2 if 1.9 < entry.download_bytes / entry.parameters < 2.1 else shape.itemsize


@dataclass(frozen=True, slots=True)
class _Work:
    """What a cell's method declares of its work: see ``methods.entries``."""

    workspace: int = 0
    products: int = 0
    passes_before: int = 0
    products_before: int = 0


def _work(cell: Cell) -> _Work:
    from methods import registry

    if cell.dense or not _calibrated(cell):
        return _Work()
    parts = registry.spelling(cell.method)
    entry = registry.method(parts.rule)
    allocation = registry.allocations()[parts.allocation or "uniform"]
    return _Work(entry.workspace, entry.products, allocation.passes, allocation.products)


def _flops(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> float:
    """Evaluation and training; forward passes, Hessians (2 n d² each), factorisations (3 d³), products such as sweeps (2 r d²).

    Slicing: a Gram matrix and a lift (2 n d² each) and an eigendecomposition (9 d³) for each of two segments a
    block; every matrix is rotated once.
    """
    from methods import registry
    from methods.families.sizes import flops_per_token

    tokens, length = _evaluation_tokens(cell, shape)
    if "zeroshot" in cell.evaluations:
        tokens += len(tasks_of(cell.tasks)) * (cell.limit or _TASK_ITEMS) * _ITEM_TOKENS * (1 + cell.shots)
    sliced = _pruned(cell, shape)
    total = float(tokens * flops_per_token(sliced, length)) + _recovery(cell, shape).flops
    if cell.calibration is None:
        return total
    if cell.recovery:
        return total + registry.recovery(cell.recovery).stages * _pruning_flops(cell, config, shape)
    return total + _pruning_flops(cell, config, shape)


def _pruning_flops(cell: Cell, config: Mapping[str, Any], shape: ModelShape) -> float:
    """Of pruning once."""
    from methods.families.sizes import flops_per_token, prunable

    if cell.calibration is None:
        return 0.0
    sliced = _pruned(cell, shape)
    total = 0.0
    drawn, heldout = _calibration_tokens(cell, shape)
    passes = 2 if cell.schedule == "blockwise" else 1
    head = 2 * shape.vocabulary * shape.embedding_width
    per_token = flops_per_token(shape, cell.calibration.length or shape.positions) - head
    work = _work(cell)
    total += (passes * (drawn + heldout) + work.passes_before * drawn) * per_token
    if sliced.slices is not None:
        width = shape.width
        rotations = 2 * (prunable(shape) + 2 * shape.vocabulary * width) * width
        return total + rotations + 2 * shape.blocks * (4 * drawn * width**2 + 9 * width**3)
    for products in (work.products, work.products_before):
        for columns, rows in _hessian_columns(cell, config, shape) if products else ():
            once = 2 * drawn * columns**2 + 3 * columns**3 + products * 2 * rows * columns**2
            total += shape.blocks * once
    return total + _sensitivities(cell, shape).flops


def _size(count: int) -> str:
    from bench.models.cache import readable_size

    return readable_size(count)
