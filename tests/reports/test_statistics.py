"""Paired differences: intervals that hold what they promise, corrected p-values, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sample_records import cell
from scipy import stats
from statsmodels.stats.multitest import multipletests

from bench.results.records import Record
from bench.results.values import save_values
from reports.statistics import (
    FEWEST_UNITS,
    MANY_UNITS,
    RESAMPLES,
    differences,
    geometric,
    ratio,
    summarise,
)
from reports.verdicts import DIVERGENCE, PERPLEXITY, Pair, Sample, Values, Verdict, judge, measure_of, sample

WINDOWS = 64


def test_one_seed_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(3.2, 0.4, WINDOWS), rng.normal(3.1, 0.4, WINDOWS)
    (ours,) = differences([(first - second)[None]])
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.mean == pytest.approx(first.mean() - second.mean())
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)
    assert ours.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.05)
    assert (ours.seeds, ours.units) == (1, WINDOWS)


@pytest.mark.parametrize(
    ("seeds", "units", "drawn"),
    [
        (1, FEWEST_UNITS, 0.0),
        (1, 16, 0.0),
        (1, WINDOWS, 0.0),
        (3, WINDOWS, 0.05),
        (2, WINDOWS, 0.6),
        (3, 16, 0.6),
    ],
)
def test_intervals_cover_and_chance_is_called_chance(seeds: int, units: int, drawn: float) -> None:
    """Of 1,000 made-up pairs with a true difference of 0.1, at least 93 % of intervals hold it; at zero few are settled.

    `drawn` is how far calibration moves a method: 0.6 is far more than text does.
    """
    rng = np.random.default_rng(3)
    pairs = 1000
    windows = rng.normal(0, 0.3, (pairs, 1, units))
    draws = rng.normal(0, drawn, (pairs, seeds, 1))
    noise = rng.normal(0, 0.1, (pairs, seeds, units))
    null = differences(list(windows + draws + noise))
    assert np.mean([entry.p < 0.05 for entry in null]) <= 0.065
    covered = np.mean(
        [entry.low <= 0.1 <= entry.high for entry in differences(list(windows + draws + noise + 0.1))]
    )
    assert 0.93 <= covered <= 0.995
    # Corrected together, chance among 1,000 pairs is almost never called a difference.
    assert sum(entry.settled for entry in null) <= 1
    # What stands has an interval beside zero.
    shifted = differences(list(windows + draws + noise + 0.2), families=range(pairs))
    assert not any(entry.settled and entry.low <= 0 <= entry.high for entry in shifted)


@pytest.mark.parametrize("units", [WINDOWS, MANY_UNITS])
def test_one_true_difference_among_many_is_found(units: int) -> None:
    rng = np.random.default_rng(9)
    true = rng.normal(0.7, 0.4, (1, units))
    *_, found = differences([*rng.normal(0, 0.4, (149, 1, units)), true])
    assert found.settled and found.adjusted < 1e-6
    assert found.p == pytest.approx(stats.ttest_1samp(true[0], 0).pvalue)


def test_a_pair_chosen_among_many_pays_for_all_of_them() -> None:
    samples = [np.random.default_rng(10).normal(0.3, 1, (1, WINDOWS)) for _ in range(2)]
    few, many = differences(samples), differences(samples, tests={0: 36})
    assert many[0].adjusted == pytest.approx(min(1.0, 36 * few[0].p))
    assert many == differences(samples, families=[0, 0], tests={0: 36, 1: 99})


def test_seeds_that_disagree_settle_nothing() -> None:
    rng = np.random.default_rng(4)
    agreeing = rng.normal(0.2, 0.05, (3, WINDOWS))
    disagreeing = agreeing + np.array([[0.4], [-0.4], [0.0]])
    sure, unsure = differences([agreeing, disagreeing])
    assert sure.settled and not unsure.settled
    assert unsure.high - unsure.low > 5 * (sure.high - sure.low)
    assert differences([agreeing, disagreeing]) == [sure, unsure]


def test_p_values_are_corrected_by_holm() -> None:
    rng = np.random.default_rng(5)
    found = differences([rng.normal(shift, 1, (1, WINDOWS)) for shift in (0.0, 0.2, 0.28, 0.5)])
    expected = multipletests([entry.p for entry in found], method="holm")[1]
    assert [entry.adjusted for entry in found] == pytest.approx(list(expected))
    assert all(entry.adjusted >= entry.p for entry in found)
    assert differences([]) == []
    # Each family by itself: alone, nothing is corrected.
    alone = differences([rng.normal(0.3, 1, (1, WINDOWS)) for _ in range(2)], families=[0, 1])
    assert [entry.adjusted for entry in alone] == [entry.p for entry in alone]


@pytest.mark.parametrize("bad", [np.zeros((1, FEWEST_UNITS - 1)), np.zeros(9), np.full((1, 9), np.nan)])
def test_what_is_no_sample_is_named(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"found \[|must be finite"):
        differences([bad])


def measured(
    out: Path, method: str, losses: np.ndarray, seed: int | None = None, **changes: object
) -> Record:
    """A perplexity record whose side file holds `losses`, and half of them as divergence."""
    entry = cell("nano-opt", method, "50%", seed=seed)[1]
    values = save_values(out, {"nll": losses, "kl_to_dense": losses / 2})
    return entry.model_copy(update={"values": values, **changes})


def compared(a: list[Record], b: list[Record], out: Path) -> Verdict:
    values = Values(out)
    sides = [sample(records, values, PERPLEXITY) for records in (a, b)]
    (verdict,) = judge([Pair(("A", "B"), PERPLEXITY, *sides)])
    return verdict


def test_verdicts_say_which_is_better_and_how_sure(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    text = rng.normal(3.0, 0.5, WINDOWS)
    better = [
        measured(tmp_path, "sparsegpt", text + 0.1 + rng.normal(0, 0.02, WINDOWS), seed) for seed in range(3)
    ]
    worse = [measured(tmp_path, "magnitude", text + 0.3)]
    level = [
        measured(tmp_path, "wanda", text + 0.1 + rng.normal(0, 0.02, WINDOWS), seed) for seed in (0, 2, 5)
    ]
    found = compared(better, worse, tmp_path)
    assert found.outcome == "better"
    assert found.ratio is not None
    assert found.ratio == pytest.approx((np.exp(-0.2),) * 3, rel=0.02)
    assert found.ratio[1] < found.ratio[0] < found.ratio[2] < 1
    assert found.beyond == "64 windows of text and 3 calibration seeds"
    turned, other = found.mirrored(), compared(worse, better, tmp_path)
    assert turned.outcome == other.outcome == "worse" and turned.a == "B"
    assert turned.ratio == pytest.approx(other.ratio)
    even = compared(better, level, tmp_path)
    assert even.outcome == "not distinguishable"
    assert even.difference is not None and even.difference.seeds == 2
    values = Values(tmp_path)
    sides = [sample(records, values, DIVERGENCE) for records in (better, worse)]
    (divergence,) = judge([Pair(("A", "B"), DIVERGENCE, *sides)])
    assert divergence.outcome == "better" and divergence.ratio is None


def test_accuracy_is_better_when_higher(tmp_path: Path) -> None:
    def items(right: np.ndarray) -> Sample | str:
        name = save_values(tmp_path, {"acc/arc_easy": right.astype(np.float32)})
        entry = cell("nano-opt", "sparsegpt", "50%")[1].model_copy(
            update={"phase": "zeroshot", "values": name}
        )
        return sample([entry], Values(tmp_path), measure_of("acc/arc_easy"))

    rng = np.random.default_rng(7)
    base = rng.random(500) < 0.4
    better = items(base | (rng.random(500) < 0.2))
    (found,) = judge([Pair(("A", "B"), measure_of("acc/arc_easy"), better, items(base))])
    assert found.outcome == "better" and found.beyond == "500 items"


def test_what_is_not_comparable_is_refused(tmp_path: Path) -> None:
    text = np.random.default_rng(8).normal(3.0, 0.5, WINDOWS)
    first = measured(tmp_path, "sparsegpt", text, 0)
    revised = {"model": {"revision": "abc"}}
    for change, reason in (
        ({"model": "nano-llama"}, "different model"),
        ({"protocol": "lab/wikitext2"}, "different evaluation protocol"),
        ({"provenance": {**first.provenance, **revised}}, "different model revision"),
        (
            {"provenance": {**first.provenance, "evaluation": {"tokens_sha256": "00"}}},
            "different evaluated text",
        ),
        ({"dtype": "bfloat16"}, "different weight type"),
        ({"parameters": {"recovery": "lora"}}, "different recovery"),
        ({"seed": 1}, "no calibration seed in common"),
        ({"values": ""}, "B: values of single windows were not recorded"),
        ({"values": "0" * 64 + ".safetensors"}, "B: the file with the values of single windows is missing"),
        ({"values": save_values(tmp_path, {"nll": text[:5]})}, "B: too few windows"),
        ({"values": save_values(tmp_path, {"nll": text[:50]})}, "evaluated on 64 and 50 windows"),
        ({"values": save_values(tmp_path, {"nll": text * np.inf})}, "B: not finite on some windows"),
        ({"phase": "decode"}, "B: not evaluated"),
    ):
        found = compared([first], [first.model_copy(update=change)], tmp_path)
        assert found.outcome == "not comparable" and found.difference is None
        assert reason in found.reason
    both = compared([first], [first, first.model_copy(update={"subject": "other"})], tmp_path)
    assert both.reason == "B: two results with one seed"
    same = compared([first], [first], tmp_path)
    assert same.outcome == "not distinguishable" and same.difference is not None and same.difference.p == 1


def test_means_over_seeds_leave_nothing_out() -> None:
    assert summarise([]).mean is None
    assert summarise([3]).mean == 3
    assert summarise([3]).half_width is None
    assert summarise([2, 2]).mean == 2
    assert isinstance(summarise([2, 2]).mean, int)
    assert summarise([1.0, None]).mean is None
    assert math.isnan(summarise([1.0, math.nan]).mean or 0)
    assert summarise([1.0, math.inf]).mean == math.inf
    assert math.isnan(summarise([-math.inf, math.inf]).mean or 0)
    assert ratio(2.0, 0.0) is None
    assert ratio(2.0, math.nan) is None
    assert ratio(3.0, 2.0) == 1.5


def test_perplexities_average_as_their_losses_do() -> None:
    values = [20.0, 30.0, 45.0]
    found = geometric(values)
    logarithms = summarise([math.log(value) for value in values])
    assert found.mean == pytest.approx(30.0) and found.mean == pytest.approx(math.exp(logarithms.mean or 0))
    assert found.half_width == pytest.approx(30.0 * (logarithms.half_width or 0))
    assert geometric([7.1, 7.1]).mean == 7.1 and geometric([7.1, 7.1]).half_width == 0
    assert geometric([3.5]) == summarise([3.5]) and geometric([2.0, None]).mean is None
    assert geometric([1.0, math.inf]).mean == math.inf and math.isnan(geometric([1.0, 0.0]).mean or 0)
