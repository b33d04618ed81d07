"""The contract's first part: names, parameters and refusals; what a user meets before any weight is read."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from methods import registry
from methods.contract.checks import is_one_line
from methods.contract.models import SHAPES
from methods.contract.setting import Setting
from methods.entries import AllocationEntry, Method, Parameter, RefinementEntry
from methods.errors import PruneBenchError, UserError
from methods.families import shape_of
from methods.target import Target

__all__ = ["EntryContract"]

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_PARAMETER = re.compile(r"[a-z][a-z0-9_]*")
_OTHER_TYPES: tuple[Any, ...] = (None, "three", [1], float("nan"), float("inf"), object())
_TEXTS = ("", " ", "no such thing", "../../etc/passwd", "a\nb", "x" * 5000, "\0")
_ASKED = (
    "50%", "0.001%", "99.999%", "2:4", "1:2", "4:8", "3:7", "31:32", "1:997",
    "slice25%", "slice0%", "slice99%", "params-20%", "bytes-30%", "50%+4bit", "2:4+3bit", "slice25%+8bit", "0%",
)  # fmt: skip


class EntryContract(Setting):
    """Names, parameters and refusals."""

    def entries(self) -> list[Method | AllocationEntry | RefinementEntry]:
        """The registry's entries of all that the spelling names."""
        parsed = registry.spelling(self.method)
        others = [registry.refinements()[name] for name in parsed.refinements]
        spread = [registry.allocations()[parsed.allocation]] if parsed.allocation else []
        return [registry.method(parsed.rule), *spread, *others]

    def test_it_is_registered(self) -> None:
        """Names fit the grammar; summaries are lines; factories and sources are there."""
        assert self.method, "set `method` to the spelling of the method under test"
        for entry in self.entries():
            assert _NAME.fullmatch(entry.name), f"'{entry.name}' does not fit rule[@allocation][+refinement]"
            assert is_one_line(entry.summary), f"{entry.name}: the summary is a line for `bench list`"
            assert is_one_line(entry.origin), f"{entry.name}: the origin is the name of the package"
            module, colon, attribute = entry.factory.partition(":")
            assert colon and callable(getattr(importlib.import_module(module), attribute))
            for source in entry.sources:
                assert importlib.util.find_spec(source), f"{entry.name}: no module {source}"

    def test_its_parameters_are_declared(self) -> None:
        """Types are plain, defaults are allowed values, helps are lines."""
        for name, parameter in registry.declared(self.method).items():
            assert _PARAMETER.fullmatch(name.rpartition(".")[2])
            assert parameter.type in (bool, int, float, str), (
                f"{name}: a command line cannot give {parameter.type}"
            )
            assert is_one_line(parameter.help), f"{name}: the help is a line for `bench list parameters`"
            parameter.check(name, parameter.default)

    def test_it_can_be_made_and_reaches_something(self) -> None:
        """With defaults it can be made, and there is a target it does not refuse."""
        pruner = self.pruner()
        assert isinstance(pruner.needs_calibration, bool)
        assert any(entry.calibrated for entry in self.entries()) or not pruner.needs_calibration, (
            "the entry says calibrated=False, the method needs calibration"
        )
        assert self.aims(), "every target tried is refused"

    def test_an_unknown_parameter_is_named(self) -> None:
        """One line says which parameter is unknown."""
        with pytest.raises(UserError, match="no_such_thing") as caught:
            registry.get(self.method, {"no_such_thing": 1})
        assert is_one_line(str(caught.value))

    def test_wrong_values_are_user_errors(self) -> None:
        """Other types, other choices and values out of bounds are refused in a line, before any work."""
        for name, parameter in registry.declared(self.method).items():
            for value in _forbidden(parameter):
                with pytest.raises(UserError) as caught:
                    self.pruner(**{name: value})
                assert is_one_line(str(caught.value)), f"{name}={value!r}: {caught.value}"
                assert name in str(caught.value), "the message names the parameter"

    def test_hostile_values_work_or_are_named(self, tmp_path: Path) -> None:
        """Whatever is of the type and within bounds prunes, or fails with a named error of one line."""
        model, aims = self.model(tmp_path), self.aims()[:1]
        for name, parameter in registry.declared(self.method).items():
            for number, value in enumerate(_allowed(parameter)):
                try:
                    pruner = self.pruner(**{name: value})
                    for target in aims:
                        if pruner.refuse(shape_of(SHAPES[self.families[0]]), Target.parse(target)) is None:
                            self.prune(model, tmp_path / f"{name}-{number}", target, pruner=pruner)
                except PruneBenchError as error:
                    assert is_one_line(str(error)), f"{name}={value!r}: {error}"

    @pytest.mark.parametrize("shape", list(SHAPES))
    def test_refusals_are_reasons(self, shape: str) -> None:
        """Asked for any target on any model, it answers None or a line, from the sizes alone."""
        pruner = self.pruner()
        for asked in _ASKED:
            reason = pruner.refuse(shape_of(SHAPES[shape]), Target.parse(asked))
            assert reason is None or is_one_line(reason), f"{asked} on {shape}: {reason!r}"


def _forbidden(parameter: Parameter) -> Iterator[Any]:
    """Values that the declaration rules out."""
    for value in _OTHER_TYPES:
        if not isinstance(value, parameter.type) or parameter.type is float:
            yield value
    if parameter.choices is not None and parameter.type is str:
        yield "no such choice"
    if parameter.type in (int, float):
        yield True
        if parameter.minimum is not None:
            yield parameter.type(parameter.minimum) - 1
        if parameter.maximum is not None:
            yield parameter.type(parameter.maximum) + 1


def _allowed(parameter: Parameter) -> Iterator[Any]:
    """Values that the declaration admits, the odd ones among them."""
    if parameter.choices is not None:
        yield from parameter.choices
    elif parameter.type is bool:
        yield from (False, True)
    elif parameter.type is str:
        yield from _TEXTS
    else:
        odd: tuple[float, ...] = (
            (-1, 0, 1, 7, 4096) if parameter.type is int else (-1.0, 0.0, 1e-30, 0.5, 1e30)
        )
        low = parameter.minimum if parameter.minimum is not None else odd[0]
        high = parameter.maximum if parameter.maximum is not None else odd[-1]
        for value in dict.fromkeys((low, *odd, high)):
            if low <= value <= high:
                yield parameter.type(value)
