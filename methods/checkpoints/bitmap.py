"""Pruned matrices as bitmaps and their non-zero values: a checkpoint that is smaller on disk by what was removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from methods.checkpoints.dense import save_dense, stored_tensors, write_folder
from methods.errors import UnsupportedTarget, UserError
from methods.stream.bitmap_files import metadata, to_parts
from methods.stream.source import CheckpointSource

__all__ = ["save_bitmap", "to_dense"]

_README = """\
# A pruned model, its zeros left out

In `bitmap*.safetensors` a pruned matrix `NAME` of shape [rows, columns] is two tensors: `NAME|bitmap`, uint8
[rows, ceil(columns / 8)], bit `c % 8` of byte `c // 8` saying whether column `c` is stored; and `NAME|values`, the
stored weights row by row, in the model's dtype. The files' metadata give format, version and sizes. Nothing is
rounded: the dense weights come back bit for bit.

`bench run --models path:FOLDER --methods dense` evaluates the folder as it is. `from_pretrained` of transformers
does not know the form; with prune-bench installed this writes a folder that it loads:

```python
from pathlib import Path
from methods.checkpoints.bitmap import to_dense
to_dense(Path("FOLDER"), Path("DENSE"))
```
"""


def save_bitmap(source: CheckpointSource, folder: Path, *, shard_bytes: int = 1 << 30) -> list[Path]:
    """Write the model of ``source`` to ``folder``, its matrices as bitmaps and non-zero values where that is smaller.

    Every value keeps the dtype it is stored in; float64 matrices, and those with too few zeros, stay dense. See
    ``methods.stream.bitmap_files`` for the form. The folder appears whole or not at all. Raises UnsupportedTarget
    for a sliced model, which has no zeros to leave out; MachineError, CheckpointError.
    """
    if source.shape.slices is not None:
        raise UnsupportedTarget(
            f"{source.overlay or source.folder}: a sliced model is smaller by its shapes and holds no zeros to leave "
            "out, so it has no bitmap form; its own checkpoint is the small one"
        )
    sizes: dict[str, tuple[int, int]] = {}
    return write_folder(
        source,
        folder,
        _tensors(source, sizes),
        {},
        stem="bitmap",
        metadata=lambda names: metadata(names, sizes),
        texts={"README.md": _README},
        shard_bytes=shard_bytes,
    )


def to_dense(folder: Path, out: Path) -> list[Path]:
    """Write the bitmap checkpoint in ``folder`` to the new folder ``out`` as a plain one; returns the weights' files.

    Raises UserError where ``out`` is there already; CheckpointError, UnsupportedModel, MachineError.
    """
    if out.exists():
        raise UserError(f"'{out}' is there already; give a new folder")
    return save_dense(CheckpointSource(folder), out)


def _tensors(source: CheckpointSource, sizes: dict[str, tuple[int, int]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the files in order; ``sizes`` gets the sizes of the matrices that become bitmaps."""
    matrices = {
        f"{source.family.block_prefix(index)}{matrix.name}.weight"
        for index in range(source.shape.blocks)
        for matrix in source.family.matrices(source.shape, index)
    }
    for name, tensor in stored_tensors(source):
        parts = to_parts(tensor) if name in matrices else None
        if parts is None:
            yield name, tensor
            continue
        sizes[name] = (tensor.shape[0], tensor.shape[1])
        for end, part in parts.items():
            yield name + end, part
