"""The contract between models, methods and the harness.

A model is walked as a sequence of decoder blocks, each a plain mapping from parameter name to tensor.
A family adapter knows how to run such a block in stages; a source hands blocks out, a sink takes pruned
ones in; a pruner stands between the two. Nothing here holds more than one block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from methods.selection import EVERYTHING, Selection
from methods.target import Target

if TYPE_CHECKING:
    from methods.stream.shares import Worker

__all__ = [
    "Arguments",
    "AttentionPacking",
    "Block",
    "BlockSink",
    "BlockSource",
    "Calibration",
    "Family",
    "KeyValueCache",
    "Matrix",
    "MatrixReport",
    "ModelShape",
    "Observer",
    "Outside",
    "PruneReport",
    "Pruner",
    "RecoveryReport",
    "Reshaping",
    "Residual",
    "Run",
    "Silent",
    "Slices",
    "Stage",
    "Sublayer",
]

Block = dict[str, Tensor]
"""Parameters of one decoder block by name inside the block, such as ``self_attn.q_proj.weight``."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Widths of the residual stream of a sliced model, where each norm reads it (arXiv 2401.15024, section 3.4).

    ``attention[l]`` and ``feedforward[l]`` enter the two norms of block l, ``head`` the final norm.
    """

    attention: tuple[int, ...]
    feedforward: tuple[int, ...]
    head: int

    def inputs(self, block: int, sublayer: int) -> int:
        """Width that sublayer 0 (attention) or 1 (feed-forward) of a block reads."""
        return (self.attention, self.feedforward)[sublayer][block]

    def outputs(self, block: int, sublayer: int) -> int:
        """Width that it writes: what the next one reads."""
        if sublayer == 0:
            return self.feedforward[block]
        return self.attention[block + 1] if block + 1 < len(self.attention) else self.head


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Every size of a model that closed forms need; read from a config, never from weights.

    Of a sliced model these are the sizes it had when whole (but untied), and ``slices`` says what is left.
    """

    family: str
    blocks: int
    width: int
    """Width of the residual stream."""
    heads: int
    kv_heads: int
    head_dim: int
    feedforward: int
    vocabulary: int
    positions: int
    """Longest context the model was made for, in tokens."""
    position_rows: int
    """Rows of a learned position table (OPT: positions + 2), 0 where there is none."""
    embedding_width: int
    """Width of the token table; below ``width`` only in OPT-350M, which projects in and out."""
    tied: bool
    post_norm: bool
    """Norm after the residual sum (OPT-350M) instead of before."""
    final_norm: bool
    attention_bias: bool
    feedforward_bias: bool
    gated: bool
    """Gated feed-forward (gate and up), as in LLaMA."""
    norm_parameters: bool = True
    """Norms carry a weight and bias; not so in OPT variants without ``layer_norm_elementwise_affine``."""
    residual_after_norm: bool = False
    """The residual sum takes the normed state (BLOOM's ``apply_residual_connection_post_layernorm``)."""
    slices: Slices | None = None
    itemsize: int = field(default=4, compare=False)
    """Bytes of a stored weight, as far as the config says; a claim, not a size."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One prunable linear layer of a block: ``rows`` outputs, ``columns`` inputs; ``name`` has no ``.weight``."""

    name: str
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


class KeyValueCache(Protocol):
    """Keys and values of one block's earlier tokens."""

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens so far, the new ones [batch, heads, length, head_dim] included and kept."""
        ...


class AttentionPacking(Protocol):
    """Texts behind one another in one row of tokens, which attention sees side by side."""

    def apart(self, x: Tensor) -> Tensor:
        """[1, heads, tokens, head_dim] to [texts, heads, longest, head_dim], padded."""
        ...

    def together(self, x: Tensor) -> Tensor:
        """[texts, longest, width] to [1, tokens, width]."""
        ...


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a block needs beside hidden states, for one batch; rebuilt per batch by the family.

    ``bias``: additive attention bias, broadcastable to [batch, heads, length, length], or None for plain
    causal; ``cos``/``sin``: rotary tables [batch or 1, length, head_dim], or None. ``cache``: where the batch goes on
    after earlier tokens; the bias then reaches over those too. ``packing``: where one row of tokens holds many texts,
    to which attention alone is confined; the bias is then per text.
    """

    bias: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    cache: KeyValueCache | None = None
    packing: AttentionPacking | None = None


