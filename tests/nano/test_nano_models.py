"""The packaged models as they lie in the tree: true architectures, really trained, as their cards say."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bench.models.nano import train
from bench.models.nano.architectures import ARCHITECTURES, CONTEXT, VOCABULARY
from bench.models.nano.train import window_losses
from bench.text import kjv
from bench.text.protocols import standard
from bench.text.sources import evaluation_windows

NAMES = [entry.name for entry in ARCHITECTURES]
CLASSES = {"opt": "OPTForCausalLM", "bloom": "BloomForCausalLM", "llama": "LlamaForCausalLM"}


def folder(name: str) -> Path:
    return Path(train.__file__).parent / name


def card(name: str) -> dict:
    return json.loads((folder(name) / "card.json").read_text())


def load(name: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder(name), dtype=torch.float32, local_files_only=True)


def test_windows(name: str) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder(name), local_files_only=True)
    found = evaluation_windows(standard("nano").evaluation, tokenizer, context=CONTEXT, data_dir=None)
    return torch.from_numpy(found.tokens.copy())


test_windows.__test__ = False


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_the_true_architecture(name):
    model = load(name)
    entry = next(entry for entry in ARCHITECTURES if entry.name == name)
    assert type(model).__name__ == CLASSES[entry.model_type]
    for key, value in entry.settings.items():
        assert getattr(model.config, key) == value
    assert model.config.vocab_size == VOCABULARY
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == card(name)["parameters"]
    assert 1_000_000 < parameters < 3_000_000


def test_shapes_are_the_awkward_ones_on_purpose():
    opt, bloom, llama = (load(name).config for name in NAMES)
    for config in (opt, bloom, llama):
        assert config.hidden_size % 128 != 0
        assert config.num_hidden_layers >= 4
    assert llama.num_attention_heads == 3 * llama.num_key_value_heads
    assert bloom.n_head & (bloom.n_head - 1) != 0
    assert (opt.tie_word_embeddings, bloom.tie_word_embeddings, llama.tie_word_embeddings) == (
        True,
        True,
        False,
    )
    assert opt.do_layer_norm_before
    assert opt.max_position_embeddings == llama.max_position_embeddings == CONTEXT


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_halves_of_a_few_megabytes(name):
    path = folder(name) / "model.safetensors"
    assert path.stat().st_size < 7 << 20
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert ("lm_head.weight" in tensors) == (name == "nano-llama")


@pytest.mark.parametrize("name", NAMES)
def test_held_out_perplexity_is_the_recorded_one(name):
    recorded = card(name)["heldout"]["test"]
    windows = test_windows(name)
    assert len(windows) == recorded["windows"]
    losses = window_losses(load(name), windows)
    assert losses[:8].tolist() == pytest.approx(recorded["first_window_losses"], abs=1e-4)
    assert math.exp(losses.mean().item()) == pytest.approx(recorded["perplexity"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pruning_half_of_the_weights_hurts(name):
    """A model that half of its weights could do without would tell no method from another."""
    model, windows = load(name), test_windows(name)[::20]
    dense = math.exp(window_losses(model, windows).mean().item())
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and path != "lm_head":
                smallest = module.weight.abs().flatten().kthvalue(module.weight.numel() // 2).values
                module.weight[module.weight.abs() <= smallest] = 0
    assert math.exp(window_losses(model, windows).mean().item()) > 1.03 * dense


@pytest.mark.parametrize("name", NAMES)
def test_training_went_on_until_it_no_longer_helped(name):
    rows = [
        {key: float(value) for key, value in row.items()}
        for row in csv.DictReader((folder(name) / "loss.csv").read_text().splitlines())
    ]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == card(name)["steps"]
    losses = [row["validation_loss"] for row in rows]
    assert losses[0] > 4
    assert abs(losses[-1] - losses[-2]) < 0.02
    assert min(losses) == pytest.approx(math.log(card(name)["heldout"]["validation"]["perplexity"]), abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_it_was_trained_on(name):
    found = card(name)
    assert found["model"] == name
    assert found["text"] == {
        "name": "kjv",
        "split": "train",
        "sha256": kjv.TEXT_SHA256,
        "license": "public domain",
    }
    assert found["training_tokens"] == found["steps"] * found["recipe"]["batch"] * CONTEXT
    assert found["training_tokens"] > 4 * found["distinct_training_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_gives_back_any_text(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder(name), local_files_only=True)
    text = "  Ünïcode,  tabs\tand \n\nnewlines — 123 "
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    begins = {"nano-opt": ["</s>"], "nano-bloom": [], "nano-llama": ["<s>"]}[name]
    assert tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"]) == begins
    assert max(ids) < VOCABULARY
