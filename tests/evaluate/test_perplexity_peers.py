"""Our perplexity on real text against lm-evaluation-harness's scorer and a float64 computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from perplexity_peers import by_harness, by_transformers
from pruned_nanos import NANOS, nano
from transformers import AutoTokenizer

from bench.evaluate.perplexity import score
from bench.text.kjv import documents
from methods.inference.assemble import assemble
from methods.interface import Run
from methods.stream.source import CheckpointSource


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("name", NANOS)
def test_perplexity_is_what_others_find(name: str) -> None:
    from lm_eval.models.huggingface import HFLM

    source = CheckpointSource(nano(name))
    words = AutoTokenizer.from_pretrained(nano(name))
    length = min(128, source.shape.positions)
    text = words("\n".join(documents("test"))[:40_000])["input_ids"]
    windows = torch.tensor(text[: 6 * length]).view(6, length)
    ours = score(source, windows, Run()).loss
    harness = HFLM(assemble(source), tokenizer=words, batch_size=4, max_length=length)
    exact = by_transformers(assemble(CheckpointSource(nano(name), dtype=torch.float64)), windows)
    for others in (by_harness(harness, windows), exact):
        assert abs(np.exp(ours.mean()) / np.exp(others.mean()) - 1) < 1e-5
        np.testing.assert_allclose(ours, others, rtol=0, atol=1e-4)
