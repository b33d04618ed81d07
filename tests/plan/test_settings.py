"""Flags over file over defaults; files that are not what they should be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.plan.settings import Settings, gather, option_names
from methods.errors import UserError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture(autouse=True)
def _no_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)


def test_defaults() -> None:
    settings = gather({})
    assert settings.methods == ("magnitude", "sparsegpt")
    assert settings.seeds == (0,)
    assert [str(target) for target in settings.targets()] == ["50%"]
    assert settings.evaluations == ("perplexity",)
    assert settings.out == Path("bench-out")


def test_a_file_may_hold_every_option(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
models: [nano-*, opt-125m]
methods: sparsegpt,magnitude@global
sparsity: [0.5, 60%]
pattern: [unstructured, 2:4, 16:64]
slicing: [0.25, 30%]
params: 0.2
bytes: [0.3]
bits: [none, 4]
layers: [blocks=0-3, only=mlp]
recover: [none, lora]
gradual: [1, 4]
seeds: [0, 1]
calibration: c4
samples: 16
length: 512
protocol: lab
text: ptb
windows: 0
eval-length: 128
eval: perplexity
tasks: [piqa, suite:wanda]
limit: 50
shots: 2
packed: true
device: cpu
dtype: bfloat16
hessian_dtype: float64
schedule: blockwise
threads: 2
hidden-budget: 500MB
memory-budget: 8GiB
rates: {memory: 80GiB, flops: 156e12, flops32: 9.75e12, read: 3GB}
set: {sparsegpt: {percdamp: 0.1, reference: true}, magnitude.reference: false}
save: true
save-as: [dense, bitmap]
executor: ray
ray-address: head:6379
calibration-workers: 2
out: results
data-dir: texts
wandb: offline
wandb-project: pruning
wandb_entity: team
wandb-tags: [nightly, main]
yes: true
force: false
dry-run: true
quiet: false
json: true
""",
    )
    settings = gather({}, path)
    keys = {line.partition(":")[0].replace("_", "-") for line in path.read_text().splitlines() if line}
    assert keys == set(option_names())
    assert settings.models == ("nano-*", "opt-125m")
    assert settings.methods == ("sparsegpt", "magnitude@global")
    assert settings.pattern == ("unstructured", "2:4", "16:64")
    assert settings.recoveries() == ("", "lora", "4xlora")
    assert settings.calibration_workers == 2
    assert [str(target) for target in settings.targets()] == [
        f"{target}{bits}"
        for target in ("50%", "60%", "2:4", "16:64", "params-20%", "bytes-30%")
        for bits in ("", "+4bit")
    ]
    sliced = settings.targets("slice25%", ("slice",))
    assert [str(target) for target in sliced if not target.bits] == [
        "slice25%",
        "slice30%",
        "params-20%",
        "bytes-30%",
    ]
    assert settings.bits == ("none", "4") and settings.layers == "blocks=0-3,only=mlp"
    assert settings.windows == 0
    assert (settings.tasks, settings.limit, settings.shots) == (("piqa", "suite:wanda"), 50, 2)
    assert settings.packed
    assert settings.hidden_budget == 500_000_000
    assert settings.assignments == (
        ("magnitude", "reference", "false"),
        ("sparsegpt", "percdamp", "0.1"),
        ("sparsegpt", "reference", "true"),
    )
    assert settings.save and settings.saved == ("dense", "bitmap")
    assert settings.yes
    assert settings.dry_run
    assert settings.as_json
    assert not settings.force
    assert settings.data_dir == Path("texts")
    assert (settings.wandb, settings.wandb_project, settings.wandb_entity) == ("offline", "pruning", "team")
    assert settings.wandb_tags == ("nightly", "main")


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "methods: magnitude\nsparsity: 0.7\nseeds: 5\nsave: false\nthreads: 1\n")
    settings = gather({"methods": "sparsegpt", "sparsity": None, "save": True, "seeds": "1,2"}, path)
    assert settings.methods == ("sparsegpt",)
    assert settings.sparsity == ("70%",)
    assert settings.seeds == (1, 2)
    assert settings.save
    assert settings.threads == 1


def test_set_on_a_flag_wins_name_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, "set: {sparsegpt.percdamp: 0.1, sparsegpt.blocksize: 64}")
    settings = gather({"assignments": ("sparsegpt.percdamp=0.5", "sparsegpt.percdamp=0.7")}, path)
    assert settings.assignments == (("sparsegpt", "blocksize", "64"), ("sparsegpt", "percdamp", "0.7"))


