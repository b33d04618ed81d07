"""What is measured on a cell's weights, by the name of the evaluation; returns figures, writes no records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from bench.evaluate.perplexity import DenseStates, score
from bench.measure.memory import PeakMemory
from bench.results.records import Metric
from bench.run import guards
from bench.run.accuracy import zeroshot
from bench.run.decoding import decode
from bench.run.kept import kept_within
from bench.run.phases import Figures, notes_on, source_of
from methods.interface import Run
from methods.stream.source import CheckpointSource

if TYPE_CHECKING:
    from bench.plan.cells import Cell
    from bench.run.subject import Subject

__all__ = ["EVALUATIONS", "Evaluation", "Weights"]


@dataclass(frozen=True, slots=True)
class Weights:
    """What is evaluated: a cell's weights. ``overlay`` is the folder of its pruned blocks (None: dense),
    ``dense_states`` the file of the dense model's last states, which the cells of a model share.
    """

    cell: Cell
    subject: Subject
    overlay: Path | None
    dense_states: Path

    def source(self) -> CheckpointSource:
        """The weights, block by block."""
        return source_of(self.cell, self.subject, self.overlay)


Evaluation = Callable[[Weights, Run], Figures]


def perplexity(weights: Weights, run: Run) -> Figures:
    """Perplexity on the cell's evaluation windows; against the dense model where this is a pruned one."""
    cell, subject = weights.cell, weights.subject
    states = DenseStates(weights.dense_states)
    windows = subject.evaluation(cell.evaluation, cell.data_dir)
    tokens = torch.from_numpy(windows.tokens)
    dense = None
    if weights.overlay is not None:
        dense = source_of(cell, subject)
        if not states.exists():
            score(dense, tokens, run, dense_states=states)
    with PeakMemory(cell.device) as memory:
        scores = score(weights.source(), tokens, run, dense=dense, dense_states=states)
    # what the comparison with the dense model takes is not the model's
    took = scores.seconds["forward"] + scores.seconds["loss"]
    metrics = [
        Metric(name="perplexity", unit="1", value=scores.perplexity),
        Metric(name="nll", unit="nat/token", value=scores.nll),
    ]
    arrays = {"nll": scores.loss}
    alarms = (
        *guards.of_blocks(scores.blocks),
        *guards.of_loss(
            scores.nll, subject.checkpoint.shape.vocabulary, states.loss() if dense is not None else None
        ),
    )
    if scores.divergence is not None and scores.flips is not None:
        metrics += [
            Metric(name="kl_to_dense", unit="nat/token", value=float(scores.divergence.mean())),
            Metric(name="top1_flip_rate", unit="1", value=float(scores.flips.mean())),
        ]
        arrays |= {"kl_to_dense": scores.divergence, "top1_flip_rate": scores.flips}
    metrics += [
        Metric(name="tokens", unit="1", value=scores.predicted),
        Metric(name="tokens_per_second", unit="token/s", value=scores.tokens / took),
        Metric(name="eval_time", unit="s", value=took),
        Metric(name="peak_memory", unit="byte", value=memory.peak),
        Metric(name="base_memory", unit="byte", value=memory.base),
    ]
    kept = kept_within(cell, "perplexity", memory)
    return Figures(
        metrics=tuple(metrics),
        seconds=scores.seconds,
        arrays=arrays,
        warnings=(*kept.warnings, *guards.texts(alarms), *notes_on(windows)),
        provenance={
            "evaluation": windows.provenance,
            "memory": kept.facts,
            "blocks": [{"change": passed.change, "norm": passed.norm} for passed in scores.blocks],
            **({"guards": guards.facts(alarms)} if alarms else {}),
        },
    )


EVALUATIONS: Final[Mapping[str, Evaluation]] = {
    "perplexity": perplexity,
    "zeroshot": zeroshot,
    "decode": decode,
}
"""Every evaluation of ``bench.evaluate.available``."""
