"""Task names, files and digests, without the harness or torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.evaluate.zeroshot.tasks import check, data_digest, few_shot_split, find, packaged, split_files
from bench.plan.suites import KJV, STANDARD, SUITES, expand, tasks_of
from methods.errors import DataUnavailable, UserError


def _touch(data: Path, task: str, split: str, text: str = "{}\n") -> Path:
    path = data / "tasks" / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_default_tasks_are_found_with_the_split_they_are_scored_on() -> None:
    splits = {name: find(name).split for name in STANDARD}
    test = {"arc_easy", "arc_challenge", "openbookqa", "lambada_openai", "sciq"}
    assert splits == {name: "test" if name in test else "validation" for name in STANDARD}
    assert find("arc_challenge").values["dataset_path"] == "allenai/ai2_arc", "includes are merged"


def test_an_unknown_task_is_named_with_its_nearest() -> None:
    with pytest.raises(UserError, match=r"--tasks 'piqaa' is no task .*did you mean 'piqa'\?") as caught:
        check(["arc_easy", "piqaa"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../piqa", "", "a/b"])
def test_names_that_are_paths_are_unknown(name: str) -> None:
    with pytest.raises(UserError, match="is no task"):
        find(name)


def test_a_task_that_generates_text_has_no_accuracy() -> None:
    with pytest.raises(UserError, match="output is generate_until"):
        check(["arc_challenge_chat"])


def test_names_are_checked_without_torch_and_the_harness() -> None:
    code = (
        "import sys; from bench.evaluate.zeroshot.tasks import check; check(['rte', 'hellaswag']);"
        "print([name for name in ('torch', 'lm_eval', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_scored_split_must_be_there(tmp_path: Path) -> None:
    validation = _touch(tmp_path, "arc_easy", "validation")
    with pytest.raises(DataUnavailable, match=r"tasks/arc_easy/test\.jsonl is not there") as caught:
        split_files(find("arc_easy"), tmp_path)
    assert "\n" not in str(caught.value)
    test = _touch(tmp_path, "arc_easy", "test")
    assert split_files(find("arc_easy"), tmp_path) == {"test": test, "validation": validation}


def test_the_digest_follows_the_scored_items_alone(tmp_path: Path) -> None:
    assert data_digest(["piqa"], "") == "hub"
    _touch(tmp_path, "piqa", "validation", "one\n")
    first = data_digest(["piqa"], str(tmp_path))
    _touch(tmp_path, "piqa", "train", "two\n")
    assert data_digest(["piqa"], str(tmp_path)) == first
    _touch(tmp_path, "piqa", "validation", "three\n")
    assert data_digest(["piqa"], str(tmp_path)) != first


def test_suites_are_what_the_papers_average_and_unknown_ones_are_named() -> None:
    assert expand(["suite:wanda", "piqa", "suite:mixed"]) == (("piqa",), (SUITES["mixed"], SUITES["wanda"]))
    assert {len(suite.tasks) for suite in SUITES.values()} == {4, 5, 7}
    known = [task for task in tasks_of([f"suite:{name}" for name in SUITES]) if task != "storycloze"]
    assert [find(task).name for task in known] == known
    with pytest.raises(UserError, match=r"'suite:wandaa' is no suite; .*did you mean 'wanda'"):
        check(["suite:wandaa"])


def test_absent_tasks_of_a_suite_are_part_of_the_digest_and_single_ones_are_an_error(tmp_path: Path) -> None:
    for task in ("arc_challenge",):
        _touch(tmp_path, task, "test")
    before = data_digest(["suite:mixed"], str(tmp_path))
    _touch(tmp_path, "piqa", "validation")
    assert data_digest(["suite:mixed"], str(tmp_path)) != before
    with pytest.raises(DataUnavailable, match=r"hellaswag/validation\.jsonl is not there"):
        data_digest(["hellaswag", "suite:mixed"], str(tmp_path))


def test_shots_need_a_split_of_their_own(tmp_path: Path) -> None:
    _touch(tmp_path, "piqa", "validation")
    with pytest.raises(DataUnavailable, match=r"piqa/train\.jsonl is not there, and --shots 2 draws from it"):
        few_shot_split(find("piqa"), tmp_path, 2)
    with pytest.raises(DataUnavailable, match="lambada_openai has no split to draw 2 shots from"):
        few_shot_split(find("lambada_openai"), None, 2)
    before = data_digest(["piqa"], str(tmp_path))
    _touch(tmp_path, "piqa", "train")
    assert few_shot_split(find("piqa"), tmp_path, 2) == "train"
    assert data_digest(["piqa"], str(tmp_path)) == before != data_digest(["piqa"], str(tmp_path), 2)
    assert [few_shot_split(find(name), tmp_path, 2) for name in KJV] == ["validation"] * 2
    assert all(packaged(find(name)) for name in KJV)
