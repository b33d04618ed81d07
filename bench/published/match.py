"""Ours against published: a difference where the protocol is the same, else the reasons why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from bench.published.figures import Figure, caveats_of, figures, source_of
from bench.published.requests import Request, request, scheduled
from bench.results.records import Record

__all__ = ["Match", "Mismatch", "Ours", "compare", "known_model", "ours_of"]

_CALIBRATION: Final = re.compile(r"^([a-z0-9]+)(/[a-z]+)?:(\d{1,9})x(\d{1,9}|context)$")
_FREE: Final = frozenset(
    (
        *("reference", "schedule", "hessian_dtype", "layers", "recovery", "orientation"),
        *("mixed.probes", "mixed.windows", "mixed.paper_literal"),
    )
)
"""Parameters that change an implementation, not the setting that a paper describes, or that are judged by themselves
or in notes."""
_USUAL: Final[dict[str, Any]] = {
    "percdamp": 0.01,
    "blocksize": 128,
    "saliency": "obs",
    "grid": "minmax",
    "groupsize": 0,
    "round_interval": 8,
    "slice_head": False,
    "slope": 0.0,
    "mixed.alpha": 0.1,
    "mixed.level": "matrix",
}
"""What the papers have where a row does not say otherwise."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One figure of our own with the protocol it was measured by.

    ``measure`` and ``on`` as in ``Request``; ``value`` is a mean over ``seeds`` calibration draws, accuracies and
    parameters as recorded. ``window`` counts tokens, 0 where it is not recorded. ``deviations``: what keeps the
    text from being the whole one that papers evaluate, one reason each. ``accuracy``: ``acc`` or ``acc_norm``.
    """

    model: str
    method: str
    target: str
    measure: str
    on: str
    value: float
    calibration: str = ""
    parameters: Mapping[str, Any] | None = None
    window: int = 0
    deviations: tuple[str, ...] = ()
    dtype: str = ""
    seeds: int = 1
    accuracy: str = ""
    harness: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A published figure of the same protocol. ``difference`` is ours less published, in the published unit; None
    where either is not finite. ``notes``: what to know before calling the difference an error.
    """

    figure: Figure
    ours: Ours
    difference: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A published figure of the same model, method, target and metric, and why it is no figure of the same protocol."""

    figure: Figure
    ours: Ours
    reasons: tuple[str, ...]


@cache
def _requests() -> tuple[tuple[Figure, Request], ...]:
    asked = ((row, request(row)) for row in figures())
    return tuple((row, found) for row, found in asked if not isinstance(found, str))


def known_model(model: str) -> bool:
    """Whether anything is published on a model of that id."""
    return any(found.model == model for _, found in _requests())


def compare(ours: Ours) -> tuple[tuple[Match, ...], tuple[Mismatch, ...]]:
    """Published figures of one of ours: those of the same protocol, and those that come near with their reasons.

    Near is the same model, method, target and metric. Figures that are not primary (ablations, copies, repeats) are
    matched only where no primary one is, and never listed as near.
    """
    near = [
        (row, asked)
        for row, asked in _requests()
        if (asked.model, asked.target, asked.measure, asked.on)
        == (ours.model, ours.target, ours.measure, ours.on)
        and asked.method == ours.method
    ]
    judged = [(row, asked, _reasons(ours, row, asked)) for row, asked in near]
    equal = [(row, asked) for row, asked, reasons in judged if not reasons]
    primary = [(row, asked) for row, asked in equal if row.primary]
    matches = tuple(_match(ours, row, asked) for row, asked in primary or equal)
    return matches, tuple(
        Mismatch(row, ours, reasons) for row, _, reasons in judged if reasons and row.primary
    )


def _match(ours: Ours, row: Figure, asked: Request) -> Match:
    value = 100 * ours.value if ours.measure == "zeroshot" else ours.value
    difference = value - row.value
    return Match(
        row, ours, difference if math.isfinite(difference) else None, tuple(_notes(ours, row, asked))
    )


def _reasons(ours: Ours, row: Figure, asked: Request) -> tuple[str, ...]:
    found: list[str] = []
    if ours.measure == "perplexity":
        if not ours.window:
            found.append("our window length is not recorded")
        elif asked.window != ours.window:
            window = f"at {asked.window} tokens" if asked.window else "at the model's longest context"
            found.append(f"evaluated {window}, ours {ours.window}")
        found += ours.deviations
    elif ours.measure == "zeroshot":
        found += _scored_otherwise(ours, row)
    if ours.method == "dense":
        return tuple(found)
    if asked.calibration:
        found += _drawn_otherwise(ours, asked)
    parameters = ours.parameters or {}
    if scheduled(asked) and (known := source_of(row).schedule) and known != parameters.get("schedule"):
        found.append(f"pruned in schedule {known}, ours {parameters.get('schedule', 'not recorded')}")
    if recovery := parameters.get("recovery"):
        found.append(f"one shot, ours trained after pruning ({recovery})")
    if layers := parameters.get("layers"):
        found.append(f"all layers pruned, ours {layers} only")
    stated = dict(asked.parameters)
    for name, value in sorted(parameters.items()):
        if name in _FREE:
            continue
        expected = stated.get(name, _USUAL.get(name))
        if expected is None:
            # estimators and the like: a paper that does not state them cannot differ, a set one is ours alone
            found += [f"{name} is not stated, ours {value}"] if value not in ("", None) else []
        elif not _same(expected, value):
            found.append(f"{name} {expected}, ours {value}")
    found += [
        f"{name} {value}, ours not recorded" for name, value in stated.items() if name not in parameters
    ]
    return tuple(found)


def _same(expected: object, value: object) -> bool:
    if isinstance(expected, int | float) and isinstance(value, int | float):
        return math.isclose(expected, value)
    return expected == value


def _drawn_otherwise(ours: Ours, asked: Request) -> list[str]:
    found = _CALIBRATION.match(ours.calibration)
    if found is None:
        return [f"calibrated on {asked.calibration}, ours on {ours.calibration or 'nothing recorded'}"]
    reasons = []
    text = found[1] + (found[2] or "")
    if text != asked.calibration:
        reasons.append(f"calibrated on {asked.calibration}, ours on {text}")
    if int(found[3]) != asked.samples:
        reasons.append(f"{asked.samples} calibration samples, ours {found[3]}")
    length = "context" if asked.length == 0 else str(asked.length)
    if found[4] != length:
        reasons.append(f"calibration samples of {length} tokens, ours {found[4]}")
    return reasons


def _scored_otherwise(ours: Ours, row: Figure) -> list[str]:
    source = source_of(row)
    reasons = []
    if source.accuracy != ours.accuracy:
        reasons.append(
            f"whether acc or acc_norm is not stated, ours {ours.accuracy}"
            if source.accuracy == "not stated"
            else f"{source.accuracy}, ours {ours.accuracy}"
        )
    if source.harness != ours.harness:
        reasons.append(f"scored by {source.harness}, ours by {ours.harness or 'a harness not recorded'}")
    return reasons + list(ours.deviations)


def _notes(ours: Ours, row: Figure, asked: Request) -> list[str]:
    notes = [f"{caveat.kind}: {caveat.text}" for caveat in caveats_of(row)]
    if not row.primary:
        notes.append("not the source's primary figure: an ablation, a copy or a repeat")
    if math.isnan(row.value):
        notes.append("published as not a number")
    if ours.dtype == "bfloat16":
        notes.append("ours is computed in bfloat16, which rounds more coarsely than the papers' float16")
    if asked.seeds > 1 or ours.seeds > 1:
        notes.append(f"published over {asked.seeds} seed(s), ours over {ours.seeds}")
    parameters = ours.parameters or {}
    if scheduled(asked):
        if not source_of(row).schedule:
            notes.append(f"the schedule is not stated, ours {parameters.get('schedule', 'not recorded')}")
        if (hessian := parameters.get("hessian_dtype", "float32")) != "float32":
            notes.append(f"ours gathers its Hessians in {hessian}, the published codes in float32")
    if orientation := parameters.get("orientation"):
        notes.append(f"ours keeps orientation {orientation}, which among equal spans moves rounding only")
    if parameters.get("reference") is False and source_of(row).code == "published":
        notes.append("ours removes exactly what is asked; the published code removes slightly more")
    return notes


def ours_of(records: Sequence[Record], values: Mapping[tuple[str, str], float | None]) -> list[Ours]:
    """What the records of one cell, over seeds, have that papers print.

    ``records``: those of one model revision, method, target, parameters and protocol. ``values``: means by (phase,
    metric). Perplexities, accuracies and parameter counts that are finite or infinite, never missing ones.
    """
    found = []
    prune = next((record for record in records if record.phase == "prune"), None)
    for phase in ("prune", "perplexity", "zeroshot"):
        mine = [record for record in records if record.phase == phase and record.status == "done"]
        if not mine:
            continue
        known = {
            name: value for (where, name), value in values.items() if where == phase and value is not None
        }
        for measure, on, value, accuracy in _published_kinds(phase, known, mine[0]):
            found.append(_ours(mine, prune, measure, on, value, accuracy))
    return found


def _published_kinds(
    phase: str, known: Mapping[str, float], record: Record
) -> list[tuple[str, str, float, str]]:
    if phase == "prune":
        return [("parameters", "", known["parameters"], "")] if "parameters" in known else []
    if phase == "perplexity":
        on = str(_evaluation(record).get("dataset") or record.protocol.partition("/")[2].partition("[")[0])
        return [("perplexity", on, known["perplexity"], "")] if "perplexity" in known else []
    scored = (name.partition("/") for name in known)
    return [
        ("zeroshot", task, known[f"{kind}/{task}"], kind)
        for kind, _, task in scored
        if kind in ("acc", "acc_norm") and task
    ]


def _ours(
    records: Sequence[Record], prune: Record | None, measure: str, on: str, value: float, accuracy: str
) -> Ours:
    first = records[0]
    window = _evaluation(first).get("length") if measure == "perplexity" else 0
    version = first.provenance.get("lm_eval")
    deviations = {
        "perplexity": _text_deviations,
        "zeroshot": _task_deviations,
    }.get(measure, lambda _: [])(first)
    if prune is not None:
        deviations += _notes_of(prune.provenance.get("calibration"), "calibration")
    return Ours(
        model=first.model,
        method=first.method,
        target=first.target,
        measure=measure,
        on=on,
        value=value,
        calibration=first.calibration,
        parameters=first.parameters,
        window=window if isinstance(window, int) else 0,
        deviations=tuple(deviations),
        dtype=first.dtype,
        seeds=len({record.seed for record in records}),
        accuracy=accuracy,
        harness=f"lm-eval {version}" if isinstance(version, str) else "",
    )


def _evaluation(record: Record) -> Mapping[str, Any]:
    facts = record.provenance.get("evaluation")
    return facts if isinstance(facts, dict) else {}


def _text_deviations(record: Record) -> list[str]:
    """C4 is read as the SparseGPT code reads it, 256 first windows; the other texts whole, their test split."""
    facts = _evaluation(record)
    if not facts:
        return ["what our text was is not recorded"]
    reasons = []
    c4 = facts.get("dataset") == "c4"
    split = "validation" if c4 else "test"
    if facts.get("split") != split:
        reasons.append(f"on the {split} split, ours on {facts.get('split')}")
    if c4:
        if facts.get("windows") != 256 or facts.get("selection") not in ("first", "all"):
            reasons.append(
                f"on the first 256 windows, ours on {facts.get('windows')} ({facts.get('selection')})"
            )
    elif facts.get("selection") != "all":
        reasons.append(
            f"on the whole text, ours on {facts.get('windows')} of {facts.get('text_windows')} windows"
        )
    return reasons + _notes_of(facts, "evaluation")


def _notes_of(facts: object, what: str) -> list[str]:
    notes = facts.get("notes") if isinstance(facts, dict) else None
    return [f"our {what} text: {note}" for note in notes] if isinstance(notes, list) else []


def _task_deviations(record: Record) -> list[str]:
    reasons = []
    if limit := record.provenance.get("limit"):
        reasons.append(f"on every item, ours on the first {limit}")
    if shots := record.provenance.get("shots"):
        reasons.append(f"zero-shot, ours {shots}-shot")
    return reasons
