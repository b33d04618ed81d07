"""Which failures are over: each phase is made good by its own success."""

from __future__ import annotations

from typing import Any

import pytest
from sample_records import later, record

from bench.results.current import current

PERPLEXITY = {"phase": "perplexity", "protocol": "nano/kjv"}


def failed(**changes: Any) -> Any:
    # What fails before its model is loaded has no revision, so another subject than its success.
    return record(**{"status": "failed", "subject": "unpulled", "finished": later(5), **changes})


@pytest.mark.parametrize(
    ("failure", "success", "over"),
    [
        ({}, {}, True),
        ({"status": "refused"}, {}, True),
        ({}, PERPLEXITY, True),
        ({}, {"finished": later(4)}, False),
        ({}, {"seed": 1}, False),
        ({}, {"parameters": {"percdamp": 0.1}}, False),
        (PERPLEXITY, PERPLEXITY, True),
        (PERPLEXITY, {}, False),
        (PERPLEXITY, {**PERPLEXITY, "protocol": "lab/wikitext2"}, False),
        (PERPLEXITY, {"phase": "decode", "protocol": "decode/128+64"}, False),
        (PERPLEXITY, {**PERPLEXITY, "target": "60%"}, False),
    ],
)
def test_a_failure_is_over_once_the_same_was_done(
    failure: dict[str, Any], success: dict[str, Any], over: bool
) -> None:
    records = [failed(**failure), record(**{"finished": later(9), **success})]
    found = current(reversed(records))
    assert ("failed" in {r.status for r in found} or "refused" in {r.status for r in found}) is not over
    assert records[1] in found


def test_each_phase_answers_for_itself() -> None:
    prune = record(finished=later(9))
    broken = failed(**PERPLEXITY)
    missing = failed()
    assert current([missing, broken, prune]) == [broken, prune]
