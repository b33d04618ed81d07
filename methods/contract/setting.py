"""What the contract's parts share: the method under test, what is said of it, and how it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from methods import registry
from methods.contract.models import CONFIGS, calibration, checkpoint
from methods.families import shape_of
from methods.interface import BlockSink, Calibration, Pruner, PruneReport, Run
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

__all__ = ["IN_PLACE", "Setting"]

IN_PLACE = ("unstructured", "nm")
"""Kinds of targets that zero weights where they are, so that they can be counted on disk."""

_AIMS = ("50%", "37%", "2:4", "slice25%", "params-20%", "bytes-20%", "50%+4bit", "2:4+4bit")


class Setting:
    """The method under test, with what a subclass may say of it.

    ``method``: its spelling; ``parameters``: values other than the defaults. ``targets``: what to aim at, by
    default all of a list that the method does not refuse. ``families``, ``schedules``, ``dtypes``: where
    it runs. ``exact``: it removes precisely what is asked for; where False (another program's rule) the
    counts must still be those on disk, and within 5 % of the target. ``unchanged_at_zero``: a share
    that rounds to no weight leaves every bit as it was.
    """

    method: ClassVar[str] = ""
    parameters: ClassVar[Mapping[str, Any]] = {}
    targets: ClassVar[Sequence[str]] = ()
    families: ClassVar[Sequence[str]] = tuple(CONFIGS)
    schedules: ClassVar[Sequence[str]] = ("sequential", "blockwise")
    dtypes: ClassVar[Sequence[str]] = ("float32", "float16", "bfloat16")
    exact: ClassVar[bool] = True
    unchanged_at_zero: ClassVar[bool] = True

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrise by what the class says of its method.

        Two of family, schedule, dtype and target together take each value of either at least once, not every
        pair: a method is tried often enough as it is.
        """
        aims = self.aims()
        asked = {
            "family": list(self.families),
            "schedule": list(self.schedules),
            "dtype": list(self.dtypes),
            "target": aims,
            "counted": [aim for aim in aims if Target.parse(aim).kind in IN_PLACE],
        }
        names = [name for name in asked if name in metafunc.fixturenames]
        if names:
            length = max(len(asked[name]) for name in names) if all(asked[name] for name in names) else 0
            rows = [tuple(asked[name][row % len(asked[name])] for name in names) for row in range(length)]
            metafunc.parametrize(names, rows)

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """Matrices this small are only held up by a second thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def aims(self) -> list[str]:
        """Targets that the method reaches on every family asked for; none where it cannot even be made."""
        if self.targets:
            return list(self.targets)
        try:
            pruner = self.pruner()
            shapes = [shape_of(CONFIGS[family]) for family in self.families]
            return [
                aim
                for aim in _AIMS
                if all(pruner.refuse(shape, Target.parse(aim)) is None for shape in shapes)
            ]
        except Exception:  # reported by the tests that ask for one thing each
            return []

    def pruner(self, **parameters: Any) -> Pruner:
        """The method under test, made anew."""
        return registry.get(self.method, {**self.parameters, **parameters})

    def prune(
        self,
        model: Path,
        out: Path,
        target: str,
        *,
        pruner: Pruner | None = None,
        tokens: Calibration | None = None,
        source: CheckpointSource | None = None,
        sink: BlockSink | None = None,
        **run: Any,
    ) -> PruneReport:
        """Prune ``model`` into ``out / "blocks"``, in float32 on one CPU, with a resume point in ``out / "work"``."""
        settings: dict[str, Any] = {
            "batch_tokens": 36,
            "work": out / "work",
            "identity": "contract",
            "schedule": self.schedules[0],
            **run,
        }
        return (pruner or self.pruner()).prune(
            source or CheckpointSource(model, dtype=torch.float32),
            tokens or calibration(),
            Target.parse(target),
            sink or BlockFolder(out / "blocks"),
            Run(**settings),
        )

    def model(self, folder: Path, family: str = "", **how: Any) -> Path:
        """A random checkpoint, of the first family unless one is named."""
        return checkpoint(folder / "model", family or self.families[0], **how)
