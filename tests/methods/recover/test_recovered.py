"""Recovery trains what stayed and nothing else: zeros, budgets, untouched parts, layers, slices, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recovered_models import FAMILIES, KINDS, linears, loss, prune, same, text, weights
from saved_models import saved
from tiny_models import tiny

from methods.errors import CheckpointError, UnsupportedTarget, UserError
from methods.inference.assemble import assemble
from methods.interface import Reshaping, Run
from methods.recover.lora import LoRA
from methods.recover.masked import check_zeros, places_of
from methods.recover.pruner import recovered
from methods.registry import get
from methods.selection import EVERYTHING
from methods.stream.source import CheckpointSource
from methods.target import Target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("method", "target", "dtype"),
    [("magnitude", "60%", torch.float16), ("sparsegpt", "2:4", torch.float32)],
)
def test_zeros_stay_and_the_loss_falls(
    tmp_path: Path, family: str, kind: str, method: str, target: str, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {"family": family, "method": method, "target": target, "dtype": dtype}
    plain, shot = prune(tmp_path / "shot", **options)
    report, got = prune(tmp_path / "recovered", kind, **options)
    before, after = weights(shot), weights(got)
    prunable = linears(shot)
    for name, weight in after.items():
        assert weight.dtype == dtype
        if name in prunable:
            assert torch.equal(weight == 0, before[name] == 0), name
            assert not torch.equal(weight, before[name]), name
        elif kind == "lora" or weight.ndim > 1:
            assert torch.equal(weight, before[name]), name
    if kind == "full":
        moved = [
            name for name in after if after[name].ndim == 1 and not torch.equal(after[name], before[name])
        ]
        assert any("norm" in name for name in moved)
        assert any(not name.startswith(shot.family.block_prefix(0)[:-2]) for name in moved)  # the final norm
    assert [m.removed for m in report.matrices] == [m.removed for m in plain.matrices]
    assert all(m.calibration_error is None for m in report.matrices)
    errors = [m.heldout_error for m in report.matrices]
    assert all(error is not None and 0 < error < 2 for error in errors)
    assert errors != [m.heldout_error for m in plain.matrices]  # those of the trained weights
    tokens, heldout = text().tokens, text().heldout
    assert loss(got, tokens) < 0.9 * loss(shot, tokens)
    cost = report.recovery
    assert cost is not None
    assert cost.loss_before[0] == pytest.approx(loss(shot, heldout), rel=1e-4)
    assert cost.loss_after[0] == pytest.approx(loss(got, heldout), rel=2e-3)
    assert (cost.steps, cost.tokens, cost.targets) == (24, 24 * 4 * 16, (target,))
    assert cost.seconds == report.seconds["recover"] > 0 and not cost.resumed


def test_what_can_train_is_counted(tmp_path: Path) -> None:
    report, got = prune(tmp_path / "full", "full", steps=1)
    kept = {name: weight for name, weight in weights(got).items() if name in linears(got)}
    vectors = sum(w.numel() for name, w in weights(got).items() if w.ndim == 1)
    assert report.recovery is not None
    assert report.recovery.trainable == sum(int((w != 0).sum()) for w in kept.values()) + vectors
    report, _ = prune(tmp_path / "lora", "lora", steps=1)
    assert report.recovery is not None
    assert report.recovery.trainable == sum(4 * sum(w.shape) for w in kept.values())


@pytest.mark.parametrize("sliced", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_compute_what_their_merged_weights_do(tmp_path: Path, family: str, sliced: bool) -> None:
    """peft's own layer where there is no mask, ours where there is one."""
    method, target = ("slicegpt", "slice25%") if sliced else ("magnitude", "50%")
    _, pruned = prune(tmp_path, family=family, method=method, target=target)
    places = places_of(pruned, CheckpointSource(pruned.folder), EVERYTHING)
    assert all((mask is None) == sliced for mask in places.matrices.values())
    model, tokens = assemble(pruned), text().heldout
    attached = LoRA(rank=3, alpha=6.0).attach(model, places, Run(), "key")
    with torch.no_grad():
        unchanged = assemble(pruned)(input_ids=tokens).logits
        assert torch.equal(model(input_ids=tokens).logits, unchanged)  # B is zero
        generator = torch.Generator().manual_seed(3)
        for parameter in attached.parameters.values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        merged = assemble(pruned)
        for name, weight in attached.merged():
            mask = places.matrices[name]
            module = name.removesuffix(".weight")
            product = attached.parameters[f"{module}.B"] @ attached.parameters[f"{module}.A"]
            dense = pruned_weight = merged.get_parameter(name)
            expected = pruned_weight + 2.0 * (product if mask is None else product * mask)
            torch.testing.assert_close(weight, expected)
            dense.copy_(weight)
        got, wanted = model(input_ids=tokens).logits, merged(input_ids=tokens).logits
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert (wanted - unchanged).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_models_recover_without_a_mask(tmp_path: Path, family: str, kind: str) -> None:
    options = {"family": family, "method": "slicegpt", "target": "slice25%"}
    _, shot = prune(tmp_path / "shot", **options)
    _, got = prune(tmp_path / "recovered", kind, **options)
    assert got.shape == shot.shape and got.shape.slices is not None
    before, after = weights(shot), weights(got)
    assert before.keys() == after.keys()
    for name in before:
        trained = name in linears(shot) or (
            kind == "full" and before[name].ndim == 1 and name not in shot.family.outer_tensors(shot.shape)
        )
        assert torch.equal(before[name], after[name]) != trained, name
    assert loss(got, text().heldout) < 0.97 * loss(shot, text().heldout)


