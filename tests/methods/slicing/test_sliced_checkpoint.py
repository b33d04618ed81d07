"""Sliced models as transformers models: assembled, saved, loaded by us and by others, generating, never re-tied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from safetensors.torch import load_file
from saved_models import saved_with_tokenizer
from sliced_models import FAMILIES, TOKENS, VARIANTS, saved_variant, sliced, streamed
from torch import Tensor

from bench.models import load
from methods.checkpoints.dense import save_dense
from methods.checkpoints.sliced import sliced_extras
from methods.errors import CheckpointError, UnsupportedModel
from methods.inference.assemble import assemble
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource

_PARAMETERS: list[dict[str, Any]] = [{}, {"slice_head": True, "slope": 0.3}]


def _logits(model: Any, tokens: Tensor = TOKENS, **more: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens, **more).logits
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parameters", _PARAMETERS, ids=str)
def test_assembled_logits_equal_the_streamed_ones(
    tmp_path: Path, variant: str, parameters: dict[str, Any]
) -> None:
    _, cut = sliced(saved_variant(tmp_path / "model", variant), tmp_path, "slice30%", **parameters)
    model = assemble(cut)
    torch.testing.assert_close(_logits(model), streamed(cut), rtol=0, atol=2e-5)
    tokens = torch.cat([torch.ones(3, 2, dtype=torch.long), TOKENS], 1)
    mask = (torch.arange(22) >= 2).long().expand(3, 22)
    found = _logits(model, tokens, attention_mask=mask)
    torch.testing.assert_close(found[:, 2:], streamed(cut, tokens, mask)[:, 2:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_is_generation_without(tmp_path: Path, family: str) -> None:
    _, cut = sliced(saved_variant(tmp_path / "model", family), tmp_path)
    model = assemble(cut)
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(TOKENS[:, :6], use_cache=True, **settings)
    assert cached.shape == (3, 16)
    assert torch.equal(cached, model.generate(TOKENS[:, :6], use_cache=False, **settings))
    output = model(TOKENS, output_hidden_states=True)
    assert [state.shape[-1] for state in output.hidden_states] == [16, 16, 16, 24]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each family a sliced model saved with its tokenizer in shards, beside what it was saved from."""
    found = {}
    for family in FAMILIES:
        root = found[family] = tmp_path_factory.mktemp(family)
        _, cut = sliced(saved_with_tokenizer(root / "model", family), root, "slice30%")
        save_dense(cut, root / "saved", shard_bytes=60_000)
    return found


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def _cut(folder: Path) -> CheckpointSource:
    return CheckpointSource(folder / "model", overlay=folder / "blocks")


def test_from_pretrained_loads_it_once_ours_is_imported(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import methods.slicing.modeling.modeling_sliced as ours

    model = AutoModelForCausalLM.from_pretrained(folder / "saved").eval()
    assert type(model).__module__ == ours.__name__
    assert torch.equal(_logits(model), _logits(assemble(_cut(folder))))
    text = "In the beginning"
    assert AutoTokenizer.from_pretrained(folder / "saved")(text) == byte_tokenizer()(text)
    model.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again").eval()
    assert torch.equal(_logits(again), _logits(model))


def test_nothing_ties_the_head_again(folder: Path) -> None:
    """Neither ``tie_weights`` nor lm-eval, which calls it on models in memory."""
    from lm_eval.models.huggingface import HFLM

    for model in (assemble(_cut(folder)), _loaded(folder)):
        before = _logits(model)
        assert model.config.tie_word_embeddings is False
        model.tie_weights()
        HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=1)
        head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert head.data_ptr() != table.data_ptr() and head.shape != table.shape
        assert torch.equal(_logits(model), before)


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "saved").eval()


