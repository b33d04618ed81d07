"""The leaderboard: who shares a place, what is kept apart, what a submission lacks, what the page and feed show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard_stores import WINDOWS, Run, provenance, store
from sample_records import record

from bench.cli.main import main
from bench.results.records import Metric, Record
from bench.results.segments import Store
from bench.results.values import FOLDER, save_values
from methods.errors import StoreError
from reports.leaderboard.boards import Board, boards
from reports.leaderboard.page import write_leaderboard
from reports.leaderboard.private import private
from reports.leaderboard.submission import accept, examine, stores_of

HOSTILE = "<script>alert(1)</script>\u202e\"'&"


def places(board: Board) -> dict[str, tuple[int, bool]]:
    return {placed.entry.name: (placed.place, placed.shared) for placed in board.placed}


def test_methods_that_windows_do_not_tell_apart_share_a_place(tmp_path: Path) -> None:
    runs: list[Run] = [
        *(("sparsegpt", "50%", seed, 0.10) for seed in (0, 1, 2)),
        *(("wanda", "50%", seed, 0.10) for seed in (0, 1, 2)),
        ("magnitude", "50%", None, 0.4),
        ("sparsegpt", "2:4", 0, 0.2),
    ]
    found = boards([store(tmp_path / "s", *runs)])
    assert [(board.ground.family, board.target) for board in found] == [("OPT", "50%"), ("OPT", "2:4")]
    assert places(found[0]) == {"sparsegpt": (1, True), "wanda": (1, True), "magnitude": (3, False)}
    assert "apart" in "".join(placed.why for placed in found[0].placed)
    assert found[0].placed[0].entry.seeds == (0, 1, 2)


def test_clean_differences_of_many_methods_have_places_of_their_own(tmp_path: Path) -> None:
    runs: list[Run] = [(f"m{place:02}", "50%", None, 0.05 * place) for place in range(17)]
    (board,) = boards([store(tmp_path / "s", *runs)])
    assert [(placed.place, placed.shared) for placed in board.placed] == [
        (place, False) for place in range(1, 18)
    ]


def test_places_are_by_mean_loss_and_shared_where_shared_seeds_say_otherwise(tmp_path: Path) -> None:
    # Arithmetic means of perplexities would put "a" behind.
    runs: list[Run] = [
        ("a", "50%", 0, -0.6),
        ("a", "50%", 1, 0.6),
        ("b", "50%", 0, 0.1),
        ("b", "50%", 1, 0.1),
    ]
    (board,) = boards([store(tmp_path / "mean", *runs)])
    assert [placed.entry.method for placed in board.placed] == ["a", "b"]
    runs = [("a", "50%", 0, 0.3), ("a", "50%", 1, -0.201), ("a", "50%", 2, -0.2), ("b", "50%", 0, 0.2)]
    runs += [("a", "2:4", 0, 0.0), ("b", "2:4", 0, 0.1)]
    found = boards([store(tmp_path / "seeds", *runs)])
    assert places(found[0]) == {"a": (1, True), "b": (1, True)}
    assert found[0].placed[1].why == "on the seeds that both have the order is the other way round"
    assert places(found[1]) == {"a": (1, False), "b": (2, False)}


def test_only_what_compares_shares_a_table(tmp_path: Path) -> None:
    run: Run = ("sparsegpt", "50%", 0, 0.1)
    other = provenance(model={"id": "nano-opt", "revision": "sha256:2", "files": {"m": "f"}})
    stores = [
        store(tmp_path / "a", run),
        store(tmp_path / "protocol", run, protocol="lab/kjv"),
        store(tmp_path / "files", run, provenance=other),
        store(tmp_path / "type", run, dtype="bfloat16"),
        store(tmp_path / "recovered", ("wanda", "50%", 0, 0.0), parameters={"recovery": "lora"}),
    ]
    found = boards(stores)
    assert len(found) == 4 and all(len(board.placed) == 1 for board in found)
    assert {placed.entry.method for board in found for placed in board.placed} == {"sparsegpt"}


def test_history_and_links_stay_when_results_are_added(tmp_path: Path) -> None:
    first = store(tmp_path / "a", ("sparsegpt", "50%", 0, 0.2))
    link = boards([first])[0].placed[0].entry.link
    second = store(
        tmp_path / "b",
        ("sparsegpt", "50%", 0, 0.1),
        ("sparsegpt", "50%", 1, 0.1),
        ("wanda", "50%", 0, 0.05),
        finished="2026-03-01T00:00:00+00:00",
        provenance=provenance(commit="fedcba9876543210+changes"),
    )
    board = boards([second, first])[0]
    entry = next(placed.entry for placed in board.placed if placed.entry.method == "sparsegpt")
    assert entry.link == link and entry.seeds == (0, 1)
    assert [(past.day, past.commit) for past in entry.past] == [
        ("2026-01-02", "abcdef012345"),
        ("2026-03-01", "fedcba987654+changes"),
    ]
    worse, better = (past.perplexity.mean or 0 for past in entry.past)
    assert worse > better and {result.name for result in entry.results} == {"b"}
    written = write_leaderboard([first, second], tmp_path / "site")
    note = "b: 4 of 4 evaluations ran from a changed source tree"
    assert note in written.page.read_text(encoding="utf-8")
    assert json.loads(written.feed.read_text(encoding="utf-8"))["_bench"]["notes"] == [note]


def test_a_boards_link_does_not_hang_on_the_family_that_is_inferred(tmp_path: Path) -> None:
    run: Run = ("sparsegpt", "50%", 0, 0.1)
    full = store(tmp_path / "full", run, model="mine")
    bare = tmp_path / "bare"
    with Store(bare, create=True) as out:
        for entry in Store(full).records():
            out.append(entry.model_copy(update={"matrices": ()}))
    (before,), (after,) = boards([bare]), boards([full])
    assert (before.ground.family, after.ground.family) == ("other", "OPT")
    assert before.link == after.link


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []


def test_page_and_feed_agree_and_show_hostile_text_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = store(
        tmp_path / "s",
        (HOSTILE, "50%", 0, 0.1),
        ("wanda", HOSTILE, 0, 0.1),
        model=HOSTILE,
        provenance=provenance(label=HOSTILE, commit=HOSTILE),
    )
    out = tmp_path / "site"
    assert main(("leaderboard", str(source), "--out", str(out))) == 0
    assert "2 results in 2 tables of 1 store" in capsys.readouterr().out
    html = (out / "index.html").read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(html)
    assert "<script>alert" not in html and "\u202e" not in html and "&lt;script&gt;" in html
    assert "script" not in tags.tags and len(tags.ids) == len(set(tags.ids))
    inside = [link[1:] for link in tags.links if link.startswith("#") and link != "#main"]
    assert inside and set(inside) <= set(tags.ids)
    feed = json.loads((out / "feed.json").read_text(encoding="utf-8"))
    assert feed["version"] == "https://jsonfeed.org/version/1.1" and len(feed["items"]) == 2
    for item in feed["items"]:
        assert item["url"] == f"index.html#{item['id']}" and item["id"] in tags.ids
        assert item["_bench"]["place"] == 1 and item["_bench"]["perplexity"]["mean"] > 20
        assert item["_bench"]["board"] in tags.ids


def _cut(folder: Path) -> None:
    next((folder / FOLDER).iterdir()).write_bytes(b"cut")


@pytest.mark.parametrize(
    ("changes", "then", "said"),
    [
        ({"protocol": "nano/kjv[windows=64]"}, None, "is no whole standard one"),
        ({"provenance": provenance(commit="")}, None, "the commit of the code is not recorded"),
        ({"provenance": {}}, None, "the model's revision is not recorded"),
        ({}, _cut, "was altered or cut short"),
        ({"status": "failed", "reason": "no memory"}, None, "failed (no memory): run it again"),
    ],
)
def test_a_submission_that_lacks_something_is_told_what(
    changes: dict[str, Any],
    then: Callable[[Path], None] | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1), **changes)
    if then is not None:
        then(source)
    assert main(("leaderboard", "add", str(source), "--out", str(tmp_path / "site"))) == 1
    shown = capsys.readouterr()
    assert said in shown.out and shown.err.count("\n") == 1 and "missing in" in shown.err
    assert not (tmp_path / "site").exists()


def test_a_store_without_dense_or_pruned_results_is_not_enough(tmp_path: Path) -> None:
    source = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1))
    alone = tmp_path / "alone"
    with Store(alone, create=True) as out:
        for entry in Store(source).records():
            if entry.method != "dense" and entry.phase == "perplexity":
                out.append(entry)
    (alone / FOLDER).mkdir()
    for file in (source / FOLDER).iterdir():
        (alone / FOLDER / file.name).write_bytes(file.read_bytes())
    missing = "\n".join(examine(alone).missing)
    assert "the record of its pruning is not in the store" in missing
    assert "the dense model was not evaluated under nano/kjv in float32" in missing
    assert examine(store(tmp_path / "dense")).missing == (
        "no pruned model was evaluated: run with --eval perplexity",
    )


def test_a_sound_submission_is_copied_without_its_machines_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, site = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1)), tmp_path / "site"
    (source / "secret.txt").write_text("mine")
    words = ("leaderboard", "add", str(source), "--out", str(site))
    assert main((*words, "--name", "../x")) == main((*words, "--name", "../x", "--check")) == 2
    assert main((*words, "--check")) == 0 and not site.exists()
    assert main((*words, "--name", "mine")) == 0 and main((*words, "--name", "mine")) == 0
    taken: list[Record] = Store(site / "stores" / "mine").records()
    assert len(taken) == 4 and not (site / "stores" / "mine" / "secret.txt").exists()
    text = json.dumps([entry.provenance for entry in taken])
    assert "/home" not in text and '"path:x"' in text and '"out"' in text
    capsys.readouterr()
    assert main(("leaderboard", "--out", str(site))) == 0
    assert "1 result in 1 table of 1 store" in capsys.readouterr().out
    assert main(("leaderboard", "--out", str(tmp_path / "empty"))) == 2
    assert main(("leaderboard", "add", str(tmp_path / "none"))) == 2


def _secret(source: Path, site: Path) -> tuple[Path, str]:
    """A file of somebody's behind a link in the store, under the name that its hash would have."""
    secret = site.parent / "secret"
    secret.write_bytes(b"private")
    name = f"{hashlib.sha256(b'private').hexdigest()}.safetensors"
    (source / FOLDER / name).symlink_to(secret)
    return secret, name


