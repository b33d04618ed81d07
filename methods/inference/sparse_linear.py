"""A linear layer over a packed matrix, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.kernels.formats import DTYPE_IDS, Bitmap, pack, unpack, validate
from methods.kernels.prepared import BitmapProduct

__all__ = ["SparseLinear"]


class SparseLinear(nn.Module):
    """y = x Wᵀ + bias with W [rows, columns] held as bitmap (or N:M) and packed values: no dense copy is kept.

    ``x`` [..., columns] float32, bfloat16 or float16; y comes in x's dtype, summed in float32 whatever the dtypes. The
    parts are buffers, so that ``state_dict`` and ``.to(device)`` take them along; ``.to(dtype)`` is refused for the
    values, which are rounded when they are packed. There is no backward pass.
    """

    bitmap: Tensor
    offsets: Tensor | None
    values: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Bitmap, bias: Tensor | None = None) -> None:
        """Raises ValueError or TypeError where the parts, or ``bias`` [rows], do not belong together."""
        super().__init__()
        validate(weight)
        self.in_features, self.out_features = weight.columns, weight.rows
        self.keep, self.group = weight.keep, weight.group
        for name in ("bitmap", "offsets", "values", "scales"):
            self.register_buffer(name, getattr(weight, name))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._product: BitmapProduct | None = BitmapProduct(weight, self.bias)

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        keep: int = 0,
        group: int = 0,
    ) -> SparseLinear:
        """Pack ``weight`` [rows, columns], in ``dtype`` (its own if None) and as N:M where ``keep``/``group`` say so.

        Zeros of either sign are left out. Raises TypeError or ValueError as ``methods.kernels.formats.pack`` does.
        """
        if weight.dtype not in DTYPE_IDS or weight.dtype == torch.int8:
            raise TypeError(f"weight is {weight.dtype}: pass torch.float32, torch.bfloat16 or torch.float16")
        # w · mask leaves -0.0, which packing would store: adding 0 makes it +0.0 and changes nothing else
        return cls(pack(weight.detach() + 0.0, dtype=dtype, keep=keep, group=group), bias)

    @property
    def packed(self) -> Bitmap:
        """The packed matrix."""
        parts = (self.bitmap, self.offsets, self.values, self.scales)
        return Bitmap(*parts, self.in_features, self.keep, self.group)

    @property
    def nbytes(self) -> int:
        """Bytes held, bias included."""
        return self.packed.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def dense(self) -> Tensor:
        """The matrix [rows, columns] unpacked: a copy."""
        return unpack(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        """The product; raises ValueError, TypeError or RuntimeError for an ``x`` that it cannot take."""
        if not x.is_floating_point() or x.dtype == torch.float64:
            raise TypeError(f"x is {x.dtype}: pass torch.float32, torch.bfloat16 or torch.float16")
        if x.device != self.bitmap.device:
            raise ValueError(
                f"x is on {x.device}, the packed weight on {self.bitmap.device}: move one of them by .to(device)"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a packed weight has no backward pass: run it under torch.no_grad() or torch.inference_mode()"
            )
        if self._product is None:
            self._product = BitmapProduct(self.packed, self.bias)
        return self._product(x)

    def extra_repr(self) -> str:
        """Sizes, format, dtype and share of zeros."""
        weights = max(1, self.in_features * self.out_features)
        form = f"{self.keep}:{self.group}" if self.group else "bitmap"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"format={form}, dtype={self.values.dtype}, sparsity={1 - self.values.numel() / weights:.4g}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_product": None}  # a copy's parts lie elsewhere

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLinear:
        moved = fn(self.values)
        if moved.dtype != self.values.dtype:
            raise TypeError(
                f"a packed weight of {self.values.dtype} is not converted to {moved.dtype}: pack the dense weight again"
            )
        self._product = None  # it points to where the parts were
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._product = None
        super()._load_from_state_dict(*arguments)
