"""Statistics of the inputs that a stage's linears share, gathered as asked for."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Flag, auto
from itertools import islice

import torch
from torch import Tensor

from methods.errors import NonFiniteError
from methods.moments.eigen import Eigen, decompose
from methods.moments.factor import Factor, factorise
from methods.moments.gram import Gram

__all__ = ["Columns", "Moments", "Statistic"]


class Statistic(Flag):
    """What can be gathered of a layer's inputs X [tokens, columns]; combine by ``|``."""

    NONE = 0
    GRAM = auto()
    """XᵀX: columns² numbers, and by far the most work."""
    NORMS = auto()
    """|X_j|₂ of every column."""
    MEANS = auto()
    """Mean over tokens of every column."""
    VARIANCES = auto()
    """Variance over tokens of every column, the population's."""


class Columns:
    """Sums and sums of squares of every input column, in float64: cheap beside the Gram matrix."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.sums = torch.zeros(columns, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.sums)
        self.tokens = 0
        self.sequences = 0

    def add(self, inputs: Tensor) -> None:
        """Add a batch [sequences, tokens, columns] of any float dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        for piece in rows.split(2048):
            wide = piece.double()
            self.sums += wide.sum(dim=0)
            self.squares += wide.square_().sum(dim=0)
        self.tokens += rows.shape[0]
        self.sequences += inputs.shape[0]

    def absorb(self, sums: Tensor, squares: Tensor, sequences: int, tokens: int) -> None:
        """Add the sums over other inputs."""
        self.sums += sums.to(self.sums.device)
        self.squares += squares.to(self.squares.device)
        self.sequences += sequences
        self.tokens += tokens

    def check(self, where: str) -> None:
        """Raises NonFiniteError naming ``where`` if any input was NaN or infinite."""
        if not bool(torch.isfinite(self.squares).all()):
            raise NonFiniteError(
                f"{where}: its calibration inputs hold NaN or infinity; try --dtype float32, or check the checkpoint"
            )


class Moments:
    """Statistics of the input that a stage's linears share; one factorisation serves them all.

    Only what ``needs`` asks for is gathered; reading anything else is a ValueError that names it.
    """

    def __init__(
        self, needs: Statistic, columns: int, dtype: torch.dtype, device: torch.device, where: str
    ) -> None:
        self.needs = needs
        self.where = where
        self.device = device
        self._gram = Gram(columns, dtype, device) if Statistic.GRAM in needs else None
        self._columns = Columns(columns, device) if needs & ~Statistic.GRAM else None
        self._factors: dict[tuple[float, bool], Factor] = {}
        self._eigen: dict[float, Eigen] = {}

    def add(self, inputs: Tensor) -> None:
        """Add a batch [sequences, tokens, columns] of any float dtype."""
        if self._gram is not None:
            self._gram.add(inputs)
        if self._columns is not None:
            self._columns.add(inputs)

    @property
    def counts(self) -> tuple[int, int]:
        """Sequences and tokens added so far."""
        known = self._gram or self._columns
        return (known.sequences, known.tokens) if known is not None else (0, 0)

    def pieces(self) -> Iterator[Tensor]:
        """All sums, piece by piece, for ``absorb``; views, to be read. A Gram matrix comes in bands of one triangle."""
        if self._gram is not None:
            yield from self._gram.pieces()
        if self._columns is not None:
            yield from (self._columns.sums, self._columns.squares)

    def absorb(self, pieces: Iterator[Tensor], counts: tuple[int, int]) -> None:
        """Add what other inputs came to: the ``pieces`` and ``counts`` of moments that ask for the same, as wide."""
        if self._gram is not None:
            bands = sum(1 for _ in self._gram.pieces())
            self._gram.absorb(islice(pieces, bands), *counts)
        if self._columns is not None:
            self._columns.absorb(next(pieces), next(pieces), *counts)

    @property
    def gram(self) -> Gram:
        """Sum of XᵀX, as asked for by ``Statistic.GRAM``."""
        if self._gram is None:
            raise ValueError(f"{self.where}: nobody asked for Statistic.GRAM")
        return self._gram

    @property
    def norms(self) -> Tensor:
        """|X_j|₂ [columns] float64. Raises NonFiniteError."""
        return self._checked(Statistic.NORMS).squares.sqrt()

    @property
    def means(self) -> Tensor:
        """Mean of every column [columns] float64; zero where there were no tokens. Raises NonFiniteError."""
        columns = self._checked(Statistic.MEANS)
        return columns.sums / max(1, columns.tokens)

    @property
    def length(self) -> float:
        """Tokens per sequence, as gathered for ``Statistic.MEANS``; 0 where there were none."""
        columns = self._checked(Statistic.MEANS)
        return columns.tokens / max(1, columns.sequences)

    @property
    def variances(self) -> Tensor:
        """Population variance of every column [columns] float64, never negative. Raises NonFiniteError."""
        columns = self._checked(Statistic.VARIANCES)
        tokens = max(1, columns.tokens)
        return (columns.squares / tokens - (columns.sums / tokens).square()).clamp_(min=0)

    def factor(self, percdamp: float, *, reference: bool = False) -> Factor:
        """The inverse Hessian's factor at this damping. Raises HessianError, NonFiniteError."""
        key = (percdamp, reference)
        if key not in self._factors:
            self.gram.check(self.where)
            hessian = self.gram.hessian() if reference else self.gram.matrix
            self._factors[key] = factorise(hessian, percdamp, reference=reference, where=self.where)
        return self._factors[key]

    def eigen(self, percdamp: float) -> Eigen:
        """The damped Hessian's eigendecomposition. Raises HessianError, NonFiniteError."""
        if percdamp not in self._eigen:
            self.gram.check(self.where)
            self._eigen[percdamp] = decompose(self.gram.matrix, percdamp, where=self.where)
        return self._eigen[percdamp]

    @property
    def dead(self) -> int:
        """How many columns were zero in every token."""
        squares = self._columns.squares if self._columns is not None else self.gram.matrix.diagonal()
        return int((squares == 0).sum())

    def _checked(self, statistic: Statistic) -> Columns:
        if self._columns is None or statistic not in self.needs:
            raise ValueError(f"{self.where}: nobody asked for {statistic}")
        self._columns.check(self.where)
        return self._columns