def test_lists_lose_repeats_and_keep_their_order() -> None:
    settings = gather(
        {"methods": "sparsegpt,magnitude,SparseGPT", "sparsity": "0.6,60%,0.5", "seeds": "2,0,2"}
    )
    assert settings.methods == ("sparsegpt", "magnitude")
    assert settings.sparsity == ("60%", "50%")
    assert settings.seeds == (2, 0)


def test_the_data_folder_comes_from_the_environment_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", "/from/environment")
    assert gather({}).data_dir == Path("/from/environment")
    assert gather({"data_dir": Path("/flag")}).data_dir == Path("/flag")
    assert gather({}, write(tmp_path, "data-dir: /file")).data_dir == Path("/file")


@pytest.mark.parametrize(
    ("flags", "targets"),
    [
        ({}, ["50%"]),
        ({"pattern": "2:4"}, ["2:4"]),
        ({"sparsity": "0.5,0.6"}, ["50%", "60%"]),
        ({"pattern": "unstructured,2:4"}, ["50%", "2:4"]),
        ({"sparsity": "0.5,0.6", "pattern": "unstructured,2:4"}, ["50%", "60%", "2:4"]),
        ({"sparsity": "0.7", "pattern": "4:8,unstructured"}, ["4:8", "70%"]),
        ({"bits": "4"}, ["50%+4bit"]),
        ({"bits": 3, "sparsity": "0"}, ["0%+3bit"]),
        ({"bits": "none,8", "sparsity": "0.5,0"}, ["50%", "50%+8bit", "0%", "0%+8bit"]),
        ({"bits": "2,2,none", "pattern": "2:4"}, ["2:4+2bit", "2:4"]),
    ],
)
def test_targets(flags: dict[str, Any], targets: list[str]) -> None:
    assert [str(target) for target in gather(flags).targets()] == targets


