"""The training script on a sliver of text: learning, resuming bit for bit, and the parts it puts in."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench.models.nano import train
from bench.models.nano.architectures import ARCHITECTURES, CONTEXT, architecture
from bench.models.nano.quick import Dropout, quicken
from bench.models.nano.train import Recipe, Run, disjoint, epoch_batches, learning_rate, window_losses

NAMES = [entry.name for entry in ARCHITECTURES]
SHORT = Recipe(epochs=2, batch=2, warmup=2, validations_per_epoch=2, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sliver(monkeypatch):
    """Four chapters to train on, two to validate on, and models of one narrow block."""
    chapters = {name: [c.text for c in train.kjv.split(name)[:4]] for name in ("train", "validation", "test")}
    monkeypatch.setattr(
        train.kjv, "documents", lambda name: iter(chapters[name][: 4 if name == "train" else 2])
    )
    small = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}
    settings = {
        "opt": {**small, "word_embed_proj_dim": 24, "ffn_dim": 48},
        "bloom": {"hidden_size": 24, "n_head": 3, "n_layer": 1},
        "llama": {**small, "num_key_value_heads": 1, "intermediate_size": 48},
    }
    narrow = {
        entry.name: replace(entry, settings={**entry.settings, **settings[entry.model_type]})
        for entry in ARCHITECTURES
    }
    monkeypatch.setattr(train, "architecture", narrow.__getitem__)
    return narrow


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_that_is_resumed_is_the_same_run(sliver, tmp_path: Path, monkeypatch, name):
    whole = Run(sliver[name], SHORT, tmp_path / "whole")
    whole.train()
    assert whole.progress.step > 8
    assert whole.progress.curve[-1]["train_loss"] < whole.progress.curve[0]["train_loss"]

    broken = Run(sliver[name], SHORT, tmp_path / "broken")
    step = Run.step

    def failing(self: Run, batch: torch.Tensor, rate: float) -> float:
        if self.progress.step == 7:
            raise KeyboardInterrupt
        return step(self, batch, rate)

    monkeypatch.setattr(Run, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    monkeypatch.setattr(Run, "step", step)

    resumed = Run(sliver[name], SHORT, tmp_path / "broken")
    assert resumed.resume()
    assert 0 < resumed.progress.step <= 7
    resumed.train()
    assert [row["validation_loss"] for row in resumed.progress.curve] == [
        row["validation_loss"] for row in whole.progress.curve
    ]
    for parameter in whole.best:
        assert torch.equal(whole.best[parameter], resumed.best[parameter])


def test_another_recipe_does_not_resume(sliver, tmp_path):
    first = Run(sliver["nano-opt"], SHORT, tmp_path)
    assert not first.resume()
    first.train()
    other = Run(sliver["nano-opt"], replace(SHORT, seed=1), tmp_path)
    with pytest.raises(
        train.click.ClickException, match=r"checkpoint\.safetensors was made with another recipe"
    ):
        other.resume()


def test_another_seed_is_another_model(sliver, tmp_path):
    one, two = (Run(sliver["nano-llama"], replace(SHORT, seed=seed), tmp_path) for seed in (0, 1))
    assert any(not torch.equal(one.best[name], two.best[name]) for name in one.best)


def test_training_stops_when_validation_no_longer_falls(sliver, tmp_path, monkeypatch):
    run = Run(sliver["nano-opt"], replace(SHORT, epochs=6, patience=3), tmp_path)
    monkeypatch.setattr(train, "window_losses", lambda *_, **__: torch.tensor([1.0 + run.progress.step]))
    run.train()
    assert run.progress.best_step == run.progress.curve[0]["step"]
    assert run.progress.stale() >= 3
    epochs = {math.ceil(row["step"] / (run.progress.curve[1]["step"])) for row in run.progress.curve}
    assert max(epochs) < 6


def test_the_command_writes_a_complete_folder(sliver, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "Recipe", lambda **given: replace(SHORT, **given))
    given = ["--only", "nano-bloom", "--epochs", "1", "--threads", "1"]
    given += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(train.main, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out" / "nano-bloom"
    card = json.loads((folder / "card.json").read_text())
    assert card["recipe"]["epochs"] == 1
    assert card["heldout"]["test"]["perplexity"] > 1
    rows = list(csv.DictReader((folder / "loss.csv").read_text().splitlines()))
    assert [float(row["step"]) for row in rows] == sorted(float(row["step"]) for row in rows)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_quick_attention_gives_what_the_model_gives(name):
    torch.manual_seed(0)
    model = architecture(name).build().train(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        ids = torch.randint(3, 2048, (2, 70))
        before = model(input_ids=ids).logits
        quicken(model)
        after = model(input_ids=ids).logits
    assert torch.allclose(before, after, atol=1e-4)


def test_quick_attention_sees_no_future():
    torch.manual_seed(0)
    model = architecture("nano-llama").build().train(False)
    quicken(model)
    ids = torch.randint(3, 2048, (1, 40))
    changed = ids.clone()
    changed[0, 30] = 5
    with torch.no_grad():
        one, two = model(input_ids=ids).logits, model(input_ids=changed).logits
    assert torch.equal(one[:, :30], two[:, :30])
    assert not torch.equal(one[:, 30:], two[:, 30:])


def test_dropout_keeps_the_mean_and_depends_on_seed_and_step_only():
    layer = torch.nn.Module()
    layer.proj = torch.nn.Identity()
    layer.proj.train()
    dropout = Dropout(layer, ("proj",), 0.25)
    ones = torch.ones(200, 100)

    def outputs(seed: int, step: int) -> torch.Tensor:
        dropout.reseed(seed, step)
        return layer.proj(ones)

    first = outputs(0, 1)
    assert first.unique().tolist() == pytest.approx([0.0, 256 / 192])
    assert abs(first.mean().item() - 1) < 0.02
    assert torch.equal(first, outputs(0, 1))
    assert not torch.equal(first, outputs(0, 2))
    assert not torch.equal(first, outputs(1, 1))
    layer.proj.train(False)
    assert layer.proj(ones) is ones


@pytest.mark.parametrize("name", NAMES)
def test_dropout_finds_the_modules_it_names(name):
    entry = architecture(name)
    model = entry.build()
    Dropout(model, entry.dropped, 0.1)
    hooked = [module for module in model.modules() if module._forward_hooks]
    blocks = model.config.num_hidden_layers
    assert len(hooked) == 1 + 2 * blocks


def test_epochs_shuffle_all_windows_at_an_offset_of_their_own():
    ids = np.arange(CONTEXT * 20 + 77)
    recipe = Recipe(batch=3, beginnings=0.0)
    first, again, second = (torch.cat(list(epoch_batches(ids, recipe, epoch, None))) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    starts = first[:, 0].tolist()
    assert len(set(starts)) == len(starts) >= 17
    assert len({start % CONTEXT for start in starts}) == 1
    assert (first[:, 1:] - first[:, :-1] == 1).all()


def test_some_windows_begin_as_a_text_does():
    ids = np.full(CONTEXT * 400, 9)
    windows = torch.cat(list(epoch_batches(ids, Recipe(beginnings=0.25), 0, 2)))
    share = (windows[:, 0] == 2).float().mean().item()
    assert 0.15 < share < 0.35
    assert (windows[:, 1:] == 9).all()


def test_learning_rate_rises_and_falls():
    recipe = Recipe(warmup=10)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[9] == recipe.learning_rate
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1.1 * recipe.final_rate + 1e-5


def test_window_losses_are_means_over_each_windows_targets():
    torch.manual_seed(0)
    model = architecture("nano-opt").build()
    windows = torch.randint(3, 2048, (3, 20))
    losses = window_losses(model, windows, batch=2)
    expected = [model(input_ids=window[None], labels=window[None]).loss.item() for window in windows]
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert disjoint(np.arange(2 * CONTEXT + 9)).shape == (2, CONTEXT)
