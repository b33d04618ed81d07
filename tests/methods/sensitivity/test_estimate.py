"""What an estimate holds, the text its probes read, and whether the two estimators agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from bench.run.subject import Subjects
from bench.text.protocols import standard
from methods.errors import NonFiniteError
from methods.interface import Run
from methods.sensitivity.estimate import Sensitivity, estimate, probe_windows
from methods.stream.source import CheckpointSource


def test_mean_and_standard_error_are_over_the_probes() -> None:
    found = Sensitivity(0, "fc1", 10, (1.0, 2.0, 6.0))
    assert found.mean == 3.0
    assert found.error == pytest.approx(math.sqrt(7.0 / 3.0))
    assert Sensitivity(0, "fc1", 10, (2.5,)).error is None


def test_every_matrix_has_every_probe_in_the_order_of_the_blocks() -> None:
    _, source = tiny("llama")
    tokens = torch.arange(60).view(1, 3, 20) % 101
    found = estimate(source, tokens.repeat(2, 1, 1), "fisher", Run())
    names = [matrix.name for matrix in source.family.matrices(source.shape)]
    assert [(entry.block, entry.name) for entry in found] == [(b, name) for b in range(3) for name in names]
    assert {len(entry.probes) for entry in found} == {2}
    assert found[0].weights == 24 * 24


def test_text_goes_round_the_probes_without_a_piece_twice_in_one() -> None:
    tokens = torch.arange(3 * 520).view(3, 520)
    probes = probe_windows(tokens, 2, windows=4)
    assert probes.shape == (2, 4, 256)
    starts = [[int(window[0]) for window in probe] for probe in probes]
    assert starts == [[0, 520, 1040, 256], [776, 1296, 0, 520]]
    assert probe_windows(tokens, 3).shape == (3, 6, 256), "fewer where there are fewer"
    assert probe_windows(tokens[:, :40], 1, windows=2).shape == (1, 2, 40)


def test_inputs_are_the_mean_squares_of_what_a_matrix_reads() -> None:
    model, source = tiny("opt")
    tokens = torch.arange(48).view(2, 3, 8) % 101
    read: dict[str, list[Tensor]] = {}
    named = dict(model.named_modules())
    for index in range(3):
        for matrix in source.family.matrices(source.shape):
            name = f"{source.family.block_prefix(index)}{matrix.name}"
            named[name].register_forward_hook(
                lambda _module, given, _out, name=name: read.setdefault(name, []).append(given[0])
            )
    for windows in tokens:
        model(input_ids=windows)
    for entry in estimate(source, tokens, "inputs", Run()):
        wanted = read[f"{source.family.block_prefix(entry.block)}{entry.name}"]
        assert entry.probes == pytest.approx([float(x.double().square().mean()) for x in wanted], rel=1e-5)


@pytest.mark.parametrize("estimator", ["fisher", "hutchinson"])
def test_what_is_not_finite_is_named(estimator: str) -> None:
    _, source = tiny("opt")
    source._state["model.decoder.layers.1.fc1.weight"][0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(NonFiniteError, match=r"block 0 self_attn.q_proj: its sensitivity is NaN or infinite"):
        estimate(source, torch.arange(8).view(1, 1, 8), estimator, Run())


def rank_correlation(a: Sequence[Sensitivity], b: Sequence[Sensitivity]) -> float:
    def ranks(found: Sequence[Sensitivity]) -> Tensor:
        return torch.tensor([entry.mean for entry in found]).argsort().argsort().double()

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


@pytest.mark.parametrize("name", ["nano-opt", "nano-bloom", "nano-llama"])
def test_fisher_ranks_trained_models_as_the_exact_hessian_does(name: str) -> None:
    """At a trained model, on text like what it was trained on, the Hessian is near its Gauss-Newton part."""
    subject = Subjects().get(name)
    windows = subject.calibration(standard("nano").calibration, 0, "")
    tokens = torch.from_numpy(windows.tokens)
    source = CheckpointSource(subject.checkpoint.path)
    fisher = estimate(source, probe_windows(tokens, 1, windows=8), "fisher", Run())
    exact = estimate(source, probe_windows(tokens, 2, windows=2), "hutchinson", Run())
    assert rank_correlation(fisher, exact) > 0.8