@pytest.mark.parametrize(
    ("flags", "sparse", "sliced"),
    [
        ({}, ["50%"], ["slice25%"]),
        ({"slicing": "0,0.1,25%"}, [], ["slice0%", "slice10%", "slice25%"]),
        ({"sparsity": "0,0.5"}, ["0%", "50%"], []),
        ({"pattern": "unstructured"}, ["50%"], []),
        ({"params": "0.2"}, ["params-20%"], ["params-20%"]),
        ({"bytes": "0.3,30%"}, ["bytes-30%"], ["bytes-30%"]),
        (
            {"sparsity": "0.5", "slicing": "0.2", "params": "0.1"},
            ["50%", "params-10%"],
            ["slice20%", "params-10%"],
        ),
    ],
)
def test_each_method_takes_the_targets_it_can_reach(
    flags: dict[str, Any], sparse: list[str], sliced: list[str]
) -> None:
    renamed = {{"params": "fewer_params", "bytes": "fewer_bytes"}.get(key, key): flags[key] for key in flags}
    settings = gather(renamed)
    assert [str(target) for target in settings.targets()] == sparse
    assert [str(target) for target in settings.targets("slice25%", ("slice",))] == sliced


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"slicing": "25"}, "slicing '25' is not a share; for 25 percent write 0.25"),
        ({"slicing": "1"}, "slicing '1' is not a share; use 0 <= slicing < 1"),
        ({"slicing": "half"}, "slicing 'half' is no number"),
        ({"fewer_params": "0"}, "params '0' saves nothing; use a share above 0, such as 0.2"),
        ({"fewer_bytes": "-0.1"}, "bytes '-0.1' is not a share; use 0 <= bytes < 1"),
        ({"fewer_params": "0.2,,0.3"}, "--params '0.2,,0.3' has an empty entry"),
    ],
)
def test_shares_that_are_none(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        gather(flags)


def test_a_method_may_bring_its_own_default_target() -> None:
    assert [str(target) for target in gather({}).targets("25%")] == ["25%"]
    assert [str(target) for target in gather({"bits": "4"}).targets("25%")] == ["25%+4bit"]
    assert [str(target) for target in gather({"pattern": "unstructured"}).targets("25%")] == ["50%"]


def test_sparsity_beside_patterns_only_is_refused() -> None:
    with pytest.raises(UserError, match="--pattern unstructured,2:4"):
        gather({"sparsity": "0.5", "pattern": "2:4"}).targets()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles: x", "did you mean 'models'"),
        ("zzzz: x", "known: models, methods"),
        ("methods: [sparsegpt, 5", "is not YAML"),
        ("- sparsegpt", "is not a mapping"),
        ("sparsegpt", "is not a mapping"),
        ("models: !!python/object/apply:os.system ['touch owned']", "is not plain data"),
        ("models: !!python/name:os.system", "is not plain data"),
        ("models: !unknown x", "is not plain data"),
        ("a: &a [x]\nmodels: *a", "has an alias"),
        ("seeds: 1\nseeds: 2", "twice"),
        ("hessian-dtype: float32\nhessian_dtype: float64", "twice"),
        ("1: x", "keys are the names of options"),
        ("? [a]\n: x", "a key that is not a word"),
        ("sparsity: 50", "write 0.5"),
        ("sparsity: {a: b}", "--sparsity"),
        ("save: maybe", "write true or false"),
        ("save: 'true'", "write true or false"),
        ("threads: 1.5", "use a whole number"),
        ("threads: 0", "use 1 to"),
        ("threads: true", "use a whole number"),
        ("samples: -1", "use a whole number"),
        ("calibration: [c4]", "give one name"),
        ("out: 5", "give a folder"),
        ("set: [1]", "method.parameter=value"),
        ("set: 5", "method.parameter=value"),
        ("set: {sparsegpt: {percdamp: [1]}}", "give one word or number"),
        ("set: {sparsegpt.percdamp: null}", "give one word or number"),
        ("bits: 5", "bits '5' are not a grid; use 2, 3, 4, 8, or none"),
        ("bits: [4, four]", "bits 'four' are not a grid"),
        ("bits: 4.0", "bits '4.0' are not a grid"),
        ("layers: {only: mlp}", "write clauses such as blocks=0-3,only=mlp"),
        ("layers: 3", "--layers is '3'; write clauses"),
        ("layers: onyl=mlp", "did you mean 'only'"),
        ("device: tpu", "--device 'tpu' is unknown"),
        ("device: cpu:0", "--device"),
        ("dtype: float8", "--dtype 'float8' is unknown"),
        ("hidden-budget: lots", "is no size"),
        ("hidden-budget: [1]", "is no size"),
        ("command: [x]", "unknown key 'command'"),
        ("models: !!int x", "a whole number"),
        ("models: !!timestamp x", "config"),
        ("<<: {models: x}", "config"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        gather({}, path)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert not (tmp_path / "owned").exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        gather({}, tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        gather({}, tmp_path)
    with pytest.raises(UserError, match="larger than"):
        gather({}, write(tmp_path, "models: " + "x" * 70_000))
    with pytest.raises(UserError, match="not UTF-8"):
        gather({}, write(tmp_path, b"models: \xff\xfe"))
    with pytest.raises(UserError, match="not YAML"):
        gather({}, write(tmp_path, b"models: \x00"))


def test_bombs_do_not_go_off(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(UserError, match="has an alias"):
        gather({}, write(tmp_path, "\n".join(rows)))
    with pytest.raises(UserError, match="nested too deeply"):
        gather({}, write(tmp_path, "models: " + "[" * 3_000))


def test_an_empty_file_is_no_settings(tmp_path: Path) -> None:
    assert gather({}, write(tmp_path, "# nothing\n")) == gather({})
    assert gather({}, write(tmp_path, "threads:\n")).threads is None


def test_yaml_1_1_surprises_are_gone(tmp_path: Path) -> None:
    settings = gather(
        {}, write(tmp_path, "pattern: 2:4\nyes: true\nprotocol: no\ncalibration: 2024-01-01\nsamples: 010\n")
    )
    assert settings.pattern == ("2:4",)
    assert settings.yes
    assert settings.protocol == "no"
    assert settings.calibration == "2024-01-01"
    assert settings.samples == 10


def test_settings_are_frozen_and_know_their_command() -> None:
    settings = gather({}, command=("run", "--models", "nano-*"))
    assert settings.command == ("run", "--models", "nano-*")
    with pytest.raises(ValueError, match="frozen"):
        settings.threads = 3  # type: ignore[misc]
    assert Settings.model_validate({"models": "a,b", "hessian_dtype": "float64"}).hessian_dtype == "float64"
