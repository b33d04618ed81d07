"""Records: round trips, what is refused, and the road from older formats."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sample_records import record

from bench.results.keys import canonical, cell_key, digest, environment_key, subject_key
from bench.results.records import Metric, decode, encode, moment, now, upgrade
from bench.results.rows import COLUMNS, tidy
from methods.errors import StoreError

numbers = st.one_of(st.integers(-(2**62), 2**62), st.floats())
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.none(), numbers), st.dictionaries(st.text(), json_values), st.text())
def test_round_trip_is_lossless(value: Any, provenance: dict[str, Any], reason: str) -> None:
    before = record(metrics=[Metric(name="any", unit="1", value=value)], provenance=provenance, reason=reason)
    after = decode(encode(before))
    assert same(after.model_dump(), before.model_dump())
    assert b"\n" not in encode(before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_figures_are_strings_in_the_file(value: float) -> None:
    written = json.loads(encode(record(metrics=[Metric(name="any", unit="1", value=value)])))
    assert isinstance(written["metrics"][0]["value"], str)
    assert written["metrics"][0]["value"] in ("NaN", "Infinity", "-Infinity")


def test_numpy_scalars_become_plain_numbers() -> None:
    metric = Metric.model_validate({"name": "any", "unit": "1", "value": np.float32(0.5)})
    assert type(metric.value) is float
    assert type(Metric.model_validate({"name": "any", "unit": "1", "value": np.int64(3)}).value) is int


def test_undecodable_file_names_are_escaped_not_lost() -> None:
    written = record(provenance={"command": ["bench", "model-\udcff"]})
    assert decode(encode(written)).provenance["command"] == ["bench", "model-\\udcff"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("seed", 2**63),
        ("metrics", [{"name": "p", "unit": "1", "value": 10**400}]),
        ("model", 3),
        ("status", "fine"),
        ("phase", "dance"),
        ("metrics", [{"name": "p", "unit": "1", "value": "12"}]),
        ("metrics", [{"name": "p", "unit": "1", "value": True}]),
        ("metrics", [{"name": "p", "unit": "1", "value": 1, "extra": 2}]),
        ("metrics", "none"),
        ("values", "../../etc/passwd"),
        ("started", "yesterday"),
        ("finished", "2026-01-01T00:00:00"),
        ("parameters", {"a": object()}),
    ],
)
def test_wrong_types_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        record(**{field: value})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"3",
        b'{"schema_version":1}',
        b'{"schema_version":"1"}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"a":NaN}',
    ],
)
def test_what_is_no_record_is_a_short_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]{1,250}") as caught:
        decode(body)
    assert len(str(caught.value).splitlines()) == 1


def test_a_newer_record_says_upgrade() -> None:
    fields = json.loads(encode(record()))
    with pytest.raises(
        StoreError, match=r"format version 2, this program reads up to 1: upgrade prune-bench"
    ):
        decode(json.dumps({**fields, "schema_version": 2}).encode())


def test_older_records_climb_one_step_a_version() -> None:
    steps = {
        1: lambda fields: {**fields, "colour": fields["color"], "path": "1"},
        2: lambda fields: {**fields, "path": fields["path"] + "2"},
    }
    assert upgrade({"schema_version": 1, "color": "red"}, current=3, steps=steps) == {
        "schema_version": 3,
        "color": "red",
        "colour": "red",
        "path": "12",
    }
    with pytest.raises(StoreError, match="format version 0 cannot be read"):
        upgrade({"schema_version": 0}, current=3, steps=steps)


def test_key_of_a_record() -> None:
    assert record(cell="c", sources="s", protocol="p", phase="perplexity").key == (
        "c",
        "perplexity",
        "p",
        "s",
    )
    assert record().metric("sparsity") == 0.5
    assert record().metric("nonsense") is None


def test_now_is_utc_and_sorts() -> None:
    first, second = now(), now()
    assert moment(first) <= moment(second)
    assert first.endswith("+00:00")


def test_digests_do_not_depend_on_order_and_see_every_part() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert len(digest({})) == 16
    base: dict[str, Any] = {
        "model": "m",
        "revision": "r",
        "method": "sparsegpt",
        "parameters": {"percdamp": 0.01},
        "target": "50%",
        "seed": 0,
        "dtype": "float32",
        "calibration": "c4:64x512",
        "evaluation": "lab/wikitext2",
    }
    changed = {name: "other" if isinstance(value, str) else 1 for name, value in base.items()} | {
        "parameters": {}
    }
    keys = {subject_key(**base)} | {subject_key(**{**base, name: changed[name]}) for name in base}
    assert len(keys) == len(base) + 1
    assert subject_key(**base, schedule=None) == subject_key(**base)
    assert subject_key(**base, schedule="blockwise") != subject_key(**base)
    with pytest.raises(TypeError):
        subject_key(**base, more={1: 2})
    assert cell_key("s", "a") != cell_key("s", "b")
    assert environment_key({"threads": 1}) != environment_key({"threads": 2})


@pytest.mark.parametrize(
    ("value", "error"), [({"a": math.nan}, ValueError), ({1: 2}, TypeError), ({"a": {1}}, TypeError)]
)
def test_what_cannot_be_digested_is_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        canonical(value)


def test_tidy_rows_have_exactly_the_columns() -> None:
    rows = list(tidy([record(), record(status="refused", reason="no"), record(status="failed")]))
    assert all(tuple(row) == COLUMNS for row in rows)
    assert COLUMNS == (
        "cell",
        "status",
        "model",
        "method",
        "target",
        "seed",
        "protocol",
        "metric",
        "unit",
        "value",
        "recovery",
    )
    assert [(row["status"], row["metric"], row["unit"], row["value"]) for row in rows] == [
        ("done", "sparsity", "1", 0.5),
        ("refused", "", "", ""),
        ("failed", "", "", ""),
    ]
