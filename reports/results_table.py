"""Every row of every group in one table, for sorting and filtering across models and protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reports.comparison import QUALITY_PHASE, SIZE_PHASE, Group
from reports.tables import Shown, Table, change_of, figure_of, seeds_of
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
            accuracies = [
                summary.mean for (_, name), summary in row.figures.items() if name.startswith("acc/")
            ]
            known = [mean for mean in accuracies if mean is not None]
            mean = sum(known) / len(known) if known and len(known) == len(accuracies) else None
            cells.append(MISSING if mean is None else Shown(f"{100 * mean:.2f} % of {len(known)}", mean))
            rows.append(cells)
    columns = [
        *_WORDS,
        "Perplexity",
        "Change from dense",
        *(title for title, _, _ in _FIGURES[1:]),
        "Accuracy, tasks",
    ]
    kept = [
        place
        for place in range(len(columns))
        if place < len(_WORDS) or any(row[place] != MISSING for row in rows)
    ]
    return Table(
        "All results",
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        headers=len(_WORDS),
        notes=(
            "Only rows of one model and one protocol compare: filter by both. Places and verdicts stand on the overview page.",
        ),
    )
