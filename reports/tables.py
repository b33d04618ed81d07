"""Comparison tables, built once as text and shown by the page, the Markdown report and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from reports.comparison import (
    DENSE,
    QUALITY_PHASE,
    SAVE_PHASE,
    SIZE_PHASE,
    Comparison,
    Group,
    Row,
    asked_of,
)
from reports.standings import standings
from reports.statistics import Summary
from reports.wording import MISSING, clean, figure, metric_title, percent_change, spread

NO_SUMMARY: Final = Summary(None, None, 0)
_QUALITY: Final = (
    ("KL to dense, nat/token", QUALITY_PHASE, "kl_to_dense"),
    ("Top-1 flips", QUALITY_PHASE, "top1_flip_rate"),
    ("Held-out error", SIZE_PHASE, "heldout_error"),
)
_COST: Final = (
    ("Sparsity achieved", SIZE_PHASE, "sparsity"),
    ("Weights removed", SIZE_PHASE, "weights_removed"),
    ("Parameters", SIZE_PHASE, "parameters"),
    ("Non-zero parameters", SIZE_PHASE, "parameters_nonzero"),
    ("Bytes", SIZE_PHASE, "bytes"),
    ("Prune time", SIZE_PHASE, "prune_time"),
    ("Recovery time", SIZE_PHASE, "recover_time"),
    ("Recovery steps", SIZE_PHASE, "recover_steps"),
    ("Tokens trained on", SIZE_PHASE, "recover_tokens"),
    ("Parameters trained", SIZE_PHASE, "recover_parameters"),
    ("Added memory, prune", SIZE_PHASE, "added_memory"),
)
_SAVED: Final = (
    (("On disk, dense", SAVE_PHASE, "saved_bytes_dense"), None),
    (("On disk, sliced", SAVE_PHASE, "saved_bytes_sliced"), None),
    (
        ("On disk, bitmaps", SAVE_PHASE, "saved_bytes_bitmap"),
        ("Bound, bitmaps", SIZE_PHASE, "bytes_bitmap"),
    ),
    (
        ("On disk, quantised", SAVE_PHASE, "saved_bytes_quantised"),
        ("Bound, quantised", SIZE_PHASE, "bytes_quantised"),
    ),
)
"""What files took, each beside the closed form that it is to be held against."""
_WHOLE_MEMORY: Final = ("Peak memory, prune", SIZE_PHASE, "peak_memory")
_TASK_METRICS: Final = ("acc_avg/", "acc_avg_partial/", "acc/", "acc_norm/")
_SUITE_MEANS: Final = {"acc_avg": "Mean", "acc_avg_partial": "Partial mean"}
"""Means over the tasks of a suite; partial where some could not be had."""
_SPEED: Final = (
    ("Decode, token/s", "decode", "decode_tokens_per_second"),
    ("Packed as bitmap, token/s", "decode", "decode_tokens_per_second_bitmap"),
    ("Bitmap to dense", "decode", "decode_speedup"),
    ("Packed as N:M, token/s", "decode", "decode_tokens_per_second_nm"),
    ("N:M to dense", "decode", "decode_speedup_nm"),
    ("transformers' generate, token/s", "decode", "decode_tokens_per_second_generate"),
    ("First token", "decode", "time_to_first_token"),
    ("Peak memory, decode", "decode", "decode_peak_memory"),
)
_SHOWN: Final = {(phase, name) for _, phase, name in (*_QUALITY, *_COST)} | {(QUALITY_PHASE, "perplexity")}
SINGLE_NOTE: Final = (
    "Times, speeds and memory are single measurements on a machine that may have been busy with other work."
)
_ADDED_NOTE: Final = "Added memory is the peak less what the process held before pruning began."
_RECOVERED_NOTE: Final = (
    "These models were trained after pruning, on the calibration text: they are no one-shot results, and places "
    "are among themselves. Sizes, times and memory count all stages of a gradual schedule."
)
_BYTES_NOTE: Final = "Bytes are the size with zeros stored dense."
_DISK_NOTE: Final = (
    "On disk is what a saved model's weight files take, headers and all; "
    "bounds are the same form reckoned from counts."
)
_PACKED_NOTE: Final = (
    "Quantised sizes are those of the packed form, its scales and zero points included; "
    "zeros take as many bits there as other weights."
)
_RATE_NOTE: Final = (
    "Evaluation's tokens per second is how fast the run scored text with zeros stored dense: "
    "no measure of what sparsity gains."
)
_HELDOUT_NOTE: Final = (
    "Held-out error is the relative squared output error of the pruned matrices on text never drawn for "
    "calibration, averaged with their sizes as weights."
)
_CALIBRATION_NOTE: Final = (
    "Calibration is written text:windows x length, the length of a window in tokens, “context” for the "
    "model's whole context."
)
_NAMES: Final = ("Method", "Target")
_CONTEXT: Final = ("Calibration", "Seeds")


class Shown(str):
    """A cell as it is read, with the number that it sorts by."""

    order: float | None

    def __new__(cls, text: str, order: float | None) -> Shown:
        """The text of the cell; a number that is none sorts as missing."""
        shown = super().__new__(cls, text)
        shown.order = None if order is None or math.isnan(order) else float(order)
        return shown


@dataclass(frozen=True)
class Table:
    """Text cells; the first `headers` columns name the row, the last `words` are text, the rest figures.

    `notes` are the sentences to stand in a line below the table.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    headers: int
    words: int = 0
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> range:
        """The columns that hold figures."""
        return range(self.headers, len(self.columns) - self.words)


