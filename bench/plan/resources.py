"""What a cell will need, in closed form from the model's sizes: download, disk, memory and, roughly, time.

Nothing is loaded. Memory (``bench.plan.memory``) follows the walk, one decoder block at a time. What slicing writes and
what is evaluated of it is the narrower model. Recovery holds the model whole; a gradual schedule prunes once a stage.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from bench.plan import durations, memory, saving
from bench.plan.budget import TooSmall, host_bytes, place
from bench.plan.capacity import Machine, machine
from bench.plan.cells import Cell, Plan
from bench.plan.rates import Rates
from bench.plan.settings import Settings
from bench.plan.work import (
    ITEMSIZE,
    evaluation_tokens,
    pruned_shape,
    recovery,
    sensitivities,
    sizes_of,
    stages,
    stored_itemsize,
)

if TYPE_CHECKING:
    from methods.interface import ModelShape

__all__ = [
    "Estimate",
    "estimate",
    "fit",
    "needs",
]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Needs of a cell; ``download_bytes`` is 0 for a model on disk, ``seconds`` None without rates."""

    download_bytes: int
    disk_bytes: int
    """Under the run's folder while the cell runs: pruned blocks or the dense last states, hidden states, saved copies."""
    memory_bytes: int
    """Memory of the host, or of the GPU where the cell runs on one."""
    flops: float
    seconds: float | None = None
    saved_bytes: int = 0
    """Of the disk, what stays: the pruned model in the forms asked for."""
    host_bytes: int = 0
    """Memory of the host where the cell runs on a GPU."""
    states_bytes: int = 0
    """Hidden states of all windows, wherever they lie."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Peak bytes by phase."""
    durations: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase; empty without rates."""


def estimate(cell: Cell, *, rates: Rates | None = None, saved: tuple[str, ...] = ()) -> Estimate:
    """Needs of one cell, kept in the forms ``saved``; ``rates`` give it a time."""
    config, shape = sizes_of(cell.model)
    kept = _saved_bytes(cell, shape, saved)
    peaks = memory.phases(cell, config, shape)
    took = durations.seconds(cell, config, shape, rates) if rates is not None else {}
    return Estimate(
        download_bytes=_download(cell.model),
        disk_bytes=_disk(cell, shape) + kept,
        memory_bytes=max(peaks.values()),
        flops=sum(sum(both) for both in durations.flops(cell, config, shape).values()),
        seconds=None if rates is None else sum(took.values()),
        saved_bytes=kept,
        host_bytes=host_bytes(cell),
        states_bytes=max(memory.prune_states(cell, shape), memory.evaluation_states(cell, shape)),
        memory=peaks,
        durations=took,
    )


def fit(plan: Plan, there: Machine | None = None, stored: Collection[Cell] = ()) -> Plan:
    """The plan with every cell placed in the memory there is, and those refused, figures in the reason, that need more
    than the machine has or ``--memory-budget`` allows.

    A download beyond what may pass unasked is refused without ``--yes``; a plan for another machine downloads nothing.
    ``stored`` cells need nothing.
    """
    elsewhere = plan.settings.rates
    reasons: dict[Cell, str] = {}
    cells: list[Cell] = []
    cluster = plan.settings.ray_address is not None
    saved = 0
    fetched: dict[str, int] = {}
    for asked in plan.cells:
        if asked in stored:
            cells.append(asked)
            continue
        free = there or (
            elsewhere.machine if elsewhere else machine(plan.settings.out, "cpu" if cluster else asked.device)
        )
        if cluster:
            free = replace(free, memory=sys.maxsize)  # the executor asks the nodes
        cell, reason = _placed(asked, free, plan.settings)
        cells.append(cell)
        need = estimate(cell, saved=plan.settings.saved)
        download = 0 if cell.model in fetched or elsewhere else need.download_bytes
        if elsewhere:
            need = replace(need, download_bytes=0)
        pending = sum(fetched.values())
        reason = reason or needs(
            need, free, saved=saved, pending=pending, yes=plan.settings.yes, model=cell.model
        )
        reason = ("" if elsewhere else _withheld(cell.model)) or reason
        if reason:
            reasons[cell] = reason
            continue
        if download:
            fetched[cell.model] = download
        saved += need.saved_bytes
    return replace(plan, cells=tuple(cells)).refuse(reasons)


def _placed(cell: Cell, free: Machine, settings: Settings) -> tuple[Cell, str | None]:
    """The cell in a placement that fits, or as it is with the reason why a budget that was asked for is too small."""
    budget = settings.memory_budget
    told = budget > 0 or settings.rates is not None
    roomy = told and "hidden_budget" not in settings.model_fields_set
    allowed = min(budget or free.memory, free.memory)
    try:
        return place(cell, allowed, host=free.host, budget=budget, roomy=roomy), None
    except TooSmall as error:
        if not budget or budget > free.memory:
            return cell, None  # the machine is too small: what it lacks is said below
        return cell, (
            f"{error.phase} needs about {_size(error.needed)} of memory at the least, --memory-budget allows {_size(budget)}; "
            "raise it, or use a method without Hessians (magnitude, wanda), shorter windows or --dtype bfloat16"
        )


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


def _disk(cell: Cell, shape: ModelShape) -> int:
    from methods.families.sizes import parameters

    states = max(memory.prune_states(cell, shape), memory.evaluation_states(cell, shape))
    # the map of states beyond the budget, and a resume point's copy of them
    spilt = max(0, 2 * states - cell.hidden_budget)
    spilt = max(spilt, sensitivities(cell, shape).spilt)
    itemsize = ITEMSIZE[cell.dtype]
    last = evaluation_tokens(cell, shape)[0] * shape.width * itemsize
    own = last if cell.dense else parameters(pruned_shape(cell, shape)) * itemsize
    # beside the result: a pruned model, its training's state, and what the stage before left
    beside = own * stages(cell) + recovery(cell, shape).state
    return spilt + own + beside + memory.outside(cell, shape)[1]


def _saved_bytes(cell: Cell, shape: ModelShape, asked: tuple[str, ...]) -> int:
    forms = [form for form in saving.forms_of(cell, asked) if saving.refused(cell, form) is None]
    if not forms:
        return 0
    pruned = replace(pruned_shape(cell, shape), itemsize=stored_itemsize(cell.model, shape))
    return sum(saving.saved_bytes(cell, pruned, form) for form in forms)


def _size(count: int) -> str:
    from bench.models.cache import readable_size

    return readable_size(count)
