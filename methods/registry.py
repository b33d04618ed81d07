"""Methods by name: ``rule[@allocation][+refinement]``, ours and those that other packages bring.

Free of torch until a pruner is made, so that lists, plans and completion stay quick.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from methods.errors import UserError

if TYPE_CHECKING:
    from methods.interface import Pruner

__all__ = [
    "ENTRY_POINTS",
    "Method",
    "Parameter",
    "Spelling",
    "allocation_module",
    "allocations",
    "get",
    "method",
    "names",
    "parameters_of",
    "spelling",
]

ENTRY_POINTS = "prune_bench.methods"
"""Entry-point group in which a package names its methods; each entry point is a ``Method``."""

_SPELLING = re.compile(
    r"^(?P<rule>[a-z0-9_-]+)(?:@(?P<allocation>[a-z0-9_-]+))?(?P<refinements>(?:\+[a-z0-9_-]+)*)$"
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ``--set method.parameter=value``: its type, default, help, and bounds or choices."""

    type: type
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """An entry of the registry.

    ``factory`` is ``module:attribute``, called with the parameters by name: a ``Rule`` for layer-wise
    methods, a ``Pruner`` for others (``layerwise`` False). ``calibrated``: results depend on calibration
    text. ``sources``: modules beside the shared ones whose change changes results. ``targets``: the kinds of
    ``methods.target.Target`` it is aimed at when they are asked for; sizes (``params``, ``bytes``) always are.
    ``scheduled``: results depend on the run's schedule and Hessian dtype.
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
    targets: tuple[str, ...] = ("unstructured", "nm")
    scheduled: bool = True


@dataclass(frozen=True, slots=True)
class Spelling:
    """A method's parsed spelling."""

    rule: str
    allocation: str = "uniform"
    refinements: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = "" if self.allocation == "uniform" else f"@{self.allocation}"
        return self.rule + at + "".join(f"+{name}" for name in self.refinements)


_REFERENCE = Parameter(
    bool, False, "follow the published code to the letter (one weight more per block, ties)"
)

_OURS = (
    Method(
        name="magnitude",
        summary="the smallest weights of each matrix go; nothing else moves",
        paper="Han et al., arXiv 1506.02626",
        factory="methods.layerwise.magnitude:Magnitude",
        calibrated=False,
        parameters={"reference": _REFERENCE},
        sources=("methods.layerwise.magnitude",),
    ),
    Method(
        name="sparsegpt",
        summary="column sweep with optimal-brain-surgeon updates",
        paper="Frantar and Alistarh, arXiv 2301.00774",
        factory="methods.layerwise.sparsegpt:SparseGPT",
        parameters={
            "percdamp": Parameter(
                float, 0.01, "damping, as a share of the Hessian's mean diagonal", minimum=0.0
            ),
            "blocksize": Parameter(int, 128, "columns per block", minimum=1),
            "reference": _REFERENCE,
        },
        sources=("methods.layerwise.sparsegpt", "methods.moments.factor", "methods.kernels"),
    ),
    Method(
        name="slicegpt",
        summary="the residual stream keeps its first principal directions; every matrix gets narrower",
        paper="Ashkboos et al., arXiv 2401.15024",
        factory="methods.slicing.pruner:SliceGPT",
        layerwise=False,
        parameters={
            "round_interval": Parameter(
                int, 8, "widths are rounded down to multiples of this", minimum=1, maximum=65536
            ),
            "slice_head": Parameter(bool, False, "slice the last block's output and the head too"),
            "orientation": Parameter(
                str, "pca", "kept directions as the PCA orders them, or turned at random", choices=("pca", "random")
            ),
            "slope": Parameter(
                float,
                0.0,
                "by how much the sliced share grows from first to last layer (0: constant schedule)",
                minimum=-1.0,
                maximum=1.0,
            ),
        },
        sources=("methods.slicing",),
        default_target="slice25%",
        targets=("slice",),
        scheduled=False,
    ),
)

_ALLOCATIONS = {
    "uniform": ("methods.allocate.uniform:Uniform", "the same share of every matrix"),
    "global": ("methods.allocate.global_:Global", "one magnitude threshold over the whole model"),
}


@cache
def _table() -> dict[str, Method]:
    table = {method.name: method for method in _OURS}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found = point.load()
        except Exception as error:  # a broken plug-in must not take the others down
            raise UserError(
                f"plug-in '{point.name}' cannot be loaded ({error}); uninstall or mend it"
            ) from None
        if not isinstance(found, Method) or found.name != point.name:
            raise UserError(
                f"plug-in '{point.name}' is no methods.registry.Method of that name; mend its entry point"
            )
        if found.name in table:
            raise UserError(f"plug-in '{point.name}' takes the name of a method that exists; rename it")
        table[found.name] = found
    return table


def names() -> tuple[str, ...]:
    """Every rule, ours first."""
    return tuple(_table())


def allocations() -> dict[str, str]:
    """Allocations by name, with a line on each."""
    return {name: summary for name, (_, summary) in _ALLOCATIONS.items()}


def allocation_module(name: str) -> str:
    """The module that an allocation lives in."""
    return _ALLOCATIONS[name][0].partition(":")[0]


def method(rule: str) -> Method:
    """The registry's entry. Raises UserError with the nearest names."""
    table = _table()
    if rule not in table:
        raise UserError(_unknown("method", rule, [*table, "dense"]))
    return table[rule]


def parameters_of(rule: str) -> Mapping[str, Parameter]:
    """Parameters that ``--set rule.name=value`` may set. Raises UserError for an unknown rule."""
    return dict(method(rule).parameters)


def spelling(text: str) -> Spelling:
    """Parse ``rule[@allocation][+refinement]``. Raises UserError naming what is wrong and what is near."""
    found = _SPELLING.match(text.strip().lower())
    if not found:
        raise UserError(
            f"method '{text}' is not spelled rule[@allocation][+refinement]; for example magnitude@global"
        )
    entry = method(found["rule"])
    allocation = found["allocation"] or "uniform"
    if allocation not in _ALLOCATIONS:
        raise UserError(_unknown("allocation", allocation, list(_ALLOCATIONS)))
    if found["refinements"]:
        seen = found["refinements"].lstrip("+").split("+")[0]
        raise UserError(f"refinement '{seen}' is unknown; no refinement is installed, leave out '+{seen}'")
    if allocation != "uniform" and not entry.layerwise:
        raise UserError(
            f"method '{entry.name}' is not layer-wise and takes no allocation; leave out '@{allocation}'"
        )
    return Spelling(entry.name, allocation)


def get(text: str, parameters: Mapping[str, Any]) -> Pruner:
    """The pruner of a spelling, with these parameters. Raises UserError for unknown names."""
    parsed = spelling(text)
    entry = method(parsed.rule)
    for name in parameters:
        if name not in entry.parameters:
            raise UserError(_unknown(f"parameter of {entry.name}", name, list(entry.parameters)))
    made = _load(entry.factory)(**parameters)
    if not entry.layerwise:
        pruner: Pruner = made
        return pruner
    from methods.layerwise.pruner import layerwise

    return layerwise(made, _load(_ALLOCATIONS[parsed.allocation][0])())


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unknown(kind: str, seen: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(seen, allowed, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(allowed) or 'none'}"
    return f"{kind} '{seen}' is unknown; {hint}"
