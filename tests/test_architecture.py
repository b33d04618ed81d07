"""The shape of the tree: what lies where, and which way the imports point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bench", "methods", "reports")


def sources() -> list[Path]:
    """Files of the tree, leaving out environments, builds and hidden folders."""
    folders = [*PACKAGES, "cuda", "tests", "docs", "studies"]
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    return [path for path in [*files, *ROOT.glob("*.py")] if "__pycache__" not in path.parts]


def test_cuda_holds_no_python() -> None:
    assert [
        str(path) for path in sources() if path.suffix == ".py" and path.is_relative_to(ROOT / "cuda")
    ] == []


def test_no_module_shadows_the_cuda_namespace() -> None:
    assert [str(path) for path in sources() if path.name == "cuda.py"] == []
    assert not (ROOT / "cuda" / "__init__.py").exists()


def test_tests_are_no_package() -> None:
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_nvidias_cuda_package_is_found_from_the_root() -> None:
    probe = "import importlib.util as u; print(u.find_spec('cuda.bindings') is not None)"
    outside = subprocess.run(
        [sys.executable, "-c", f"try:\n  {probe}\nexcept ModuleNotFoundError:\n  print(None)"],
        cwd=ROOT.anchor,
        capture_output=True,
        text=True,
        check=True,
    )
    if outside.stdout.strip() != "True":
        pytest.skip("cuda.bindings is not installed")
    inside = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert inside.stdout.strip() == "True"


def test_a_bare_checkout_offers_no_cuda_module() -> None:
    # in a process of its own: torch, once imported, brings a module of that name
    probe = "import importlib.util as u; s = u.find_spec('cuda'); print(s is None or s.loader is None or s.origin)"
    said = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True" or "site-packages" in said.stdout


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_reports_import_only_the_store_and_the_published_figures(graph: grimp.ImportGraph) -> None:
    allowed = ("bench.results", "bench.published", "methods.errors")  # exceptions only
    modules = {"reports"} | graph.find_descendants("reports")
    imported = {target for module in modules for target in graph.find_modules_directly_imported_by(module)}
    strangers = {
        name
        for name in imported
        if name.split(".")[0] in ("bench", "methods", "torch") and not name.startswith(allowed)
    }
    assert strangers == set()


@pytest.mark.parametrize("package", ["reports", "bench.results", "bench.published"])
def test_no_way_leads_to_torch(graph: grimp.ImportGraph, package: str) -> None:
    assert graph.find_shortest_chain(importer=package, imported="torch", as_packages=True) is None


def test_methods_import_nothing_of_the_harness(graph: grimp.ImportGraph) -> None:
    for package in ("bench", "reports"):
        assert graph.find_shortest_chain(importer="methods", imported=package, as_packages=True) is None


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
