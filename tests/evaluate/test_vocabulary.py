"""Figures of rows, tile by tile of the vocabulary, against the whole softmax in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.evaluate import vocabulary
from bench.evaluate.vocabulary import Head, row_figures
from methods.stream.stopwatch import Stopwatch

_ROWS, _WIDTH = 13, 8


def _case(size: int, dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Head, tuple[Tensor, Head]]:
    generator = torch.Generator().manual_seed(size)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    heads = [Head(drawn(size, _WIDTH), drawn(size) if bias else None) for _ in range(2)]
    targets = torch.randint(0, size, (_ROWS,), generator=generator)
    # rows of a larger tensor: not contiguous
    return drawn(_ROWS, 2 * _WIDTH)[:, ::2], targets, heads[0], (drawn(_ROWS, _WIDTH), heads[1])


def _whole(states: Tensor, head: Head) -> Tensor:
    return torch.log_softmax(head.logits(states, slice(None)).double(), -1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_tiles_give_the_whole_softmax(
    monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype, *, bias: bool
) -> None:
    monkeypatch.setattr(vocabulary, "tile_columns", lambda *_, **__: 16)
    clock = Stopwatch(torch.device("cpu"))
    states, targets, head, dense = _case(size, dtype, bias=bias)
    found = row_figures(states, targets, head, clock, dense)
    ours, theirs = _whole(states, head), _whole(*dense)
    # a product of a tile may round otherwise than that of the whole, in the matrix's dtype
    close = {"rtol": 2e-6, "atol": 2e-6} if dtype.itemsize >= 4 else {"rtol": 0, "atol": 0.1}
    torch.testing.assert_close(found.loss, -ours.gather(1, targets[:, None])[:, 0], **close)
    expected = (theirs.exp() * (theirs - ours)).sum(1)
    assert found.divergence is not None and found.flips is not None
    torch.testing.assert_close(found.divergence, expected, **close)
    if dtype.itemsize >= 4:
        assert torch.equal(found.flips.bool(), ours.argmax(-1) != theirs.argmax(-1))
    alone = row_figures(states, targets, head, clock)
    assert torch.equal(alone.loss, found.loss)
    assert alone.divergence is None and alone.flips is None


def test_equal_models_do_not_diverge_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "tile_columns", lambda *_, **__: 16)
    states, targets, head, _ = _case(100, torch.float32, bias=True)
    found = row_figures(states, targets, head, Stopwatch(torch.device("cpu")), (states, head))
    assert found.divergence is not None and found.flips is not None
    assert not found.divergence.any()
    assert not found.flips.any()


def test_hostile_rows_touch_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "tile_columns", lambda *_, **__: 16)
    clock = Stopwatch(torch.device("cpu"))
    states, targets, head, dense = _case(100, torch.float32, bias=False)
    before = row_figures(states, targets, head, clock, dense)
    spoilt = states.clone()
    spoilt[2], spoilt[5, 0], spoilt[7] = torch.nan, torch.inf, 1e4 * states[7]
    after = row_figures(spoilt, targets, head, clock, dense)
    assert after.divergence is not None and before.divergence is not None and after.flips is not None
    kept = [row for row in range(_ROWS) if row not in (2, 5, 7)]
    assert torch.equal(after.loss[kept], before.loss[kept])
    assert torch.equal(after.divergence[kept], before.divergence[kept])
    assert after.loss[2].isnan() and after.loss[5].isnan() and after.flips[2] == 1
    torch.testing.assert_close(after.loss[7], -_whole(spoilt, head)[7, targets[7]], rtol=1e-6, atol=0)


def test_no_rows_and_foreign_targets() -> None:
    states, targets, head, dense = _case(100, torch.float32, bias=False)
    clock = Stopwatch(torch.device("cpu"))
    none = row_figures(states[:0], targets[:0], head, clock, (dense[0][:0], dense[1]))
    assert none.loss.shape == (0,)
    with pytest.raises(ValueError, match="the vocabulary has 0 to 99"):
        row_figures(states, targets.clone().fill_(100), head, clock)
