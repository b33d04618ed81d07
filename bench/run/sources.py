"""Digests of the code that can change a phase's figures: what a rerun compares."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from methods import registry

__all__ = ["evaluation_sources", "kernel_sources", "prune_sources"]

_SHARED = (
    "methods.interface",
    "methods.target",
    "methods.selection",
    "methods.families",
    "methods.stream",
    "methods.moments",
    "methods.layerwise.pruner",
    "methods.layerwise.reach",
    "methods.layerwise.rule",
    "methods.layerwise.select",
    "bench.run.phases",
)
_READING = (
    "methods.families",
    "methods.stream.source",
    "methods.stream.tensor_files",
    "methods.stream.bitmap_files",
    "methods.interface",
)
_MEASURED = ("bench.run.evaluations", "bench.measure.memory")
_WHOLE = ("methods.inference.assemble", "methods.slicing.modeling", *_READING)
_EVALUATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "size": (("methods.families.sizes", "bench.run.phases"), ()),
    "perplexity": (("bench.evaluate.perplexity", "bench.evaluate.vocabulary", *_MEASURED, *_READING), ()),
    "zeroshot": (
        (
            "bench.evaluate.zeroshot",
            "bench.evaluate.kjv_tasks",
            "bench.plan.suites",
            "bench.text.kjv",
            "bench.run.accuracy",
            "bench.measure.memory",
            "methods.inference.answers",
            "methods.inference.token_trees",
            "methods.inference.served",
            "methods.inference.swap",
            *_READING,
        ),
        ("transformers", "tokenizers", "datasets", "lm-eval"),
    ),
    "zeroshot-packed": (("methods.kernels",), ()),
    "decode": (
        (
            "bench.measure.decode",
            "bench.run.decoding",
            "methods.inference",
            "methods.kernels",
            *_MEASURED,
            *_WHOLE,
        ),
        ("transformers",),
    ),
    "save": (
        ("methods.checkpoints", "methods.slicing.modeling", "methods.stream.sink", *_READING),
        ("compressed-tensors", "safetensors"),
    ),
}
"""Modules that an evaluation's figures depend on, and libraries whose versions do."""


_KERNELS = ("bench.measure.kernels", "bench.measure.ceiling", "bench.run.kernels", "methods.kernels")


def kernel_sources() -> str:
    """Digest of all code that `bench kernels` times, native library and torch included."""
    return _digest(_KERNELS)


def prune_sources(method: str, recovery: str = "") -> str:
    """Digest of all code that a method's pruned weights, and a recovery's, depend on, libraries included."""
    modules = (*_SHARED, *registry.source_modules(method, recovery))
    return _with_versions(_digest(modules), registry.recovery_libraries(recovery))


def evaluation_sources(evaluation: str) -> str:
    """Digest of all code an evaluation's figures depend on, torch included."""
    modules, libraries = _EVALUATIONS[evaluation]
    return _with_versions(_digest(modules), libraries)


def _with_versions(digest: str, libraries: tuple[str, ...]) -> str:
    """A digest with the versions of installed libraries; itself where there are none."""
    if not libraries:
        return digest
    used = [digest, *(f"{name}=={metadata.version(name)}" for name in libraries)]
    return hashlib.sha256("\0".join(used).encode()).hexdigest()[:16]


@functools.cache
def _digest(modules: tuple[str, ...]) -> str:
    import torch

    from methods.kernels.operators import native_status

    found = hashlib.sha256(torch.__version__.encode())
    for name in sorted(set(modules)):
        for path in _files(name):
            found.update(f"{name}/{path.name}\0".encode())
            found.update(path.read_bytes())
    if "methods.kernels" in modules:
        for library in native_status():
            if library.loaded:
                found.update(Path(library.path).read_bytes())
    return found.hexdigest()[:16]


def _files(module: str) -> Iterable[Path]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ()
    origin = Path(spec.origin)
    return sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else (origin,)
