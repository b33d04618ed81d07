"""The project's sessions: `nox -l` lists them, `nox -s tests` runs one."""

from __future__ import annotations

import os
import re
import shutil
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
SOURCES = ("bench", "methods", "reports", "tests", ".ci", "noxfile.py")
NIGHTLY = Path(".ci/nightly")
BASELINE = Path("studies/nightly")
KERNELS = (
    *(
        "--shapes",
        "4096x1024,2048x4096",
        "--batch",
        "1,4",
        "--sparsity",
        "0.5",
        "--pattern",
        "unstructured,2:4",
    ),
    *("--format", "bitmap,nm,dense", "--threads", "1", "--repeats", "15"),
)
"""What `bench kernels` measures every night: small, and large enough not to lie in a cache."""


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
    session.install("-q", *PINS, "check-jsonschema", "ruff", "clang-format", "import-linter")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)
    native = sorted(str(path) for suffix in ("h", "cpp", "cu") for path in Path("cuda").rglob(f"*.{suffix}"))
    session.run("clang-format", "--dry-run", "-Werror", *native)
    session.run("lint-imports")
    workflows = sorted(str(path) for path in Path(".github/workflows").glob("*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


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
def scale(session: nox.Session) -> None:
    """Run 516 cells over three Ray nodes, kill two of them, and hold every figure against the serial run's (an hour or so)."""
    session.install("-q", *PINS, "-e", ".[test]")
    session.run("pytest", "tests/executors", "-s", "-rs", "-m", "chaos", "--chaos", *session.posargs)


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
def fuzz(session: nox.Session) -> None:
    """Hunt for inputs that a parser neither reads nor refuses; `-- --minutes N` for each (10), `--only PARSER` for some.

    Findings lie in runs/fuzz, the figures in studies/fuzz/hunts.jsonl; what was reached is kept in tests/fuzz/corpus.
    """
    session.install("-q", *PINS, "-e", ".[test,fuzz]")
    session.run("python", "tests/fuzz/campaign.py", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Write the bill of materials (CycloneDX) to runs/sbom.json and ask for known vulnerabilities of what is installed.

    Needs the network, and fails where a package could not be looked up; the bill is written first. Arguments go to
    pip-audit. The tools have environments of their own, so that what they need is not taken for ours.
    """
    session.install("-q", *PINS, ".")
    tools = {}
    for tool in ("cyclonedx-bom>=7.5", "pip-audit>=2.10"):
        tools[tool[:3]] = folder = Path(session.create_tmp()).resolve() / tool[:3]
        session.run("python", "-m", "venv", str(folder))
        session.run(str(folder / "bin" / "pip"), "install", "-q", tool, external=True)
    Path("runs").mkdir(exist_ok=True)
    python = Path(session.bin) / "python"
    bom = (
        "environment",
        "--of",
        "JSON",
        "--output-reproducible",
        "--gather-license-texts",  # without, packages whose licence is no SPDX name would have none
        "--pyproject",
        "pyproject.toml",
        "-o",
        "runs/sbom.json",
    )
    session.run(str(tools["cyc"] / "bin" / "cyclonedx-py"), *bom, str(python), external=True)
    packages = session.run(
        "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True
    )
    session.run(
        "python",
        ".ci/audit.py",
        str(tools["pip"] / "bin" / "pip-audit"),
        str(packages).strip(),
        *session.posargs,
    )


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill a grid at 200 random points, each time resume it, and compare with one left alone; the log goes to runs/chaos.

    `-- --seed N --points N --log FILE` gives other points; the seed is printed.
    """
    session.install("-q", *PINS, "-e", ".[test]")
    log = () if _option(session, "--log") else ("--log", "runs/chaos/log.json")
    session.run("python", "tests/faults/chaos.py", *log, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def nightly(session: nox.Session) -> None:
    """Run the nightly grid, judge it against the baseline, and write summary, report and leaderboard to runs/nightly.

    `-- --config FILE --baseline DIR` takes another grid (.ci/nightly) and another store to judge by. `-- --plant NAME` makes
    one thing worse on purpose (tests/planted.py), to see the gate close.
    """
    session.install("-q", *PINS, "-e", ".[recover]")
    config = Path(_option(session, "--config") or NIGHTLY / "nightly.yaml")
    baseline = Path(_option(session, "--baseline") or BASELINE)
    plant = _option(session, "--plant")
    out = Path("runs") / "nightly"
    _measure(session, config, out, ("python", "tests/planted.py", plant) if plant else ("bench",))
    compare = ("bench", "compare", str(baseline), str(out))
    for form, name in (("markdown", "summary.md"), ("json", "compare.json")):
        with (out / name).open("w", encoding="utf-8") as file:
            session.run(*compare, "--format", form, stdout=file, success_codes=[0, 1])
    session.run("bench", "report", "--out", str(out), "--format", "html")
    session.run("bench", "leaderboard", str(out), "--out", str(out / "leaderboard"))
    session.run(*compare)  # last, so that what it says, and its exit code, end the session


@nox.session
def baseline(session: nox.Session) -> None:
    """Measure the nightly baseline anew, in the place of the committed one, and show what moved: review, then commit.

    `-- --config FILE --baseline DIR` renews another one, as in `nightly`.
    """
    session.install("-q", *PINS, "-e", ".[recover]")
    config = Path(_option(session, "--config") or NIGHTLY / "nightly.yaml")
    kept = Path(_option(session, "--baseline") or BASELINE)
    fresh = Path("runs") / "baseline"
    _measure(session, config, fresh, ("bench",))
    if kept.exists():
        session.run("bench", "compare", str(kept), str(fresh), "--all", success_codes=[0, 1, 2])
        shutil.rmtree(kept)
    for name in ("records", "values"):
        shutil.copytree(fresh / name, kept / name)
    shutil.copy(fresh / "store.json", kept / "store.json")
    session.run("git", "status", "--short", str(kept), external=True, success_codes=[0, 128])


def _measure(session: nox.Session, config: Path, out: Path, bench: tuple[str, ...]) -> None:
    """The grid and the kernels, in a folder of their own: figures of another night must not stand in for these."""
    shutil.rmtree(out, ignore_errors=True)
    if config.name == "smollm2.yaml":
        session.run("bench", "pull", "smollm2-135m")
    session.run(*bench, "run", "--config", str(config), "--out", str(out), success_codes=[0, 1])
    if config.name != "smollm2.yaml":
        session.run(*bench, "kernels", *KERNELS, "--out", str(out))


def _option(session: nox.Session, name: str) -> str:
    """The word behind an option of the session's own, empty where it was not given."""
    words = list(session.posargs)
    return words[words.index(name) + 1] if name in words[:-1] else ""


@nox.session
def nano(session: nox.Session) -> None:
    """Train the packaged models again from their script."""
    session.install("-q", *PINS, ".")
    session.run("python", "-m", "bench.models.nano.train", *session.posargs)
