"""How far each figure may move: a typed file of limits per metric, with overrides by model, method and target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = ["DEFAULTS", "Limit", "Tolerances", "tolerances"]

DEFAULTS: Final = Path(__file__).with_name("tolerances.yaml")
"""The packaged limits, which a file of the user's is laid over."""

Kind = Literal["quality", "size", "memory", "time"]
Better = Literal["lower", "higher"]
Apart = Literal["regressed", "ignored"]
Entry = TypeVar("Entry")
Share = Annotated[float, Field(ge=0, le=1e30, strict=False, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Limit(_Model):
    """A change beyond both `relative` (of BASE) and `absolute` (in the figure's unit) counts.

    `significant`: only where a test says so, too. `apart`: whether quality measured on other text, or on other files of
    the model, is "regressed" as if it were missing, or "ignored". `time` and `memory` are compared in equal environments
    only. Times are judged over all cells of a method; a cell that has repeats of its own is judged by itself, too, beyond
    `alone`.
    """

    kind: Kind
    better: Better
    relative: Share = 0.0
    absolute: Share = 0.0
    alone: Share = 1.0
    significant: bool = False
    apart: Apart = "regressed"

    def allowed(self, base: float) -> float:
        """The largest change from `base` that does not count, in the figure's unit."""
        return max(self.relative * abs(base), self.absolute)


class _Change(_Model):
    kind: Kind | None = None
    better: Better | None = None
    relative: Share | None = None
    absolute: Share | None = None
    alone: Share | None = None
    significant: bool | None = None
    apart: Apart | None = None


class _Override(_Model):
    models: str = "*"
    methods: str = "*"
    targets: str = "*"
    metrics: dict[str, _Change]

    def matches(self, model: str, method: str, target: str) -> bool:
        return (
            fnmatchcase(model, self.models)
            and fnmatchcase(method, self.methods)
            and fnmatchcase(target, self.targets)
        )


class Tolerances(_Model):
    """Limits by metric, overrides in order, and the level at which a test is called significant."""

    level: Annotated[float, Field(gt=0, lt=1, strict=False)] = 0.05
    metrics: dict[str, Limit] = Field(default_factory=dict)
    overrides: Annotated[tuple[_Override, ...], Field(strict=False)] = ()

    def limit(self, metric: str, model: str, method: str, target: str) -> Limit | None:
        """The limit of a metric for one cell; None where the metric is not judged."""
        found = _matching(metric, self.metrics)
        if found is None:
            return None
        for override in self.overrides:
            change = _matching(metric, override.metrics)
            if change is not None and override.matches(model, method, target):
                found = found.model_copy(update=change.model_dump(exclude_none=True))
        return found

    def lost(self, metrics: Iterable[str], model: str, method: str, target: str) -> bool:
        """Whether one of the metrics is a quality whose loss of a basis to compare on counts as a regression."""
        limits = (self.limit(metric, model, method, target) for metric in metrics)
        return any(
            limit is not None and limit.kind == "quality" and limit.apart == "regressed" for limit in limits
        )


def tolerances(packaged: Mapping[str, Any], given: Mapping[str, Any] | None = None) -> Tolerances:
    """The packaged limits with `given` laid over them. Raises ValueError, one line, for what is no such file."""
    base = _parsed(packaged)
    if given is None:
        return base
    own = _parsed(given)
    return Tolerances(
        level=own.level if "level" in given else base.level,
        # Own globs must win over packaged names: they come first, and take whole entries.
        metrics={
            **own.metrics,
            **{name: limit for name, limit in base.metrics.items() if _matching(name, own.metrics) is None},
        },
        overrides=(*base.overrides, *own.overrides),
    )


def _parsed(mapping: Mapping[str, Any]) -> Tolerances:
    try:
        return Tolerances.model_validate(dict(mapping))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}"[:200]) from None


def _matching(metric: str, entries: Mapping[str, Entry]) -> Entry | None:
    """The entry of that very name, else the first whose glob matches."""
    if metric in entries:
        return entries[metric]
    return next((entry for glob, entry in entries.items() if fnmatchcase(metric, glob)), None)
