"""`bench` with one thing made worse on purpose: what `nox -s nightly -- --plant NAME` runs, to show that its gate sees it.

    python tests/planted.py compensation run --models nano-opt

The change is made in this process only, behind the back of subjects and of digests of sources, as a bug would.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

SLOWER = 0.4
"""Work added to a slowed operator, of its own time."""


def compensation() -> None:
    """SparseGPT chooses as ever but spreads no error: its factors lose all that is off the diagonal."""
    from methods.moments import Moments

    original = Moments.factor

    def factor(self: Moments, *words: Any, **options: Any) -> Any:
        found = original(self, *words, **options)
        return replace(found, upper=found.upper.diag().diag())

    Moments.factor = factor  # type: ignore[method-assign]


def percdamp() -> None:
    """The Hessian is damped by its whole mean diagonal, while records and subjects say 0.01."""
    from methods.moments import Moments

    original = Moments.factor

    def factor(self: Moments, _percdamp: float, **options: Any) -> Any:
        return original(self, 1.0, **options)

    Moments.factor = factor  # type: ignore[method-assign]


def slow_operator() -> None:
    """Products of bitmaps take 40 % longer: of the work they did, not of the time that others took from them."""
    from methods.kernels.prepared import BitmapProduct

    original = BitmapProduct.__call__

    def call(self: BitmapProduct, x: Any) -> Any:
        began = time.process_time()
        y = original(self, x)
        until = began + (1 + SLOWER) * (time.process_time() - began)
        while time.process_time() < until:
            pass
        return y

    BitmapProduct.__call__ = call  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "compensation": compensation,
    "percdamp": percdamp,
    "slow-operator": slow_operator,
}


def main(words: Sequence[str]) -> int:
    """Plant what the first word names, then run `bench` with the others."""
    if not words or words[0] not in PLANTS:
        print(f"error: name one of {', '.join(PLANTS)}, then a bench command", file=sys.stderr)
        return 2
    PLANTS[words[0]]()
    from bench.cli.main import main as bench

    return bench(words[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
