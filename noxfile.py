"""The project's sessions: `nox -l` lists them, `nox -s tests` runs one."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PINS = ("-c", "constraints.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IN_PARALLEL = ("-n", "auto", "--dist", "loadfile", "--benchmark-disable")
"""A file's tests stay in one process, since they share fixtures."""
SOURCES = ("bench", "methods", "reports", "tests", "noxfile.py")


@nox.session
def demo(session: nox.Session) -> None:
    """Prune the three packaged models with three methods, evaluate, and write a report."""
    session.install("-q", *PINS, ".")
    out = session.posargs or ["--out", "runs/demo"]
    methods = ["--methods", "magnitude,wanda,sparsegpt"]
    targets = ["--pattern", "unstructured,2:4"]
    session.run("bench", "run", "--models", "nano-*", *methods, *targets, *out)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite, a process for each core; arguments after `--` go to pytest (`-n 0`: one process)."""
    session.install("-q", *PINS, "-e", ".[test]")
    session.run("pytest", "-rs", *IN_PARALLEL, *session.posargs)


@nox.session
def minimums(session: nox.Session) -> None:
    """Run the quick tests with the oldest versions that pyproject.toml admits."""
    floors = [re.sub(r">=", "==", requirement) for requirement in PROJECT["dependencies"]]
    tests_only = PROJECT["optional-dependencies"]["test"]
    session.install("-q", *floors, *tests_only)
    session.install("-q", "--no-deps", "-e", ".")
    session.run("pytest", "-rs", "-m", "not slow", *IN_PARALLEL, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and import contracts."""
    session.install("-q", *PINS, "ruff", "clang-format", "import-linter")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    native = sorted(str(path) for suffix in ("h", "cpp", "cu") for path in Path("cuda").rglob(f"*.{suffix}"))
    session.run("clang-format", "--dry-run", "-Werror", *native)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    session.install("-q", *PINS, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone, and check what it puts at the top level."""
    target = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(ROOT))
    built = max(target.glob("prune_bench-*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("-q", *PINS, str(built))
    session.install(
        "-q", "--no-deps", "--force-reinstall", str(built)
    )  # the version number may not have changed
    check = (
        "import importlib.metadata as m, pathlib\n"
        "files = [pathlib.PurePosixPath(str(f)) for f in m.files('prune-bench')]\n"
        "tops = {f.parts[0] for f in files if f.parts[0] != '..'}\n"
        "extra = {t for t in tops if not t.endswith('.dist-info')} - {'bench', 'methods', 'reports'}\n"
        "assert not extra, f'unexpected top-level names: {extra}'\n"
        "assert any(f.suffix == '.safetensors' for f in files), 'the packaged models are missing'\n"
        "assert any('templates' in f.parts for f in files), 'the report templates are missing'\n"
        "assert any(f.match('methods/contract/suite.py') for f in files), 'the contract is missing'\n"
        "assert any(f.match('llmcompressor/worker.py') for f in files), 'the worker is missing'\n"
        "from methods.kernels.operators import native_status\n"
        "print(native_status()[0])\n"
    )
    session.chdir(target)  # away from the checkout, so that the installed packages are what is imported
    session.run("python", "-c", check)
    session.run("bench", "--help", silent=True)


@nox.session
def native(session: nox.Session) -> None:
    """Run the C++ test plainly and under sanitizers; where nvcc is, compile the CUDA library and compare its figures."""
    session.install("-q", *PINS, "cmake", "ninja")
    for name, sanitizers in {"plain": "", "memory": "address,undefined", "thread": "thread"}.items():
        folder = f"build/native-{name}"
        kind = "RelWithDebInfo" if sanitizers else "Release"
        options = [
            f"-DPRUNE_BENCH_SANITIZE={sanitizers}",
            f"-DCMAKE_BUILD_TYPE={kind}",
            "-DPRUNE_BENCH_CUDA=OFF",
        ]
        session.run("cmake", "-S", "cuda", "-B", folder, "-G", "Ninja", "-DPRUNE_BENCH_TESTS=ON", *options)
        session.run("cmake", "--build", folder)
        session.run(f"{folder}/test_native", external=True)
    if not any((Path(entry) / "nvcc").exists() for entry in os.environ.get("PATH", "").split(os.pathsep)):
        session.warn("nvcc is not on PATH: the CUDA library was not compiled")
        return
    session.run("cmake", "-S", "cuda", "-B", "build/native-cuda", "-G", "Ninja", "-DPRUNE_BENCH_CUDA=ON")
    session.run("cmake", "--build", "build/native-cuda")
    session.run("python", "tests/ptxas.py")


@nox.session
def speed(session: nox.Session) -> None:
    """Measure kernels and whole prunes, saved under .benchmarks; `-- --benchmark-compare` sets them beside the last."""
    session.install("-q", *PINS, "-e", ".[test]")
    session.run(
        "pytest",
        "tests/speed",
        "-o",
        "addopts=--import-mode=importlib",
        "-s",
        "--benchmark-only",
        "--benchmark-autosave",
        *session.posargs,
    )


@nox.session
def nano(session: nox.Session) -> None:
    """Train the packaged models again from their script."""
    session.install("-q", *PINS, ".")
    session.run("python", "-m", "bench.models.nano.train", *session.posargs)
