"""What the registry holds: methods, allocations, refinements, shorthands and their parameters. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from methods.errors import UserError, nearest, shown

__all__ = ["OURS", "AllocationEntry", "Method", "Parameter", "RecoveryEntry", "RefinementEntry", "Shorthand"]

OURS = "prune-bench"
"""Origin of an entry that names none: of a plug-in's, its distribution takes the place."""

_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ``--set name.parameter=value``: its type, default, help, and bounds or choices.

    The factory takes it by its name, with an underscore behind where that is a word of Python (``lambda_``).
    ``file``: a text that names a file or folder, so that what lies there decides what a rerun skips, too.
    ``local``: it says where something lies on this machine, not what is computed, so that it is no part of
    what a record is about.
    ``grids``: it says how grids are made, and changes nothing where a target has no bits.
    """

    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    file: bool = False
    local: bool = False
    grids: bool = False

    def of_another_type(self, name: str, value: object) -> UserError:
        """What to say of a ``value`` that does not read as this parameter's type; ``name`` as behind ``--set``."""
        default = str(self.default).lower() if isinstance(self.default, bool) else self.default
        return UserError(
            f"{name} is '{shown(value)}'; it must be {_KINDS[self.type]}, as in --set {name}={default}"
        )

    def check(self, name: str, value: Any) -> None:
        """Raises UserError unless ``value`` is of the type, a choice, and within bounds; ``name`` as behind ``--set``."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.type is float:
            fits = (whole and abs(value) < 1 << 1023) or (isinstance(value, float) and math.isfinite(value))
        else:
            fits = whole if self.type is int else isinstance(value, self.type)
        if not fits:
            raise self.of_another_type(name, value)
        if self.choices is not None and value not in self.choices:
            allowed = ", ".join(map(str, self.choices))
            near = nearest(str(value), map(str, self.choices))
            raise UserError(f"{name} is '{shown(value)}'; it must be one of {allowed}{near}")
        low, high = self.minimum, self.maximum
        below = low is not None and not isinstance(value, str) and value < low
        if below or (high is not None and not isinstance(value, str) and value > high):
            bounds = " and ".join(
                f"{word} {end:g}" for word, end in (("at least", low), ("at most", high)) if end is not None
            )
            raise UserError(f"{name} is {shown(value)}; it must be {bounds}")


@dataclass(frozen=True, slots=True)
class Method:
    """A rule: how weights are chosen, and what becomes of those that stay.

    ``factory`` is ``module:attribute``, called with the parameters by name: a ``Rule`` for layer-wise
    methods, a ``Pruner`` for others (``layerwise`` False). ``calibrated``: results depend on calibration
    text. ``sources``: modules beside the shared ones whose change changes results. ``targets``: the kinds of
    ``methods.target.Target`` it is aimed at when they are asked for; sizes (``params``, ``bytes``) always are.
    ``scheduled``: results depend on the run's schedule and Hessian dtype. ``outside``: ``module:attribute``,
    called with the parameters by name where another program does the work; it gives the versions there (name to
    version), whose change changes results too. For the plan's estimates: ``workspace`` is how many float32
    matrices of columns x columns it holds at once (0: it gathers no Gram matrix; 2.5: the Gram matrix, the factor, and
    half of one while that is inverted), ``products`` how many products of the weight with such a matrix its work
    amounts to.
    """

    name: str
    summary: str
    paper: str
    factory: str
    layerwise: bool = True
    calibrated: bool = True
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    origin: str = OURS
    default_target: str = "50%"
    targets: tuple[str, ...] = ("unstructured", "nm")
    scheduled: bool = True
    workspace: float = 2.5
    products: int = 1
    outside: str = ""


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
    origin: str = OURS
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
    origin: str = OURS


@dataclass(frozen=True, slots=True)
class RecoveryEntry:
    """What trains a pruned model, spelled behind ``--recover``; ``factory`` makes a ``methods.recover.pruner.Recovery``.

    ``libraries``: distributions whose versions change results, beside torch.
    """

    name: str
    summary: str
    paper: str
    factory: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ("transformers",)
    origin: str = OURS
    calibrated: bool = True


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
