"""What one phase of one cell left behind: the record, its figures, and the steps that upgrade old ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import from_json

from bench.results.redact import redact_facts
from methods.errors import StoreError

SCHEMA_VERSION: Final = 1
"""Version written today. History: 1, the first format."""

Phase = Literal["prune", "perplexity", "zeroshot", "decode", "kernels", "save"]
Status = Literal["done", "refused", "failed"]
Key = tuple[str, str, str, str]
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

UPGRADES: Final[dict[int, Upgrade]] = {}
"""For every version before `SCHEMA_VERSION`, the step that turns its records into those of the next."""

WHOLE_LIMIT: Final = 2**63

_NON_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TAG: Final = "$float"
_TEXTS: Final = ("reason", "parameters", "provenance", "warnings")
"""What may repeat what a user typed or a server said."""


def _spell(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _text(value: Any) -> Any:
    # Lone surrogates (undecodable bytes of a file name) cannot be written as UTF-8: escape them.
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _number(value: Any) -> Any:
    if isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, bool | str):
        raise ValueError(f"expected a number, found {value!r:.60}")
    # NumPy and torch scalars carry item(); everything else is left for the type check to judge.
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, int) and abs(plain) >= WHOLE_LIMIT:
        raise ValueError("whole numbers of 2^63 and more are no figures")
    return plain


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {_TAG} and value[_TAG] in _NON_FINITE:
            return _NON_FINITE[value[_TAG]]
        return {_text(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    return value.item() if hasattr(value, "item") else _text(value)


def _moment(value: Any) -> Any:
    if not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"expected an ISO 8601 time with its zone, found {value!r:.60}")
    return value


Whole = Annotated[int, Field(strict=True, gt=-WHOLE_LIMIT, lt=WHOLE_LIMIT)]
Text = Annotated[str, Field(strict=True), BeforeValidator(_text)]
Number = Annotated[
    Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)], BeforeValidator(_number)
]
Moment = Annotated[str, BeforeValidator(_moment)]
Facts = Annotated[dict[str, JsonValue], BeforeValidator(_json)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Metric(_Frozen):
    """One measured figure with its unit: "1", "nat/token", "s", "bit", "byte", "token/s" or "FLOP/token"."""

    name: Text
    unit: Text
    value: Number | None


# A dataclass with slots: a store holds hundreds for every record, and a model of pydantic takes ten times the memory.
@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MatrixFigures:
    """What pruning did to one weight matrix.

    Errors are relative, ||W X - W' X||^2 / ||W X||^2, on calibration and on held-out text; `damping` is the
    fraction of the mean Hessian diagonal that was added, `escalations` how often it had to be raised;
    `seconds` is wall time.
    """

    block: Whole
    name: Text
    rows: Whole
    columns: Whole
    removed: Whole
    calibration_error: Number | None = None
    heldout_error: Number | None = None
    damping: Number | None = None
    dead_columns: Whole = 0
    escalations: Whole = 0
    seconds: Number = 0.0


class Record(_Frozen):
    """One phase of one cell: what was asked, how it ended, what was measured, and on what.

    `cell`, `subject` and `environment` are digests made by `bench.results.keys`; `sources` is the digest of
    the code that can change this phase's figures. `calibration` and `protocol` are protocol ids, empty
    where none applies. `values` names a side file of `bench.results.values`, or is empty. Raises
    `pydantic.ValidationError` for fields of a wrong type.
    """

    schema_version: int = SCHEMA_VERSION
    phase: Phase
    status: Status
    reason: Text = ""
    cell: Text
    subject: Text
    environment: Text
    sources: Text
    model: Text
    method: Text
    target: Text
    seed: Whole | None = None
    dtype: Text = ""
    calibration: Text = ""
    protocol: Text = ""
    parameters: Facts = Field(default_factory=dict)
    metrics: Annotated[tuple[Metric, ...], Field(strict=False)] = ()
    matrices: Annotated[tuple[MatrixFigures, ...], Field(strict=False)] = ()
    seconds: dict[str, Number] = Field(default_factory=dict)
    provenance: Facts = Field(default_factory=dict)
    warnings: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    values: Annotated[str, Field(pattern=r"^([0-9a-f]{64}\.safetensors)?$")] = ""
    started: Moment
    finished: Moment

    @property
    def key(self) -> Key:
        """What a rerun looks up: (cell, phase, protocol, sources)."""
        return (self.cell, self.phase, self.protocol, self.sources)

    @property
    def settled(self) -> bool:
        """Whether a rerun need not repeat it: done, with nothing ``awaited`` that could not be had at the time."""
        return self.status == "done" and not self.awaited

    @property
    def awaited(self) -> tuple[str, ...]:
        """What a done record lacks because the network failed, by name: tasks of its suites."""
        names = self.provenance.get("awaited")
        return tuple(str(name) for name in names) if isinstance(names, list) else ()

    def metric(self, name: str) -> int | float | None:
        """The value of the metric of that name, None where it was not measured."""
        return next((entry.value for entry in self.metrics if entry.name == name), None)


def now() -> str:
    """The present moment as records write it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def moment(text: str) -> datetime:
    """A record's `started` or `finished` as a datetime that compares across zones."""
    return datetime.fromisoformat(text)


def _plain(value: Any, tagged: bool) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_TAG: _spell(value)} if tagged else _spell(value)
    if isinstance(value, dict):
        return {key: _plain(entry, tagged) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, tagged) for entry in value]
    return value


def encode(record: Record) -> bytes:
    """Canonical JSON in one line, no newline, without secrets; NaN and infinities as strings, tagged in free-form fields."""
    fields = record.model_dump()
    fields |= {name: redact_facts(fields[name]) for name in _TEXTS}
    plain = {name: _plain(value, name in ("parameters", "provenance")) for name, value in fields.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def upgrade(
    fields: dict[str, Any], *, current: int = SCHEMA_VERSION, steps: Mapping[int, Upgrade] = UPGRADES
) -> dict[str, Any]:
    """Bring the fields of an older record to version `current`, one step a version.

    Raises `StoreError` for a record newer than this program and for one too old to be understood.
    """
    version = fields.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise ValueError(f"schema_version is {version!r:.60}, expected a whole number")
    if version > current:
        raise StoreError(
            f"this store holds records of format version {version}, this program reads up to {current}: "
            "upgrade prune-bench (pip install --upgrade prune-bench)"
        )
    for step in range(version, current):
        if step not in steps:
            raise StoreError(f"records of format version {version} cannot be read any more: run it again")
        fields = {**steps[step](fields), "schema_version": step + 1}
    return fields


def decode(body: bytes) -> Record:
    """A record from its JSON, older formats upgraded.

    Raises `StoreError` for a newer format and `ValueError`, one short line, for anything that is no record.
    """
    fields = from_json(body, allow_inf_nan=False)
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    try:
        return Record.model_validate(upgrade(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place or 'record'}: {first['msg']}"[:200]) from None
