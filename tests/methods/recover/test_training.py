"""The training loop: its rates and order, what it resumes from, what stops it."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recovered_models import QUICK, prune, same, text, weights
from saved_models import saved
from torch import nn

from methods.errors import NonFiniteError
from methods.interface import Run, Silent
from methods.recover import training as module
from methods.recover.full import Full
from methods.recover.training import Training, learning_rate, train

TRAINING = Training(steps=20, lr=0.1, batch=3, warmup=0.2)


def test_the_rate_rises_and_falls() -> None:
    rates = [learning_rate(TRAINING, step) for step in range(20)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[12] == pytest.approx(0.05) and 0 < rates[-1] < 0.01
    assert learning_rate(replace(TRAINING, warmup=0.0), 0) == 0.1
    assert learning_rate(Training(3, 0.1, 1, 1.0), 2) == pytest.approx(0.1)


class _Bigram(nn.Module):
    """Logits of the next token from the present one alone; notes what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(101, 101))
        self.fed: list[list[int]] = []

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        if torch.is_grad_enabled():
            self.fed += [[int(window[0]) for window in input_ids]]
        return type("Output", (), {"logits": self.table[input_ids]})


def _train(
    model: _Bigram, folder: Path, steps: int = 20, run: Run | None = None, **changes: Any
) -> module.Trained:
    training = replace(TRAINING, steps=steps, **changes)
    return train(
        "full", model, {"table": model.table}, text(), training, run or Run(), "key", folder, "identity"
    )


def test_every_epoch_reads_every_window_once(tmp_path: Path) -> None:
    model, other = _Bigram(), _Bigram()
    trained = _train(model, tmp_path / "1")
    firsts = [int(window[0]) for window in text().tokens]
    fed = [window for step in model.fed for window in step]
    assert len(fed) == 60 == 5 * len(firsts)
    epochs = [fed[start : start + 12] for start in range(0, 60, 12)]
    assert all(Counter(epoch) == Counter(firsts) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # each in another order
    assert trained.tokens == 60 * 16 and len(trained.losses) == 20
    _train(other, tmp_path / "2", run=Run(seed=1))
    assert other.fed != model.fed


def test_batches_larger_than_the_text_and_parts_smaller_than_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a batch add up to the very gradient of the whole."""
    whole, parts = _Bigram(), _Bigram()
    _train(whole, tmp_path / "1", steps=4, batch=30)
    monkeypatch.setattr(module, "MICRO_TOKENS", 40)  # two windows of 16
    _train(parts, tmp_path / "2", steps=4, batch=30)
    assert {len(step) for step in whole.fed} == {30} and {len(step) for step in parts.fed} == {2}
    torch.testing.assert_close(whole.table, parts.table)
    assert bool(whole.table.any())


def test_the_first_step_is_adamws(tmp_path: Path) -> None:
    """By hand: after one step every entry with a gradient moves by the rate, against the gradient's sign."""
    model, reference = _Bigram(), _Bigram()
    _train(model, tmp_path, steps=1, batch=12, warmup=0.0)
    loss = nn.functional.cross_entropy(
        reference.table[text().tokens[:, :-1]].flatten(0, 1), text().tokens[:, 1:].flatten()
    )
    loss.backward()
    gradient = reference.table.grad
    assert gradient is not None
    norm = float(gradient.norm())
    clipped = gradient * min(1.0, module.CLIP / norm)
    torch.testing.assert_close(model.table.detach(), -0.1 * clipped / (clipped.abs() + 1e-8))


class _Killed(Silent):
    """Stops at a step of training, as a killed process would."""

    def __init__(self, at: int, phase: str = "recover", skip: int = 0) -> None:
        super().__init__()
        self.at, self.wanted, self.skip, self.name, self.seen = at, phase, skip, "", 0

    def phase(self, name: str, total: int) -> None:
        self.name = name
        self.seen += name == self.wanted

    def step(self, done: int, note: str = "") -> None:
        if (self.name, done) == (self.wanted, self.at) and self.seen > self.skip:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("recover", "skip", "at"), [("lora", 0, 13), ("full", 0, 24), ("3xfull", 1, 5), ("2xlora", 1, 0)]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recover: str, skip: int, at: int
) -> None:
    """In the middle of a training, at its end, in a later stage; saved at every step, then never but at the end."""
    model = saved(tmp_path / "model", "llama", dtype=torch.float16)
    options: dict[str, Any] = {"model": model, "method": "sparsegpt", "target": "70%"}
    whole, straight = prune(tmp_path / "straight", recover, **options)
    for every in (-1.0, 1e9):
        monkeypatch.setattr(module, "_SAVE_EVERY", every)
        folder = tmp_path / f"killed{every}"
        run = {"work": folder / "work", "identity": "cell", "seed": 0}
        with pytest.raises(KeyboardInterrupt):
            prune(folder, recover, run={**run, "observer": _Killed(at, skip=skip)}, **options)
        seen = _Steps()
        report, resumed = prune(folder, recover, run={**run, "observer": seen}, **options)
        assert same(weights(straight), weights(resumed))
        assert report.recovery is not None and whole.recovery is not None
        assert report.recovery.loss_after == whole.recovery.loss_after
        assert (report.recovery.steps, report.recovery.tokens) == (
            whole.recovery.steps,
            whole.recovery.tokens,
        )
        went_on = every < 0 and at > 1  # what is killed at a step has not saved it
        stages = int(recover[0]) if recover[0].isdigit() else 1
        assert report.recovery.resumed
        assert seen.phases.count("prune") == stages - skip - 1
        if went_on:
            assert seen.first["recover"] == at - 1