Carry = tuple[Tensor, ...]
"""What is kept of a batch between two stages of a block."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Linears of a block that read one shared input, in data-flow order.

    ``inputs(block, carry, arguments)`` gives that input [batch, length, columns];
    ``advance(block, carry, inputs, arguments)`` runs the linears and all up to the next stage's carry
    (after the last stage: a 1-tuple, the block's output). The first carry is a 1-tuple, the block's input.
    """

    linears: tuple[str, ...]
    inputs: Callable[[Block, Carry, Arguments], Tensor]
    advance: Callable[[Block, Carry, Tensor, Arguments], Carry]


@dataclass(frozen=True, slots=True)
class Sublayer:
    """Attention or feed-forward: its norm, the linears that read the normed residual, the one that writes to it."""

    norm: str
    reads: tuple[str, ...]
    writes: str


@dataclass(frozen=True, slots=True)
class Residual:
    """Every parameter that touches the residual stream, by name (norms and linears without ``.weight``).

    ``sublayers``: attention and feed-forward, by name inside a block, each of two stages (reads, writes); the
    rest by full name: the tables whose rows add up to the first state, the norm over that sum (or none), the
    final norm, the head. ``centred``: norms subtract the mean (LayerNorm, not RMSNorm).
    """

    sublayers: tuple[Sublayer, Sublayer]
    tables: tuple[str, ...]
    table_norm: str | None
    final_norm: str
    head: str
    centred: bool


