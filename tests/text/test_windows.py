"""Windows: what is drawn, cut, counted and noted; read back through a tokenizer of one token a byte."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer

from bench.text import sources, tokens
from bench.text.protocols import CalibrationProtocol, standard
from bench.text.sources import calibration_windows, evaluation_windows, heldout_windows
from methods.errors import DataUnavailable, UserError

DATA_DIR = os.environ.get("BENCH_DATA_DIR", "")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="needs BENCH_DATA_DIR, a folder with the real texts")

KJV = CalibrationProtocol("kjv", "test", 6, 40)  # the smaller splits are tokenised in no time
C4 = CalibrationProtocol("c4", "train", 12, 20)


@pytest.fixture(autouse=True)
def _no_folder_from_outside(monkeypatch):
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def plain():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def beginning():
    return byte_tokenizer("<s>")


def write_c4(folder: Path, texts: list[str], name: str = "train") -> Path:
    (folder / "c4").mkdir(exist_ok=True)
    (folder / f"c4/{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture
def c4(tmp_path: Path) -> Path:
    """Forty documents of 4 to 43 letters, each of one letter; five held-out ones."""
    documents = [chr(ord("0") + i) * (i + 4) for i in range(40)]
    write_c4(tmp_path, documents)
    write_c4(tmp_path, ["held out text " * 3] * 5, "train_extra")
    write_c4(tmp_path, ["evaluation text " * 4] * 6, "validation")
    return tmp_path


def test_equal_seeds_draw_equal_windows_and_others_do_not(plain, c4):
    for protocol in (KJV, C4):
        first, again, other = (
            calibration_windows(protocol, plain, seed=seed, context=64, data_dir=c4) for seed in (1, 1, 2)
        )
        assert np.array_equal(first.tokens, again.tokens)
        assert first.provenance == again.provenance
        assert not np.array_equal(first.tokens, other.tokens)
        assert first.provenance["tokens_sha256"] != other.provenance["tokens_sha256"]


def test_windows_have_the_promised_shape_and_type(plain, c4):
    drawn = calibration_windows(replace(KJV, length=0), plain, seed=0, context=48, data_dir=None)
    assert drawn.tokens.shape == (6, 48)
    assert drawn.tokens.dtype == np.int64
    assert drawn.provenance["length"] == 48
    assert drawn.provenance["tokens"] == 6 * 48
    assert json.loads(json.dumps(drawn.provenance)) == drawn.provenance


def test_c4_windows_lie_within_one_long_enough_document(plain, c4):
    drawn = calibration_windows(C4, plain, seed=3, context=64, data_dir=c4)
    used = set()
    for row in drawn.tokens:
        (letter,) = set(plain.decode(row))
        used.add(letter)
        assert ord(letter) - ord("0") + 4 > C4.length
    assert drawn.provenance["documents_used"] == len(used)
    assert drawn.provenance["documents"] == 40


def test_c4_draws_as_the_reference_code_does(plain, c4):
    """The same calls of Python's generator in the same order: equal data and seed give equal samples."""
    draw = random.Random(7)
    expected = []
    while len(expected) < C4.samples:
        index = draw.randint(0, 39)
        if index + 4 > C4.length:
            draw.randint(0, index + 4 - C4.length - 1)
            expected.append(chr(ord("0") + index) * C4.length)
    drawn = calibration_windows(C4, plain, seed=7, context=64, data_dir=c4)
    assert [plain.decode(row) for row in drawn.tokens] == expected


def test_each_c4_document_begins_with_the_token_of_the_tokenizer(beginning, tmp_path):
    write_c4(tmp_path, ["a" * 8] * 20)
    drawn = calibration_windows(replace(C4, length=8), beginning, seed=0, context=8, data_dir=tmp_path)
    # Nine tokens with the first: the reference draws a start from 0 to 0.
    assert (drawn.tokens[:, 0] == 0).all()
    assert drawn.provenance["tokenizer"]["added_around_a_text"] == [0]


def test_distinct_tokens_are_counted_once_and_scarcity_is_noted(plain, tmp_path):
    write_c4(tmp_path, ["short", "x" * 25] + ["no"] * 18)
    drawn = calibration_windows(C4, plain, seed=0, context=64, data_dir=tmp_path)
    assert drawn.provenance["documents_used"] == 1
    assert C4.length <= drawn.provenance["distinct_tokens"] <= 24
    (note,) = [n for n in drawn.provenance["notes"] if "distinct" in n]
    assert "240 calibration tokens" in note
    assert "only 1 documents of more than 20 tokens" in note


def test_plenty_of_text_needs_no_note(plain):
    drawn = calibration_windows(KJV, plain, seed=0, context=64, data_dir=None)
    assert drawn.provenance["notes"] == []
    assert drawn.provenance["distinct_tokens"] == 240


@pytest.mark.parametrize(
    ("starts", "covered"), [([0], 10), ([0, 0], 10), ([5, 0], 15), ([0, 10], 20), ([30, 0, 2, 35], 27)]
)
def test_overlaps_are_counted_once(starts, covered):
    assert sources._covered(starts, 10) == covered


