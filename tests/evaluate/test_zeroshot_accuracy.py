"""Zero-shot accuracy on tiny models and task files: against the harness called by hand, and through the grid."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from byte_tokenizer import byte_tokenizer
from safetensors.torch import load_file, save_file
from saved_models import saved_with_tokenizer

from bench.evaluate.zeroshot import loading
from bench.evaluate.zeroshot.accuracy import Accuracies, accuracies
from bench.executors.local import Outcome, execute
from bench.plan.cells import expand
from bench.plan.observer import GridObserver
from bench.plan.settings import gather
from bench.plan.stored import stored
from bench.results.records import Record
from bench.results.segments import Store
from bench.results.values import load_values
from methods.errors import DataUnavailable, UnsupportedModel
from methods.inference.served import serve
from methods.interface import Silent
from methods.stream.source import CheckpointSource

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")

_WORDS = ("salt", "iron", "rain", "a lamp", "the old road", "bread and oil", "seven", "wind")


def _rows(task: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with the columns that the task's config reads."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = draw.sample(_WORDS, 4)
        if task == "piqa":
            rows.append({"goal": words[0], "sol1": words[1], "sol2": words[2], "label": draw.randrange(2)})
        elif task == "arc_easy":
            choices = {"text": words[:3], "label": ["A", "B", "C"]}
            rows.append(
                {"id": str(number), "question": words[3], "choices": choices, "answerKey": draw.choice("ABC")}
            )
        elif task == "winogrande":
            sentence = f"{words[0]} met {words[1]} because _ had {words[2]}."
            rows.append(
                {"sentence": sentence, "option1": words[0], "option2": words[1], "answer": draw.choice("12")}
            )
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (task, split) in enumerate(
        (("piqa", "validation"), ("arc_easy", "test"), ("winogrande", "validation"))
    ):
        path = folder / "tasks" / task / f"{split}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows(task, 9, seed)))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    return saved_with_tokenizer(folder, "llama", max_position_embeddings=256)


class _Watcher(Silent, GridObserver):
    """Keeps nothing."""

    def plan(self, cells: Any) -> None: ...
    def cell(self, index: int, cell: Any) -> None: ...
    def cached(self, index: int, cell: Any) -> None: ...
    def done(self, index: int, cell: Any, status: str, summary: str) -> None: ...
    def close(self) -> None: ...


_FLAGS = {
    "methods": "magnitude",
    "protocol": "nano",
    "samples": "4",
    "windows": "2",
    "threads": "1",
    "evaluations": "zeroshot",
    "tasks": "piqa,arc_easy",
}


def _run(out: Path, model: Path, data: Path | None, **flags: Any) -> Outcome:
    settings = gather({**_FLAGS, "models": f"path:{model}", "data_dir": data, **flags})
    return execute(expand(settings), out, _Watcher())


def _by_hand(model: Path, data: Path, limit: int | None) -> dict[str, Any]:
    """The harness on a model loaded by transformers, tasks declared from scratch."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    common = {
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    piqa = {
        **common,
        "task": "by_hand_piqa",
        "dataset_kwargs": {"data_files": {"validation": str(data / "tasks" / "piqa" / "validation.jsonl")}},
        "validation_split": "validation",
        "doc_to_text": "Question: {{goal}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "{{[sol1, sol2]}}",
    }
    arc = {
        **common,
        "task": "by_hand_arc",
        "dataset_kwargs": {"data_files": {"test": str(data / "tasks" / "arc_easy" / "test.jsonl")}},
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{choices.label.index(answerKey)}}",
        "doc_to_choice": "{{choices.text}}",
    }
    lm = HFLM(
        AutoModelForCausalLM.from_pretrained(model), tokenizer=byte_tokenizer(), batch_size=3, max_length=256
    )
    found = simple_evaluate(
        lm, tasks=[piqa, arc], num_fewshot=0, limit=limit, task_manager=TaskManager(include_defaults=False)
    )
    return {"piqa": found["results"]["by_hand_piqa"], "arc_easy": found["results"]["by_hand_arc"]}


def _scored(
    model: Path, tokenizer: Any = None, tasks: tuple[str, ...] = ("piqa",), **more: Any
) -> Accuracies:
    options = {"context": 256, "batch_tokens": 2048, "observer": Silent(), **more}
    served = serve(CheckpointSource(model), tune=False)
    return accuracies(served, tokenizer or byte_tokenizer(), tasks, **options)


def _records(out: Path) -> dict[tuple[str, str], Record]:
    return {(record.method, record.phase): record for record in Store(out).records()}


