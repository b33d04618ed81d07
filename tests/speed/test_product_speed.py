"""Speed of packed products beside dense ones; `bench kernels` is the tool for whole sweeps. Figures, never a gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ratios import on_threads, ratio

from methods.kernels.formats import pack
from methods.kernels.prepared import BitmapProduct


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitmap_product(benchmark: Any, dtype: torch.dtype, tokens: int, threads: int) -> None:
    weight = torch.randn(11008, 4096)
    weight[torch.rand_like(weight) < 0.5] = 0
    weight = weight.to(dtype)
    x = torch.randn(tokens, 4096).to(dtype)
    packed = pack(weight)
    product = BitmapProduct(packed)
    with on_threads(threads), torch.inference_mode():
        benchmark.pedantic(lambda: product(x), rounds=10, warmup_rounds=2)
        against = ratio(lambda: product(x), lambda: torch.nn.functional.linear(x, weight), rounds=9)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info.update(
        bytes=packed.nbytes, gbytes=round(packed.nbytes / seconds / 1e9, 2), **against
    )
    print(f"\n{benchmark.name}: {benchmark.extra_info}")


def test_packing(benchmark: Any) -> None:
    weight = torch.randn(4096, 4096)
    weight[torch.rand_like(weight) < 0.5] = 0
    benchmark.pedantic(lambda: pack(weight), rounds=5, warmup_rounds=1)
