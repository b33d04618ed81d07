"""How words on the command line are read."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.plan.grammar import (
    nearest,
    parse_list,
    parse_parameter,
    parse_pattern,
    parse_seed,
    parse_size,
    parse_sparsity,
    shown,
    typed,
)
from methods.errors import UserError
from methods.registry import Parameter
from methods.spelling import parse

KNOWN = ("magnitude", "sparsegpt", "wanda")
DECLARED = {
    "percdamp": Parameter(float, 0.01, "damping", minimum=0.0),
    "blocksize": Parameter(int, 128, "columns", minimum=1, maximum=4096),
    "reference": Parameter(bool, False, "as published"),
    "metric": Parameter(str, "l2", "norm", choices=("l1", "l2")),
    "level": Parameter(int, 1, "level", choices=(1, 2)),
}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.5", "50%"),
        ("50%", "50%"),
        ("0.6", "60%"),
        (" .25 ", "25%"),
        ("0.123456", "12.3456%"),
        ("0", "0%"),
        ("5e-1", "50%"),
    ],
)
def test_sparsity(text: str, target: str) -> None:
    assert str(parse_sparsity(text)) == target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("50", "write 0.5"),
        ("62.5", "write 0.625"),
        ("1", "0 <= sparsity < 1"),
        ("1.0", "0 <= sparsity < 1"),
        ("100%", "0 <= sparsity < 1"),
        ("-0.1", "0 <= sparsity < 1"),
        ("100", "0 <= sparsity < 1"),
        ("half", "is no number"),
        ("nan", "is no number"),
        ("inf", "is no number"),
        ("1/2", "is no number"),
        ("2:4", "--pattern"),
        ("", "is no number"),
        ("1e-9", "too fine"),
        ("0.123456789", "too many digits"),
        ("1e-999999999", "too fine"),
    ],
)
def test_wrong_sparsity(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_sparsity(text)
    assert said in str(caught.value)


@settings(deadline=None)
@given(st.integers(1, 999_999))
def test_every_share_prints_as_itself(millionths: int) -> None:
    target = parse_sparsity(f"0.{millionths:06d}")
    assert target.amount == Fraction(millionths, 10**6)
    assert parse_sparsity(str(target)) == target


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_any_pattern_with_n_below_m(keep: int, group: int) -> None:
    if keep < group:
        target = parse_pattern(f"{keep}:{group}")
        assert target is not None
        assert (target.keep, target.group, str(target)) == (keep, group, f"{keep}:{group}")
    else:
        with pytest.raises(UserError, match=f"{keep}:{group}"):
            parse_pattern(f"{keep}:{group}")


def test_unstructured_is_no_pattern() -> None:
    assert parse_pattern("Unstructured") is None


@pytest.mark.parametrize(
    "text", ["unstructred", "2-4", "2:4:8", "0:4", "4:4", "-2:4", "2:", "a:b", "50%", "20000:40000"]
)
def test_wrong_patterns(text: str) -> None:
    with pytest.raises(UserError, match="pattern"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "", "9" * 19, "1e3", "٣"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UserError, match="seed"):
        parse_seed(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1024", 1024),
        ("2GiB", 2 << 30),
        ("2G", 2 << 30),
        ("500MB", 500_000_000),
        ("1.5 kB", 1500),
        ("10b", 10),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text, "--hidden-budget") == count


@pytest.mark.parametrize("text", ["-1", "two", "1PB", "GiB", "1,5GB", "", "1e9"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UserError, match="--hidden-budget"):
        parse_size(text, "--hidden-budget")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a,b", ("a", "b")),
        (" a , b ", ("a", "b")),
        (["a", "b,c"], ("a", "b", "c")),
        ([0.5, 1], ("0.5", "1")),
        (3, ("3",)),
    ],
)
def test_lists(value: object, words: tuple[str, ...]) -> None:
    assert parse_list(value, "--x") == words


@pytest.mark.parametrize("value", ["", "a,,b", ",a", "a,", [], [[]], {"a": 1}, True, [True], None])
def test_wrong_lists(value: object) -> None:
    with pytest.raises(UserError, match="--x"):
        parse_list(value, "--x")


def test_parameters_are_split_once() -> None:
    assert parse_parameter("SparseGPT.percdamp = 0.1".replace(" ", "")) == ("sparsegpt", "percdamp", "0.1")
    assert parse_parameter("a.b=c=d.e") == ("a", "b", "c=d.e")


@pytest.mark.parametrize("text", ["percdamp=1", "sparsegpt.percdamp", "=", ".=1", "a b.c=1", ""])
def test_wrong_parameters(text: str) -> None:
    with pytest.raises(UserError, match=r"method\.parameter=value"):
        parse_parameter(text)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("percdamp", "1", 1.0),
        ("percdamp", 1, 1.0),
        ("percdamp", "1e-3", 0.001),
        ("blocksize", "64", 64),
        ("blocksize", "64.0", 64),
        ("reference", "true", True),
        ("reference", "OFF", False),
        ("reference", True, True),
        ("metric", "l1", "l1"),
        ("level", "2", 2),
    ],
)
def test_values_take_the_declared_type(name: str, value: object, read: object) -> None:
    found = typed("m", name, value, DECLARED)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("percdam", "1", "did you mean 'percdamp'"),
        ("percdamp", "x", "a finite number"),
        ("percdamp", "nan", "a finite number"),
        ("percdamp", "1e999", "a finite number"),
        ("percdamp", "-1", "at least 0"),
        ("percdamp", True, "a finite number"),
        ("blocksize", "1.5", "a whole number"),
        ("blocksize", "0", "at least 1"),
        ("blocksize", "5000", "at most 4096"),
        ("blocksize", "1e40", "a whole number"),
        ("reference", "maybe", "true or false"),
        ("metric", "l3", "one of l1, l2"),
        ("level", "3", "one of 1, 2"),
    ],
)
def test_wrong_values_name_the_parameter(name: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as caught:
        typed("m", name, value, DECLARED)
    assert said in str(caught.value)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    said = []
    for read in (parse, parse_sparsity, parse_pattern, parse_seed, parse_parameter):
        try:
            read(text)
        except UserError as error:
            said.append(str(error))
    assert all(line.isprintable() and 0 < len(line) < 400 for line in said)


def test_quoted_values_stay_short_and_printable() -> None:
    assert shown("a\nb\x1b[31m") == "a?b?[31m"
    assert len(shown("x" * 1000)) == 60


def test_nearest_is_silent_where_nothing_is_near() -> None:
    assert nearest("zzz", KNOWN) == ""
    assert "'wanda'" in nearest("wnada", KNOWN)
