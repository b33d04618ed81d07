"""What `bench run` would be asked for to get a published figure, or why it cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from bench.published.figures import Figure, source_of

__all__ = ["Request", "request"]

Value = str | int | float | bool

_MODELS: Final = {"bloom-1.1b": "bloom-1b1", "bloom-1.7b": "bloom-1b7", "bloom-7.1b": "bloom-7b1"}
_METHODS: Final[dict[str, tuple[str, dict[str, Value]]]] = {
    "dense": ("dense", {}),
    "magnitude": ("magnitude", {}),
    "sparsegpt": ("sparsegpt", {}),
    "sparsegpt+isc": ("sparsegpt", {"saliency": "isc"}),
    "wanda": ("wanda", {}),
    "slicegpt": ("slicegpt", {}),
    "mixed-sparsity": ("sparsegpt@mixed", {"saliency": "isc", "mixed.estimator": "hutchinson"}),
    "mixed-sparsity-obs": ("sparsegpt@mixed", {"mixed.estimator": "hutchinson"}),
}
_OTHER_METHODS: Final = {
    "gptq": "GPTQ is not among bench's methods (--sparsity 0 --bits 4 quantises by SparseGPT's sweep)",
    "adaprune": "AdaPrune is not among bench's methods",
    "slicegpt+rft": "fine-tuned on Alpaca after slicing, with settings of its own: not one-shot",
    "slicegpt-varying": "the shares sliced by layer are not stated",
    "wanda+lora-ft": "fine-tuned after pruning, with settings of its own: not one-shot",
    "wanda+full-ft": "fine-tuned after pruning, with settings of its own: not one-shot",
    "sparsegpt-metric-no-update": "SparseGPT's metric without its update is not among bench's methods",
}
_TASKS: Final = {"lambada": "lambada_openai", "truthfulqa_mc2": "truthfulqa_mc2"}
_CALIBRATIONS: Final = ("c4", "wikitext2", "ptb")
_USUAL_GROUPS: Final = {"magnitude": ("layer",), "wanda": ("per-output", "output;1"), "sparsegpt": ()}
"""How a table's label spells the groups that the method itself compares weights in."""


@dataclass(frozen=True, slots=True)
class Request:
    """A figure as a run of `bench`: one cell and what is measured on it.

    ``parameters`` are those that depart from bench's defaults. ``calibration`` is empty where none is drawn;
    ``length`` and ``window`` count tokens, 0 is the model's context. ``measure``: ``perplexity`` on the data set ``on``,
    ``zeroshot`` on the task ``on``, ``parameters``. ``seeds``: how many the figure is a mean over.
    """

    model: str
    method: str
    parameters: tuple[tuple[str, Value], ...]
    target: str
    calibration: str
    samples: int
    length: int
    measure: str
    on: str
    window: int
    seeds: int = 1

    @property
    def dense(self) -> bool:
        """Whether it is the unpruned model's."""
        return self.method == "dense"


def scheduled(asked: Request) -> bool:
    """Whether the figure depends on the order in which matrices are pruned and their inputs gathered."""
    return bool(asked.calibration) and not asked.target.startswith("slice")


def request(row: Figure) -> Request | str:
    """The run that would give a figure, or one line on why there is none."""
    measured = _measured(row)
    if isinstance(measured, str):
        return measured
    measure, on = measured
    method = _method(row)
    if isinstance(method, str):
        return method
    rule, parameters = method
    target = _target(row)
    if target is None:
        return f"prunes a part of the layers only ({row.pattern}); bench run --layers can"
    if row.wbits not in (2, 3, 4, 8, 16):
        return f"{row.wbits:g} bits are storage in all, not a grid"
    if measure == "perplexity" and row.length is None:
        return "the length of the evaluation windows is not stated"
    if rule not in ("dense", "magnitude") and row.calibration not in _CALIBRATIONS:
        return (
            "the calibration text is not stated"
            if row.calibration in ("none", "unspecified")
            else f"calibrates on {row.calibration.title()}, which is no text of bench"
        )
    drawn = rule not in ("dense", "magnitude")
    return Request(
        model=_MODELS.get(row.model, row.model),
        method=rule,
        parameters=tuple(sorted(parameters.items())),
        target=target + ("" if row.wbits == 16 else f"+{row.wbits:g}bit"),
        calibration=row.calibration if drawn else "",
        samples=(row.samples or 0) if drawn else 0,
        length=(row.calibration_length or 0) if drawn else 0,
        measure=measure,
        on=on,
        window=row.length or 0,
        seeds=int(row.variants.get("seeds", 1)),
    )


def _measured(row: Figure) -> tuple[str, str] | str:
    metric = row.metric
    if found := re.fullmatch(r"ppl_(wikitext2|ptb|c4)", metric):
        return "perplexity", found[1]
    if metric == "ppl_wikitext2_std":
        return "a spread over seeds: the report of the same table's means has it"
    if metric == "acc_avg":
        return f"a mean over tasks ({', '.join(source_of(row).suite) or 'not stated'}): suites are never compared"
    if metric.endswith("shot"):
        return "few-shot; bench scores zero-shot tasks"
    if metric == "acc_storycloze":
        return "StoryCloze is handed out on request only"
    if metric.startswith("acc_"):
        task = metric.removeprefix("acc_")
        return "zeroshot", _TASKS.get(task, task)
    if metric == "num_params":
        return "parameters", ""
    if metric.startswith("runtime_s"):
        return "a time on other hardware; every run records its own (prune_time)"
    return "a speed or size of other hardware; bench kernels and --eval decode measure this machine's"


def _method(row: Figure) -> tuple[str, dict[str, Value]] | str:
    if row.method not in _METHODS:
        return _OTHER_METHODS.get(row.method, f"{row.method} is not among bench's methods")
    rule, parameters = _METHODS[row.method]
    stated = row.variants
    if "pca" in stated:
        return "principal components in FP32; bench computes them in FP64"
    if "group" in stated and stated["group"] not in _USUAL_GROUPS.get(rule, ()):
        return f"weights are compared in other groups than {rule} has ({stated['group']})"
    for name, read in (("percdamp", float), ("blocksize", int)):
        if name in stated:
            parameters = {**parameters, name: read(stated[name])}
    return rule, parameters


def _target(row: Figure) -> str | None:
    if row.pattern == "none":
        return "0%"
    if row.pattern in ("unstructured", "slice") and row.texts["sparsity"]:
        share = f"{(Decimal(row.texts['sparsity']) * 100).normalize():f}%"
        return share if row.pattern == "unstructured" else f"slice{share}"
    return row.pattern if re.fullmatch(r"\d+:\d+", row.pattern) else None
