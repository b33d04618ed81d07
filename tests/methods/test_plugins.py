"""Methods that other packages bring, by the very example of CONTRIBUTING.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import tiny

from methods import registry
from methods.errors import UserError
from methods.interface import Calibration, Run
from methods.stream.sink import BlockFolder
from methods.target import Target

_GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def _example() -> str:
    return _GUIDE.read_text().split("<!-- code: method -->")[1].split("```python\n")[1].split("```")[0]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path in which a package can be laid as an installer does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._table.cache_clear()
    yield tmp_path
    registry._table.cache_clear()
    sys.modules.pop("my_pruning", None)


def _lay(folder: Path, code: str, entry: str) -> None:
    (folder / "my_pruning.py").write_text(code)
    info = folder / "my_pruning-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-pruning\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{entry}\n")


def test_the_example_is_a_method_in_thirty_lines(install: Path, tmp_path: Path) -> None:
    code = _example()
    assert len(code.splitlines()) <= 30
    _lay(install, code, "scaled = my_pruning:METHOD")
    assert registry.names()[-1] == "scaled"
    assert registry.method("scaled").origin == "my-pruning"
    _, source = tiny("llama")
    tokens = torch.randint(0, 101, (6, 16), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens[:4], tokens[4:])
    errors = {}
    for method in ("magnitude", "scaled", "scaled@global"):
        report = registry.get(method, {}).prune(
            source, calibration, Target.parse("50%"), BlockFolder(tmp_path / method), Run()
        )
        assert sum(m.removed for m in report.matrices) * 2 == sum(m.rows * m.columns for m in report.matrices)
        errors[method] = sum(m.heldout_error or 0 for m in report.matrices)
    assert errors["scaled"] < errors["magnitude"]
    with pytest.raises(UserError, match="parameter of scaled 'powr' is unknown; did you mean 'power'"):
        registry.get("scaled", {"powr": 2.0})


def test_a_plugin_may_be_a_refinement(install: Path, tmp_path: Path) -> None:
    code = """
from dataclasses import dataclass
from methods.layerwise.rule import Statistic
from methods.registry import RefinementEntry

@dataclass(frozen=True)
class Mirrored:
    name: str = "mirrored"
    needs: Statistic = Statistic.NONE

    def __call__(self, problem, mask):
        return mask.flip(1)

REFINEMENT = RefinementEntry("mirrored", "the other way round", "none", "my_pruning:Mirrored", calibrated=False)
"""
    _lay(install, code, "mirrored = my_pruning:REFINEMENT")
    assert "mirrored" in registry.refinements() and "mirrored" not in registry.names()
    _, source = tiny("llama")
    tokens = torch.randint(0, 101, (6, 16), generator=torch.Generator().manual_seed(0))
    pruner = registry.get("magnitude+mirrored", {})
    report = pruner.prune(
        source, Calibration(tokens[:0], tokens), Target.parse("50%"), BlockFolder(tmp_path / "out"), Run()
    )
    assert not pruner.needs_calibration
    assert sum(m.removed for m in report.matrices) * 2 == sum(m.rows * m.columns for m in report.matrices)


def test_a_rule_without_an_update_takes_no_refinement(install: Path) -> None:
    _lay(install, _example(), "scaled = my_pruning:METHOD")
    with pytest.raises(
        UserError, match=r"method 'scaled' has no update for a fixed mask, so '\+dsnot' cannot"
    ):
        registry.get("scaled+dsnot", {})


def test_a_broken_plugin_is_named(install: Path) -> None:
    _lay(install, "raise ImportError('no such thing')", "broken = my_pruning:METHOD")
    with pytest.raises(
        UserError, match=r"plug-in 'broken' cannot be loaded \(no such thing\); uninstall or mend it"
    ):
        registry.names()


def test_a_plugin_cannot_take_a_name(install: Path) -> None:
    _lay(install, _example().replace('name="scaled"', 'name="magnitude"'), "magnitude = my_pruning:METHOD")
    with pytest.raises(UserError, match="plug-in 'magnitude' takes the name of a method that exists"):
        registry.names()


def test_a_plugin_must_be_a_method(install: Path) -> None:
    _lay(install, "METHOD = 3", "three = my_pruning:METHOD")
    with pytest.raises(UserError, match=r"plug-in 'three' is no methods\.registry\.Method"):
        registry.names()
