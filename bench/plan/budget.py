"""Fits a cell into memory: where its states lie, whether blocks are read ahead, how many windows go at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench.plan.cells import Cell
from bench.plan.memory import evaluation_states, phases, prune_states
from bench.plan.work import calibration_tokens, evaluation_tokens, sizes_of

__all__ = ["TooSmall", "host_bytes", "place"]


class TooSmall(Exception):
    """No placement fits; ``needed`` is the least peak in bytes, in ``phase``."""

    def __init__(self, needed: int, phase: str) -> None:
        super().__init__(f"{phase} needs {needed} bytes")
        self.needed = needed
        self.phase = phase


def place(cell: Cell, memory: int, *, host: int | None = None, budget: int = 0, roomy: bool = False) -> Cell:
    """The cell in the first placement whose predicted peak is within ``memory`` bytes of its device.

    What costs the least speed is given up first: wider states between stages, the next block's copy, states on the
    GPU (to a host with ``host`` bytes free), states in memory, and, only to keep to a ``budget`` that was asked for,
    many windows at once, which changes figures by rounding. ``roomy``: states may take what memory there is, whatever
    the cell's ``hidden_budget``. Raises TooSmall.
    """
    config, shape = sizes_of(cell.model)
    if roomy:
        widest = 1 + shape.feedforward / shape.width
        most = max(int(widest * prune_states(cell, shape)) + 1, evaluation_states(cell, shape))
        cell = replace(cell, hidden_budget=max(cell.hidden_budget, most))
    least: dict[str, int] = {}
    for tried in _placements(cell, rounding=budget > 0):
        found = phases(tried, config, shape)
        if max(found.values()) <= memory and (host is None or host_bytes(tried) <= host):
            predicted = tuple(found.items())
            return replace(tried, placement=replace(tried.placement, budget=budget, predicted=predicted))
        if not least or max(found.values()) < max(least.values()):
            least = found
    phase = max(least, key=lambda name: least[name])
    raise TooSmall(least[phase], phase)


def host_bytes(cell: Cell) -> int:
    """Host memory of a cell that runs on a GPU: a block read ahead, states that do not lie there; 0 on a CPU."""
    from bench.plan.memory import BASE
    from methods.families.sizes import block_parameters

    if cell.device == "cpu":
        return 0
    from bench.plan.work import ITEMSIZE

    shape = sizes_of(cell.model)[1]
    ahead = block_parameters(shape) * ITEMSIZE[cell.dtype] if cell.placement.prefetch else 0
    states = max(prune_states(cell, shape), evaluation_states(cell, shape))
    return BASE + ahead + (0 if cell.placement.device_states else min(states, cell.hidden_budget))


def _placements(cell: Cell, *, rounding: bool) -> Iterator[Cell]:
    shape = sizes_of(cell.model)[1]
    states = max(prune_states(cell, shape), evaluation_states(cell, shape))
    narrow = min(cell.hidden_budget, states)
    window = max(
        (cell.calibration.length or shape.positions) if cell.calibration is not None else 1,
        evaluation_tokens(cell, shape)[1],
    )
    several = max(sum(calibration_tokens(cell, shape)), evaluation_tokens(cell, shape)[0]) > window
    on_device = [(True, cell.hidden_budget), (True, narrow)]
    on_host = [(False, narrow)] if cell.device != "cpu" else []
    for batch in (0, window) if rounding and several else (0,):
        for device_states, kept in (*on_device, *on_host, (True, 0)):
            for prefetch in (True, False) if cell.device != "cpu" else (True,):
                where = replace(
                    cell.placement, device_states=device_states, prefetch=prefetch, batch_tokens=batch
                )
                yield replace(cell, hidden_budget=kept, placement=where)
