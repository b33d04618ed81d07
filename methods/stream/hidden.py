"""Hidden states of every window, on the device, in host memory or on disk, by budget."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from methods.interface import Run

__all__ = ["HiddenStates"]


class HiddenStates:
    """One tensor [windows, length, width], updated window by window in place.

    Within the budget it lies on the compute device (or in host memory where the device has too little left);
    beyond it, in a file under ``run.work`` that the system maps, so that it costs no anonymous memory. The width
    is the widest: states put in may be narrower, as between the blocks of a sliced model, and come out so.
    """

    def __init__(
        self,
        size: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        run: Run,
        name: str = "hidden",
    ) -> None:
        self.device = device
        self._widths = [size[2]] * size[0]
        self.nbytes = size[0] * size[1] * size[2] * dtype.itemsize
        self._file: Path | None = None
        if self.nbytes <= run.hidden_budget or run.work is None:
            self.place = device.type
            if device.type != "cpu" and not (run.device_states and self.nbytes <= _free(device) // 2):
                self.place = "cpu"
            self._states = torch.empty(size, dtype=dtype, device=self.place)
        else:
            self.place = "disk"
            run.work.mkdir(parents=True, exist_ok=True)
            self._file = run.work / f"{name}.map"
            count = size[0] * size[1] * size[2]
            with self._file.open("wb") as file:
                file.truncate(self.nbytes)
            self._states = torch.from_file(str(self._file), shared=True, size=count, dtype=dtype).view(size)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return self._states.shape[0]

    @property
    def length(self) -> int:
        """Tokens per window."""
        return self._states.shape[1]

    def get(self, part: slice) -> Tensor:
        """Windows ``part`` on the compute device; a view where they already are there."""
        return self._states[part, :, : self._width(part)].to(self.device)

    def put(self, part: slice, states: Tensor) -> None:
        """Overwrite windows ``part``; ``states`` [windows, length, width or less]."""
        width = states.shape[-1]
        self._states[part, :, :width].copy_(states)
        self._widths[part] = [width] * len(self._widths[part])

    def whole(self) -> Tensor:
        """All states, where they lie; they must be equally wide."""
        return self._states[:, :, : self._width(slice(None))]

    def _width(self, part: slice) -> int:
        widths = set(self._widths[part])
        if len(widths) > 1:
            raise ValueError(
                f"states of windows {part} have widths {sorted(widths)}: read what was put together"
            )
        return widths.pop() if widths else self._states.shape[2]

    def close(self) -> None:
        """Forget the states and remove their file."""
        self._states = torch.empty(0)
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def _free(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 1 << 62
