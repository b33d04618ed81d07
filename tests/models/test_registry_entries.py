"""The registry: true sizes, ids, globs, helpful refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.models import registry
from methods.errors import UserError
from methods.families import shape_of
from methods.families.sizes import parameters

ROOT = Path(__file__).parents[2]

PUBLISHED = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("entry", registry.entries(), ids=lambda entry: entry.id)
def test_sizes_give_the_stated_parameter_count(entry: registry.Entry) -> None:
    assert parameters(shape_of(entry.config)) == entry.parameters


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_are_the_published_ones(name: str, count: int) -> None:
    assert registry.get(name).parameters == count


def test_every_promised_size_is_there() -> None:
    ids = [entry.id for entry in registry.entries()]
    assert len(ids) == len(set(ids)) == 32
    assert {entry.source for entry in registry.entries()} == {"hub", "wheel", "packaged"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["opt-1*"], ["opt-125m", "opt-1.3b", "opt-13b", "opt-175b"]),
        (["nano-*"], ["nano-opt", "nano-bloom", "nano-llama"]),
        (["nano-opt", "opt-125m", "nano-opt"], ["opt-125m", "nano-opt"]),
        (["facebook/opt-125m", " OPT-350M "], ["opt-125m", "opt-350m"]),
        (["llama-3.?-*b"], ["llama-3.1-8b", "llama-3.1-70b", "llama-3.2-1b", "llama-3.2-3b"]),
    ],
)
def test_patterns_name_models_in_the_order_of_the_registry(patterns: list[str], expected: list[str]) -> None:
    assert registry.match(patterns) == expected


def test_the_opt_family_leaves_the_nano_models_out() -> None:
    found = registry.match(["opt-*"])
    assert len(found) == 9
    assert all(name.startswith("opt-") for name in found)


def test_a_directory_becomes_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry.match(["path:mine", "nano-opt", f"path:{tmp_path}/mine"]) == [
        "nano-opt",
        f"path:{tmp_path}/mine",
    ]


def test_an_unknown_name_suggests_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"unknown model 'opt-125': did you mean opt-125m.*bench list models"):
        registry.match(["opt-125"])
    with pytest.raises(UserError, match=r"no model matches 'gpt-\*'"):
        registry.match(["gpt-*"])
    with pytest.raises(UserError, match="no model is named"):
        registry.match([])
    with pytest.raises(UserError, match="names no directory"):
        registry.match(["path:"])


def test_a_glob_that_the_shell_expanded_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("opt-notes.txt", "opt-old"):
        (tmp_path / name).write_text("")
    with pytest.raises(
        UserError, match=r"shell expanded a glob into 2 names; quote it, as in --models 'opt-\*'"
    ):
        registry.match(["opt-notes.txt", "opt-old"])
    with pytest.raises(UserError, match="is a file here, not a model"):
        registry.match(["opt-old"])
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="write path:mine"):
        registry.match(["mine"])


def test_import_needs_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'numpy', 'safetensors'}"
    code = f"import sys, bench.models.registry, bench.models.load; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