def test_nothing_is_copied_through_a_link_or_unverified(tmp_path: Path) -> None:
    source, site = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1)), tmp_path / "site"
    _, name = _secret(source, site)
    with Store(source, create=True) as out:
        out.append(record(status="refused", cell="r", subject="r", reason="no", metrics=(), values=name))
    folder = accept(examine(source), site, "mine")
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == sorted(
        {entry.values for entry in Store(source).records() if entry.status == "done" and entry.values}
    )
    assert all(path.is_file() and not path.is_symlink() for path in (folder / FOLDER).iterdir())
    assert {entry.values for entry in Store(folder).records() if entry.status == "refused"} == {""}
    # the values of a finished record may be no link either, whatever it leads to
    found = examine(source)
    values = next(entry.values for entry in found.records if entry.status == "done" and entry.values)
    (source / FOLDER / values).rename(tmp_path / "away")
    (source / FOLDER / values).symlink_to(tmp_path / "away")
    assert any("is no regular file" in line for line in examine(source).missing)
    with pytest.raises(StoreError, match="no regular file"):
        accept(found, site, "mine")
    assert len(Store(site / "stores" / "mine").records()) == 5  # what was there before stays


def test_a_forged_figure_is_found_by_its_windows(tmp_path: Path) -> None:
    source = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1))
    records = Store(source).records()
    forged = tmp_path / "forged"
    with Store(forged, create=True) as out:
        for entry in records:
            changes: dict[str, Any] = {}
            if entry.method == "sparsegpt" and entry.phase == "perplexity":
                good = Metric(name="perplexity", unit="1", value=1.01)
                divergence = Metric(name="kl_to_dense", unit="nat/token", value=0.001)
                arrays = {"nll": WINDOWS, "kl_to_dense": np.full(80, 0.2)}
                changes = {"metrics": (good, divergence), "values": save_values(forged, arrays)}
            elif entry.values:
                (forged / FOLDER).mkdir(exist_ok=True)
                (forged / FOLDER / entry.values).write_bytes((source / FOLDER / entry.values).read_bytes())
            out.append(entry.model_copy(update=changes))
        items = {"acc/piqa": np.array([1.0, 0.0], np.float32)}
        claimed = (Metric(name="acc/piqa", unit="1", value=0.9),)
        scored = record(phase="zeroshot", cell="z", subject="z", metrics=claimed)
        out.append(scored.model_copy(update={"values": save_values(forged, items)}))
    said = "\n".join(examine(forged).missing)
    assert examine(source).missing == ()
    assert f"perplexity is 1.01, its windows or items give {np.exp(WINDOWS.mean()):.6g}" in said
    assert "kl_to_dense is 0.001, its windows or items give 0.2" in said and "acc/piqa is 0.9" in said


