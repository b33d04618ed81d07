"""The Ray executor: offers cells to the cluster, takes in what they hand back, and is the one that writes the store."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from bench.executors.grid import Grid, Outcome, running
from bench.executors.ray.affinity import Affinity
from bench.executors.ray.cluster import Node, connected, nodes
from bench.executors.ray.desk import Delivery, Desk, Message
from bench.executors.ray.needs import Needs
from bench.executors.ray.worker import RETRIES, Job, clean, run_cell
from bench.measure.machine import versions
from bench.plan.cells import Cell, Plan
from bench.plan.observer import GridObserver
from bench.plan.resources import estimate
from bench.results.records import Record, decode, encode
from bench.results.values import arrays_of
from bench.run.cell import Ended
from bench.run.live import deferred, held, termination
from methods.errors import MachineError, PruneBenchError, StoreError, reason_of

__all__ = ["execute"]

_WAITING: Final = 1
"""Cells offered to a node beyond what it can run at once, so that it never waits for this process."""
_LOOK: Final = 2.0
"""Longest wait in seconds before the nodes are looked at again."""
_GRACE: Final = 10.0
"""Seconds that cancelled cells get to end by themselves."""


def execute(
    plan: Plan, out: Path, observer: GridObserver, *, force: bool = False, save: tuple[str, ...] = ()
) -> Outcome:
    """Run a plan over the nodes of a Ray cluster (``plan.settings.ray_address``, or one of this machine) into ``out``.

    The rules are the in-process executor's; see ``bench.executors.local``. A cell whose node is lost is begun
    again on another, from its last whole block where that node sees ``out``. Raises UserError where another run
    holds ``out``, no Ray is installed or no cluster answers; MachineError and StoreError where results cannot be written.
    """
    with (
        termination(),
        held(out),
        connected(plan.settings.ray_address) as ray,
        running(plan, out, observer, _command(plan)) as grid,
        _folder(out) as token,
    ):
        job = Job(str(out.resolve()), token, _command(plan), force, save, versions())
        try:
            _Run(ray, grid, job).run()
        except ray.exceptions.RayActorError as error:
            raise MachineError(
                f"this machine's own Ray node was lost ({type(error).__name__}); what was handed in is kept: "
                "start the same command again on a node that stays"
            ) from None
    return grid.outcome


def _command(plan: Plan) -> tuple[str, ...]:
    """The words typed, without those that say where cells run: that changes no figure."""
    words, kept = iter(plan.settings.command), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--executor", "--ray-address"):
            if not equals:
                next(words, None)
            continue
        kept.append(word)
    return tuple(kept)


@contextmanager
def _folder(out: Path) -> Iterator[str]:
    """A file in the run's folder that tells a node whether it sees that folder."""
    token = secrets.token_hex(8)
    mark = out / "work" / token
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield token
    finally:
        mark.unlink(missing_ok=True)