def test_dense_accuracy_equals_the_harness_called_by_hand(tmp_path: Path, model: Path, data: Path) -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert _run(tmp_path, model, data, limit="7") == Outcome(done=2)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert logging.getLogger("lm_eval").level != logging.ERROR and not datasets.config.HF_HUB_OFFLINE
    records = _records(tmp_path)
    assert set(records) == {
        (method, phase) for method in ("dense", "magnitude") for phase in ("prune", "zeroshot")
    }
    record = records["dense", "zeroshot"]
    assert record.protocol == "zeroshot/arc_easy,piqa@limit=7"
    expected = _by_hand(model, data, 7)
    values = load_values(tmp_path, record.values)
    for task in ("piqa", "arc_easy"):
        for metric in ("acc", "acc_norm"):
            assert record.metric(f"{metric}/{task}") == pytest.approx(
                expected[task][f"{metric},none"], abs=1e-12
            )
            error = expected[task][f"{metric}_stderr,none"]
            assert record.metric(f"{metric}_stderr/{task}") == pytest.approx(error, abs=1e-9)
            assert values[f"{metric}/{task}"].shape == (7,)
            assert set(values[f"{metric}/{task}"].tolist()) <= {0.0, 1.0}
    facts: Any = record.provenance["tasks"]
    assert (facts["piqa"]["version"], facts["piqa"]["items"], facts["arc_easy"]["split"]) == (
        "1.0",
        7,
        "test",
    )
    assert facts["piqa"]["sha256"].startswith("sha256:")
    assert {m.name for m in records["magnitude", "zeroshot"].metrics} == {m.name for m in record.metrics}


def test_a_sliced_model_is_scored_by_its_own_head(tmp_path: Path, data: Path) -> None:
    """At full width every item ends as with the dense model, whose head is the token table: nothing tied it again."""
    tied = saved_with_tokenizer(
        tmp_path / "model", "llama", max_position_embeddings=256, tie_word_embeddings=True
    )
    out = tmp_path / "out"
    assert _run(out, tied, data, methods="slicegpt", slicing="0,0.5", tasks="piqa") == Outcome(done=3)
    found = {(r.method, r.target): r for r in Store(out).records() if r.phase == "zeroshot"}
    values = {key: load_values(out, record.values) for key, record in found.items()}
    for name, dense in values["dense", "0%"].items():
        assert (values["slicegpt", "slice0%"][name] == dense).all()
    assert any(
        (values["slicegpt", "slice50%"][name] != dense).any() for name, dense in values["dense", "0%"].items()
    )


def test_packed_linears_answer_as_dense_ones_and_are_another_figure(
    tmp_path: Path, model: Path, data: Path
) -> None:
    common = {"pattern": "unstructured,2:4", "tasks": "piqa,winogrande"}
    assert _run(tmp_path, model, data, **common) == Outcome(done=3)
    dense = {record.target: record for record in Store(tmp_path).records() if record.phase == "zeroshot"}
    assert _run(tmp_path, model, data, packed=True, **common) == Outcome(done=2, cached=1)
    packed = {record.target: record for record in Store(tmp_path).records() if record.phase == "zeroshot"}
    assert {target: record.provenance["format"] for target, record in packed.items()} == {
        "0%": "dense",
        "50%": "bitmap",
        "2:4": "nm",
    }
    for target, record in packed.items():
        assert (
            load_values(tmp_path, record.values).keys() == load_values(tmp_path, dense[target].values).keys()
        )
        for name, values in load_values(tmp_path, record.values).items():
            assert (values == load_values(tmp_path, dense[target].values)[name]).all()


def test_reruns_repeat_nothing_and_more_tasks_repeat_no_other_phase(
    tmp_path: Path, model: Path, data: Path
) -> None:
    assert _run(tmp_path, model, data) == Outcome(done=2)
    assert _run(tmp_path, model, data, tasks="arc_easy,piqa") == Outcome(cached=2)
    assert _run(tmp_path, model, data, tasks="winogrande") == Outcome(done=2)
    phases = [record.phase for record in Store(tmp_path).history()]
    assert sorted(phases) == ["prune"] * 2 + ["zeroshot"] * 4
    protocols = {record.protocol for record in Store(tmp_path).records() if record.phase == "zeroshot"}
    assert protocols == {"zeroshot/arc_easy,piqa", "zeroshot/winogrande"}
    scored = next(r for r in Store(tmp_path).records() if r.protocol == "zeroshot/winogrande")
    assert scored.metric("acc/winogrande") is not None and scored.metric("acc_norm/winogrande") is None


def test_missing_data_fail_the_cell_naming_the_file(tmp_path: Path, model: Path, data: Path) -> None:
    assert _run(tmp_path, model, data, tasks="piqa,boolq").failed == 2
    for record in Store(tmp_path).records():
        assert "tasks/boolq/validation.jsonl is not there" in record.reason and "\n" not in record.reason


