"""Widths, and parameter counts in closed form, from configs alone; no weight is read."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from sliced_models import VARIANTS
from tiny_models import CONFIGS
from torch.utils.flop_counter import FlopCounterMode

from bench.models.registry import get as entry
from methods.errors import UnsupportedModel, UnsupportedTarget
from methods.families import family_of, shape_of, sizes
from methods.families.sliced import config_changes
from methods.interface import ModelShape, Slices
from methods.registry import get
from methods.slicing.pruner import SliceGPT
from methods.slicing.schedule import Schedule, sliced_shape
from methods.target import Target


def shape(model: str) -> ModelShape:
    return shape_of(entry(model).config)


def count(model: str, target: str, **parameters: Any) -> int:
    return sizes.parameters(SliceGPT(**parameters).pruned_shape(shape(model), Target.parse(target)))


@pytest.mark.parametrize(
    ("model", "target", "width", "parameters"),
    [
        ("opt-125m", "slice20%", 608, 147_250_880),
        ("llama-2-7b", "slice20%", 3272, 6_105_940_928),
        ("llama-2-7b", "slice25%", 3072, 5_704_777_728),
        ("llama-2-7b", "slice30%", 2864, 5_292_914_432),
        ("bloom-560m", "slice20%", 816, 735_712_464),
        ("bloom-560m", "slice25%", 768, 706_086_144),
        ("bloom-560m", "slice30%", 712, 671_795_832),
        ("smollm2-135m", "slice25%", 432, 140_652_288),
    ],
)
def test_known_parameter_counts(model: str, target: str, width: int, parameters: int) -> None:
    found = SliceGPT().pruned_shape(shape(model), Target.parse(target))
    assert found.slices is not None
    assert {*found.slices.attention, *found.slices.feedforward} == {width}
    assert found.slices.head == shape(model).width
    assert sizes.parameters(found) == parameters


def test_the_count_of_opt_is_the_formula_of_the_published_code() -> None:
    """Per layer 3(Dd+D) + (dD+d) + (Fd+F) + (Fd+d) + 2d², the last layer writing D; (V+P)d + VD + V outside."""
    whole, d = shape("opt-125m"), 608
    width, inner, layers, words = whole.width, whole.feedforward, whole.blocks, whole.vocabulary
    layer = 3 * (width * d + width) + (d * width + d) + (inner * d + inner) + (inner * d + d) + 2 * d * d
    last = layer + (width - d) * (inner + 1 + d)
    outside = (words + whole.position_rows) * d + words * width + words
    assert count("opt-125m", "slice20%") == (layers - 1) * layer + last + outside


def test_slicing_the_head_takes_the_last_block_and_the_head_too() -> None:
    whole, d = shape("bloom-560m"), 816
    saved = count("bloom-560m", "slice20%") - count("bloom-560m", "slice20%", slice_head=True)
    assert saved == (whole.width - d) * (whole.vocabulary + whole.feedforward + 1 + d)


@pytest.mark.parametrize(
    ("share", "interval", "width"),
    [
        ("0", 8, 24),
        ("0", 7, 24),
        ("1/24", 1, 23),
        ("0.25", 1, 18),
        ("0.25", 8, 16),
        ("0.26", 1, 17),
        ("0.9", 2, 2),
    ],
)
def test_widths_are_rounded_down_but_the_whole_one_is_not(share: str, interval: int, width: int) -> None:
    tiny = shape_of({"model_type": "llama", **CONFIGS["llama"]})
    found = Schedule(interval).slices(tiny, Target("slice", Fraction(share)))
    assert {*found.attention, *found.feedforward} == {width}


def test_a_slope_slices_deeper_segments_more_around_the_same_middle() -> None:
    whole = shape("llama-2-7b")
    flat = Schedule(1).slices(whole, Target.parse("slice25%"))
    sloped = Schedule(1, slope=0.2).slices(whole, Target.parse("slice25%"))
    widths = [width for pair in zip(sloped.attention, sloped.feedforward, strict=True) for width in pair]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == int(0.85 * 4096) and widths[-1] == int(0.65 * 4096)
    assert abs(sum(widths) / len(widths) - flat.attention[0]) < 1
    turned = Schedule(1, slope=-0.2).slices(whole, Target.parse("slice25%"))
    assert list(turned.attention) == sorted(turned.attention)
    clipped = Schedule(1, slope=1.0).slices(whole, Target.parse("slice25%"))
    assert clipped.attention[0] == 4096, "a negative share slices nothing"


def test_a_width_of_nothing_is_refused_with_the_figures() -> None:
    with pytest.raises(UnsupportedTarget, match=r"slice97% leaves no width: of 192, .* a multiple of 8"):
        Schedule().slices(shape("nano-opt"), Target.parse("slice97%"))


@pytest.mark.parametrize("model", ["opt-125m", "bloom-560m", "llama-2-7b", "smollm2-135m", "nano-bloom"])
@pytest.mark.parametrize("slice_head", [False, True])
@pytest.mark.parametrize("target", ["params-10%", "params-33%", "bytes-10%"])
def test_a_size_is_reached_by_the_widest_that_is_small_enough(
    model: str, slice_head: bool, target: str
) -> None:
    whole, aim = shape(model), Target.parse(target)
    schedule = Schedule(slice_head=slice_head)
    found = schedule.slices(whole, aim)
    most = (1 - aim.amount) * sizes.parameters(whole)
    assert sizes.parameters(sliced_shape(whole, found)) <= most
    width = found.attention[0]
    assert width % 8 == 0
    wider = Slices(
        (width + 8,) * whole.blocks, (width + 8,) * whole.blocks, width + 8 if slice_head else whole.width
    )
    assert sizes.parameters(sliced_shape(whole, wider)) > most


def test_a_size_out_of_reach_is_refused_with_the_figures_and_a_way_out() -> None:
    pruner = SliceGPT()
    reason = str(pruner.refuse(shape("bloom-560m"), Target.parse("params-60%")))
    assert reason == (
        "params-60% allows 223,685,836 of 559,214,592 parameters; sliced to width 8 the model still has 265,864,504 "
        "(256,901,120 in its full head, untied from the token table); set slicegpt.slice_head=true"
    )
    assert SliceGPT(slice_head=True).refuse(shape("bloom-560m"), Target.parse("params-60%")) is None
    assert "slice_head" not in str(pruner.refuse(shape("nano-opt"), Target.parse("params-99.9%")))


def test_refusals() -> None:
    pruner = get("slicegpt", {})
    opt_350m = pruner.refuse(shape("opt-350m"), Target.parse("slice25%"))
    assert opt_350m is not None
    assert "norms stand behind the residual sums (OPT-350M)" in opt_350m
    for target in ("50%", "2:4"):
        assert "cannot reach " + target in str(pruner.refuse(shape("opt-125m"), Target.parse(target)))
    assert "without +4bit" in str(pruner.refuse(shape("opt-125m"), Target.parse("slice25%+4bit")))
    sliced = SliceGPT().pruned_shape(shape("opt-125m"), Target.parse("slice25%"))
    assert "is sliced already" in str(pruner.refuse(sliced, Target.parse("slice25%")))
    assert "does not prune sliced models" in str(get("magnitude", {}).refuse(sliced, Target.parse("50%")))
    headless = {"model_type": "opt", **CONFIGS["opt"], "_remove_final_layer_norm": True}
    assert "no final norm" in str(pruner.refuse(shape_of(headless), Target.parse("slice25%")))
    after = {"model_type": "bloom", **CONFIGS["bloom"], "apply_residual_connection_post_layernorm": True}
    assert "leaves norm scales" in str(pruner.refuse(shape_of(after), Target.parse("slice25%")))


def _config(variant: str) -> dict[str, Any]:
    family, overrides = VARIANTS[variant]
    return {"model_type": family, **CONFIGS[family], **overrides}


def _sliced_config(variant: str, **parameters: Any) -> dict[str, Any]:
    config = _config(variant)
    slices = Schedule(**parameters).slices(shape_of(config), Target.parse("slice30%"))
    return {**config, **config_changes(config, slices)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("parameters", [{}, {"slice_head": True, "slope": 0.4, "round_interval": 3}], ids=str)
def test_names_shapes_and_counts_are_those_of_the_transformers_model(
    variant: str, parameters: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _sliced_config(variant, **parameters)
    whole = shape_of(config)
    given = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **given))
    family = family_of(whole)
    ours = dict(family.outer_tensors(whole))
    for index in range(whole.blocks):
        tensors = family.block_tensors(whole, index)
        ours |= {family.block_prefix(index) + name: size for name, size in tensors.items()}
        for matrix in family.matrices(whole, index):
            assert tensors[f"{matrix.name}.weight"] == (matrix.rows, matrix.columns)
    assert ours == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sizes.parameters(whole) == sum(parameter.numel() for parameter in model.parameters())
    assert type(model).__name__ == config["architectures"][0]


@pytest.mark.parametrize("variant", ["opt", "bloom", "llama"])
def test_operations_equal_those_counted_in_transformers(variant: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _sliced_config(variant, slope=0.4, round_interval=1)
    given = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **given))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 20, dtype=torch.long))
    assert counter.get_total_flops() == 20 * sizes.flops_per_token(shape_of(config), 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliced_widths": None}, "has no sliced_widths"),
        ({"sliced_widths": [3]}, "allowed is an object with attention, feedforward and head"),
        (
            {"sliced_widths": {"attention": [16], "feedforward": [16, 16, 16], "head": 24}},
            "a list of 3 widths",
        ),
        ({"sliced_widths": {"attention": [16, 16, 99], "feedforward": [16] * 3, "head": 24}}, "from 1 to 24"),
        (
            {"sliced_widths": {"attention": [16] * 3, "feedforward": [16, "x", 1], "head": 24}},
            "attention|'x'",
        ),
        ({"sliced_widths": {"attention": [16] * 3, "feedforward": [16] * 3}}, "has no head"),
        ({"sliced_widths": {"attention": [16] * 3, "feedforward": [16] * 3, "head": 0}}, "from 1 to 24"),
        ({"tie_word_embeddings": True}, "allowed is false: a sliced head is no token table"),
        ({"do_layer_norm_before": False}, "norms stand behind"),
        ({"num_hidden_layers": 10_000}, "a list of 10000 widths"),
    ],
)
def test_configs_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        shape_of({**_sliced_config("opt"), **changes})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_sliced_shape_is_that_of_its_config() -> None:
    for variant in VARIANTS:
        config = _sliced_config(variant)
        whole = shape_of(_config(variant))
        slices = Schedule().slices(whole, Target.parse("slice30%"))
        assert (
            shape_of(config)
            == sliced_shape(whole, slices)
            == dataclasses.replace(whole, family=f"sliced_{whole.family}", tied=False, slices=slices)
        )
        assert family_of(shape_of(config)).name == config["model_type"]