def test_a_wrapped_pruner_reshapes_where_it_does() -> None:
    shape = tiny("llama")[1].shape
    target = Target.parse("slice25%")
    slicing, pruning = get("slicegpt", {}, recover="full"), get("magnitude", {}, recover="full")
    assert isinstance(slicing, Reshaping) and not isinstance(pruning, Reshaping)
    assert slicing.pruned_shape(shape, target) == get("slicegpt", {}).pruned_shape(shape, target)  # type: ignore[attr-defined]
    assert pruning.needs_calibration and not get("magnitude", {}).needs_calibration


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_outside_the_layers_stay(tmp_path: Path, kind: str) -> None:
    options = {"layers": "blocks=1,only=fc", "method": "magnitude"}
    _, shot = prune(tmp_path / "shot", **options)
    report, got = prune(tmp_path / "recovered", kind, **options)
    before, after = weights(shot), weights(got)
    moved = {name for name in linears(got) if not torch.equal(before[name], after[name])}
    assert moved == {f"model.decoder.layers.1.{name}.weight" for name in ("fc1", "fc2")}
    assert sum(m.removed for m in report.matrices) == sum(int((after[name] == 0).sum()) for name in moved)


def test_the_seed_decides_all(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    torch.manual_seed(1)
    _, one = prune(tmp_path / "1", "lora", model=model, run={"seed": 3})
    torch.manual_seed(2)
    state = torch.get_rng_state()
    _, again = prune(tmp_path / "2", "lora", model=model, run={"seed": 3})
    assert torch.equal(state, torch.get_rng_state())  # peft's own draws are put back
    _, other = prune(tmp_path / "3", "lora", model=model, run={"seed": 4})
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


def test_nothing_is_made_worse_on_held_out_text(tmp_path: Path) -> None:
    """Steps so large that they only harm: the best is step 0, and the pruned weights stay as they were."""
    _, shot = prune(tmp_path / "shot")
    report, got = prune(tmp_path / "got", "full", lr=100.0, warmup=0.0)
    assert report.recovery is not None and report.recovery.best_steps == (0,)
    assert same(weights(shot), weights(got))


def test_refusals() -> None:
    shape = tiny("opt")[1].shape

    def reason(recover: str, target: str, method: str = "sparsegpt", **parameters: Any) -> str | None:
        return get(method, parameters, recover=recover).refuse(shape, Target.parse(target))

    assert reason("lora", "50%") is None and reason("4xfull", "2:4") is None
    assert reason("full", "50%+4bit") == (
        "--recover full would move weights off their 4-bit grids; ask for 50% without +4bit, or for --recover none"
    )
    assert reason("lora", "slice25%") == get("sparsegpt", {}).refuse(shape, Target.parse("slice25%"))
    assert reason("4xfull", "50%", **{"full.steps": 3}) == "4 stages need 4 steps at least; full.steps is 3"
    assert reason("2xlora", "slice25%", "slicegpt") == (
        "--gradual 2: a model whose width is cut cannot be cut again, since its directions are no longer those of "
        "one stream; leave out --gradual, or use --gradual 1"
    )
    assert reason("lora", "slice25%", "slicegpt") is None


def test_a_stage_that_the_pruner_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.layerwise.pruner import LayerwisePruner

    monkeypatch.setattr(
        LayerwisePruner,
        "refuse",
        lambda self, shape, target: None if target.keep == 2 else "only 2 of 4 here",
    )
    reason = get("magnitude", {}, recover="4xfull").refuse(tiny("opt")[1].shape, Target.parse("2:4"))
    assert reason == "--gradual 4: its stage 1 aims at 3:4, and only 2 of 4 here"


def test_without_peft_lora_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    shape, target = tiny("opt")[1].shape, Target.parse("50%")
    assert get("magnitude", {}, recover="lora").refuse(shape, target) == (
        "lora needs peft; install it with: pip install 'prune-bench[recover]', or use --recover full"
    )
    assert get("magnitude", {}, recover="full").refuse(shape, target) is None


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    pruner = recovered(get("magnitude", {}), KINDS["full"])
    _, memory = tiny("opt")
    target = Target.parse("50%")
    with pytest.raises(UserError, match="full trains models that lie whole in a folder; save this one first"):
        pruner.prune(memory, text(), target, None, Run())  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match="full trains on calibration windows and chooses on held-out ones; give both"
    ):
        pruner.prune(memory, None, target, None, Run())  # type: ignore[arg-type]
    with pytest.raises(UnsupportedTarget, match="off their 4-bit grids"):
        pruner.prune(memory, text(), Target.parse("50%+4bit"), None, Run())  # type: ignore[arg-type]