def test_others_load_it_with_the_bundled_code(folders: dict[str, Path], tmp_path: Path) -> None:
    """In a process that never sees prune-bench: no source of ours is on its path."""
    for root in folders.values():
        config = json.loads((root / "saved" / "config.json").read_text())
        assert config["auto_map"]["AutoModelForCausalLM"] == f"modeling_sliced.{config['architectures'][0]}"
    script = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from transformers import AutoModelForCausalLM\n"
        f"tokens, found = torch.tensor({TOKENS.tolist()}), {{}}\n"
        f"for family, folder in { ({family: str(root / 'saved') for family, root in folders.items()})!r}.items():\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()\n"
        "    found[family] = model(tokens).logits.detach().contiguous()\n"
        f"save_file(found, {str(tmp_path / 'logits')!r})\n"
        "assert not any(name.partition('.')[0] in ('methods', 'bench') for name in sys.modules)\n"
    )
    environment = {
        "HF_HOME": str(tmp_path / "hub"),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "logits")
    for family, root in folders.items():
        torch.testing.assert_close(found[family], streamed(_cut(root)), rtol=0, atol=2e-5)


def test_our_loader_takes_it_and_runs_none_of_its_code(folder: Path) -> None:
    saved = folder / "saved"
    (saved / "modeling_sliced.py").write_text("raise SystemExit('ran')")
    try:
        checkpoint = load.resolve(f"path:{saved}")
        source = CheckpointSource(checkpoint.path)
        assert checkpoint.shape == _cut(folder).shape
        assert "modeling_sliced.py" not in checkpoint.files
        assert torch.equal(streamed(source), streamed(_cut(folder)))
        assert torch.equal(_logits(assemble(source)), _logits(assemble(_cut(folder))))
        assert load.tokenizer(checkpoint)("salt") == byte_tokenizer()("salt")
    finally:
        (saved / "modeling_sliced.py").write_text(sliced_extras(_cut(folder))["modeling_sliced.py"])


def test_other_folders_that_ask_for_code_stay_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model" / "config.json"
    before = path.read_text()
    path.write_text(
        json.dumps({**json.loads(before), "auto_map": {"AutoModelForCausalLM": "modeling_sliced.X"}})
    )
    try:
        with pytest.raises(UnsupportedModel, match="code of its own"):
            load.resolve(f"path:{folder / 'model'}")
    finally:
        path.write_text(before)


def test_its_readme_says_what_it_is_and_who_runs_what(folder: Path) -> None:
    text = (folder / "saved" / "README.md").read_text()
    for part in (
        "width 24 to 16",
        "import methods.slicing",
        "never runs code that comes with a model",
        "trust_remote_code",
    ):
        assert part in " ".join(text.split())


def test_a_folder_that_contradicts_its_widths_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "saved" / "config.json"
    before = path.read_text()
    config = json.loads(before)
    config["sliced_widths"]["feedforward"][1] = 8
    path.write_text(json.dumps(config))
    try:
        with pytest.raises(CheckpointError, match="its config says"):
            load.resolve(f"path:{folder / 'saved'}")
        with pytest.raises(CheckpointError, match=r"the config says|do not fit the config"):
            assemble(CheckpointSource(folder / "saved"))
    finally:
        path.write_text(before)


def test_a_model_without_widths_is_no_sliced_model() -> None:
    from methods.slicing.modeling.modeling_sliced import SlicedLlamaConfig, SlicedLlamaForCausalLM

    with pytest.raises(ValueError, match="a sliced_llama config needs sliced_widths"):
        SlicedLlamaForCausalLM(SlicedLlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))


def test_tables_of_the_sink_are_read_one_file_each(tmp_path: Path) -> None:
    """Two calls of ``put_outer`` both stay; the same tensors again replace themselves."""
    model = saved_variant(tmp_path / "model", "llama")
    sink = BlockFolder(tmp_path / "blocks")
    name = "model.embed_tokens.weight"
    for value in (1.0, 2.0):
        sink.put_outer({name: torch.full((101, 24), value)})
        sink.put_outer({"model.norm.weight": torch.full((24,), value)})
    source = CheckpointSource(model, overlay=sink.folder)
    assert float(source.raw_outer(name).mean()) == float(source.raw_outer("model.norm.weight").mean()) == 2
    assert len(list(sink.folder.iterdir())) == 2
