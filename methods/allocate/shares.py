"""Linear shares by rank, and exact counts from shares: what mixed sparsity does with sensitivities.

All arithmetic is in fractions, so that a budget is met to the last weight.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from fractions import Fraction

from methods.layerwise.select import round_half_up

__all__ = ["MOST", "counts", "linear_shares", "patterns", "shifted"]

MOST = Fraction(95, 100)
"""The largest share that a matrix loses: nothing is pruned away altogether."""


def linear_shares(sensitivities: Sequence[float], amount: Fraction, alpha: Fraction) -> list[Fraction]:
    """Share removed of every unit: p + α - 2α · rank / (units - 1), rank 0 for the least sensitive (arXiv 2310.09499, alg. 1).

    The paper's line L + rank · (R - L) / (units - 1), with L = 1 - p - α and R = 1 - p + α, is the share that
    stays. Equal sensitivities rank by index. Shares may leave [0, 1]; their mean is p.
    """
    units = len(sensitivities)
    order = sorted(range(units), key=lambda unit: sensitivities[unit])
    shares = [amount] * units
    if units > 1:
        for rank, unit in enumerate(order):
            shares[unit] = amount + alpha - 2 * alpha * Fraction(rank, units - 1)
    return shares


def clipped(share: Fraction) -> Fraction:
    """The share, from 0 to the most that a matrix loses."""
    return min(max(share, Fraction(0)), MOST)


def shifted(sizes: Sequence[int], shares: Sequence[Fraction], total: Fraction) -> list[Fraction]:
    """The shares moved by one offset and clipped to [0, 0.95], such that Σ size · share is ``total`` exactly.

    Where the clip leaves no such offset, all shares are 0 or 0.95, whichever is nearer.
    """

    def removed(offset: Fraction) -> Fraction:
        return sum(
            (size * clipped(share + offset) for size, share in zip(sizes, shares, strict=True)), Fraction(0)
        )

    # between two neighbouring bends the sum is a straight line
    bends = sorted({bend for share in shares for bend in (-share, MOST - share)})
    above = bisect.bisect_left(bends, total, key=removed)
    if above == len(bends):
        offset = bends[-1]
    elif above == 0:
        offset = bends[0]
    else:
        low, high = bends[above - 1], bends[above]
        start, stop = removed(low), removed(high)
        offset = low + (high - low) * (total - start) / (stop - start)
    return [clipped(share + offset) for share in shares]


def counts(sizes: Sequence[int], shares: Sequence[Fraction], total: int) -> list[int]:
    """Whole weights removed of every matrix: size · share rounded, with Σ = ``total``.

    What rounding leaves over or takes too much is settled one weight a matrix, where rounding was furthest
    off, the lowest index first. ``total`` must lie within 0..Σ size.
    """
    exact = [size * share for size, share in zip(sizes, shares, strict=True)]
    found = [round_half_up(value) for value in exact]
    missing = total - sum(found)
    step = 1 if missing > 0 else -1
    order = sorted(range(len(sizes)), key=lambda unit: step * (found[unit] - exact[unit]))
    while missing:  # a second round only where few matrices can give way: most are whole, or empty
        for unit in order:
            if missing and 0 <= found[unit] + step <= sizes[unit]:
                found[unit] += step
                missing -= step
    return found


def patterns(sizes: Sequence[int], shares: Sequence[Fraction], group: int, total: Fraction) -> list[int]:
    """How many of every ``group`` weights each unit loses, with Σ size · n / group as near ``total`` as the order allows.

    n is group · (share + offset) rounded, from 0 to the most whole number within 95 %, for the offset that
    comes nearest to ``total``; so a larger share never loses fewer.
    """
    most = max(1, int(MOST * group))
    steps = sorted(
        (Fraction(2 * number + 1, 2 * group) - share, -share, unit)
        for unit, share in enumerate(shares)
        for number in range(most)
    )
    best, gap, removed = 0, total, Fraction(0)
    for taken, (_, _, unit) in enumerate(steps, 1):
        removed += Fraction(sizes[unit], group)
        if abs(total - removed) < gap:
            best, gap = taken, abs(total - removed)
    found = [0] * len(shares)
    for _, _, unit in steps[:best]:
        found[unit] += 1
    return found