def test_documents_all_too_short_are_refused(plain, tmp_path):
    write_c4(tmp_path, ["ten letter"] * 20)
    with pytest.raises(
        DataUnavailable,
        match=r"none of the 18 documents of c4/train has more than 20 tokens \(the longest has 10\)",
    ):
        calibration_windows(C4, plain, seed=0, context=64, data_dir=tmp_path)


def test_one_document_leaves_nothing_to_hold_back(plain, tmp_path):
    write_c4(tmp_path, ["one document that is long enough for a window"])
    with pytest.raises(DataUnavailable, match="c4/train has 1 documents, too few to hold a tenth back"):
        calibration_windows(C4, plain, seed=0, context=64, data_dir=tmp_path)


def test_short_joined_text_is_refused(plain, tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb/train.txt").write_text("ten letter\n")
    (tmp_path / "ptb/test.txt").write_text("ten letter\n")
    with pytest.raises(DataUnavailable, match="ptb/train has 10 tokens; drawing windows of 40 needs more"):
        calibration_windows(
            CalibrationProtocol("ptb", "train", 6, 40), plain, seed=0, context=64, data_dir=tmp_path
        )
    with pytest.raises(DataUnavailable, match="ptb/test has 10 tokens, fewer than one window of 16"):
        evaluation_windows(standard("nano", "ptb").evaluation, plain, context=16, data_dir=tmp_path)


def test_train_texts_are_joined_by_a_space(plain, tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb/train.txt").write_text(" a b \n c d \n")
    drawn = calibration_windows(
        CalibrationProtocol("ptb", "train", 30, 6), plain, seed=0, context=6, data_dir=tmp_path
    )
    assert {plain.decode(row) for row in drawn.tokens} == {"a b c "}


def test_windows_longer_than_the_context_are_wrong_usage(plain):
    message = "windows of 512 tokens are longer than the model's context of 256"
    with pytest.raises(UserError, match=f"calibration kjv:64x512: {message}"):
        calibration_windows(
            standard("lab", calibration="kjv").calibration, plain, seed=0, context=256, data_dir=None
        )
    with pytest.raises(UserError, match=f"evaluation lab/kjv: {message}"):
        evaluation_windows(standard("lab", "kjv").evaluation, plain, context=256, data_dir=None)


def test_held_out_text_is_fixed_and_never_drawn(plain, c4):
    held = heldout_windows(C4, plain, context=64, data_dir=c4, windows=3)
    assert held.tokens.shape == (3, 20)
    assert set("".join(plain.decode(row) for row in held.tokens)) <= set("held out text ")
    assert held.provenance["split"] == "train_extra"
    kjv = heldout_windows(KJV, plain, context=64, data_dir=None)
    assert kjv.tokens.shape == (8, 40)
    assert kjv.provenance["split"] == "validation"
    assert kjv.provenance["protocol"] == "heldout kjv/test:6x40"


def test_without_a_held_out_file_the_end_is_held_back(plain, tmp_path):
    write_c4(tmp_path, ["drawn " * 10] * 90 + ["kept " * 10] * 10)
    protocol = replace(C4, samples=300)
    drawn = calibration_windows(protocol, plain, seed=0, context=64, data_dir=tmp_path)
    held = heldout_windows(protocol, plain, context=64, data_dir=tmp_path)
    assert all("kept" not in plain.decode(row) for row in drawn.tokens)
    assert all("drawn" not in plain.decode(row) for row in held.tokens)
    assert drawn.provenance["origin"]["documents"] == [0, 90]
    assert held.provenance["origin"]["documents"] == [90, 100]


@pytest.mark.parametrize("name", ["wikitext2", "ptb"])
def test_other_sets_hold_out_their_validation_split(plain, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "validation.txt").write_text("validation text\n" * 30)
    held = heldout_windows(replace(KJV, dataset=name), plain, context=64, data_dir=tmp_path)
    assert held.provenance["split"] == "validation"
    assert held.tokens.shape == (8, 40)


def test_evaluation_windows_are_disjoint_and_the_tail_is_dropped(beginning, tmp_path):
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2/test.txt").write_text(" \n = T = \n abcdefgh \n")
    found = evaluation_windows(
        standard("nano", "wikitext2").evaluation, beginning, context=7, data_dir=tmp_path
    )
    text = "\n\n = T = \n\n\n abcdefgh \n"
    ids = [0, *beginning(text, add_special_tokens=False)["input_ids"]]
    assert len(ids) == 24
    assert found.tokens.ravel().tolist() == ids[:21]
    assert found.provenance["text_tokens"] == 24
    assert found.provenance["text_windows"] == found.provenance["windows"] == 3
    assert found.provenance["stride"] == 7
    assert found.provenance["join"] == "\n\n"


def test_a_choice_of_windows_is_spread_over_the_text(plain, c4):
    every = evaluation_windows(standard("nano", "c4").evaluation, plain, context=16, data_dir=c4)
    total = len(every.tokens)
    assert total == (6 * 64 + 5) // 16
    spread = evaluation_windows(standard("nano", "c4", windows=4).evaluation, plain, context=16, data_dir=c4)
    assert np.array_equal(spread.tokens, every.tokens[[0, total // 4, total // 2, 3 * total // 4]])
    first = replace(standard("nano", "c4", windows=4).evaluation, selection="first")
    assert np.array_equal(evaluation_windows(first, plain, context=16, data_dir=c4).tokens, every.tokens[:4])


def test_fewer_windows_than_asked_are_noted_and_not_padded(plain, c4):
    found = evaluation_windows(standard("lab", "c4", length=16).evaluation, plain, context=16, data_dir=c4)
    assert found.tokens.shape == (24, 16)
    assert "c4/validation has 24 windows of 16 tokens; 64 were asked for" in found.provenance["notes"]


def test_paper_c4_reads_the_first_documents_only(plain, tmp_path):
    write_c4(tmp_path, ["first"] * 1100 + ["later"] * 100, "validation")
    protocol = replace(standard("paper", "c4").evaluation, length=60)
    found = evaluation_windows(protocol, plain, context=60, data_dir=tmp_path)
    assert "later" not in plain.decode(found.tokens.ravel())
    assert found.provenance["documents"] == 1100


def test_paper_c4_on_fewer_documents_says_so(plain, c4):
    protocol = replace(standard("paper", "c4").evaluation, length=16)
    found = evaluation_windows(protocol, plain, context=16, data_dir=c4)
    assert "c4/validation has 6 documents; the protocol reads the first 1100" in found.provenance["notes"]


def test_unknown_local_text_is_noted(plain, c4):
    found = evaluation_windows(standard("nano", "c4").evaluation, plain, context=16, data_dir=c4)
    assert any("not known to be the published text" in note for note in found.provenance["notes"])


def test_long_texts_raise_no_warning(beginning):
    assert beginning.model_max_length == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluation_windows(standard("nano").evaluation, beginning, context=256, data_dir=None)
    assert len(found.tokens) > 700


def test_length_warning_of_transformers_stays_away(beginning, caplog):
    tokens.encode("x" * 100, beginning)
    assert "longer than the specified maximum" not in caplog.text


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """Every text counts as long, memory and folder start empty."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "STORED_FROM", 0)
    monkeypatch.setattr(tokens, "_REMEMBERED", OrderedDict())
    return tmp_path / "cache" / "tokens"


def test_long_texts_are_kept_on_disk_by_text_and_tokenizer(plain, beginning, disk, monkeypatch):
    first = tokens.encode_long("some text", plain)
    other = tokens.encode_long("some text", beginning)
    assert len(list(disk.glob("*.safetensors"))) == 2
    tokens._REMEMBERED.clear()
    monkeypatch.setattr(tokens, "encode", lambda *_: pytest.fail("tokenised again"))
    assert np.array_equal(tokens.encode_long("some text", plain), first)
    assert np.array_equal(tokens.encode_long("some text", beginning), other)
    assert len(other) == len(first) + 1


@pytest.mark.parametrize("damage", [lambda raw: raw[:-3], lambda raw: raw[:-4] + b"\7\0\0\0", lambda _: b""])
def test_a_damaged_file_on_disk_is_not_believed(plain, disk, damage):
    first = tokens.encode_long("some text", plain)
    (path,) = disk.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    tokens._REMEMBERED.clear()
    assert np.array_equal(tokens.encode_long("some text", plain), first)


def test_remembered_ids_cannot_be_written_to(plain):
    with pytest.raises(ValueError, match="read-only"):
        tokens.encode_long("some text", plain)[0] = 1


def test_tokenizer_hash_sees_rules_and_not_state(plain, beginning):
    before = tokens.tokenizer_sha256(plain)
    plain("some text", truncation=True, max_length=4)
    assert tokens.tokenizer_sha256(plain) == before
    assert tokens.tokenizer_sha256(beginning) != before


@needs_data
def test_real_lab_and_paper_windows(plain):
    folder = Path(DATA_DIR)
    lab = standard("lab")
    drawn = calibration_windows(lab.calibration, plain, seed=0, context=2048, data_dir=folder)
    assert drawn.tokens.shape == (64, 512)
    held = heldout_windows(lab.calibration, plain, context=2048, data_dir=folder)
    assert held.provenance["split"] == "train_extra"
    evaluated = evaluation_windows(lab.evaluation, plain, context=2048, data_dir=folder)
    assert evaluated.tokens.shape == (64, 512)
    whole = evaluation_windows(standard("paper").evaluation, plain, context=2048, data_dir=folder)
    assert len(whole.tokens) == whole.provenance["text_tokens"] // 2048
    assert whole.provenance["origin"]["official"] is True
    assert whole.provenance["notes"] == []


@needs_data
def test_real_wikitext_train_is_missing_and_named(plain):
    protocol = standard("lab", calibration="wikitext2").calibration
    with pytest.raises(DataUnavailable, match=r"no wikitext2/train\.txt in the data folder"):
        calibration_windows(protocol, plain, seed=0, context=2048, data_dir=Path(DATA_DIR))
