"""Workers that share one cell's calibration: an actor for each, told what to do by the cell's own process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.executors.ray.needs import Needs, check_versions
from bench.plan.cells import Cell
from methods.errors import PruneBenchError
from methods.interface import Block
from methods.moments import Statistic
from methods.stream.shares import Share, Worker

__all__ = ["Colleague", "Lost", "Member", "hired"]


class Lost(BaseException):
    """A worker, or what it had gathered, is gone: the cell goes on from its last whole block, with new workers."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A tensor as its bytes, which Ray hands to another process of the node without copying them."""

    data: Any
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Sent:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        """A copy: the bytes are Ray's, and not to be written to."""
        found = torch.empty(self.shape, dtype=self.dtype)
        if self.data.size:
            found.reshape(-1).view(torch.uint8).numpy()[:] = self.data
        return found


class Member:
    """The actor: a share of the calibration windows of ``cell``, with blocks read by this process from its own disk.

    Raises MachineError where this node has other versions, and what resolving the model raises.
    """

    def __init__(self, cell: Cell, versions: dict[str, str]) -> None:
        from bench.models.load import resolve
        from bench.run.phases import run_of, source_of
        from bench.run.subject import Subject
        from methods.interface import Silent

        check_versions(versions)
        torch.set_num_threads(cell.threads)
        self._work = Path(tempfile.mkdtemp(prefix="prune-bench-worker-"))
        run = run_of(cell, self._work, "", Silent())
        self._share = Share(source_of(cell, Subject(resolve(cell.model))), run)
        self._pieces: Iterator[Tensor] = iter(())

    def begin(self, tokens: Any, needs: int) -> None:
        """Take windows, int64 [windows, length] as numpy has them."""
        self._share.begin(torch.from_numpy(tokens.copy()), Statistic(needs))

    def tell(self, name: str, *words: Any) -> None:
        """Any call of ``Worker`` that takes plain values and returns nothing."""
        getattr(self._share, name)(*words)

    def gather(self, stages: tuple[int, ...], dense: bool) -> None:
        """Gather at these stages."""
        self._share.gather(stages, dense=dense)

    def restore(self, states: _Sent) -> None:
        """Go on from kept states."""
        self._share.restore(states.tensor())

    def replace(self, weights: dict[str, _Sent]) -> None:
        """Go on with these weights."""
        self._share.replace({name: sent.tensor() for name, sent in weights.items()})

    def sums(self, stage: int) -> tuple[int, int]:
        """Counts of a stage; its pieces are fetched next, one by one."""
        counts, self._pieces = self._share.sums(stage)
        return counts

    def piece(self) -> _Sent | None:
        """The next piece, None after the last: a whole Hessian would fill the object store."""
        tensor = next(self._pieces, None)
        return None if tensor is None else _Sent.of(tensor)

    def states(self) -> _Sent:
        """All states."""
        return _Sent.of(self._share.states())

    def end(self) -> None:
        """Remove what lies on this node's disk."""
        shutil.rmtree(self._work, ignore_errors=True)


class Colleague:
    """A ``Worker`` that is an actor elsewhere. Raises Lost where it is gone, and what failed there as it was raised there."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._sent: list[Any] = []

    def begin(self, tokens: Tensor, needs: Statistic) -> None:
        """Hand it its windows."""
        self._sent.append(self._actor.begin.remote(tokens.numpy(), needs.value))

    def embed(self) -> None:
        """Make the first block's inputs."""
        self._tell("embed")

    def restore(self, states: Tensor) -> None:
        """Go on from kept states."""
        self._sent.append(self._actor.restore.remote(_Sent.of(states)))

    def enter(self, index: int) -> None:
        """Read a block."""
        self._tell("enter", index)

    def gather(self, stages: tuple[int, ...], *, dense: bool) -> None:
        """Gather at these stages."""
        self._sent.append(self._actor.gather.remote(stages, dense))

    def sums(self, stage: int) -> tuple[tuple[int, int], Iterator[Tensor]]:
        """Wait for what was gathered."""
        counts = self._get(self._actor.sums.remote(stage))
        return counts, self._pieces()

    def replace(self, weights: Block) -> None:
        """Go on with these weights."""
        packed = {name: _Sent.of(weight) for name, weight in weights.items()}
        self._sent.append(self._actor.replace.remote(packed))

    def leave(self) -> None:
        """Finish the block."""
        self._tell("leave")

    def states(self) -> Tensor:
        """Wait for the states."""
        found: _Sent = self._get(self._actor.states.remote())
        return found.tensor()

    def _tell(self, name: str, *words: Any) -> None:
        self._sent.append(self._actor.tell.remote(name, *words))

    def _pieces(self) -> Iterator[Tensor]:
        coming = self._actor.piece.remote()
        while True:
            # the next one travels while this one is added
            here, coming = coming, self._actor.piece.remote()
            sent = self._get(here)
            if sent is None:
                return
            yield sent.tensor()

    def _get(self, ref: Any) -> Any:
        """An answer; what failed before it is raised first, since calls are done in their order."""
        import ray

        waiting, self._sent = [*self._sent, ref], []
        try:
            return ray.get(waiting)[-1]
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PruneBenchError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise Lost(type(error).__name__) from None


@contextmanager
def hired(cell: Cell, versions: dict[str, str]) -> Iterator[Sequence[Worker]]:
    """All workers of a cell but this process itself, which leads; they end with the block.

    For a task in a placement group with a bundle for each worker, its own the first.
    """
    if cell.calibration_workers == 1:
        yield ()
        return
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group: Any = ray.util.get_current_placement_group()
    member: Any = ray.remote(Member)
    needs = Needs.of(cell).options()
    actors = []
    for bundle in range(1, cell.calibration_workers):
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        actors.append(member.options(**needs, scheduling_strategy=place).remote(cell, versions))
    try:
        yield [Colleague(actor) for actor in actors]
        ray.wait([actor.end.remote() for actor in actors], num_returns=len(actors), timeout=5)
    finally:
        for actor in actors:
            ray.kill(actor)
