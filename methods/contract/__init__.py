"""The tests that every method passes, ours and those of other packages, run by one import.

::

    from methods.contract import MethodContract

    class TestScaled(MethodContract):
        method = "scaled"

Needs pytest. ``method`` is a spelling as behind ``--methods``, so ``magnitude@mine`` tests an allocation and
``sparsegpt+mine`` a refinement. What can be said of a method beside its name: see ``methods.contract.setting``.
"""

import pytest

pytest.register_assert_rewrite(
    "methods.contract.entry",
    "methods.contract.repeats",
    "methods.contract.weights",
    "methods.contract.checks",
)

from methods.contract.suite import MethodContract  # noqa: E402 - after what makes its assertions speak

__all__ = ["MethodContract"]
