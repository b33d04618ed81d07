"""SliceGPT (arXiv 2401.15024): rotate the residual stream to its principal directions and cut the last ones off."""

from __future__ import annotations

from dataclasses import dataclass, replace

from methods.errors import UnsupportedTarget, UserError
from methods.families import sizes
from methods.families.sliced import unsliceable
from methods.interface import BlockSink, BlockSource, Calibration, ModelShape, PruneReport, Run
from methods.slicing.rotate import ORIENTATIONS
from methods.slicing.schedule import Schedule, sliced_shape
from methods.slicing.walk import slice_blocks
from methods.target import Target

__all__ = ["SliceGPT"]


@dataclass(frozen=True, slots=True)
class SliceGPT:
    """Makes every matrix of a model narrower, for OPT, BLOOM and LLaMA.

    ``round_interval``, ``slice_head``, ``slope``: see ``Schedule``. ``orientation``: the kept directions stand as
    the PCA gives them, or turned at random (seeded), as the published script does by default.
    """

    round_interval: int = 8
    slice_head: bool = False
    orientation: str = "pca"
    slope: float = 0.0

    def __post_init__(self) -> None:
        if self.orientation not in ORIENTATIONS:
            raise UserError(f"orientation '{self.orientation}' is unknown; use {' or '.join(ORIENTATIONS)}")

    @property
    def needs_calibration(self) -> bool:
        """The principal directions are those of the calibration text."""
        return True

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """The reason this target cannot be reached on this model, or None."""
        if target.bits:
            return (
                f"slicegpt does not quantise; ask for {str(target).split('+')[0]} without +{target.bits}bit"
            )
        reason = unsliceable(shape)
        if reason is not None:
            return f"slicegpt cannot slice this model: {reason}"
        try:
            self.pruned_shape(shape, target)
        except UnsupportedTarget as error:
            return str(error)
        return None

    def pruned_shape(self, shape: ModelShape, target: Target) -> ModelShape:
        """Sizes of the sliced model. Raises UnsupportedTarget where no width reaches the target."""
        return sliced_shape(shape, self._schedule().slices(shape, target))

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Slice every block. Raises UserError, UnsupportedTarget, NonFiniteError, CheckpointError, MachineError."""
        reason = self.refuse(source.shape, target)
        if reason is not None:
            raise UnsupportedTarget(reason)
        if calibration is None or not len(calibration.tokens):
            raise UserError("slicegpt needs calibration windows: its directions are those of a text")
        slices = self._schedule().slices(source.shape, target)
        report = slice_blocks(source, calibration, slices, self.orientation, sink, run)
        return replace(report, warnings=(*report.warnings, *_growth(source.shape, self, target)))

    def _schedule(self) -> Schedule:
        return Schedule(self.round_interval, self.slice_head, self.slope)


def _growth(shape: ModelShape, pruner: SliceGPT, target: Target) -> tuple[str, ...]:
    """Shortcuts and an untied head can outweigh what a light slice takes away."""
    dense, sliced = sizes.parameters(shape), sizes.parameters(pruner.pruned_shape(shape, target))
    if sliced <= dense:
        return ()
    head = shape.vocabulary * shape.width
    untied = f" ({head:,} in the head, which had been the token table)" if shape.tied else ""
    more = "" if pruner.slice_head else "; slicegpt.slice_head=true slices the head too"
    return (f"slicing made the model larger: {sliced:,} parameters{untied} against {dense:,} dense{more}",)
