"""Protocols: the three standards, ids that name every change, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from bench.text.protocols import DATASETS, PROTOCOLS, CalibrationProtocol, standard
from methods.errors import UserError


@pytest.mark.parametrize(
    ("name", "calibration", "evaluation"),
    [
        ("nano", "kjv:128xcontext", "nano/kjv"),
        ("lab", "c4:64x512", "lab/wikitext2"),
        ("paper", "c4:128x2048", "paper/wikitext2"),
    ],
)
def test_standard_ids(name, calibration, evaluation):
    protocol = standard(name)
    assert (protocol.calibration.id, protocol.evaluation.id) == (calibration, evaluation)


def test_standards_are_what_they_are_defined_to_be():
    lab, paper, nano = (standard(name).evaluation for name in ("lab", "paper", "nano"))
    assert (lab.split, lab.length, lab.windows, lab.join) == ("test", 512, 64, "\n\n")
    assert (paper.split, paper.length, paper.windows, paper.join) == ("test", 2048, None, "\n\n")
    assert (nano.dataset, nano.split, nano.length, nano.windows) == ("kjv", "test", 0, None)
    c4 = standard("paper", "c4").evaluation
    assert (c4.split, c4.windows, c4.selection, c4.documents, c4.join) == (
        "validation",
        256,
        "first",
        1100,
        " ",
    )
    assert standard("paper", "ptb").evaluation.join == " "


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("text", DATASETS)
def test_standard_on_any_text_needs_no_suffix(name, text):
    assert standard(name, text).evaluation.id == f"{name}/{text}"


def test_changes_are_named_in_the_id():
    assert standard("lab", length=1024).evaluation.id == "lab/wikitext2[length=1024]"
    assert standard("lab", windows=0).evaluation.id == "lab/wikitext2[windows=all]"
    assert standard("paper", "c4", length=0, windows=8).evaluation.id == "paper/c4[length=context,windows=8]"
    assert standard("nano", windows=4).evaluation.id == "nano/kjv[windows=4]"
    assert standard("lab", samples=8, calibration_length=128).calibration.id == "c4:8x128"
    assert standard("lab", calibration="kjv").calibration.id == "kjv:64x512"
    assert CalibrationProtocol("c4", "validation", 4, 0).id == "c4/validation:4xcontext"


@pytest.mark.parametrize(("name", "text"), [("nano", "kjv"), ("lab", "wikitext2"), ("paper", "ptb")])
def test_validation_splits_are_other_protocols(name, text):
    usual, validation = standard(name, text).evaluation, standard(name, f"{text}/validation").evaluation
    assert validation == replace(usual, split="validation")
    assert validation.id == f"{name}/{text}[split=validation]"
    assert standard(name, f"{text}/test").evaluation == usual


def test_c4s_validation_split_is_its_test_text():
    assert standard("lab", "c4/validation") == standard("lab", "c4")


@pytest.mark.parametrize("text", ["kjv/train", "c4/test", "wikitext2/", "kjv/validation/x"])
def test_other_splits_are_no_evaluation_text(text):
    allowed = "use kjv/validation, wikitext2/validation, ptb/validation"
    with pytest.raises(UserError, match=f"--text '{text}' is unknown; {allowed}"):
        standard("lab", text)


def test_asking_for_the_standard_is_no_change():
    assert standard("lab", "wikitext2", length=512, windows=64, samples=64) == standard("lab")


@pytest.mark.parametrize(
    ("key", "value", "suffix"),
    [
        ("split", "validation", "[split=validation]"),
        ("join", "", "[join='']"),
        ("selection", "first", "[selection=first]"),
        ("documents", 5, "[documents=5]"),
    ],
)
def test_every_field_that_changes_figures_changes_the_id(key, value, suffix):
    usual = standard("lab").evaluation
    assert replace(usual, **{key: value}).id == usual.id + suffix


def test_calibration_changes_leave_the_evaluation_half_alone():
    changed = standard("lab", samples=8, calibration_length=128, calibration="kjv")
    assert changed.evaluation == standard("lab").evaluation


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: standard("labb"), "--protocol 'labb' is unknown; use nano, lab, paper; did you mean lab\\?"),
        (lambda: standard("lab", "wikitext"), "--text 'wikitext' is unknown; .* did you mean wikitext2\\?"),
        (
            lambda: standard("lab", calibration="pile"),
            "--calibration 'pile' is unknown; use kjv, wikitext2, ptb, c4",
        ),
        (lambda: standard("lab", samples=0), "--samples is 0; use a whole number, 1 at least"),
        (lambda: standard("lab", windows=-1), "--windows is -1"),
        (lambda: standard("lab", samples=True), "--samples is True"),
        (lambda: standard("lab", length=1), "--length is 1; a window needs two tokens"),
        (lambda: standard("lab", calibration_length="9"), "--length is '9'"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_change_that_does_not_exist_is_a_programming_error():
    with pytest.raises(TypeError, match="no change 'stride'"):
        standard("lab", stride=3)


def test_protocols_are_free_of_torch():
    code = "import sys, bench.text.protocols; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
