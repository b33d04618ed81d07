"""OWL: blocks with more outliers among their weights' scores keep more (Yin et al., arXiv 2310.05175)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from methods.allocate.shares import MOST, counts, shifted
from methods.errors import UserError
from methods.interface import BlockSource, Calibration, ModelShape, Run
from methods.layerwise.rule import Budget, Statistic
from methods.layerwise.select import round_half_up
from methods.layerwise.wanda import wanda_scores
from methods.stream.dense import DenseBlock, dense_moments
from methods.target import Target

__all__ = ["OWL", "outlier_ratio", "owl_shares"]


def outlier_ratio(block: DenseBlock, multiple: float, names: Collection[str] | None = None) -> float:
    """Share of the block's weights whose score |W_ij| · |X_j|₂ exceeds ``multiple`` times the block's mean score.

    ``names``: the matrices that count; all where None.
    """
    total, size = 0.0, 0
    for matrix, weight, moments in block.matrices():
        if names is not None and matrix.name not in names:
            continue
        total += float(wanda_scores(weight, moments.norms).double().sum())
        size += matrix.size
    limit = multiple * total / size
    above = 0
    for matrix, weight, moments in block.matrices():
        if names is not None and matrix.name not in names:
            continue
        above += int((wanda_scores(weight, moments.norms).double() > limit).sum())
    return above / size


def owl_shares(ratios: Sequence[float], amount: Fraction, lamda: Fraction) -> list[Fraction]:
    """Share removed of every block: p - 2λ (r - mean r), r the ratios scaled to 0..1; p where all are equal.

    So blocks differ by 2λ at most, and their mean is p. Shares may leave [0, 1].
    """
    exact = [Fraction(ratio) for ratio in ratios]
    low, high = min(exact), max(exact)
    if low == high:
        return [amount] * len(exact)
    scaled = [(ratio - low) / (high - low) for ratio in exact]
    mean = sum(scaled, Fraction(0)) / len(scaled)
    return [amount - 2 * lamda * (ratio - mean) for ratio in scaled]


@dataclass(frozen=True, slots=True)
class OWL:
    """The allocation ``owl``; all matrices of a block lose the same share.

    ``multiple``: the paper's M; ``lambda_``: half of the widest difference between two blocks' shares. Looks
    at the dense model's inputs, so a whole forward pass comes first. Unlike the published code's, shares are
    weighted by sizes, kept within 0..95 % and met to the last weight.
    """

    multiple: float = 5.0
    lambda_: float = 0.08
    name: str = "owl"
    needs_calibration: bool = True
    patterns: bool = False
    selects: bool = True

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """Why this target cannot be shared out, or None."""
        if target.kind == "unstructured" and target.amount > MOST:
            return f"@owl leaves every matrix {float(1 - MOST):.0%} of its weights and cannot reach {target}"
        return None

    def __call__(
        self, source: BlockSource, calibration: Calibration | None, target: Target, run: Run
    ) -> Mapping[tuple[int, str], Budget]:
        """One budget per selected (block, matrix name). Raises UserError, NonFiniteError, CheckpointError."""
        if calibration is None:
            raise UserError("@owl needs calibration windows; this run draws none")
        selected = run.selected(source)
        names: dict[int, set[str]] = {}
        for index, matrix in selected:
            names.setdefault(index, set()).add(matrix.name)
        ratios = [
            outlier_ratio(block, self.multiple, names[block.index])
            for block in dense_moments(source, calibration.tokens, Statistic.NORMS, run)
            if block.index in names
        ]
        shares = dict(zip(names, owl_shares(ratios, target.amount, Fraction(str(self.lambda_))), strict=True))
        keys = [(index, matrix.name) for index, matrix in selected]
        sizes = [matrix.size for _, matrix in selected]
        spread = [shares[index] for index, _ in selected]
        total = sum(round_half_up(target.amount * size) for size in sizes)
        removed = counts(sizes, shifted(sizes, spread, target.amount * sum(sizes)), total)
        return {key: Budget(remove=count) for key, count in zip(keys, removed, strict=True)}
