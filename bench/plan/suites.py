"""The task sets whose mean accuracy each paper prints; free of torch and of lm_eval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.plan.grammar import nearest, shown
from methods.errors import UserError

__all__ = ["KJV", "PREFIX", "STANDARD", "SUITES", "Suite", "expand", "suite", "tasks_of"]

PREFIX: Final = "suite:"
"""What stands before a suite's name in ``--tasks``."""
STANDARD: Final = (
    *(
        "piqa",
        "hellaswag",
        "arc_easy",
        "arc_challenge",
        "winogrande",
        "lambada_openai",
        "boolq",
        "openbookqa",
    ),
    *("rte", "copa", "sciq"),
)
"""Tasks that papers on one-shot pruning report; the default but for packaged models."""
KJV: Final = ("kjv_continuation", "kjv_last_word")
"""Tasks on the embedded text: the default of the protocol ``nano``."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Tasks averaged with equal weights; ``metric`` is ``acc_norm`` where a task has it and ``acc`` elsewhere, or ``acc``."""

    name: str
    tasks: tuple[str, ...]
    metric: str
    paper: str
    note: str = ""


SUITES: Final[Mapping[str, Suite]] = {
    found.name: found
    for found in (
        Suite(
            "sparsegpt",
            ("lambada_openai", "piqa", "arc_easy", "arc_challenge", "storycloze"),
            "acc",
            "arXiv 2301.00774, table 2",
            "StoryCloze is handed out by its authors only: this mean is always partial; the paper does not say acc or acc_norm",
        ),
        Suite(
            "wanda",
            ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
            "acc",
            "arXiv 2306.11695, table 2",
        ),
        Suite(
            "slicegpt",
            ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge"),
            "acc_norm",
            "arXiv 2401.15024, table 7",
        ),
        Suite(
            "mixed",
            ("arc_challenge", "hellaswag", "truthfulqa_mc2", "piqa"),
            "acc_norm",
            "arXiv 2310.09499, table 3",
        ),
    )
}


def suite(name: str) -> Suite:
    """The suite of that name. Raises UserError with what there is."""
    if name not in SUITES:
        raise UserError(
            f"--tasks '{PREFIX}{shown(name)}' is no suite; use {', '.join(PREFIX + known for known in SUITES)}"
            f"{nearest(name, SUITES)}"
        )
    return SUITES[name]


def expand(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[Suite, ...]]:
    """Single tasks and suites among the words of ``--tasks``, sorted. Raises UserError for an unknown suite."""
    words = tuple(words)
    tasks = sorted({word for word in words if not word.startswith(PREFIX)})
    names = sorted({word.removeprefix(PREFIX) for word in words if word.startswith(PREFIX)})
    return tuple(tasks), tuple(suite(name) for name in names)


def tasks_of(words: Iterable[str]) -> tuple[str, ...]:
    """Every task that the words of ``--tasks`` ask for, sorted."""
    tasks, suites = expand(words)
    return tuple(sorted({*tasks, *(task for found in suites for task in found.tasks)}))