def test_data_of_another_form_are_named(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "tasks" / "piqa" / "validation.jsonl"
    path.parent.mkdir(parents=True)
    for text in ('{"aim": "x"}\n', "not json\n", ""):
        path.write_text(text)
        with pytest.raises(DataUnavailable, match=r"validation\.jsonl cannot be read as piqa") as caught:
            _scored(model, data_dir=tmp_path)
        assert "\n" not in str(caught.value)


def test_a_short_context_cuts_texts_and_says_so(model: Path, data: Path) -> None:
    tokenizer = byte_tokenizer()
    scored = _scored(model, tokenizer, context=24, data_dir=data)
    assert scored.requests == 18 and 0 < scored.cut <= 18
    assert tokenizer.pad_token is None, "the caller's tokenizer stays as it was"
    with pytest.raises(UnsupportedModel, match="exceeds this model's context of 4"):
        _scored(model, tokenizer, context=4, data_dir=data)


def test_suites_are_averaged_and_never_without_a_task_under_the_same_name(
    tmp_path: Path, model: Path, data: Path
) -> None:
    out = tmp_path / "out"
    assert _run(out, model, data, methods="dense", tasks="suite:slicegpt,winogrande", shots="0") == Outcome(
        done=1
    )
    record = _records(out)["dense", "zeroshot"]
    assert record.protocol == "zeroshot/suite:slicegpt,winogrande"
    names = {metric.name: metric.value for metric in record.metrics}
    had = ("acc_norm/piqa", "acc/winogrande", "acc_norm/arc_easy")
    assert names["acc_avg_partial/slicegpt"] == pytest.approx(math.fsum(names[name] or 0 for name in had) / 3)
    errors = [names[name.replace("/", "_stderr/")] or 0 for name in had]
    assert names["acc_avg_partial_stderr/slicegpt"] == pytest.approx(math.hypot(*errors) / 3)
    assert "acc_avg/slicegpt" not in names, "a partial mean is no mean of the suite"
    facts: Any = record.provenance["suites"]
    assert facts["slicegpt"]["partial"] and set(facts["slicegpt"]["missing"]) == {
        "hellaswag",
        "arc_challenge",
    }
    assert any("hellaswag/validation.jsonl is not there" in warning for warning in record.warnings)
    whole = tmp_path / "whole"
    for task, split in (("piqa", "validation"), ("arc_easy", "test"), ("winogrande", "validation")):
        for name in {"piqa": ("piqa", "hellaswag"), "arc_easy": ("arc_easy", "arc_challenge")}.get(
            task, (task,)
        ):
            path = whole / "tasks" / name / f"{'validation' if name == 'hellaswag' else split}.jsonl"
            path.parent.mkdir(parents=True)
            path.write_text((data / "tasks" / task / f"{split}.jsonl").read_text())
    swag = {"ind": 1, "activity_label": "A", "ctx_a": "a", "ctx_b": "b", "ctx": "a b", "label": "1"}
    rows = [{**swag, "endings": [word, *_WORDS[:3]]} for word in _WORDS[3:]]
    path = whole / "tasks" / "hellaswag" / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _run(out, model, whole, methods="dense", tasks="suite:slicegpt,winogrande") == Outcome(done=1)
    record = _records(out)["dense", "zeroshot"]
    assert record.metric("acc_avg/slicegpt") is not None and record.metric("acc_avg_partial/slicegpt") is None
    assert record.metric("tokens_computed") < record.metric("tokens")  # type: ignore[operator]


def test_a_mean_that_the_hub_left_partial_is_filled_by_a_rerun(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when the hub gives what it did not: until then nothing is computed twice."""
    tasks = "suite:slicegpt,suite:sparsegpt"
    away = {"hellaswag", "arc_challenge"}
    asked: list[str] = []

    def hub(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        task = {"ARC-Easy": "arc_easy", "ARC-Challenge": "arc_challenge", "winogrande_xl": "winogrande"}.get(
            name or "", path.rpartition("/")[2]
        )
        asked.append(task)
        if task in away:
            raise ConnectionError("the hub is away")
        if task == "hellaswag":
            row = {"ind": 1, "activity_label": "A", "ctx_a": "a", "ctx_b": "b", "ctx": "a b", "label": "1"}
            return datasets.DatasetDict(
                dict.fromkeys(
                    ("train", "validation"), datasets.Dataset.from_list([{**row, "endings": [*_WORDS[:4]]}])
                )
            )
        lines = [{"text": " ".join(draw.sample(_WORDS, 4))} for draw in map(random.Random, range(5))]
        rows = datasets.Dataset.from_list(_rows(task.replace("challenge", "easy"), 5, 1) or lines)
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(loading, "hub_answers", lambda: True)
    monkeypatch.delenv("BENCH_DATA_DIR", raising=False)

    def run() -> tuple[Outcome, Record]:
        outcome = _run(tmp_path, model, None, tasks=tasks)
        return outcome, _records(tmp_path)["magnitude", "zeroshot"]

    def foretold() -> int:
        settings = gather({**_FLAGS, "models": f"path:{model}", "tasks": tasks})
        return len(stored(expand(settings).cells, tmp_path))

    outcome, first = run()
    assert outcome == Outcome(done=2) and first.metric("acc_avg_partial/slicegpt") is not None
    assert first.awaited == ("arc_challenge", "hellaswag") and not first.settled and foretold() == 0
    asked.clear()
    outcome, again = run()
    assert outcome == Outcome(cached=2) and again == first
    assert sorted(asked) == ["arc_challenge", "hellaswag"], "each once, not once a cell"
    away.clear()
    outcome, whole = run()
    assert outcome == Outcome(done=2) and whole.settled and foretold() == 2
    assert whole.metric("acc_avg/slicegpt") is not None and whole.metric("acc_avg_partial/slicegpt") is None
    assert whole.metric("acc/piqa") == first.metric("acc/piqa")
    assert run()[0] == Outcome(cached=2)
    assert whole.metric("acc_avg_partial/sparsegpt") is not None, "the hub never had StoryCloze"


def test_shots_stand_in_front_and_are_refused_without_a_split(
    tmp_path: Path, model: Path, data: Path
) -> None:
    assert _run(tmp_path / "out", model, data, methods="dense", tasks="piqa", shots="2").failed == 1
    (record,) = Store(tmp_path / "out").records()
    assert "piqa/train.jsonl is not there, and --shots 2 draws from it" in record.reason
    folder = tmp_path / "data" / "tasks" / "piqa"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text((data / "tasks" / "piqa" / "validation.jsonl").read_text())
    none = _scored(model, data_dir=tmp_path / "data")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows("piqa", 5, 9)))
    two = _scored(model, data_dir=tmp_path / "data", shots=2)
    assert two.tokens > 2 * none.tokens and two.requests == none.requests
    again = _scored(model, data_dir=tmp_path / "data", shots=2)
    assert (
        again.items["piqa"]["acc_norm"] == two.items["piqa"]["acc_norm"]
    ).all() and again.tokens == two.tokens
    assert _scored(model, data_dir=tmp_path / "data").tokens == none.tokens


def test_a_model_of_nans_has_no_accuracy(tmp_path: Path, data: Path) -> None:
    folder = saved_with_tokenizer(tmp_path / "model", "llama", max_position_embeddings=256)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert _run(tmp_path / "out", folder, data, methods="dense", tasks="piqa,winogrande") == Outcome(done=1)
    record = _records(tmp_path / "out")["dense", "zeroshot"]
    for name in ("acc/piqa", "acc_norm/piqa", "acc/winogrande", "acc_stderr/piqa"):
        assert math.isnan(record.metric(name) or 0)
    assert any("log-likelihoods of 9 of 9 items are not finite" in warning for warning in record.warnings)


def test_the_packaged_tasks_are_the_default_of_packaged_models(tmp_path: Path, data: Path) -> None:
    settings = gather(
        {"models": "nano-llama", "methods": "dense", "evaluations": "zeroshot", "limit": "60", "threads": "1"}
    )
    assert execute(expand(settings), tmp_path, _Watcher()) == Outcome(done=1)
    record = _records(tmp_path)["dense", "zeroshot"]
    assert record.protocol == "zeroshot/kjv_continuation,kjv_last_word@limit=60"
    assert (record.metric("acc/kjv_continuation") or 0) > 0.3, "four choices: guessing gives a quarter"
    assert (record.metric("acc/kjv_last_word") or 0) > 0.05
    facts: Any = record.provenance["tasks"]
    assert facts["kjv_last_word"]["source"] == "packaged" and facts["kjv_last_word"]["split"] == "test"


def test_official_data(tmp_path: Path, model: Path, data_dir: Path) -> None:
    """The real files of every default task go through the harness's own configs."""
    from bench.plan.suites import STANDARD

    outcome = _run(
        tmp_path, model, data_dir, methods="dense", tasks=",".join(STANDARD), limit="4", text="kjv"
    )
    assert outcome == Outcome(done=1)
    record = _records(tmp_path)["dense", "zeroshot"]
    for task in STANDARD:
        assert (record.metric(f"acc/{task}") or 0) * 4 in range(5)
        assert not math.isnan(record.metric(f"acc_stderr/{task}") or 0)