def test_a_crash_while_a_store_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, site = store(tmp_path / "s", ("sparsegpt", "50%", 0, 0.1)), tmp_path / "site"
    mine = accept(examine(source), site, "mine")
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        accept(examine(source), site, "mine")
    monkeypatch.undo()
    assert (mine.parent / ".mine.new" / "store.json").is_file() and stores_of(site) == [mine]
    mine.rename(mine.with_name(".mine.old"))  # killed between the two renames
    assert stores_of(site) == []
    assert accept(examine(source), site, "mine") == mine and stores_of(site) == [mine]
    assert sorted(path.name for path in mine.parent.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("runs/my/out", "runs/my/out"),
        ("--config=.ci/nightly/nightly.yaml", "--config=.ci/nightly/nightly.yaml"),
        ("path:../models/opt", "path:../models/opt"),
        ("--out=/home/bob smith/secret dir/x", "--out=x"),
        ("/root", "root"),
        ("~bob", "~"),
        ("~/models/opt", "opt"),
        ("path:/home/me/a,path:/b/c,nano-opt", "path:a,path:c,nano-opt"),
        ("/home/bob, jr/x", "bob,x"),
        ("rule.python=/home/me/venv/bin/python", "rule.python=python"),
        (r"C:\Users\me\out", "out"),
        ("c4:128x2048", "c4:128x2048"),
    ],
)
def test_commands_lose_the_machines_folders_and_keep_relative_ones(word: str, kept: str) -> None:
    assert private(record(provenance={"command": [word]})).provenance["command"] == [kept]


def test_reasons_warnings_and_facts_lose_them_too() -> None:
    told = "cannot read /home/bob smith/secret dir/x: no such file; see https://host/a/b, at 3/4 of runs/out"
    clear = "cannot read x: no such file; see https://host/a/b, at 3/4 of runs/out"
    found = private(
        record(status="refused", reason=told, warnings=(told,), provenance={"a": {"b": ["file:///root/z"]}})
    )
    assert (found.reason, found.warnings) == (clear, (clear,))
    assert found.provenance == {"a": {"b": ["file:z"]}}
