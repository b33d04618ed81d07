"""The Ray cluster that a run uses: one of its own on this machine, or one that is there."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from bench.plan.machine import available_threads
from bench.results.redact import secret_name
from bench.run.live import deferred
from methods.errors import MachineError, UserError, reason_of, shown

__all__ = ["Node", "connected", "installed", "nodes"]

_ADDRESS: Final = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})")
_PATIENCE: Final = 5.0
"""Seconds that a cluster's address may take to answer."""
_OBJECTS: Final = 1 << 29
"""Bytes of shared memory that our own cluster may use: records are small, Hessians pass one at a time."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster, and what Ray may use of it."""

    id: str
    address: str
    cpus: float
    gpus: float
    memory: float

    def room(self, cpus: float, gpus: float, memory: float) -> int:
        """How many processes of this size it holds at once."""
        wanted = ((cpus, self.cpus), (gpus, self.gpus), (memory, self.memory))
        return min((int(there // need) for need, there in wanted if need), default=0)


def installed() -> ModuleType:
    """The ray package, with usage reports off. Raises UserError where it is not installed."""
    # read when ray is first imported
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray runs workers at nice 15, where any other work on the machine starves them
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "--executor ray needs Ray, which is not installed; run: pip install 'prune-bench[ray]'"
        ) from None


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address`` (HOST:PORT, or ``auto`` for one running here), or to one of our own.

    Our own listens on 127.0.0.1 only, has no dashboard, gets no secret of this environment, and ends with the
    block, which a signal does not cut short. Raises UserError for an address where no cluster answers, MachineError
    where none can be started, KeyboardInterrupt for a SIGTERM meanwhile.
    """
    ray = installed()
    if address is not None and address != "auto":
        _check(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "address": "local",
            "num_cpus": available_threads(),
            "include_dashboard": False,
            "object_store_memory": _OBJECTS,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address
    try:
        with _without_secrets(), _own_termination():
            ray.init(**options)
    except (ConnectionError, ValueError) as error:
        where = f"--ray-address {shown(address)}" if address else "the local Ray cluster"
        raise UserError(
            f"{where}: {reason_of(error)}; give HOST:PORT of ray start --head, or leave it out for a cluster of this machine"
        ) from None
    except Exception as error:  # Ray raises bare ones, for a start that takes more than 30 s too
        raise MachineError(
            f"Ray cannot be started: {reason_of(error)}; try again when the machine is less busy, or use --executor local"
        ) from None
    try:
        yield ray
    finally:
        with deferred():  # else processes would stay, and a traceback
            ray.shutdown()


def nodes(ray: ModuleType) -> list[Node]:
    """The living nodes that can take work, by id."""
    found = []
    for entry in ray.nodes():
        if entry["Alive"]:
            there = entry["Resources"]
            cpus, gpus, memory = (float(there.get(name, 0)) for name in ("CPU", "GPU", "memory"))
            found.append(Node(entry["NodeID"], entry["NodeManagerAddress"], cpus, gpus, memory))
    return sorted((node for node in found if node.cpus >= 1), key=lambda node: node.id)


def _check(address: str) -> None:
    """Raises UserError for what is no address, or where nothing listens: Ray itself would wait a minute."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None or int(parts["port"]) > 65535:
        raise UserError(
            f"--ray-address '{shown(address)}' is no address; give HOST:PORT as ray start --head prints it, or auto "
            "(Ray's client, ray://, is not supported: start the run on a machine of the cluster)"
        )
    try:
        with socket.create_connection((parts["host"].strip("[]"), int(parts["port"])), timeout=_PATIENCE):
            pass
    except OSError as error:
        why = (error.strerror or str(error) or "no answer").lower()
        raise UserError(
            f"--ray-address {shown(address)}: no cluster answers ({why}); start one with ray start --head, "
            "or leave the option out for a cluster of this machine"
        ) from None


@contextmanager
def _own_termination() -> Iterator[None]:
    """Ray has SIGTERM end the process without a word: undone after its start, and meanwhile taken for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # Ray, too, sets handlers there only
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_secrets() -> Iterator[None]:
    """Ray's processes inherit this environment: without keys and tokens, which no cell needs."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if secret_name(name)}
    try:
        yield
    finally:
        os.environ.update(hidden)
