"""Registers, shared memory and spills of every CUDA kernel, kept in ``cuda/ptxas.json`` and compared by CI.

    python tests/ptxas.py [--architectures 80,90] [--update]

A spill, or figures other than those kept, is exit code 1. The figures are of one compiler version, which the file names;
another one has others, and is told so with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CUDA = Path(__file__).resolve().parents[1] / "cuda"
KEPT = CUDA / "ptxas.json"
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
FLAGS = ("-std=c++17", "--fmad=false", "--Werror", "all-warnings", "-Xptxas=-v,-warn-spills,-warn-lmem-usage")

Figures = dict[str, dict[str, dict[str, int]]]
"""Architecture (``sm_90``) to kernel to ``registers``, ``shared``, ``stack`` and ``spills`` (bytes)."""

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>sm_\d+)'")
_STACK = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse(text: str) -> Figures:
    """What ``ptxas -v`` printed, by architecture and mangled name."""
    found: Figures = {}
    entry: dict[str, int] = {}
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry = found.setdefault(match["architecture"], {}).setdefault(match["name"], {})
        elif match := _STACK.search(line):
            entry["stack"] = int(match["stack"])
            entry["spills"] = int(match["stores"]) + int(match["loads"])
        elif match := _USED.search(line):
            shared = _SHARED.search(line)
            entry |= {"registers": int(match["registers"]), "shared": int(shared[1]) if shared else 0}
    return found


def compiler_version(nvcc: str) -> str:
    """Such as ``13.0``."""
    said = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", said)
    return match[1] if match else "unknown"


def measure(nvcc: str, architectures: tuple[str, ...]) -> Figures:
    """Compile the library and read the figures, kernels by their C++ names. Raises CalledProcessError."""
    folders = [f"-I{CUDA / name}" for name in ("include", "common", "gpu")]
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            *FLAGS,
            *folders,
            *codes,
            "-c",
            str(CUDA / "gpu" / "library.cu"),
            "-o",
            f"{folder}/library.o",
        ]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    found = parse(done.stdout)
    return {
        name: {_plain(kernel): dict(sorted(figures.items())) for kernel, figures in sorted(kernels.items())}
        for name, kernels in sorted(found.items())
    }


def differences(kept: Figures, found: Figures) -> list[str]:
    """One line for every figure of ``found`` that is not the one kept, and for every spill."""
    lines = []
    for architecture, kernels in found.items():
        known = kept.get(architecture, {})
        for name in sorted({*kernels, *known}):
            was, now = known.get(name), kernels.get(name)
            if was != now:
                lines.append(f"{architecture} {name}: kept {was}, found {now}")
            if now and now.get("spills"):
                lines.append(f"{architecture} {name}: spills {now['spills']} bytes")
    return lines


def _plain(mangled: str) -> str:
    """``bitmap_matmul_kernel<Float32, 4>`` for the mangled name, with c++filt where it is there."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        return mangled
    said = subprocess.run([tool, mangled], check=True, capture_output=True, text=True).stdout.strip()
    said = said.removeprefix("void ").partition("(prune_bench_")[0]
    return re.sub(r"\((int|unsigned int)\)", "", said.replace("prune_bench::gpu::", ""))


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="compute capabilities")
    parser.add_argument("--update", action="store_true", help="keep what is found")
    given = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc is not on PATH; install the CUDA toolkit", file=sys.stderr)
        return 2
    chosen = tuple(given.architectures.split(","))
    if unknown := [name for name in chosen if name not in ARCHITECTURES]:
        print(f"--architectures {','.join(unknown)}: choose from {','.join(ARCHITECTURES)}", file=sys.stderr)
        return 2
    version = compiler_version(nvcc)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {"nvcc": version, "figures": {}}
    if kept["nvcc"] != version and not given.update:
        print(f"{KEPT.name} holds the figures of nvcc {kept['nvcc']}, this is {version}: nothing to compare")
        return 0
    found = measure(nvcc, chosen)
    if given.update:
        KEPT.write_text(
            json.dumps({"nvcc": version, "figures": kept["figures"] | found}, indent=1) + "\n",
            encoding="utf-8",
        )
        return 0
    lines = differences(kept["figures"], found)
    for line in lines:
        print(line)
    print(f"{sum(map(len, found.values()))} kernels compiled, {len(lines)} differences")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
