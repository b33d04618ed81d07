"""Local directories: what is accepted, what is refused before any work, and remembered hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved

from bench.models import cache, load
from methods.errors import CheckpointError, ModelUnavailable, PruneBenchError, UnsupportedModel


def resolve(folder: Path) -> load.Checkpoint:
    return load.resolve(f"path:{folder}")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> PruneBenchError:
    with pytest.raises(PruneBenchError) as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_any_saved_model_of_a_family_is_a_checkpoint(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path / "model", family, dtype=torch.float16)
    checkpoint = resolve(folder)
    assert checkpoint.id == f"path:{folder}"
    assert checkpoint.source == "path"
    assert checkpoint.shape.family == family
    assert checkpoint.weight_files == ("model.safetensors",)
    content = (folder / "model.safetensors").read_bytes()
    assert checkpoint.files["model.safetensors"] == hashlib.sha256(content).hexdigest()
    assert checkpoint.revision.startswith("sha256:")
    assert len(checkpoint.revision) == len("sha256:") + 16
    assert load.cached(f"path:{folder}")


def test_the_revision_follows_weights_and_config(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    first = resolve(folder).revision
    assert resolve(folder).revision == first
    edit_config(folder, rms_norm_eps=1e-4)
    second = resolve(folder).revision
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].add_(1))
    assert len({first, second, resolve(folder).revision}) == 3


def test_names_of_bare_decoders_and_old_buffers_are_known(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bloom")
    tensors = {
        name.removeprefix("transformer."): value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors")
    assert resolve(folder).shape.family == "bloom"
    llama = saved(tmp_path / "llama", "llama")
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(llama, lambda tensors: tensors.update({buffer: torch.ones(3)}))
    assert resolve(llama).shape.family == "llama"


def test_the_tokenizer_is_the_directory_s_own(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = saved(tmp_path / "model", "llama")
    checkpoint = resolve(folder)
    with pytest.raises(CheckpointError, match="has no tokenizer files"):
        load.tokenizer(checkpoint)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "in": 1, "the": 2, "beginning": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    assert load.tokenizer(resolve(folder))("in the beginning")["input_ids"] == [1, 2, 3]
    assert resolve(folder).revision != checkpoint.revision
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="code of its own"):
        load.tokenizer(checkpoint)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load.tokenizer(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert isinstance(refusal(tmp_path / "nowhere"), ModelUnavailable)
    assert "has no config.json" in str(refusal(tmp_path))
    assert not load.cached(f"path:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"model_type": "gpt2"}', "supported are"),
        (b"{}", "no model_type"),
        (b'{"model_type": "opt", "hidden_size": -4}', "hidden_size is -4"),
        (b'{"model_type": "opt", "a": "' + b"x" * (5 << 20) + b'"}', "at most 4194304 are read"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    error = refusal(tmp_path)
    assert message in str(error)
    assert str(tmp_path / "config.json") in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "code of its own"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_an_unsupported_config(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = saved(tmp_path / "model", "opt")
    edit_config(folder, **changes)
    error = refusal(folder)
    assert isinstance(error, UnsupportedModel)
    assert message in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "tensors are missing, such as model.layers.3."),
        ({"num_hidden_layers": 2}, "does not account for, such as model.layers.2."),
        ({"num_hidden_layers": 9999}, "says 9999 blocks"),
        ({"intermediate_size": 56}, "its config says [56, 24]"),
        ({"vocab_size": 100}, "its config says [100, 24]"),
    ],
)
def test_weights_that_are_not_the_config_s(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = saved(tmp_path / "model", "llama")
    edit_config(folder, **changes)
    error = refusal(folder)
    assert isinstance(error, CheckpointError)
    assert message in str(error)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "opt")
    name = "model.decoder.layers.1.fc1.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    assert f"{name} in model.safetensors has dtype I8" in str(refusal(folder))


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_truncated_weights_are_named(tmp_path: Path, kept: int) -> None:
    folder = saved(tmp_path / "model", "opt")
    path = folder / "model.safetensors"
    content = path.read_bytes()[: kept if kept >= 0 else -100]
    path.write_bytes(content)
    assert f"{path} ({len(content)} bytes) is corrupt or truncated" in str(refusal(folder))


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "opt")
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    assert "corrupt or truncated" in str(refusal(folder))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "opt")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = str(refusal(folder))
    assert "only pickled weights (pytorch_model.bin)" in message
    assert "`bench pull ID` converts" in message
    (folder / "pytorch_model.bin").unlink()
    assert "holds no model*.safetensors" in str(refusal(folder))


def split(folder: Path) -> dict[str, str]:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, members in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in members}, folder / file)
        weight_map.update(dict.fromkeys(members, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_must_be_what_the_index_says(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    whole = resolve(folder).shape
    weight_map = split(folder)
    assert resolve(folder).shape == whole
    index = folder / "model.safetensors.index.json"
    wrong = weight_map | {"model.norm.weight": "model-00003-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": wrong}))
    assert "names model-00003-of-00002.safetensors, which is not there" in str(refusal(folder))
    other = "model-00002-of-00002.safetensors"
    moved = next(name for name, file in weight_map.items() if file != other)
    index.write_text(json.dumps({"weight_map": weight_map | {moved: other}}))
    assert f"says {moved} lies in {other}; it does not" in str(refusal(folder))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "evil.bin", 7]
)
def test_an_index_cannot_lead_out_of_the_directory(tmp_path: Path, name: Any) -> None:
    folder = saved(tmp_path / "model", "opt")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"model.decoder.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "only names of .safetensors files in the same directory are read" in str(refusal(folder))


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"a" * (1 << 20))
    small.write_bytes(b"b")
    first = cache.digests(tmp_path, ["large", "small"])
    assert first["large"] == hashlib.sha256(large.read_bytes()).hexdigest()
    hashed: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: (hashed.append(file.name), digest(file, kind))[1]
    )
    assert cache.digests(tmp_path, ["large", "small"]) == first
    assert hashed == [str(small)]
    stat = large.stat()
    large.write_bytes(b"c" * (1 << 20))
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.digests(tmp_path, ["large"])["large"] != first["large"]
    (tmp_path / "cache" / "hashes.json").write_text("not JSON")
    assert cache.digests(tmp_path, ["large"])["large"] == hashlib.sha256(large.read_bytes()).hexdigest()


def test_hashes_need_no_cache_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"a" * (1 << 20))
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "file" / "cache"))
    assert len(cache.digests(tmp_path, ["file"])["file"]) == 64


def test_sizes_read_as_registries_show_them() -> None:
    assert [cache.readable_size(size) for size in (12, 92_871_040, 13_300_000_000)] == [
        "12 bytes",
        "92.9 MB",
        "13.3 GB",
    ]


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_packaged_models_are_checked_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(load, "PACKAGED", tmp_path)
    name = f"nano-{family}"
    assert not load.cached(name)
    with pytest.raises(ModelUnavailable, match=f"{name} is missing from this installation"):
        load.resolve(name)
    saved(tmp_path / name, family)
    checkpoint = load.resolve(name)
    assert load.cached(name)
    assert (checkpoint.id, checkpoint.source) == (name, "packaged")
    assert load.pull(name) == checkpoint
    assert checkpoint.revision.startswith("sha256:")
