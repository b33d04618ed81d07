"""Hub models against a local stub of the hub: what is fetched, what is locked, and how each failure reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle  # noqa: TID251 -- makes the file that must not be believed
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from stub_hub import StubHub
from tiny_models import tiny

from bench.models import convert, load
from bench.models import hub as hub_source
from methods.errors import CheckpointError, MachineError, ModelUnavailable, UnsupportedModel, UserError

ROOT = Path(__file__).parents[2]
OPT = "facebook/opt-125m"
JUNK = {"README.md": b"# card", "modeling_opt.py": b"raise SystemExit", "flax_model.msgpack": b"\x00"}
TOKEN = "hf_" + "s3cr3t" * 6


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    for name in ("BENCH_LOCK", "HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHub]:
    with StubHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@cache
def _tiny(family: str) -> tuple[bytes, dict[str, torch.Tensor]]:
    model, _ = tiny(family)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return model.config.to_json_string().encode(), state


def config_and_state(family: str = "opt") -> tuple[bytes, dict[str, torch.Tensor]]:
    config, state = _tiny(family)
    return config, dict(state)


def safe_repo(family: str = "opt") -> dict[str, bytes]:
    config, state = config_and_state(family)
    return {"config.json": config, "vocab.json": b"{}", "merges.txt": b"", "model.safetensors": save(state)}


def sharded_repo(family: str = "opt") -> dict[str, bytes]:
    config, state = config_and_state(family)
    names = sorted(state)
    files = {"config.json": config}
    weight_map = {}
    for number, members in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        files[file] = save({name: state[name] for name in members})
        weight_map.update(dict.fromkeys(members, file))
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bin_repo(family: str = "opt", **changes: torch.Tensor) -> dict[str, bytes]:
    config, state = config_and_state(family)
    return {"config.json": config, "pytorch_model.bin": pickled(state | changes)}


def pull(model: str = "opt-125m", **settings: Any) -> load.Checkpoint:
    return load.pull(model, **settings)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert TOKEN not in text
    return text


def test_a_pull_brings_exactly_what_is_read(hub: StubHub, cache_folder: Path) -> None:
    files = safe_repo()
    commit = hub.add(OPT, files | JUNK | {"pytorch_model.bin": b"never"})
    said: list[str] = []
    assert not load.cached("opt-125m")
    checkpoint = pull(progress=said.append)
    assert load.cached("opt-125m")
    assert checkpoint.revision == commit
    assert checkpoint.source == "hub"
    assert checkpoint.files == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    on_disk = {path.name for path in checkpoint.path.iterdir()}
    assert on_disk == set(files) | {"prune-bench.json"}
    assert not set(hub.fetched()) & {*JUNK, "pytorch_model.bin"}
    assert any("model.safetensors" in line for line in said)
    assert [path.name for path in checkpoint.path.parent.iterdir()] == [commit]
    hub.requests.clear()
    assert load.resolve("opt-125m") == pull() == checkpoint
    assert hub.requests == []


def test_the_first_pull_locks_the_commit(hub: StubHub, cache_folder: Path) -> None:
    first = hub.add(OPT, safe_repo())
    assert pull().revision == first
    lock = json.loads((cache_folder / "models.lock.json").read_text())
    assert lock["models"][OPT]["revision"] == first
    second = hub.add(OPT, sharded_repo())
    assert second != first
    shutil.rmtree(cache_folder / "hub")
    assert pull().revision == first
    (cache_folder / "models.lock.json").unlink()
    assert pull().revision == second


def test_a_lock_file_elsewhere_is_honoured(
    hub: StubHub, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.add(OPT, safe_repo())
    hub.add(OPT, sharded_repo())
    lock = tmp_path / "project" / "lock.json"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"format": 1, "models": {OPT: {"revision": first}}}))
    monkeypatch.setenv("BENCH_LOCK", str(lock))
    assert pull().revision == first
    lock.write_text(json.dumps({"format": 1, "models": {OPT: {"revision": "0" * 40}}}))
    with pytest.raises(ModelUnavailable, match=r"no longer has the commit 000000000000 .*remove its entry"):
        pull()
    lock.write_text(json.dumps({"format": 1, "models": {OPT: {"revision": "../../x"}}}))
    with pytest.raises(UserError, match="not a commit of 40 hex digits"):
        pull()
    lock.write_text("{")
    with pytest.raises(UserError, match="lock file cannot be used"):
        pull()


@pytest.mark.parametrize(("model", "repo", "family"), [
    ("opt-125m", OPT, "opt"),
    ("bloom-560m", "bigscience/bloom-560m", "bloom"),
    ("llama-7b", "huggyllama/llama-7b", "llama"),
])  # fmt: skip
def test_sharded_weights_of_every_family(hub: StubHub, model: str, repo: str, family: str) -> None:
    files = sharded_repo(family)
    hub.add(repo, files | JUNK)
    checkpoint = load.resolve(model)
    assert set(checkpoint.files) == set(files)
    assert checkpoint.shape.family == family
    assert len(checkpoint.weight_files) == 2


def test_pickled_weights_are_converted_by_a_pull_only(hub: StubHub, cache_folder: Path) -> None:
    _, state = config_and_state()
    table = state["model.decoder.embed_tokens.weight"]
    files = bin_repo(**{"lm_head.weight": table, "decoder.version": torch.tensor([3.0])})
    commit = hub.add(OPT, files)
    with pytest.raises(
        ModelUnavailable, match=r"pickled weights only.*`bench pull opt-125m` converts.*path:"
    ) as caught:
        load.resolve("opt-125m")
    one_line(caught.value)
    assert "pytorch_model.bin" not in hub.fetched()
    checkpoint = pull()
    assert checkpoint.revision == commit
    written = load_file(checkpoint.path / "model.safetensors")
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)
    record = json.loads((checkpoint.path / "prune-bench.json").read_text())
    digest = hashlib.sha256(files["pytorch_model.bin"]).hexdigest()
    assert record["made_from"] == {"pytorch_model.bin": digest}
    assert record["files"]["model.safetensors"] == checkpoint.files["model.safetensors"]
    lock = json.loads((cache_folder / "models.lock.json").read_text())["models"][OPT]
    assert lock["converted_from"] == {"pytorch_model.bin": digest}
    assert not list(checkpoint.path.glob("*.bin"))
    assert load.resolve("opt-125m") == checkpoint


def test_pickled_shards_are_converted(hub: StubHub) -> None:
    config, state = config_and_state("bloom")
    bare = {name.removeprefix("transformer."): value for name, value in state.items()}
    names = sorted(bare)
    files, weight_map = {"config.json": config}, {}
    for number, members in enumerate((names[:9], names[9:]), start=1):
        file = f"pytorch_model_{number:05d}-of-00002.bin"
        files[file] = pickled({name: bare[name] for name in members})
        weight_map.update(dict.fromkeys(members, file))
    files["pytorch_model.bin.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    hub.add("bigscience/bloom-560m", files)
    checkpoint = pull("bloom-560m")
    assert len(checkpoint.weight_files) == 2
    written: dict[str, torch.Tensor] = {}
    for name in checkpoint.weight_files:
        written |= load_file(checkpoint.path / name)
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_is_refused_and_not_executed(
    hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "executed"
    content = pickled({"model.decoder.embed_tokens.weight": Evil(target)})
    hub.add(OPT, {"config.json": config_and_state()[0], "pytorch_model.bin": content})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        CheckpointError, match=r"opt-125m: pytorch_model\.bin .*nothing of it was executed"
    ) as caught:
        pull()
    one_line(caught.value)
    assert not target.exists()
    assert not load.cached("opt-125m")


def test_a_bare_malicious_pickle_is_not_executed_either(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    (tmp_path / "config.json").write_bytes(config_and_state()[0])
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil(target)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin") as caught:
        convert.convert(tmp_path, ["pytorch_model.bin"])
    one_line(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.decoder.embed_tokens.weight": torch.zeros(5, 24)},
            r"shape \[5, 24\], its config says \[101, 24\]",
        ),
        ({"lm_head.weight": torch.ones(101, 24)}, "lm_head.weight differs from"),
        ({"surprise": torch.ones(2)}, "does not account for, such as surprise"),
        ({"model.decoder.layers.0.fc1.weight": torch.zeros(40, 24, dtype=torch.int8)}, "has dtype int8"),
    ],
)
def test_pickled_tensors_must_fit_the_config(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    for name, content in bin_repo(**change).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert.convert(tmp_path, ["pytorch_model.bin"])
    one_line(caught.value)
    assert not list(tmp_path.glob("*.safetensors"))


def test_converted_weights_are_written_in_bounded_files(tmp_path: Path) -> None:
    for name, content in bin_repo().items():
        (tmp_path / name).write_bytes(content)
    names = convert.convert(tmp_path, ["pytorch_model.bin"], group_bytes=8_000)
    assert len(names) > 2
    (tmp_path / "pytorch_model.bin").unlink()
    checkpoint = load.resolve(f"path:{tmp_path}")
    assert list(checkpoint.weight_files) == sorted(names)
    _, state = config_and_state()
    written: dict[str, torch.Tensor] = {}
    for name in names:
        written |= load_file(tmp_path / name)
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_a_gated_repository_names_the_licence(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("meta-llama/Llama-3.2-1B", safe_repo("llama"), gated=True)
    for token in ("", TOKEN):
        monkeypatch.setenv("HF_TOKEN", token)
        for ask in (pull, load.resolve):
            with pytest.raises(
                ModelUnavailable, match=r"is gated: accept its licence at http.*HF_TOKEN"
            ) as caught:
                ask("llama-3.2-1b")
            assert "path:/dir" in one_line(caught.value)
    assert any(request.authorised for request in hub.requests)


def test_a_missing_repository_and_a_failing_hub(hub: StubHub) -> None:
    with pytest.raises(
        ModelUnavailable, match=r"has no repository facebook/opt-125m.*`bench pull opt-125m`.*path:"
    ):
        load.resolve("opt-125m")
    hub.status = 500
    with pytest.raises(ModelUnavailable, match="answers with status 500"):
        load.resolve("opt-125m")


def test_without_a_network_it_fails_in_seconds(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://somebody:secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(
        ModelUnavailable, match=r"hub at http://127\.0\.0\.1:9 cannot be reached.*bench pull"
    ) as caught:
        load.resolve("opt-125m")
    assert time.monotonic() - started < 5
    assert "secret" not in one_line(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match=r"HF_HUB_OFFLINE is set.*bench pull opt-125m.*path:"):
        load.resolve("opt-125m")


def test_a_hub_that_does_not_answer_is_given_up_soon(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(OPT, safe_repo())
    hub.delay = 20
    monkeypatch.setattr(hub_source, "ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="cannot be reached"):
        load.resolve("opt-125m")
    assert time.monotonic() - started < 5
    assert len(hub.requests) == 2


def test_a_cut_line_is_gone_on_with(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.add(OPT, safe_repo())
    hub.cut["model.safetensors"] = 20_000
    checkpoint = pull()
    assert hub.fetched().count("model.safetensors") == 2
    assert max(int(request.range[6:-1]) for request in hub.requests if request.range) > 10_000
    assert load.resolve("opt-125m") == checkpoint


def test_a_killed_pull_keeps_what_was_complete(hub: StubHub, cache_folder: Path) -> None:
    files = sharded_repo()
    hub.add(OPT, files)
    first, second = sorted(name for name in files if name.endswith(".safetensors"))
    hub.hold[second] = 1000
    child = subprocess.Popen(
        [sys.executable, "-c", "from bench.models import load; load.pull('opt-125m')"], cwd=ROOT
    )
    try:
        assert hub.held.wait(60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert list(cache_folder.rglob("*.incomplete"))
    assert not load.cached("opt-125m")
    hub.hold.clear()
    hub.requests.clear()
    checkpoint = pull()
    assert first not in hub.fetched()
    assert second in hub.fetched()
    assert checkpoint.files[first] == hashlib.sha256(files[first]).hexdigest()
    assert checkpoint.files[second] == hashlib.sha256(files[second]).hexdigest()
    assert not list(cache_folder.rglob("*.incomplete"))


def test_two_pulls_at_once_download_once(hub: StubHub) -> None:
    hub.add(OPT, safe_repo())
    found: list[load.Checkpoint] = []
    threads = [threading.Thread(target=lambda: found.append(pull())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert hub.fetched().count("model.safetensors") == 1


def test_shapes_that_contradict_the_config_are_refused(hub: StubHub) -> None:
    config, state = config_and_state()
    hub.add(
        OPT,
        {
            "config.json": re.sub(rb'"ffn_dim": 40', b'"ffn_dim": 48', config),
            "model.safetensors": save(state),
        },
    )
    with pytest.raises(CheckpointError, match=r"fc1.* has shape \[40.*its config says \[48") as caught:
        pull()
    one_line(caught.value)
    assert not load.cached("opt-125m")


@pytest.mark.parametrize(
    "name", ["../../outside.safetensors", "/etc/outside.safetensors", "a/b.safetensors", "x.bin"]
)
def test_an_index_cannot_lead_out_of_the_repository(hub: StubHub, tmp_path: Path, name: str) -> None:
    index = json.dumps({"weight_map": {"model.decoder.embed_tokens.weight": name}}).encode()
    hub.add(OPT, {"config.json": config_and_state()[0], "model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match="in the same directory are read"):
        pull()
    assert not list(tmp_path.rglob("outside*"))


def test_damaged_weights_are_named(hub: StubHub) -> None:
    files = safe_repo()
    files["model.safetensors"] = files["model.safetensors"][:-100]
    hub.add(OPT, files)
    with pytest.raises(CheckpointError, match=r"model\.safetensors .*corrupt or truncated"):
        pull()


def test_content_must_have_the_hash_that_the_hub_states(hub: StubHub) -> None:
    hub.add(OPT, safe_repo())
    hub.stated["model.safetensors"] = "0" * 64
    with pytest.raises(CheckpointError, match=r"the hub states 0000000000000000….*removed"):
        pull()
    hub.stated.clear()
    assert pull().shape.blocks == 3


def test_a_config_with_code_of_its_own_is_refused_before_weights(hub: StubHub) -> None:
    config = json.loads(config_and_state()[0]) | {"auto_map": {"AutoModel": "modeling_opt.Evil"}}
    hub.add(OPT, safe_repo() | {"config.json": json.dumps(config).encode()})
    with pytest.raises(UnsupportedModel, match="code of its own"):
        pull()
    assert "model.safetensors" not in hub.fetched()


def test_large_downloads_are_asked_for(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(OPT, safe_repo())
    monkeypatch.setattr(hub_source, "ASK_FROM", 10_000)
    with pytest.raises(
        UserError, match=r"is a download of \d+\.\d kB, more than 10\.0 kB; run `bench pull .* --yes`"
    ):
        pull()
    with pytest.raises(ModelUnavailable, match=r"--yes`, or use path:/dir"):
        load.resolve("opt-125m")
    assert "model.safetensors" not in hub.fetched()
    assert pull(yes=True).shape.blocks == 3


def test_disk_space_is_looked_at_first(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(OPT, safe_repo())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MachineError, match=r"opt-125m needs \d+\.\d kB in .*, where 1\.0 kB are free"):
        pull()
    assert "model.safetensors" not in hub.fetched()


def test_a_changed_file_is_noticed_and_fetched_again(hub: StubHub) -> None:
    hub.add(OPT, safe_repo())
    first = pull()
    changed = {name: value + 1 for name, value in load_file(first.path / "model.safetensors").items()}
    (first.path / "model.safetensors").write_bytes(save(changed))
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors has changed since it was pulled.*bench pull"
    ):
        load.resolve("opt-125m")
    said: list[str] = []
    assert pull(progress=said.append) == first
    assert "fetching it again" in said[0]


def test_large_weights_are_hashed_once(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.models.cache.REMEMBERED_FROM", 10_000)
    hub.add(OPT, safe_repo())
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    checkpoint = pull()
    assert load.resolve("opt-125m") == checkpoint
    assert hashed.count("model.safetensors") == 1


def test_what_cannot_be_pulled_says_why(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailable, match=r"opt-175b: Meta gives out .* on request"):
        pull("opt-175b")
    with pytest.raises(UserError, match="already on this disk"):
        pull("path:/somewhere")
    cache_folder.parent.joinpath("file").write_text("")
    monkeypatch.setenv("BENCH_CACHE", str(cache_folder.parent / "file" / "cache"))
    with pytest.raises(MachineError, match=r"cannot create the folder .*point BENCH_CACHE"):
        pull()


def test_rows_for_a_listing(hub: StubHub) -> None:
    hub.add(OPT, safe_repo())
    pull()
    rows = {row["id"]: row for row in load.describe()}
    assert rows["opt-125m"]["cached"]
    assert not rows["opt-350m"]["cached"]
    assert rows["llama-3-8b"]["gated"]
    assert rows["smollm2-135m"]["label"] == "Q4_1, dequantised"
    assert rows["opt-175b"]["label"] == "weights by request"
