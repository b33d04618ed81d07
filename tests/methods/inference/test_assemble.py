"""Assembled models against streamed ones, dense and pruned, on all families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import saved
from torch.nn import functional

from methods.errors import CheckpointError
from methods.families.base import run_block
from methods.inference.assemble import assemble
from methods.interface import Calibration, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_TOKENS = torch.randint(3, 101, (3, 20), generator=torch.Generator().manual_seed(5))


def _streamed(source: CheckpointSource) -> torch.Tensor:
    family, config = source.family, source.config
    hidden = family.embed(source.outer, config, _TOKENS, None)
    arguments = family.arguments(config, None, *_TOKENS.shape, hidden)
    for index in range(source.shape.blocks):
        hidden = run_block(family.stages(config), source.block(index), hidden, arguments)
    return functional.linear(family.finish(source.outer, config, hidden), family.head(source.outer, config))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_logits_equal_the_streamed_ones(tmp_path: Path, family: str, tied: bool) -> None:
    folder = saved(tmp_path / "model", family, tie_word_embeddings=tied)
    source = CheckpointSource(folder, dtype=torch.float64)
    model = assemble(source)
    torch.testing.assert_close(model(_TOKENS).logits, _streamed(source), rtol=0, atol=1e-5)
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == table.data_ptr()) is tied
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("family", ["opt", "bloom", "llama"])
def test_pruned_blocks_take_the_place_of_the_dense(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path / "model", family)
    blocks = BlockFolder(tmp_path / "work")
    dense = CheckpointSource(folder)
    get("magnitude", {}).prune(dense, Calibration(_TOKENS[:0], _TOKENS), Target.parse("50%"), blocks, Run())
    pruned = CheckpointSource(folder, overlay=blocks.folder)
    model = assemble(pruned)
    torch.testing.assert_close(model(_TOKENS).logits, _streamed(pruned), rtol=0, atol=2e-5)
    assert not torch.allclose(model(_TOKENS).logits, _streamed(dense), atol=1e-2)
    first = dense.family.matrices(dense.shape)[0].name
    name = f"{dense.family.block_prefix(1)}{first}.weight"
    assert (model.get_parameter(name) == 0).float().mean() == pytest.approx(0.5, abs=0.01)


def test_dtype_is_that_of_the_source_and_rotary_frequencies_stay_exact(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    model = assemble(CheckpointSource(folder, dtype=torch.bfloat16))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.get_buffer("model.rotary_emb.inv_freq").dtype == torch.float32
    assert model.get_buffer("model.rotary_emb.inv_freq")[0] == 1


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.norm\.weight'"):
        assemble(CheckpointSource(folder))


def test_an_unexpected_tensor_of_a_pruned_block_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    blocks = BlockFolder(tmp_path / "work")
    blocks.put(1, {**CheckpointSource(folder).block(1), "mlp.extra.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"unexpected 'model\.layers\.1\.mlp\.extra\.weight'"):
        assemble(CheckpointSource(folder, overlay=blocks.folder))


def test_a_pruned_block_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    blocks = BlockFolder(tmp_path / "work")
    blocks.put(1, {**CheckpointSource(folder).block(1), "self_attn.q_proj.weight": torch.zeros(3, 24)})
    with pytest.raises(CheckpointError, match="do not fit the config"):
        assemble(CheckpointSource(folder, overlay=blocks.folder))


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "opt")
    path = folder / "config.json"
    mapped = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": mapped}))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    model = assemble(CheckpointSource(folder))
    assert type(model).__module__ == "transformers.models.opt.modeling_opt"