def figure_of(row: Row, phase: str, name: str, headed: str = "") -> str:
    """One figure of a row, with its interval where seeds give one; the unit left out where `headed` by it."""
    summary = row.figures.get((phase, name), NO_SUMMARY)
    unit = row.units.get((phase, name), "1")
    unit = "1" if unit == headed else unit
    return Shown(spread(figure(summary.mean, unit, name), summary.half_width, unit, name), summary.mean)


def _names(row: Row) -> tuple[str, str]:
    return (clean(row.name), clean(row.target))


def _figures(row: Row, columns: Sequence[tuple[str, str, str]]) -> list[str]:
    return [figure_of(row, phase, name, title.rpartition(", ")[2]) for title, phase, name in columns]


def change_of(row: Row) -> str:
    """The change of perplexity against the dense model, in percent."""
    if row.method == DENSE:
        return MISSING
    half = row.change.half_width
    return Shown(percent_change(row.change.mean) + (f" ± {100 * half:.2g}" if half else ""), row.change.mean)


def seeds_of(row: Row) -> str:
    """The seeds averaged over, in words."""
    seeds = row.seeds
    if not seeds:
        return "none"
    if len(seeds) > 4:
        return f"{len(seeds)} seeds"
    return ", ".join(clean(seed, 20) for seed in seeds)


def quality_table(group: Group) -> Table:
    """Perplexity, its increase over dense, KL and flips of one group; or its accuracies, or its speeds."""
    measured = measured_columns(group)
    places = {
        id(row): f"{place} of {len(standing.rows)}"
        for standing in standings(group)
        for place, row in enumerate(standing.rows, 1)
        if len(standing.rows) > 1
    }
    titles = ["Perplexity", "Change from dense", "Place", *(title for title, _, _ in (*_QUALITY, *measured))]
    rows = [
        [
            *_names(row),
            figure_of(row, QUALITY_PHASE, "perplexity"),
            change_of(row),
            places.get(id(row), MISSING),
            *_figures(row, (*_QUALITY, *measured)),
            *(clean(row.calibration) or "none", seeds_of(row)),
        ]
        for row in group.rows
    ]
    table = _table("Quality", [*_NAMES, *titles, *_CONTEXT], rows, words=len(_CONTEXT))
    notes = [_RECOVERED_NOTE] if group.key.recovered else []
    if "Held-out error" in table.columns:
        notes.append(_HELDOUT_NOTE)
    if any(column[1:] in {speed[1:] for speed in _SPEED} for column in measured):
        notes.append(SINGLE_NOTE)
    if any(row.calibration for row in group.rows):
        notes.append(_CALIBRATION_NOTE)
    return replace(table, notes=tuple(notes))


def measured_columns(group: Group) -> tuple[tuple[str, str, str], ...]:
    """Accuracies and speeds that a group has, as columns."""
    keys = dict.fromkeys(key for row in group.rows for key in row.figures)
    tasks = [(_task_title(name), phase, name) for phase, name in keys if name.startswith(_TASK_METRICS)]
    return (*tasks, *(column for column in _SPEED if column[1:] in keys))


def suite_columns(groups: Sequence[Group]) -> tuple[tuple[str, str, str], ...]:
    """The means over suites of tasks that some group has, as columns."""
    return tuple(
        dict.fromkeys(
            column
            for group in groups
            for column in measured_columns(group)
            if column[2].partition("/")[0] in _SUITE_MEANS
        )
    )


