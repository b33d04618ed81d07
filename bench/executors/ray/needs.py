"""What a process that works on a cell takes of its node, and must find there."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.measure.machine import versions
from bench.plan.cells import Cell
from bench.plan.resources import estimate
from methods.errors import MachineError

__all__ = ["Needs", "check_versions"]


@dataclass(frozen=True, slots=True)
class Needs:
    """CPUs, GPUs and bytes of memory of one process; a cell with shared calibration has several."""

    cpus: int
    gpus: int
    memory: int

    @classmethod
    def of(cls, cell: Cell) -> Needs:
        """Those of a cell, each of its workers."""
        gpu = cell.device != "cpu"
        # on a GPU the estimate is of the device's memory, which Ray does not share out
        return cls(cell.threads, int(gpu), 0 if gpu else estimate(cell).memory_bytes)

    def options(self) -> dict[str, Any]:
        """As Ray's tasks and actors take them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}

    def bundle(self) -> dict[str, float]:
        """As Ray's placement groups take them."""
        found = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: float(amount) for name, amount in found.items() if amount}


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raises MachineError where this node has other versions of what can change a figure than the run has."""
    others = {name: found for name, found in versions().items() if wanted.get(name) != found}
    if others:
        theirs = ", ".join(f"{name} {wanted.get(name, 'none')}" for name in others)
        ours = ", ".join(f"{name} {found}" for name, found in others.items())
        raise MachineError(
            f"node {socket.gethostname()} has {ours} where the run has {theirs}; install the same on every node"
        )