def test_a_pruning_killed_in_the_middle_goes_on_from_its_last_block(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    options: dict[str, Any] = {"model": model, "method": "sparsegpt", "target": "70%"}
    _, straight = prune(tmp_path / "straight", "2xfull", **options)
    run = {"work": tmp_path / "work", "identity": "cell"}
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "killed", "2xfull", run={**run, "observer": _Killed(2, "prune", skip=1)}, **options)
    report, resumed = prune(tmp_path / "killed", "2xfull", run=run, **options)
    assert same(weights(straight), weights(resumed))
    assert report.resumed_blocks > 0 and report.recovery is not None and report.recovery.resumed


class _Steps(Silent):
    """Notes the phases and the first step of each."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []
        self.first: dict[str, int] = {}

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)

    def step(self, done: int, note: str = "") -> None:
        self.first.setdefault(self.phases[-1], done)


def test_a_finished_run_is_found_finished(tmp_path: Path) -> None:
    """The weights are wanted again after their record was written: nothing is pruned or trained."""
    run = {"work": tmp_path / "work", "identity": "cell"}
    model = saved(tmp_path / "model", "opt")
    first, one = prune(tmp_path, "2xfull", model=model, run=run)
    before = weights(one)
    before = {name: tensor.clone() for name, tensor in before.items()}
    shutil.rmtree(tmp_path / "blocks")
    seen = _Steps()
    again, two = prune(tmp_path, "2xfull", model=model, run={**run, "observer": seen})
    assert same(before, weights(two))
    assert "prune" not in seen.phases and seen.first == {"recover": 12}
    assert again.seconds["recover"] == pytest.approx(first.seconds["recover"], rel=0.5)
    assert again.matrices == first.matrices


def test_what_another_identity_or_damage_left_does_not_count(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "opt")
    _, one = prune(tmp_path / "1", "full", model=model)
    run = {"work": tmp_path / "work"}
    prune(tmp_path / "2", "full", model=model, run={**run, "identity": "a", "seed": 5})
    _, two = prune(tmp_path / "2", "full", model=model, run={**run, "identity": "b"})
    assert same(weights(one), weights(two))
    for file, damage in (("state.json", "{"), ("state.json", "[]"), ("train-0000024.safetensors", "x")):
        (tmp_path / "work" / "stages" / "stage-1" / "training" / file).write_text(damage)
        _, three = prune(tmp_path / "2", "full", model=model, run={**run, "identity": "b"})
        assert same(weights(one), weights(three))


def test_no_pickle_is_written(tmp_path: Path) -> None:
    prune(tmp_path, "full", run={"work": tmp_path / "work", "identity": "cell"})
    files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} == {".json", ".safetensors"}
    state = json.loads((tmp_path / "work/stages/stage-1/training/state.json").read_text())
    assert state["trained"]["step"] == QUICK["steps"]


def test_divergence_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        NonFiniteError,
        match=r"^full: the (loss|held-out loss|gradient) is (nan|inf) at step \d+ of 24; lower full.lr, which is 1e\+30$",
    ):
        prune(tmp_path, "full", lr=1e30, warmup=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_broken_before_training(tmp_path: Path, value: float) -> None:
    model = _Bigram()
    model.table.data[:] = value
    with pytest.raises(
        NonFiniteError,
        match="full: the held-out loss is nan before any step: the pruned model is broken; prune less",
    ):
        _train(model, tmp_path)


def test_defaults_are_the_catalogues() -> None:
    from methods import catalogue
    from methods.recover.lora import LoRA

    for entry, made in zip(catalogue.RECOVERIES, (LoRA(), Full()), strict=True):
        assert entry.name == made.name
        assert all(getattr(made, name) == parameter.default for name, parameter in entry.parameters.items())
