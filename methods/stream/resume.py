"""The point a killed prune goes on from: finished blocks and the hidden states that enter the next one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from methods.interface import MatrixReport
from methods.stream.sink import write_json, write_tensors

__all__ = ["Progress", "ResumePoint"]


@dataclass(frozen=True, slots=True)
class Progress:
    """``next``: first block still to prune; ``hidden`` [windows, length, width] enters it; ``reports`` of blocks before it.

    ``others`` load the states of other workers' windows, in their order. ``kept``: what else a method goes on with (the
    basis that a sliced model's states lie in).
    """

    next: int
    hidden: Tensor
    reports: tuple[MatrixReport, ...]
    seconds: dict[str, float]
    kept: dict[str, Tensor] = field(default_factory=dict)
    others: tuple[Callable[[], Tensor], ...] = ()


class ResumePoint:
    """State of a prune under ``folder``, valid only for the same ``identity`` (cell and environment).

    ``state.json`` is replaced last, so that at every moment it names files that are whole.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        self._state = folder / "state.json"

    def load(self) -> Progress | None:
        """The last saved progress, or None where there is none of this identity."""
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            if state["identity"] != self.identity:
                return None
            kept = load_file(self.folder / str(state["hidden"]))
            hidden = kept.pop("hidden")
            reports = tuple(MatrixReport(**report) for report in state["reports"])
            seconds = {k: float(v) for k, v in state["seconds"].items()}
            others = [self.folder / str(name) for name in state["others"]]
            for path in others:
                with safe_open(path, framework="pt") as file:  # whole, as far as its header tells
                    file.get_slice("hidden")
            loads = tuple(partial(_states, path) for path in others)
            return Progress(int(state["next"]), hidden, reports, seconds, kept, loads)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def save(
        self,
        following: int,
        hidden: Tensor,
        reports: Sequence[MatrixReport],
        seconds: dict[str, float],
        kept: Mapping[str, Tensor] | None = None,
        others: Iterable[Tensor] = (),
    ) -> None:
        """Blocks before ``following`` are on disk; ``hidden`` enters it, and ``others`` of other workers, one at a time.

        Raises MachineError.
        """
        name = f"hidden-{following:05d}.safetensors"
        write_tensors(self.folder / name, {"hidden": hidden, **(kept or {})})
        names = []
        for number, states in enumerate(others, 1):
            names.append(f"hidden-{following:05d}-{number}.safetensors")
            write_tensors(self.folder / names[-1], {"hidden": states})
        write_json(
            self._state,
            {
                "identity": self.identity,
                "next": following,
                "hidden": name,
                "others": names,
                "reports": [dataclasses.asdict(report) for report in reports],
                "seconds": seconds,
            },
        )
        for path in self.folder.glob("hidden-*.safetensors"):
            if path.name not in (name, *names):
                path.unlink(missing_ok=True)


def _states(path: Path) -> Tensor:
    return load_file(path)["hidden"]