class Family(Protocol):
    """All that is particular to OPT, BLOOM or LLaMA."""

    name: str
    residual: Residual

    def shape(self, config: Mapping[str, Any]) -> ModelShape:
        """Sizes from a Hugging Face config. Raises UnsupportedModel for a variant that cannot be walked."""
        ...

    def matrices(self, shape: ModelShape, index: int = 0) -> tuple[Matrix, ...]:
        """Prunable matrices of block ``index``, in the order of ``stages``; only a sliced model's blocks differ."""
        ...

    def block_tensors(self, shape: ModelShape, index: int = 0) -> dict[str, tuple[int, ...]]:
        """Every parameter of block ``index`` with its shape, by name inside the block."""
        ...

    def outer_tensors(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """Every parameter outside the blocks, by full name; the head is absent where it is tied."""
        ...

    def block_prefix(self, index: int) -> str:
        """Full-name prefix of a block's parameters, such as ``model.layers.3.``."""
        ...

    def aliases(self, name: str) -> tuple[str, ...]:
        """Other spellings of a full parameter name seen in published checkpoints, best first."""
        ...

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """A block's forward pass, cut where its linears read their inputs."""
        ...

    def arguments(
        self, config: Mapping[str, Any], mask: Tensor | None, batch: int, length: int, like: Tensor
    ) -> Arguments:
        """Per-batch arguments; ``mask`` [batch, length] is 1 for real tokens, ``like`` gives dtype and device."""
        ...

    def embed(
        self,
        outer: OuterTensors,
        config: Mapping[str, Any],
        tokens: Tensor,
        mask: Tensor | None,
        first: int = 0,
    ) -> Tensor:
        """Tokens [batch, length], of positions ``first`` on, to the first block's input [batch, length, width]."""
        ...

    def finish(self, outer: OuterTensors, config: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """The last block's output to what the head reads (final norm, projection out)."""
        ...

    def head(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor:
        """The output matrix [vocabulary, embedding width], tied or not."""
        ...

    def head_bias(self, outer: OuterTensors, config: Mapping[str, Any]) -> Tensor | None:
        """The head's bias [vocabulary], which only sliced models have: their final norm's bias went into it."""
        ...

    def norm_eps(self, config: Mapping[str, Any]) -> float:
        """What the model's norms add to the variance."""
        ...

    def activation(self, config: Mapping[str, Any]) -> str:
        """The feed-forward's activation, a name of ``methods.families.base.ACTIVATIONS``."""
        ...


class OuterTensors(Protocol):
    """Parameters outside the blocks, fetched one at a time so that none need stay in memory."""

    def rows(self, name: str, index: Tensor) -> Tensor:
        """Rows of a table, in the compute dtype on the compute device; gathers without a copy of the table."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A whole parameter, in the compute dtype on the compute device."""
        ...


class BlockSource(Protocol):
    """Reads a model one block at a time."""

    config: Mapping[str, Any]
    shape: ModelShape
    family: Family
    dtype: torch.dtype
    device: torch.device

    @property
    def outer(self) -> OuterTensors:
        """Parameters outside the blocks."""
        ...

    def block(self, index: int) -> Block:
        """A fresh copy of block ``index`` in the compute dtype. Raises CheckpointError where it cannot be read."""
        ...

    def raw_block(self, index: int) -> Block:
        """Block ``index`` in the dtypes it is stored in; not to be written to."""
        ...

    def raw_outer(self, name: str) -> Tensor:
        """A parameter outside the blocks in the dtype it is stored in; not to be written to."""
        ...


class BlockSink(Protocol):
    """Takes finished blocks; atomic per block, so that a killed run resumes after the last one."""

    def put(self, index: int, block: Block) -> None:
        """Store a finished block; returns once it is safe on disk."""
        ...

    def put_outer(self, tensors: Mapping[str, Tensor]) -> None:
        """Store changed parameters outside the blocks (a sliced embedding, an untied head), one call after another."""
        ...

    def put_config(self, changes: Mapping[str, Any]) -> None:
        """Store changed config entries (sliced widths); they are laid over the model's own."""
        ...

    def __contains__(self, index: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token windows, int64 [windows, length]: drawn ones for the statistics, held-out ones for the error."""

    tokens: Tensor
    heldout: Tensor


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """What happened to one matrix. Errors are relative squared output errors, |X(W-Ŵ)ᵀ|² / |XWᵀ|²."""

    block: int
    name: str
    rows: int
    columns: int
    removed: int
    calibration_error: float | None
    heldout_error: float | None
    damping: float | None
    dead_columns: int
    escalations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Outside:
    """Another program that did a method's work: its versions, and its memory in bytes before and at the peak."""

    program: str
    versions: Mapping[str, str]
    base_memory: int
    peak_memory: int
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What training a pruned model took and brought, over all stages of a gradual schedule.

    ``steps`` and ``tokens`` trained on, ``seconds`` of training and choosing; ``trainable``: weights that could
    change. By stage: what it was pruned to, its loss on held-out text (nat/token) before and after training, and
    the step that was best. ``resumed``: a part of pruning or training was
    done by a run that was killed.
    """

    name: str
    targets: tuple[str, ...]
    steps: int
    tokens: int
    trainable: int
    seconds: float
    loss_before: tuple[float, ...]
    loss_after: tuple[float, ...]
    best_steps: tuple[int, ...]
    resumed: bool


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a pruner did to a model. ``seconds`` by phase: what the method takes (allocate, forward, moments,
    solve), and what the harness adds (read, write, error: the held-out text's forward passes and errors).
    ``outside``: the program that did the work instead of this one; its memory is the method's. ``recovery``: the
    training behind it, if there was one."""

    matrices: tuple[MatrixReport, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    resumed_blocks: int = 0
    outside: Outside | None = None
    recovery: RecoveryReport | None = None


class Observer(Protocol):
    """Progress, as it happens."""

    def phase(self, name: str, total: int) -> None:
        """A phase of ``total`` steps begins (``calibrate``, ``prune``, ``perplexity`` …)."""
        ...

    def step(self, done: int, note: str = "") -> None:
        """``done`` steps of the phase are finished."""
        ...

    def warning(self, text: str) -> None:
        """Something worth a line in the record."""
        ...


class Silent:
    """An observer that keeps warnings and shows nothing."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def phase(self, name: str, total: int) -> None:
        """Nothing to show."""

    def step(self, done: int, note: str = "") -> None:
        """Nothing to show."""

    def warning(self, text: str) -> None:
        """Keep the text."""
        self.warnings.append(text)


@dataclass(frozen=True, slots=True)
class Run:
    """How to run a pruner: everything that is neither the model nor the method.

    ``batch_tokens``: tokens of a forward batch, whole windows. ``hidden_budget``: bytes of hidden states kept in
    memory; what exceeds it lies on disk under ``work``. ``device_states``: whether they may lie in a GPU's memory, or go to
    the host's. ``prefetch``: whether a GPU's next block is copied to page-locked memory of the host while this one is
    worked on (its pages are read in any case).
    ``work``: folder of the resume point, or None to keep none; a resume point counts only where ``identity``
    is equal. ``shared``: folder of what the cells of a run share, such as sensitivities, or None to share
    nothing; ``model`` names the checkpoint's revision or hash there. ``layers``: the matrices that are pruned; a pruner sets it
    for its allocation. ``workers``: others that pass and count a share of the calibration windows each, for a walk
    over the blocks that this run leads; allocations do without them.
    """

    seed: int = 0
    schedule: str = "sequential"
    hessian_dtype: torch.dtype = torch.float32
    batch_tokens: int = 2048
    hidden_budget: int = 2 << 30
    device_states: bool = True
    prefetch: bool = True
    work: Path | None = None
    identity: str = ""
    shared: Path | None = None
    model: str = ""
    observer: Observer = field(default_factory=Silent)
    layers: Selection = EVERYTHING
    workers: Sequence[Worker] = ()

    def selected(self, source: BlockSource) -> list[tuple[int, Matrix]]:
        """The (block, matrix) that are pruned, in order: what an allocation shares a target out over."""
        return self.layers.of(source.family.matrices(source.shape), source.shape.blocks)

    def generator(self, block: int, matrix: str) -> torch.Generator:
        """Random numbers keyed by (seed, block, matrix), so that no order of work changes them."""
        key = hashlib.sha256(f"{self.seed}/{block}/{matrix}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


class Pruner(Protocol):
    """A method on a model. Per model, since slicing changes shapes across blocks."""

    @property
    def needs_calibration(self) -> bool:
        """Whether results depend on calibration text."""
        ...

    def refuse(self, shape: ModelShape, target: Target) -> str | None:
        """Why this method cannot reach this target on this model, or None. Looks at the config only."""
        ...

    def prune(
        self, source: BlockSource, calibration: Calibration | None, target: Target, sink: BlockSink, run: Run
    ) -> PruneReport:
        """Prune every block from ``source`` into ``sink``."""
        ...


@runtime_checkable
class Reshaping(Pruner, Protocol):
    """A pruner whose models have other shapes than the dense one."""

    def pruned_shape(self, shape: ModelShape, target: Target) -> ModelShape:
        """Sizes of the pruned model, in closed form. Raises UnsupportedTarget where ``refuse`` gives a reason."""
        ...


def batches(windows: int, length: int, batch_tokens: int) -> Iterator[slice]:
    """Slices of whole windows with at most ``batch_tokens`` tokens each (one window at least)."""
    size = max(1, batch_tokens // max(1, length))
    for start in range(0, windows, size):
        yield slice(start, min(windows, start + size))


def matrix_sizes(matrices: Sequence[Matrix], blocks: int) -> int:
    """Prunable weights of the whole model."""
    return blocks * sum(matrix.size for matrix in matrices)
