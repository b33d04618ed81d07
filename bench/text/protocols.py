"""What text a figure is made on: calibration and evaluation halves, and the three standard pairs.

A half is plain strings and numbers, and its ``id`` names it completely: two evaluation figures may share a
column exactly where their ids are equal. What was really read (hashes, revision, token counts) is the
provenance that ``bench.text.sources`` gives with the windows.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from methods.errors import UserError

__all__ = ["DATASETS", "PROTOCOLS", "CalibrationProtocol", "EvaluationProtocol", "Protocol", "standard"]

DATASETS = ("kjv", "wikitext2", "ptb", "c4")
PROTOCOLS = ("nano", "lab", "paper")
JOINS = {"kjv": "\n\n", "wikitext2": "\n\n", "ptb": " ", "c4": " "}
"""What stands between the documents of a text that is evaluated."""

_SPLITS = {"kjv": "test", "wikitext2": "test", "ptb": "test", "c4": "validation"}
_VALIDATION = ("kjv", "wikitext2", "ptb")
"""Sets whose validation split may be evaluated, to choose parameters on; C4's is what others test on."""
_CHANGES = ("calibration", "calibration_length", "samples", "length", "windows")


@dataclass(frozen=True)
class CalibrationProtocol:
    """``samples`` windows of ``length`` tokens drawn from a split; length 0 is the model's context."""

    dataset: str
    split: str
    samples: int
    length: int

    @property
    def id(self) -> str:
        """Such as ``c4:64x512`` or ``kjv:128xcontext``; a split other than train is named."""
        text = self.dataset if self.split == "train" else f"{self.dataset}/{self.split}"
        return f"{text}:{self.samples}x{self.length or 'context'}"


@dataclass(frozen=True)
class EvaluationProtocol:
    """Disjoint windows of ``length`` tokens of a split's documents, joined and tokenised as one text.

    length 0 stands for the model's context. Without ``windows`` every whole window counts, else that many:
    the ``first``, or ``spread`` evenly over the text. ``documents``, where given, is how many of the
    split's first documents are read. The stride equals the length: windows never overlap.
    """

    name: str
    dataset: str
    split: str
    length: int
    windows: int | None
    join: str
    selection: str = "spread"
    documents: int | None = None

    @property
    def id(self) -> str:
        """Such as ``lab/wikitext2``, with what differs from the standard: ``lab/wikitext2[length=1024]``."""
        usual = _evaluation(self.name, self.dataset)
        shown = {
            "split": self.split,
            "length": self.length or "context",
            "windows": "all" if self.windows is None else self.windows,
            "join": repr(self.join),
            "selection": self.selection,
            "documents": "all" if self.documents is None else self.documents,
        }
        changed = [
            f"{key}={text}" for key, text in shown.items() if getattr(self, key) != getattr(usual, key)
        ]
        return f"{self.name}/{self.dataset}" + (f"[{','.join(changed)}]" if changed else "")


@dataclass(frozen=True)
class Protocol:
    """Both halves under the name of the standard they come from."""

    name: str
    calibration: CalibrationProtocol
    evaluation: EvaluationProtocol


_CALIBRATIONS = {
    "nano": CalibrationProtocol("kjv", "train", samples=128, length=0),
    "lab": CalibrationProtocol("c4", "train", samples=64, length=512),
    "paper": CalibrationProtocol("c4", "train", samples=128, length=2048),
}
_TEXTS = {"nano": "kjv", "lab": "wikitext2", "paper": "wikitext2"}


def _evaluation(name: str, dataset: str) -> EvaluationProtocol:
    """The standard's evaluation half on ``dataset``."""
    base = EvaluationProtocol(name, dataset, _SPLITS[dataset], length=0, windows=None, join=JOINS[dataset])
    if name == "nano":
        return base
    if name == "lab":
        return replace(base, length=512, windows=64)
    if dataset == "c4":
        # As the SparseGPT code reads C4: 256 windows from the start of the first 1,100 documents.
        return replace(base, length=2048, windows=256, selection="first", documents=1100)
    return replace(base, length=2048)


def standard(name: str, text: str | None = None, **changes: str | int) -> Protocol:
    """Protocol ``nano``, ``lab`` or ``paper``, evaluated on ``text`` (its own where None), with changes.

    ``text`` is a data set, or ``kjv/validation`` and the like for its validation split: what parameters are
    chosen on, since a choice on test text makes every later figure on it too good.
    Changes: ``calibration`` (a data set), ``calibration_length``, ``samples``; ``length`` and ``windows``
    of the evaluation.
    Lengths count tokens, 0 is the model's context; ``windows`` 0 is all of them.
    Raises UserError for an unknown name or a count that is none.
    """
    _known("--protocol", name, PROTOCOLS)
    dataset, split = _text(_TEXTS[name] if text is None else text)
    for key in changes:
        if key not in _CHANGES:
            raise TypeError(f"standard() has no change {key!r}; it has {', '.join(_CHANGES)}")
    calibration, evaluation = _CALIBRATIONS[name], _evaluation(name, dataset)
    evaluation = replace(evaluation, split=split or evaluation.split)
    if "calibration" in changes:
        source = _known("--calibration", str(changes["calibration"]), DATASETS)
        calibration = replace(calibration, dataset=source)
    if "samples" in changes:
        calibration = replace(calibration, samples=_count("--samples", changes["samples"], 1))
    if "calibration_length" in changes:
        calibration = replace(calibration, length=_length(changes["calibration_length"]))
    if "length" in changes:
        evaluation = replace(evaluation, length=_length(changes["length"]))
    if "windows" in changes:
        evaluation = replace(evaluation, windows=_count("--windows", changes["windows"], 0) or None)
    return Protocol(name, calibration, evaluation)


def _text(text: str) -> tuple[str, str]:
    """Data set and split of an evaluation text; no split where it is the set's usual one."""
    dataset, slash, split = text.partition("/")
    usual = dataset in DATASETS and split == _SPLITS[dataset]
    if slash and not usual:
        return _known("--text", text, [f"{name}/validation" for name in _VALIDATION]).partition("/")[::2]
    return _known("--text", dataset, DATASETS), ""


def _known(option: str, value: str, allowed: Iterable[str]) -> str:
    allowed = tuple(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{option} {value[:60]!r} is unknown; use {', '.join(allowed)}{hint}")
    return value


def _count(option: str, value: str | int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{option} is {value!r}; use a whole number, {least} at least")
    return value


def _length(value: str | int) -> int:
    count = _count("--length", value, 0)
    if count == 1:
        raise UserError("--length is 1; a window needs two tokens at least, or 0 for the model's context")
    return count
