"""What the registry holds: methods, allocations, refinements, shorthands and their parameters. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["AllocationEntry", "Method", "Parameter", "RefinementEntry", "Shorthand"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ``--set name.parameter=value``: its type, default, help, and bounds or choices.

    The factory takes it by its name, with an underscore behind where that is a word of Python (``lambda_``).
    ``grids``: it says how grids are made, and changes nothing where a target has no bits.
    """

    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    grids: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """A rule: how weights are chosen, and what becomes of those that stay.

    ``factory`` is ``module:attribute``, called with the parameters by name: a ``Rule`` for layer-wise
    methods, a ``Pruner`` for others (``layerwise`` False). ``calibrated``: results depend on calibration
    text. ``sources``: modules beside the shared ones whose change changes results. For the plan's estimates:
    ``workspace`` is how many float32 matrices of columns x columns it holds at once (0: it gathers no Gram
    matrix), ``products`` how many products of the weight with such a matrix its work amounts to.
    """

    name: str
    summary: str
    paper: str
    factory: str
    layerwise: bool = True
    calibrated: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    origin: str = "prune-bench"
    default_target: str = "50%"
    workspace: int = 3
    products: int = 1


@dataclass(frozen=True, slots=True)
class AllocationEntry:
    """How a budget is spread over the matrices, spelled behind ``@``; ``factory`` makes an ``Allocation``.

    For the plan's estimates: ``passes`` through the dense model come first; with ``products`` above 0 they
    gather every Gram matrix of a block at once, and work on them as a ``Method`` of so many products does.
    """

    name: str
    summary: str
    paper: str
    factory: str
    calibrated: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    origin: str = "prune-bench"
    passes: int = 0
    products: int = 0


@dataclass(frozen=True, slots=True)
class RefinementEntry:
    """What betters a mask before the update, spelled behind ``+``; ``factory`` makes a ``Refinement``."""

    name: str
    summary: str
    paper: str
    factory: str
    calibrated: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    origin: str = "prune-bench"


@dataclass(frozen=True, slots=True)
class Shorthand:
    """A name for a whole spelling: ``mixed`` for ``sparsegpt@mixed`` with another saliency.

    ``parameters`` replace defaults, named as in a cell: plain for the rule's, ``owl.lambda`` for others'.
    Unlike all other names it may be that of an allocation or refinement too.
    """

    name: str
    summary: str
    spelling: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
