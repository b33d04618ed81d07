"""The other environment: where its interpreter is, and what it holds."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from methods.errors import UserError, shown

__all__ = ["VARIABLE", "environment", "find", "outside", "versions"]

VARIABLE = "BENCH_LLMCOMPRESSOR_PYTHON"
"""Environment variable that names the interpreter."""

_SERIES = "0.14."
_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|API_KEY|CREDENTIAL", re.IGNORECASE)
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
_RECIPE = (
    "make one: python3 -m venv llmc && llmc/bin/pip install 'llmcompressor==0.14.*' 'transformers<=5.17', "
    f"then set {VARIABLE}=llmc/bin/python"
)
_PROBE = """
import json, platform
from importlib import metadata
found = {"python": platform.python_version()}
for name in ("llmcompressor", "torch", "transformers", "compressed-tensors"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def find(python: str) -> str:
    """The interpreter: ``python`` where it is given, else what the environment variable names.

    Raises UserError where there is none or it is no program.
    """
    named, where = (python, "python") if python.strip() else (os.environ.get(VARIABLE, ""), VARIABLE)
    if not named.strip():
        raise UserError(f"llm-compressor needs a Python environment of its own and none is named; {_RECIPE}")
    found = None if "\0" in named else shutil.which(str(Path(named).expanduser()))
    if found is None:
        raise UserError(f"{where} is '{shown(named)}', which is no program; {_RECIPE}")
    return str(Path(found).absolute())  # not resolved: a venv's interpreter is a link that must stay one


@functools.cache
def versions(python: str) -> dict[str, str]:
    """What the environment of the interpreter ``python`` holds, by its metadata: nothing is imported.

    Raises UserError where it does not run, or holds no llm-compressor of the series that the worker is for.
    """
    try:
        done = subprocess.run(
            [python, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            env=environment(),
        )
        found = {str(name): str(version) for name, version in json.loads(done.stdout).items()}
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        raise UserError(f"'{shown(python)}' does not run as a Python ({shown(error)}); {_RECIPE}") from None
    seen = found.get("llmcompressor")
    if seen is None:
        raise UserError(f"'{shown(python)}' has no llm-compressor; {_RECIPE}")
    if not seen.startswith(_SERIES):
        raise UserError(
            f"'{shown(python)}' has llm-compressor {shown(seen)}, this needs {_SERIES}*; {_RECIPE}"
        )
    return found


def environment(threads: int = 1) -> dict[str, str]:
    """Environment variables for the other interpreter: no secrets, nothing of our own packages, no GPU, no hub."""
    kept = {
        name: value for name, value in os.environ.items() if name not in _OURS and not _SECRETS.search(name)
    }
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def outside(python: str = "", **_: object) -> dict[str, str]:
    """Versions that a cell's results depend on, for the registry. Raises UserError."""
    return versions(find(python))
