"""Every row of every group in one table, for sorting and filtering across models and protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reports.comparison import QUALITY_PHASE, SIZE_PHASE, Group
from reports.tables import Table, change_of, figure_of, seeds_of, suite_columns
from reports.wording import MISSING, clean

_FIGURES: Final = (
    ("Perplexity", QUALITY_PHASE, "perplexity"),
    ("KL to dense, nat/token", QUALITY_PHASE, "kl_to_dense"),
    ("Top-1 flips", QUALITY_PHASE, "top1_flip_rate"),
    ("Sparsity", SIZE_PHASE, "sparsity"),
    ("Non-zero parameters", SIZE_PHASE, "parameters_nonzero"),
    ("Bytes", SIZE_PHASE, "bytes"),
    ("Prune time", SIZE_PHASE, "prune_time"),
    ("Added memory", SIZE_PHASE, "added_memory"),
    ("Decode, token/s", "decode", "decode_tokens_per_second"),
    ("Bitmap to dense", "decode", "decode_speedup"),
)
_WORDS: Final = ("Model", "Method", "Target", "Protocol", "Recovery", "Weights", "Seeds")
FILTERS: Final = ("Model", "Method", "Target", "Protocol", "Recovery", "Weights")


def results_table(groups: Sequence[Group]) -> Table:
    """One line a row of every group; figures that nobody measured have no column."""
    suites = suite_columns(groups)
    rows = []
    for group in groups:
        for row in group.rows:
            cells: list[str] = [
                clean(group.model),
                clean(row.name),
                clean(row.target),
                (clean(group.protocol) or "not evaluated") + (f" · {group.apart}" if group.apart else ""),
                clean(row.recovery) or "one-shot",
                clean(row.dtype) or MISSING,
                seeds_of(row),
            ]
            for title, phase, name in _FIGURES:
                cells.append(figure_of(row, phase, name, title.rpartition(", ")[2]))
                if name == "perplexity":
                    cells.append(change_of(row))
            cells += [figure_of(row, phase, name) for _, phase, name in suites]
            rows.append(cells)
    columns = [
        *_WORDS,
        "Perplexity",
        "Change from dense",
        *(title for title, _, _ in _FIGURES[1:]),
        *(title for title, _, _ in suites),
    ]
    kept = [
        place
        for place in range(len(columns))
        if (any(row[place] != MISSING for row in rows) if place >= len(_WORDS) else _told(place, rows))
    ]
    return Table(
        "All results",
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        headers=sum(place < len(_WORDS) for place in kept),
        notes=(
            "Only rows of one model and one protocol compare: filter by both. Places and verdicts stand on the overview page.",
        ),
    )


def _told(place: int, rows: Sequence[Sequence[str]]) -> bool:
    """Whether a column of words says anything: recovery and weight type do where they differ."""
    return _WORDS[place] not in ("Recovery", "Weights") or len({row[place] for row in rows}) > 1
