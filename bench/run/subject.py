"""What a cell works on, loaded once per model: checkpoint, tokenizer, windows; and the keys of its records."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluate.zeroshot.tasks import data_digest
from bench.models.load import Checkpoint, resolve, tokenizer
from bench.plan.cells import PROMPT_TOKENS
from bench.plan.saving import PHASES
from bench.results.keys import cell_key, environment_key, subject_key
from bench.run.sources import evaluation_sources, prune_sources
from bench.text import sources as texts
from methods import registry
from methods.errors import PruneBenchError, UserError
from methods.stream.text import text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bench.plan.cells import Cell
    from bench.text.protocols import CalibrationProtocol, EvaluationProtocol

__all__ = ["Keys", "Subject", "Subjects", "keys_without_model"]


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of one cell: see ``bench.results.keys``. ``phases`` maps a phase to its digest of sources."""

    cell: str
    environment: str
    subjects: dict[str, str]
    phases: dict[str, str]


class Subject:
    """A model on disk with its tokenizer and windows; what is asked for twice is made once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._windows: dict[tuple[Any, ...], texts.Windows] = {}

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return tokenizer(self.checkpoint)

    @functools.cached_property
    def context(self) -> int:
        """Longest context the model was made for, in tokens."""
        return self.checkpoint.shape.positions

    def calibration(self, protocol: CalibrationProtocol, seed: int, data_dir: str) -> texts.Windows:
        """Calibration windows of a seed. Raises DataUnavailable."""
        make = functools.partial(texts.calibration_windows, protocol, self.tokenizer, seed=seed)
        return self._once(("calibration", protocol, seed, data_dir), make)

    def heldout(self, protocol: CalibrationProtocol, data_dir: str) -> texts.Windows:
        """Held-out windows, the same for every method and seed. Raises DataUnavailable."""
        make = functools.partial(texts.heldout_windows, protocol, self.tokenizer)
        return self._once(("heldout", protocol, data_dir), make)

    def evaluation(self, protocol: EvaluationProtocol, data_dir: str) -> texts.Windows:
        """Evaluation windows. Raises DataUnavailable."""
        make = functools.partial(texts.evaluation_windows, protocol, self.tokenizer)
        return self._once(("evaluation", protocol, data_dir), make)

    def _once(self, key: tuple[Any, ...], make: Callable[..., texts.Windows]) -> texts.Windows:
        if key not in self._windows:
            folder = Path(key[-1]) if key[-1] else None
            self._windows[key] = make(context=self.context, data_dir=folder)
        return self._windows[key]

    def keys(self, cell: Cell, environment: dict[str, Any]) -> Keys:
        """Digests of a cell on this model; makes its windows, since other text is another cell."""
        drawn: dict[str, str] = {
            "code": evaluation_sources("size") if cell.dense else prune_sources(cell.method, cell.recovery)
        }
        drawn["device"] = cell.device.partition(":")[0]
        if not cell.dense:
            elsewhere = registry.outside(cell.method, dict(cell.parameters))
            drawn |= {f"outside/{name}": version for name, version in elsewhere.items()}
        if cell.calibration_workers > 1:
            drawn["calibration workers"] = str(cell.calibration_workers)
        if cell.calibration is not None and cell.seed is not None:
            drawn["calibration"] = text_hash(
                self.calibration(cell.calibration, cell.seed, cell.data_dir).tokens
            )
        if cell.heldout is not None:
            drawn["heldout"] = text_hash(self.heldout(cell.heldout, cell.data_dir).tokens)
        drawn |= {f"file {name}": _content(path) for name, path in _files(cell)}
        revision = self.checkpoint.revision
        subjects = {"prune": _subject(cell, revision, "")}
        phases = {"prune": drawn["code"]}
        for evaluation in cell.evaluations:
            subjects[evaluation] = _subject(cell, revision, cell.protocol(evaluation))
            read = self._read(evaluation, cell)
            # a speed is of a machine as much as of a model
            where = environment_key(environment) if evaluation == "decode" else ""
            packed = evaluation_sources("zeroshot-packed") if evaluation == "zeroshot" and cell.packed else ""
            phases[evaluation] = evaluation_sources(evaluation) + packed + read + where
        for phase in () if cell.dense else PHASES:
            subjects[phase] = _subject(cell, revision, phase)
            phases[phase] = evaluation_sources("save")
        return Keys(cell_key(subjects["prune"], drawn), environment_key(environment), subjects, phases)

    def _read(self, evaluation: str, cell: Cell) -> str:
        """Digest of the data that an evaluation reads. Raises DataUnavailable."""
        if evaluation == "zeroshot":
            return data_digest(cell.tasks, cell.data_dir, cell.shots)
        windows = self.evaluation(cell.evaluation, cell.data_dir).tokens
        return text_hash(windows[:1, :PROMPT_TOKENS] if evaluation == "decode" else windows)


class Subjects:
    """Subjects by model id; a model that cannot be had fails once, not once per cell."""

    def __init__(self) -> None:
        self._made: dict[str, Subject | PruneBenchError] = {}

    def get(self, model: str) -> Subject:
        """The model's subject. Raises the same PruneBenchError every time where there is none."""
        if model not in self._made:
            try:
                self._made[model] = Subject(resolve(model))
            except PruneBenchError as error:
                self._made[model] = error
        found = self._made[model]
        if isinstance(found, PruneBenchError):
            raise found
        return found

    def keep_only(self, model: str) -> None:
        """Forget the windows of other models."""
        self._made = {
            name: found
            for name, found in self._made.items()
            if name == model or isinstance(found, PruneBenchError)
        }


def keys_without_model(cell: Cell, environment: dict[str, Any]) -> Keys:
    """Digests for a cell that is refused or fails before its model is loaded."""
    subject = _subject(cell, "", "")
    return Keys(
        cell_key(subject, "unpulled"), environment_key(environment), {"prune": subject}, {"prune": "unpulled"}
    )


def _files(cell: Cell) -> list[tuple[str, Path]]:
    """Parameters of the cell's method that name a file or folder, with what they name."""
    declared = {} if cell.dense else registry.declared(cell.method)
    given = [
        (name, str(value)) for name, value in cell.parameters if name in declared and declared[name].file
    ]
    return [(name, Path(value)) for name, value in given if value]


def _content(path: Path) -> str:
    """Digest of a file, or of the files of a folder. Raises UserError where one cannot be read."""
    found = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give another, or leave it out") from None
    return found.hexdigest()[:16]


def _subject(cell: Cell, revision: str, evaluation: str) -> str:
    return subject_key(
        model=cell.model,
        revision=revision,
        method=cell.method,
        parameters={} if cell.dense else registry.recorded(cell.method, dict(cell.parameters)),
        target=cell.target,
        seed=cell.seed,
        dtype=cell.dtype,
        calibration=cell.calibration.id if cell.calibration else "",
        evaluation=evaluation,
        schedule=cell.schedule,
        hessian_dtype=cell.hessian_dtype,
        layers=cell.layers or None,
        recovery=cell.recovery or None,
    )