def _task_title(name: str) -> str:
    metric, _, task = name.partition("/")
    if metric in _SUITE_MEANS:
        return clean(f"{_SUITE_MEANS[metric]} of suite:{task}", 60)
    return clean(task if metric == "acc" else f"{task}, {metric}", 60)


def cost_table(group: Group) -> Table:
    """Real size and cost of pruning of one group."""
    columns = _cost(group)
    rows = [[*_names(row), *_figures(row, columns)] for row in group.rows]
    table = _table("Size and cost", [*_NAMES, *(title for title, _, _ in columns)], rows)
    notes = []
    if {"Prune time", "Added memory, prune", _WHOLE_MEMORY[0]} & set(table.columns):
        notes.append(SINGLE_NOTE)
    if "Added memory, prune" in table.columns:
        notes.append(_ADDED_NOTE)
    places = {
        record.environment for row in group.rows for record in row.records if record.phase == SIZE_PHASE
    }
    if notes and len(places) > 1:
        notes.append(f"These rows come from {len(places)} environments.")
    if "Bytes" in table.columns:
        notes.append(_BYTES_NOTE)
    if any(column.startswith("On disk") for column in table.columns):
        notes.append(_DISK_NOTE)
    return replace(table, notes=tuple(notes))


def _cost(group: Group) -> tuple[tuple[str, str, str], ...]:
    """The columns of cost: saved files, what pruning added to memory, and the whole process where only that is known."""
    whole = _WHOLE_MEMORY[1:]
    alone = any(
        whole in row.figures and (SIZE_PHASE, "added_memory") not in row.figures for row in group.rows
    )
    there = {key for row in group.rows for key in row.figures}
    saved = [
        column for pair in _SAVED if pair[0][1:] in there for column in pair if column and column[1:] in there
    ]
    return (*_COST, *saved, _WHOLE_MEMORY) if alone else (*_COST, *saved)


def other_table(group: Group) -> Table:
    """Every figure that the other tables of the group leave out, one a row, whatever its name."""
    measured = {(phase, name) for _, phase, name in (*measured_columns(group), *_cost(group))}
    rows = [
        [*_names(row), clean(phase, 40), metric_title(name), figure_of(row, phase, name)]
        for row in group.rows
        for phase, name in row.figures
        if (phase, name) not in _SHOWN and (phase, name) not in measured
    ]
    table = _table("Other figures", [*_NAMES, "Phase", "Figure", "Value"], rows)
    measures = {(phase, name): unit for row in group.rows for (phase, name), unit in row.units.items()}
    shown = {key: unit for key, unit in measures.items() if key not in _SHOWN | measured}
    notes = [SINGLE_NOTE] if {"s", "token/s"} & set(shown.values()) or _memory(shown) else []
    if (QUALITY_PHASE, "tokens_per_second") in shown:
        notes.append(_RATE_NOTE)
    if (SIZE_PHASE, "bytes_quantised") in shown:
        notes.append(_PACKED_NOTE)
    return replace(table, notes=tuple(notes))


def _memory(keys: Iterable[tuple[str, str]]) -> bool:
    return any(name.endswith("_memory") for _, name in keys)


def problem_table(comparison: Comparison) -> Table:
    """Cells that were refused or failed, with the reason recorded."""
    rows = [
        [
            *(clean(part) for part in (record.model, asked_of(record), record.target)),
            MISSING if record.seed is None else clean(record.seed, 20),
            record.status,
            record.phase,
            clean(record.reason, 1000) or "no reason recorded",
        ]
        for record in comparison.problems
    ]
    return Table(
        "Refused and failed",
        ("Model", "Method", "Target", "Seed", "Outcome", "Phase", "Reason"),
        tuple(tuple(row) for row in rows),
        3,
    )


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> Table:
    # A column of figures that nobody measured says nothing; the other columns always stay.
    figures = range(len(_NAMES), len(columns) - words)
    kept = [
        index
        for index in range(len(columns))
        if index not in figures or any(row[index] != MISSING for row in rows)
    ]
    return Table(
        caption,
        tuple(columns[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
        len(_NAMES),
        words,
    )


def title_of(group: Group) -> str:
    """A group's heading: model, its label, and the protocol whose figures it holds."""
    model = clean(group.model) + (f" ({clean(group.label)})" if group.label else "")
    apart = f" · {group.apart}" if group.apart else ""
    recovered = " · with recovery" if group.key.recovered else ""
    return f"{model} · {clean(group.protocol) if group.protocol else 'not evaluated'}{recovered}{apart}"
