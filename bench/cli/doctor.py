"""`bench doctor`: what this installation and machine can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click

from bench.cli.output import bytes_text, print_json, print_table

__all__ = ["command", "examine"]

_PACKAGES = ("prune-bench", "torch", "transformers", "datasets", "safetensors", "numpy", "lm-eval", "wandb")
_HUB_SECONDS = 2.0


@click.command("doctor")
@click.option("--out", default="bench-out", help="Folder to check for space, or URL to look at.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), envvar="BENCH_DATA_DIR", help="Texts to look for."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(out: str, data_dir: Path | None, as_json: bool) -> int:
    """Check versions, native kernels, threads, memory, disk, GPU, hub, cached models and texts.

    Exit code 1 where something stands in the way of a run on the packaged models.
    """
    from bench.results.remote import place

    found = examine(place(out), data_dir)
    if as_json:
        print_json(found)
    else:
        rows = [(check["name"], check["state"], check["text"]) for check in found["checks"]]
        print_table(("check", "state", "what was found"), rows)
    return 0 if found["healthy"] else 1


def examine(out: Path, data_dir: Path | None) -> dict[str, Any]:
    """Every check as name, state (``ok``, ``note`` or ``bad``) and one line, with raw figures beside."""
    checks: list[dict[str, Any]] = [
        _versions(),
        _native(),
        _threads(),
        _memory(),
        _disk(out),
        *_store(out),
        _gpu(),
        _packaged(),
        _cached(),
        _embedded_text(),
        _data(data_dir),
        _hub(),
    ]
    return {"healthy": all(check["state"] != "bad" for check in checks), "checks": checks}


def _check(name: str, state: str, text: str, **figures: Any) -> dict[str, Any]:
    return {"name": name, "state": state, "text": text, **figures}


def _versions() -> dict[str, Any]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    missing = [name for name, version in found.items() if version is None and name != "prune-bench"]
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing:
        return _check(
            "versions", "bad", f"missing: {', '.join(missing)}; install prune-bench again", versions=found
        )
    return _check("versions", "ok", text, versions=found)


def _native() -> dict[str, Any]:
    from dataclasses import asdict

    from methods.kernels.operators import native_status

    libraries = native_status()
    parts = [
        f"{library.kind}: {library.version} ({library.isa})"
        if library.loaded
        else f"{library.kind}: {library.reason}"
        for library in libraries
    ]
    # Without a CPU library the torch twins serve: slower, same results.
    state = "ok" if libraries[0].loaded else "note"
    return _check(
        "native kernels", state, "; ".join(parts), libraries=[asdict(library) for library in libraries]
    )


def _threads() -> dict[str, Any]:
    from bench.plan.machine import available_threads

    usable = available_threads()
    text = f"{usable} usable of {os.cpu_count()}; {_processor()}"
    return _check("threads", "ok", text, usable=usable, logical=os.cpu_count(), processor=_processor())


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> dict[str, Any]:
    import psutil

    from bench.plan.capacity import free_memory

    total, free = int(psutil.virtual_memory().total), free_memory("cpu")
    state = "ok" if free > 1_000_000_000 else "bad"
    return _check("memory", state, f"{bytes_text(free)} free of {bytes_text(total)}", free=free, total=total)


def _disk(out: Path) -> dict[str, Any]:
    from bench.models.cache import cache_root
    from bench.plan.capacity import existing

    run, cache = existing(out), existing(cache_root())
    free = shutil.disk_usage(run).free
    writable = os.access(run, os.W_OK)
    text = (
        f"{bytes_text(free)} free for {out}; {bytes_text(shutil.disk_usage(cache).free)} for {cache_root()}"
    )
    if not writable:
        text = f"{run} cannot be written; choose another --out"
    return _check("disk", "ok" if writable and free > 200_000_000 else "bad", text, free=free)


def _store(out: Path) -> list[dict[str, Any]]:
    """Of a URL, whether it can be listed; nothing of a folder."""
    from bench.results.remote import mirror_of
    from methods.errors import PruneBenchError

    mirror = mirror_of(out)
    if mirror is None:
        return []
    try:
        count = mirror.count()
    except PruneBenchError as error:
        return [_check("store", "bad", str(error))]
    return [_check("store", "ok", f"{mirror.url} answers: {count} records", records=count)]


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return _check("gpu", "note", "none that torch can use; everything runs on the CPU", gpus=[])
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return _check("gpu", "ok", ", ".join(names), gpus=names)


def _packaged() -> dict[str, Any]:
    from bench.models.load import cached
    from bench.models.registry import entries

    names = [entry.id for entry in entries() if entry.source == "packaged"]
    missing = [name for name in names if not cached(name)]
    if missing:
        return _check("packaged models", "bad", f"missing: {', '.join(missing)}; install prune-bench again")
    return _check("packaged models", "ok", ", ".join(names))


def _cached() -> dict[str, Any]:
    from bench.models.cache import cache_root
    from bench.models.load import cached
    from bench.models.registry import entries

    found = [entry.id for entry in entries() if entry.source != "packaged" and cached(entry.id)]
    text = ", ".join(found) or "none; bench pull fetches them"
    return _check("cached models", "ok" if found else "note", f"{text} ({cache_root()})", models=found)


def _embedded_text() -> dict[str, Any]:
    from bench.text.kjv import source_path
    from methods.errors import PruneBenchError

    try:
        return _check("kjv text", "ok", str(source_path()))
    except PruneBenchError as error:
        return _check("kjv text", "bad", str(error))


def _data(data_dir: Path | None) -> dict[str, Any]:
    if data_dir is None:
        return _check("data folder", "note", "none; --data-dir or BENCH_DATA_DIR names one", texts=[])
    if not data_dir.is_dir():
        return _check("data folder", "bad", f"'{data_dir}' is not a folder", texts=[])
    texts = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
    return _check("data folder", "ok", f"{data_dir}: {', '.join(texts) or 'empty'}", texts=texts)


def _hub() -> dict[str, Any]:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return _check("hub", "note", "offline by HF_HUB_OFFLINE", reachable=False)
    if not endpoint.startswith(("http://", "https://")):
        return _check("hub", "bad", f"HF_ENDPOINT '{endpoint}' is no http address", reachable=False)
    try:
        with urllib.request.urlopen(endpoint, timeout=_HUB_SECONDS):  # noqa: S310 - the scheme is checked above
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (TimeoutError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = f"{endpoint} does not answer ({reason}); packaged, cached and path: models work without it"
        return _check("hub", "note", " ".join(text.split()), reachable=False)
    return _check("hub", "ok", f"{endpoint} answers", reachable=True)
