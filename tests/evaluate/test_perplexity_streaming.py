"""Streamed perplexity, divergence and flips against the whole transformers model, by hand in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from saved_models import saved
from transformers import AutoModelForCausalLM

from bench.evaluate import perplexity
from bench.evaluate.perplexity import DenseStates, score
from methods.interface import Calibration, Run
from methods.registry import get
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_FAMILIES = ("opt", "bloom", "llama")
_WINDOWS = torch.randint(3, 101, (7, 20), generator=torch.Generator().manual_seed(3))


def _by_hand(folder: Path) -> torch.Tensor:
    """Log-probabilities [windows, length - 1, vocabulary] of the whole model, float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        return torch.log_softmax(model(_WINDOWS).logits[:, :-1], -1)


def _losses(log_probabilities: torch.Tensor) -> torch.Tensor:
    return -log_probabilities.gather(-1, _WINDOWS[:, 1:, None])[..., 0].mean(1)


@pytest.mark.parametrize("family", _FAMILIES)
def test_perplexity_equals_the_whole_model_in_float64(tmp_path: Path, family: str) -> None:
    model = saved(tmp_path / "model", family)
    expected = _losses(_by_hand(model))
    scores = score(CheckpointSource(model, dtype=torch.float64), _WINDOWS, Run(batch_tokens=50))
    # logits are float32 by design, states float64
    assert torch.allclose(torch.from_numpy(scores.loss), expected, rtol=0, atol=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(float(expected.mean())), rel=1e-6)
    assert (scores.predicted, scores.tokens) == (7 * 19, 7 * 20)
    assert scores.divergence is None and scores.flips is None


@pytest.mark.parametrize("family", _FAMILIES)
def test_divergence_and_flips_against_dense(tmp_path: Path, family: str) -> None:
    model = saved(tmp_path / "model", family)
    dense = CheckpointSource(model)
    calibration = Calibration(_WINDOWS[:4], _WINDOWS[4:])
    blocks = BlockFolder(tmp_path / "blocks")
    get("sparsegpt", {}).prune(dense, calibration, Target.parse("2:4"), blocks, Run())
    pruned = CheckpointSource(model, overlay=blocks.folder)

    from methods.checkpoints.dense import save_dense

    save_dense(pruned, tmp_path / "saved", shard_bytes=20_000)
    first, second = _by_hand(model), _by_hand(tmp_path / "saved")
    states = DenseStates(tmp_path / "states")
    assert not states.exists()
    score(dense, _WINDOWS, Run(), dense_states=states)
    assert states.exists()
    scores = score(pruned, _WINDOWS, Run(), dense=dense, dense_states=states)
    assert scores.divergence is not None and scores.flips is not None
    expected = (first.exp() * (first - second)).sum(-1).mean(1)
    assert torch.allclose(torch.from_numpy(scores.divergence), expected, rtol=1e-3, atol=1e-6)
    flips = (first.argmax(-1) != second.argmax(-1)).double().mean(1)
    assert torch.allclose(torch.from_numpy(scores.flips), flips)
    assert torch.allclose(torch.from_numpy(scores.loss), _losses(second), atol=1e-5)


@pytest.mark.parametrize("family", _FAMILIES)
def test_dense_against_itself_is_zero(tmp_path: Path, family: str) -> None:
    source = CheckpointSource(saved(tmp_path / "model", family))
    states = DenseStates(tmp_path / "states")
    score(source, _WINDOWS, Run(), dense_states=states)
    scores = score(source, _WINDOWS, Run(), dense=source, dense_states=states)
    assert scores.divergence is not None and scores.flips is not None
    assert abs(scores.divergence).max() < 1e-7 and scores.flips.max() == 0


@pytest.mark.parametrize("model", ["nano-opt", "nano-bloom", "nano-llama"])
def test_states_on_disk_change_no_bit(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models.load import resolve

    folder = resolve(model).path
    dense, windows = CheckpointSource(folder), _WINDOWS[:5]
    calibration = Calibration(_WINDOWS[5:], _WINDOWS[5:6])
    blocks = BlockFolder(tmp_path / "blocks")
    get("magnitude", {}).prune(dense, calibration, Target.parse("50%"), blocks, Run())
    pruned = CheckpointSource(folder, overlay=blocks.folder)
    places: list[str] = []
    made = perplexity.HiddenStates.close
    monkeypatch.setattr(
        perplexity.HiddenStates, "close", lambda states: (places.append(states.place), made(states))
    )
    found = []
    for name, budget in (("memory", 1 << 30), ("disk", 0)):
        run = Run(hidden_budget=budget, batch_tokens=40, work=tmp_path / name)
        states = DenseStates(tmp_path / name / "dense")
        found.append(score(dense, windows, run, dense_states=states).loss)
        scores = score(pruned, windows, run, dense=dense, dense_states=states)
        assert scores.divergence is not None and scores.flips is not None
        found[-1] = (found[-1], scores.loss, scores.divergence, scores.flips, scores.blocks)
    assert places == ["cpu", "cpu", "disk", "disk"]
    assert all((first == second).all() for first, second in zip(*(some[:4] for some in found), strict=True))
    assert found[0][4] == found[1][4]
    assert not list(tmp_path.rglob("*.map"))


@pytest.mark.parametrize("budget", [0, 2 * 20 * 24 * 4, 1 << 30])
def test_sections_and_batches_change_rounding_only(tmp_path: Path, budget: int) -> None:
    source = CheckpointSource(saved(tmp_path / "model", "bloom"))
    whole = score(source, _WINDOWS, Run())
    parts = score(source, _WINDOWS, Run(hidden_budget=budget, batch_tokens=1))
    assert abs(whole.loss - parts.loss).max() < 1e-6


def test_broken_model_is_reported_not_hidden(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = saved(tmp_path / "model", "opt")
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.final_layer_norm.weight"][:] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert math.isnan(score(CheckpointSource(model), _WINDOWS, Run()).perplexity)


def test_overflowing_loss_is_infinite_perplexity(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = saved(tmp_path / "model", "opt")
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.final_layer_norm.weight"] *= 1e5
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert score(CheckpointSource(model), _WINDOWS, Run()).perplexity == math.inf