class _Run:
    def __init__(self, ray: ModuleType, grid: Grid, job: Job) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray = ray
        self.grid = grid
        self.job = job
        self.cells = grid.plan.cells
        self.needs = [Needs.of(cell) for cell in self.cells]
        self.groups: dict[int, Any] = {}
        self.pinned = NodeAffinitySchedulingStrategy
        # not softly: Ray would rather have it on a node with CPUs, which may be lost
        here = self.pinned(ray.get_runtime_context().get_node_id(), soft=False)
        kept = {
            "num_cpus": 0,
            "scheduling_strategy": here,
            "max_concurrency": 1000,
            "max_task_retries": RETRIES,
        }
        self.desk = ray.remote(Desk).options(**kept).remote()
        self.task = ray.remote(run_cell)
        self.flying: dict[Any, tuple[int, str]] = {}
        self.heard = 0
        self.stopping = False
        self.known: dict[tuple[Any, ...], list[bytes]] = defaultdict(list)
        for record in grid.results.records():
            self.known[_who(record)].append(encode(record))

    def run(self) -> None:
        """Offer, wait, take in, until no cell is left; on the way out, cancel what still flies."""
        living = nodes(self.ray)
        offered = self._possible(living)
        indices = [index for index, _ in enumerate(self.cells) if index in offered]
        capacity = {node.id: max(1.0, node.cpus) for node in living}
        work = [estimate(self.cells[index]).flops for index in indices]
        affinity = Affinity([self.cells[index].model for index in indices], work, capacity)
        fetching = self.desk.fetch.remote(0)
        try:
            while affinity or self.flying:
                there = nodes(self.ray)
                self._give_up(there)
                for node in there:
                    self._offer(node, affinity, indices)
                ready, _ = self.ray.wait([fetching, *self.flying], num_returns=1, timeout=_LOOK)
                if fetching in ready:
                    self._hear(self.ray.get(fetching))
                    fetching = self.desk.fetch.remote(self.heard)
                ended = [ref for ref in ready if ref in self.flying]
                if ended:
                    # what a cell delivered lies at the desk before the cell ends
                    self._hear(self.ray.get(self.desk.fetch.remote(self.heard, wait=False)))
                    for ref in ended:
                        self._end(ref)
        finally:
            self._cancel()
            self._clean(living)
            # Ray writes a line on standard error for a call that it ends unanswered
            self.ray.wait([fetching], timeout=_GRACE)

    def _possible(self, living: list[Node]) -> set[int]:
        """Cells that some node can hold; the others are refused."""
        found = set()
        for index, (cell, need) in enumerate(zip(self.cells, self.needs, strict=True)):
            if _room(need, living) >= cell.calibration_workers:
                found.add(index)
            else:
                self.grid.fail(index, cell, _too_large(need, living, cell.calibration_workers), "refused")
        return found

    def _give_up(self, living: list[Node]) -> None:
        """End cells whose workers have no room any more since nodes were lost: Ray would wait for new ones forever."""
        for ref, (index, _) in list(self.flying.items()):
            cell, need = self.cells[index], self.needs[index]
            if index in self.groups and _room(need, living) < cell.calibration_workers:
                self.ray.cancel(ref, force=True)
                del self.flying[ref]
                self._disband(index)
                lacking = _too_large(need, living, cell.calibration_workers)
                self.grid.fail(index, cell, f"nodes were lost: {lacking}")

    def _placed(self, index: int, node: Node) -> Any:
        """Where a cell's process is to run; with workers that share its calibration, together with theirs."""
        workers = self.cells[index].calibration_workers
        if workers == 1:
            return self.pinned(node.id, soft=True)
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # all or none: workers that wait for each other's CPUs would wait forever
        group = self.groups[index] = placement_group(
            [self.needs[index].bundle()] * workers, strategy="SPREAD"
        )
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)

    def _disband(self, index: int) -> None:
        from ray.util.placement_group import remove_placement_group

        if index in self.groups:
            remove_placement_group(self.groups.pop(index))

    def _offer(self, node: Node, affinity: Affinity, indices: list[int]) -> None:
        while sum(there == node.id for _, there in self.flying.values()) < self._slots(node) + _WAITING:
            place = affinity.take(node.id)
            if place is None:
                return
            index = indices[place]
            cell = self.cells[index]
            ref = self.task.options(
                **self.needs[index].options(),
                max_retries=RETRIES,
                retry_exceptions=False,
                scheduling_strategy=self._placed(index, node),
                name=cell.name,
            ).remote(self.desk, self.job, index, cell, tuple(self.known[_who(cell)]))
            self.flying[ref] = (index, node.id)

    def _slots(self, node: Node) -> int:
        least = min(need.cpus for need in self.needs)
        return max(1, int(node.cpus) // max(1, least))

    def _hear(self, messages: list[Message]) -> None:
        """Take in messages, each wholly and once, whatever signal comes."""
        with deferred():
            self._take_in(messages)

    def _take_in(self, messages: list[Message]) -> None:
        live = self.grid.live
        for message in messages:
            if message.number <= self.heard:
                continue
            self.heard = message.number
            if message.kind == "record":
                self._keep(*message.content)
            elif message.kind == "traceback" and self.stopping:
                continue
            elif message.kind == "begin":
                attempt, node = message.content
                live.cell(message.index, self.cells[message.index])
                if attempt > 1:
                    live.warning(f"begun again on {node}: its node or worker was lost")
            elif message.kind == "traceback":
                self.grid.results.keep_traceback(*message.content)
            else:
                live.focus(message.index)
                getattr(live, message.kind)(*message.content)

    def _keep(self, delivery: Delivery) -> None:
        record = decode(delivery.record)
        if self.stopping and record.status == "failed":
            return  # libraries turn being stopped into errors of their own
        if delivery.values_name:
            kept = self.grid.results.save_values(arrays_of(delivery.values, delivery.values_name))
            if kept != delivery.values_name:
                raise StoreError(
                    f"values of {record.model} {record.method} came as {kept}, not as {record.values}"
                )
        self.grid.results.append(record)

    def _end(self, ref: Any) -> None:
        index, _ = self.flying.pop(ref)
        cell = self.cells[index]
        self._disband(index)
        try:
            status, summary = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, PruneBenchError) else error
            self.grid.fail(index, cell, reason_of(cause))
        except self.ray.exceptions.RayError as error:
            name = type(error).__name__
            reason = f"its worker was lost {RETRIES + 1} times ({name}); is there enough memory on the nodes?"
            self.grid.fail(index, cell, reason)
        else:
            self.grid.ended(index, cell, Ended(status, summary))

    def _cancel(self) -> None:
        """Ask cells that still run to stop, then make them; what they had delivered is kept."""
        self._collect()  # first, since another Ctrl-C may cut the wait short
        self.stopping = bool(self.flying)
        flying = list(self.flying)
        for ref in flying:
            with suppress(self.ray.exceptions.RayError):
                self.ray.cancel(ref, force=False)
        with suppress(self.ray.exceptions.RayError):
            _, left = self.ray.wait(flying, num_returns=len(flying), timeout=_GRACE) if flying else ([], [])
            for ref in left:
                self.ray.cancel(ref, force=True)
        self._collect()

    def _collect(self) -> None:
        with suppress(self.ray.exceptions.RayError):
            self._hear(self.ray.get(self.desk.fetch.remote(self.heard, wait=False), timeout=_GRACE))

    def _clean(self, living: list[Node]) -> None:
        task = self.ray.remote(clean)
        with suppress(self.ray.exceptions.RayError):
            alive = {node.id for node in nodes(self.ray)}
            refs = [
                task.options(num_cpus=0, scheduling_strategy=self.pinned(node.id, soft=False)).remote(
                    self.job
                )
                for node in living
                if node.id in alive
            ]
            self.ray.wait(refs, num_returns=len(refs), timeout=_GRACE)


def _room(need: Needs, living: list[Node]) -> int:
    """How many such processes the nodes hold at once while nothing else runs there."""
    return sum(node.room(need.cpus, need.gpus, need.memory) for node in living)


def _too_large(need: Needs, living: list[Node], workers: int) -> str:
    largest = max(living, key=lambda node: (node.cpus, node.memory), default=None)
    if largest is None:
        return "no node of the Ray cluster has a CPU to offer"
    wanted = f"{need.cpus} CPUs" + (", 1 GPU" if need.gpus else f", {need.memory / 1e9:.1f} GB of memory")
    if workers > 1:
        return (
            f"needs {wanted} for each of {workers} workers, and the Ray cluster has room for {_room(need, living)}; "
            "give fewer --calibration-workers or --threads, or more nodes"
        )
    return (
        f"needs {wanted}, the largest node of the Ray cluster has {largest.cpus:g} CPUs, {largest.gpus:g} GPUs, "
        f"{largest.memory / 1e9:.1f} GB; give fewer --threads, or larger nodes"
    )


def _who(subject: Record | Cell) -> tuple[Any, ...]:
    return (subject.model, subject.method, subject.target, subject.seed)