def test_a_weight_that_came_back_is_a_defect() -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    check_zeros("w", weight, weight != 0)
    check_zeros("w", weight, None)
    with pytest.raises(CheckpointError, match="w: recovery brought removed weights back; please report this"):
        check_zeros("w", weight + 1, weight != 0)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("lora.rank", 0, "lora.rank is 0; it must be at least 1 and at most 65536"),
        ("lora.lr", -1.0, "lora.lr is -1.0; it must be at least 1e-09"),
        ("lora.lr", float("nan"), r"lora.lr is 'nan'; it must be a finite number, as in --set lora.lr=0.001"),
        ("lora.steps", 0, "lora.steps is 0; it must be at least 1"),
        ("lora.warmup", 1.5, "lora.warmup is 1.5; it must be at least 0 and at most 1"),
        ("lora.rnk", 3, "parameter of magnitude 'lora.rnk' is unknown; did you mean 'lora.rank'?"),
    ],
)
def test_hostile_parameters(parameter: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get("magnitude", {parameter: value}, recover="lora")


def test_unknown_recoveries() -> None:
    with pytest.raises(UserError, match=r"recovery 'lorra' is unknown; did you mean 'lora'\?"):
        get("magnitude", {}, recover="lorra")
    with pytest.raises(
        UserError, match=r"recovery '0xfull' is not spelled name or NxName, as in lora, full or 4xfull"
    ):
        get("magnitude", {}, recover="0xfull")
    with pytest.raises(UserError, match="recovery '101xfull' has 101 stages; use 100 at most"):
        get("magnitude", {}, recover="101xfull")
    with pytest.raises(UserError, match=r"it is a recovery: write --recover lora"):
        get("lora", {})
