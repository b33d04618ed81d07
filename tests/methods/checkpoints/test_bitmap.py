"""Bitmap checkpoints: as small as reckoned, the same weights bit for bit, and no trust in what a file claims."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from saved_models import saved, saved_with_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.evaluate.perplexity import score
from bench.models import load
from methods.checkpoints.bitmap import save_bitmap, to_dense
from methods.checkpoints.dense import save_dense
from methods.errors import CheckpointError, UnsupportedTarget, UserError
from methods.families import sizes
from methods.inference.assemble import assemble
from methods.interface import Calibration, Run
from methods.registry import get
from methods.stream.bitmap_files import BitmapFiles, to_parts
from methods.stream.sink import BlockFolder
from methods.stream.source import CheckpointSource
from methods.target import Target

_FAMILIES = ("opt", "bloom", "llama")
_WINDOWS = torch.randint(3, 101, (2, 16), generator=torch.Generator().manual_seed(1))


def _pruned(
    folder: Path, family: str = "llama", target: str = "50%", dtype: torch.dtype = torch.float32, **sizes: int
) -> CheckpointSource:
    model = saved(folder / "model", family, dtype=dtype, **sizes)
    get("magnitude", {}).prune(
        CheckpointSource(model),
        Calibration(_WINDOWS[:0], _WINDOWS),
        Target.parse(target),
        BlockFolder(folder / "blocks"),
        Run(),
    )
    return CheckpointSource(model, overlay=folder / "blocks")


def _tensors(source: CheckpointSource) -> dict[str, Tensor]:
    found = {name: source.raw_outer(name) for name in source.family.outer_tensors(source.shape)}
    for index in range(source.shape.blocks):
        found |= {f"{index}.{name}": tensor for name, tensor in source.raw_block(index).items()}
    return found


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def _payload(files: list[Path]) -> int:
    """Bytes of tensors: the files without their headers."""
    return sum(path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little") for path in files)


@pytest.mark.parametrize("family", _FAMILIES)
@pytest.mark.parametrize(
    ("target", "dtype"),
    [("50%", torch.float32), ("2:4", torch.bfloat16), ("90%", torch.float16), ("5%", torch.bfloat16)],
    ids=str,
)
def test_size_is_the_closed_form_and_weights_come_back(
    tmp_path: Path, family: str, target: str, dtype: torch.dtype
) -> None:
    source = _pruned(tmp_path, family, target, dtype)
    files = save_bitmap(source, tmp_path / "bitmaps")
    assert [path.name for path in files] == ["bitmap.safetensors"]
    expected = 0
    for name, tensor in _tensors(source).items():
        _, _, inner = name.partition(".")
        matrix = inner.removesuffix(".weight") in {m.name for m in source.family.matrices(source.shape)}
        packed = sizes.bitmap_bytes(tensor.numel(), int(torch.count_nonzero(tensor)), tensor.itemsize)
        expected += min(packed, tensor.nbytes) if matrix else tensor.nbytes
    assert _payload(files) == expected
    (dense,) = save_dense(source, tmp_path / "dense")
    # 5 % of sixteen-bit weights do not pay for their bitmap: nothing is packed
    assert (_payload(files) < _payload([dense])) == (target != "5%")
    assert any("|bitmap" in name for name in load_file(files[0])) == (target != "5%")
    again = _tensors(CheckpointSource(tmp_path / "bitmaps"))
    for name, tensor in _tensors(source).items():
        assert again[name].dtype == dtype and torch.equal(_bits(again[name]), _bits(tensor)), name
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize("ffn_dim", [1, 7, 20, 63, 65])
def test_rows_that_end_within_a_byte(tmp_path: Path, ffn_dim: int) -> None:
    source = _pruned(tmp_path, "opt", "50%", ffn_dim=ffn_dim)
    (file,) = save_bitmap(source, tmp_path / "bitmaps")
    again = _tensors(CheckpointSource(tmp_path / "bitmaps"))
    for name, tensor in _tensors(source).items():
        assert torch.equal(again[name], tensor)
    weight = source.raw_block(1)["fc2.weight"]
    stored = load_file(file)
    if f"{source.family.block_prefix(1)}fc2.weight|bitmap" in stored:
        bits = stored[f"{source.family.block_prefix(1)}fc2.weight|bitmap"]
        values = stored[f"{source.family.block_prefix(1)}fc2.weight|values"]
        assert bits.shape == (weight.shape[0], -(-ffn_dim // 8))
        assert torch.equal(values, weight[weight != 0])
        slow = [[bool(row[c // 8] >> (c % 8) & 1) for c in range(ffn_dim)] for row in bits.tolist()]
        assert torch.equal(torch.tensor(slow), weight != 0)
    else:
        assert ffn_dim == 1  # a byte a row for a column of which half is zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_bit_pattern_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    """NaN, infinities, denormals and -0.0 in a matrix whose memory is no row after row."""
    wide = torch.zeros(40, 38, dtype=dtype)
    odd = [float("nan"), float("inf"), -float("inf"), -0.0, torch.finfo(dtype).tiny / 4, 1.5]
    wide[3, :6] = torch.tensor(odd, dtype=dtype)
    weight = wide.T[::2, 1:]
    parts = to_parts(weight)
    assert parts is not None and not parts["|values"].isfinite().all()
    _save(tmp_path / "bitmap.safetensors", {f"w{end}": part for end, part in parts.items()}, {"w": [19, 39]})
    found = BitmapFiles(tmp_path).get("w")
    assert torch.equal(_bits(found), _bits(weight))


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 4, dtype=torch.float64),
        torch.ones(4, 64),
        torch.zeros(3),
        torch.zeros(0, 8),
        torch.zeros(8, 0),
    ],
    ids=lambda weight: f"{weight.dtype} {list(weight.shape)}",
)
def test_what_gains_nothing_stays_dense(weight: Tensor) -> None:
    assert to_parts(weight) is None


def test_an_all_zero_matrix_has_no_values(tmp_path: Path) -> None:
    parts = to_parts(torch.zeros(5, 9, dtype=torch.bfloat16))
    assert parts is not None and parts["|values"].numel() == 0
    _save(tmp_path / "bitmap.safetensors", {f"w{end}": part for end, part in parts.items()}, {"w": [5, 9]})
    found = BitmapFiles(tmp_path).get("w")
    assert found.dtype == torch.bfloat16 and torch.equal(found, torch.zeros(5, 9, dtype=torch.bfloat16))


@pytest.mark.parametrize("family", _FAMILIES)
def test_shards_our_loader_and_plain_users(tmp_path: Path, family: str) -> None:
    saved_with_tokenizer(tmp_path / "model", family)
    get("magnitude", {}).prune(
        CheckpointSource(tmp_path / "model"),
        Calibration(_WINDOWS[:0], _WINDOWS),
        Target.parse("2:4"),
        BlockFolder(tmp_path / "blocks"),
        Run(),
    )
    source = CheckpointSource(tmp_path / "model", overlay=tmp_path / "blocks")
    folder = tmp_path / "bitmaps"
    files = save_bitmap(source, folder, shard_bytes=9_000)
    assert len(files) > 2 and files[0].name == f"bitmap-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, "pt") as handle:
            ((said, text),) = handle.metadata().items()
            names = {name.removesuffix("|bitmap") for name in handle.keys() if name.endswith("|bitmap")}  # noqa: SIM118
        assert said == "prune-bench bitmap" and json.loads(text)["version"] == 1
        assert set(json.loads(text)["matrices"]) == names
    checkpoint = load.resolve(f"path:{folder}")
    assert checkpoint.shape == source.shape
    assert set(checkpoint.weight_files) == {file.name for file in files}
    assert "bitmap.safetensors.index.json" in checkpoint.files
    again = CheckpointSource(checkpoint.path)
    assert score(again, _WINDOWS, Run()).perplexity == score(source, _WINDOWS, Run()).perplexity
    with torch.no_grad():
        logits = assemble(again)(_WINDOWS).logits
        assert torch.equal(logits, assemble(source)(_WINDOWS).logits)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(folder)
    to_dense(folder, tmp_path / "dense")
    AutoTokenizer.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")(_WINDOWS).logits, logits)
    with pytest.raises(UserError, match="is there already; give a new folder"):
        to_dense(folder, tmp_path / "dense")
    text = " ".join((folder / "README.md").read_text().split())
    assert "to_dense" in text and "path:FOLDER" in text
    assert not (tmp_path / "dense" / "README.md").exists()


def test_a_plain_model_beside_bitmaps_comes_first(tmp_path: Path) -> None:
    source = _pruned(tmp_path)
    save_bitmap(source, tmp_path / "both")
    (tmp_path / "both" / "model.safetensors").write_bytes((tmp_path / "model/model.safetensors").read_bytes())
    assert load.resolve(f"path:{tmp_path / 'both'}").weight_files == ("model.safetensors",)
    weight = CheckpointSource(tmp_path / "both").raw_block(0)["mlp.up_proj.weight"]
    assert bool((weight != 0).all())


def test_other_safetensors_beside_a_model_are_not_read(tmp_path: Path) -> None:
    """An adapter, or a file that would replace tensors that were checked and hashed."""
    folder = saved(tmp_path / "model", "llama")
    name = "model.norm.weight"
    before = CheckpointSource(folder).raw_outer(name).clone()
    save_file({name: torch.full_like(before, 7.0)}, folder / "zzz.safetensors")
    save_file({name: torch.full_like(before, 8.0)}, folder / "bitmap.safetensors")
    assert load.resolve(f"path:{folder}").weight_files == ("model.safetensors",)
    assert torch.equal(CheckpointSource(folder).raw_outer(name), before)


def test_a_sliced_model_has_no_bitmap_form(tmp_path: Path) -> None:
    from sliced_models import saved_variant, sliced

    _, cut = sliced(saved_variant(tmp_path / "model", "llama"), tmp_path, "slice30%")
    with pytest.raises(UnsupportedTarget, match="a sliced model is smaller by its shapes and holds no zeros"):
        save_bitmap(cut, tmp_path / "bitmaps")
    assert not (tmp_path / "bitmaps").exists() and not list(tmp_path.glob(".*partial"))


def _save(path: Path, tensors: dict[str, Tensor], matrices: object, said: str | None = None) -> None:
    text = json.dumps({"version": 1, "matrices": matrices}) if said is None else said
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"prune-bench bitmap": text})


_WEIGHT = torch.arange(60.0).view(5, 12) * (torch.arange(60).view(5, 12) % 3 == 0)
_Change = Callable[[dict[str, Tensor]], object]


def _flip(tensors: dict[str, Tensor]) -> None:
    tensors["w|bitmap"][2, 0] ^= 1


def _beyond(tensors: dict[str, Tensor]) -> None:
    """A bit moved behind the last column: as many values, none of them there."""
    tensors["w|bitmap"][4, 1] = (tensors["w|bitmap"][4, 1] & 0b1101) | 0x10
    tensors["w|bitmap"][4, 0] = tensors["w|bitmap"][4, 0]


@pytest.mark.parametrize(
    ("change", "matrices", "said", "message"),
    [
        (None, None, '{"version": 2, "matrices": {}}', "version 2, this program reads up to 1; upgrade"),
        (None, None, '{"version": true, "matrices": {}}', "no version and sizes of matrices"),
        (None, None, '{"version": -1, "matrices": {}}', "no version and sizes of matrices"),
        (None, None, '{"version": "1", "matrices": {}}', "no version and sizes of matrices"),
        (None, None, '{"version": 1}', "no version and sizes of matrices"),
        (None, None, "{", "no version and sizes of matrices"),
        (None, None, "[]", "no version and sizes of matrices"),
        (None, None, "[" * 100_000, "no version and sizes of matrices"),
        (None, ["w"], None, "no version and sizes of matrices"),
        (None, {"w": [5, 12.0]}, None, r"the size \[5, 12.0\]; \[rows, columns\]"),
        (None, {"w": [5, True]}, None, r"the size \[5, True\]"),
        (None, {"w": [5, -12]}, None, r"the size \[5, -12\]"),
        (None, {"w": [0, 12]}, None, r"the size \[0, 12\]"),
        (None, {"w": [1 << 50, 12]}, None, "the size"),
        (None, {"w": [5, 1 << 39]}, None, r"its bitmap is U8 \[5, 2\]; 5 x 549755813888 take"),
        (None, {"w": [1 << 39, 12]}, None, r"its bitmap is U8 \[5, 2\]; 549755813888 x 12 take"),
        (None, {"w": [5, 17]}, None, r"its bitmap is U8 \[5, 2\]; 5 x 17 take U8 \[5, 3\]"),
        (None, {}, None, "'w|.*' belongs to no matrix that the metadata names"),
        (None, {"w": [5, 12], "v": [5, 12]}, None, "'v' lacks its bitmap"),
        (lambda t: t.pop("w|values"), {"w": [5, 12]}, None, "'w' lacks its values"),
        (lambda t: t.update(w=_WEIGHT), {"w": [5, 12]}, None, "'w' is stored twice, whole and as a bitmap"),
        (
            lambda t: t.update({"w|values": t["w|values"].double()}),
            {"w": [5, 12]},
            None,
            r"its values are F64 \[19\]",
        ),
        (
            lambda t: t.update({"w|values": t["w|values"][None]}),
            {"w": [5, 12]},
            None,
            r"its values are F32 \[1, 19\]",
        ),
        (
            lambda t: t.update({"w|values": torch.ones(61)}),
            {"w": [5, 12]},
            None,
            r"its values are F32 \[61\]",
        ),
        (
            lambda t: t.update({"w|bitmap": t["w|bitmap"].to(torch.int8)}),
            {"w": [5, 12]},
            None,
            r"its bitmap is I8 \[5, 2\]",
        ),
    ],
)
def test_files_that_contradict_themselves_are_not_opened(
    tmp_path: Path, change: _Change | None, matrices: object, said: str | None, message: str
) -> None:
    parts = to_parts(_WEIGHT)
    assert parts is not None
    tensors = {f"w{end}": part.clone() for end, part in parts.items()}
    if change is not None:
        change(tensors)
    _save(tmp_path / "bitmap.safetensors", tensors, matrices, said)
    with pytest.raises(CheckpointError, match=message) as caught:
        BitmapFiles(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_plain_file_under_the_name_of_bitmaps_is_none(tmp_path: Path) -> None:
    save_file({"w": _WEIGHT}, tmp_path / "bitmap.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="its metadata have no 'prune-bench bitmap'"):
        BitmapFiles(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, r"'w' has 19 values, and its bitmap stores (20|18); the file is damaged, save it again"),
        (
            lambda t: t.update({"w|values": t["w|values"][:-1]}),
            "'w' has 18 values, and its bitmap stores 19",
        ),
        (_beyond, r"'w' is no matrix of 12 columns \(row 4: its bitmap"),
    ],
)
def test_bits_that_do_not_fit_the_values_are_not_read(tmp_path: Path, change: _Change, message: str) -> None:
    parts = to_parts(_WEIGHT)
    assert parts is not None
    tensors = {f"w{end}": part.clone() for end, part in parts.items()}
    change(tensors)
    _save(tmp_path / "bitmap.safetensors", tensors, {"w": [5, 12]})
    files = BitmapFiles(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        files.get("w")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_no_checkpoint(tmp_path: Path, keep: int) -> None:
    folder = tmp_path / "bitmaps"
    (file,) = save_bitmap(_pruned(tmp_path), folder)
    file.write_bytes(file.read_bytes()[:keep])
    for read in (CheckpointSource, lambda path: load.resolve(f"path:{path}")):
        with pytest.raises(
            CheckpointError, match=r"bitmap.safetensors.*not a whole safetensors file"
        ) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_an_index_must_stay_in_its_folder_and_find_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "bitmaps"
    save_bitmap(_pruned(tmp_path), folder, shard_bytes=9_000)
    index = folder / "bitmap.safetensors.index.json"
    before = json.loads(index.read_text())["weight_map"]
    for name, message in (
        ("../model.safetensors", "only names of|outside the folder"),
        ("bitmap-9.safetensors", "which is not there|No such file"),
    ):
        index.write_text(json.dumps({"weight_map": {**before, "x": name}}))
        for read in (CheckpointSource, lambda path: load.resolve(f"path:{path}")):
            with pytest.raises(CheckpointError, match=message) as caught:
                read(folder)
            assert "\n" not in str(caught.value)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    parts = to_parts(_WEIGHT)
    assert parts is not None
    tensors = {f"w{end}": part for end, part in parts.items()}
    for name in ("bitmap-1.safetensors", "bitmap-2.safetensors"):
        _save(tmp_path / name, tensors, {"w": [5, 12]})
    index = {"weight_map": {"w|bitmap": "bitmap-1.safetensors", "w|values": "bitmap-2.safetensors"}}
    (tmp_path / "bitmap.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"bitmap-[12].safetensors: 'w.*' is in another file too"):
        BitmapFiles(tmp_path)


def test_other_shapes_than_the_config_says_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bitmaps"
    save_bitmap(_pruned(tmp_path), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 4096}))
    with pytest.raises(CheckpointError, match=r"in bitmap.safetensors has shape .* its config says"):
        load.resolve(f"path:{folder}")
    with pytest.raises(CheckpointError, match="the config says"):
        CheckpointSource(folder).raw_block(0)
