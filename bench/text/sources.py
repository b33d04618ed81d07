"""Windows of tokens: drawn for calibration, fixed for held-out error and for evaluation.

A text is tokenised the way its tokenizer does by default, as one string, so a begin-of-text token stands
where the tokenizer puts one: before a joined text, and before each document that is drawn from. What is not
enough text is an error or a note, never padding.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.text.documents import Documents, data_folder, load, local_file
from bench.text.protocols import JOINS, CalibrationProtocol, EvaluationProtocol
from bench.text.tokens import encode, encode_long, tokenizer_sha256
from methods.errors import DataUnavailable, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Windows", "calibration_windows", "evaluation_windows", "heldout_windows"]

HELD_BACK = 300
"""Documents at the end of C4's calibration file that no seed draws where no held-out file lies beside it."""

_TRAIN_JOINS = {"kjv": "\n\n", "wikitext2": " ", "ptb": " "}


@dataclass(frozen=True)
class Windows:
    """``tokens`` int64 [windows, length], and in JSON types what they are and where they come from.

    ``provenance`` holds data set, split, origin, join rule, tokenizer with flags and hash, counts of
    documents and distinct tokens, the tokens' sha256, and ``notes``: what differs from what the protocol's
    name promises.
    """

    tokens: NDArray[np.int64]
    provenance: dict[str, Any]


def calibration_windows(
    protocol: CalibrationProtocol,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    context: int,
    data_dir: Path | None,
) -> Windows:
    """Windows [samples, length] drawn by Python's ``random.Random(seed)``, as the SparseGPT code draws them.

    C4: a document uniformly with replacement, drawn again while it has no more than ``length`` tokens, then
    a uniform window in it. The other sets: uniform windows of the whole split as one text.
    Raises DataUnavailable for text that is missing or too short, UserError for windows longer than the
    context.
    """
    length = _window_length(protocol.length, context, f"calibration {protocol.id}")
    documents, _ = _calibration_documents(protocol, data_dir)
    draw = random.Random(seed)  # noqa: S311 - reproducible draws are what is wanted
    where = f"{protocol.dataset}/{protocol.split}"
    if protocol.dataset == "c4":
        drawn = _draw_documents(documents.texts, tokenizer, draw, protocol.samples, length, where)
        join: str | None = None
    else:
        join = _TRAIN_JOINS[protocol.dataset]
        drawn = _draw_anywhere(_joined_ids(documents, join, tokenizer), draw, protocol.samples, length, where)
    notes = _origin_notes(documents, where)
    if 10 * drawn.distinct < 9 * drawn.tokens.size:
        why = f": only {drawn.documents} documents of more than {length} tokens were drawn"
        notes.append(
            f"the {drawn.tokens.size} calibration tokens are only {drawn.distinct} distinct ones of {where}"
            + (why if drawn.documents is not None else "")
        )
    provenance = {
        **_describe(protocol.id, protocol.dataset, protocol.split, documents, tokenizer, drawn.tokens),
        "seed": seed,
        "join": join,
        "sampling": "documents with replacement" if join is None else "windows of the joined text",
        "documents_used": drawn.documents,
        "distinct_tokens": drawn.distinct,
        "notes": notes,
    }
    return Windows(drawn.tokens, provenance)


def heldout_windows(
    protocol: CalibrationProtocol,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    data_dir: Path | None,
    windows: int = 8,
) -> Windows:
    """Windows [windows, length] like the calibration's, of text that no seed draws: for reconstruction error.

    C4: ``c4/train_extra.jsonl`` where a data folder has it, else the documents held back from the end of
    the calibration file. The other sets: their validation split (train, should that be what calibrates).
    Spread evenly, the same for every seed.
    Raises as calibration_windows does.
    """
    length = _window_length(protocol.length, context, f"calibration {protocol.id}")
    _, (documents, split) = _calibration_documents(protocol, data_dir, held_out=True)
    join = JOINS[protocol.dataset]
    ids = _joined_ids(documents, join, tokenizer)
    tokens, total, notes = _cut(ids, length, windows, "spread", f"{protocol.dataset}/{split}")
    provenance = {
        **_describe(f"heldout {protocol.id}", protocol.dataset, split, documents, tokenizer, tokens),
        "join": join,
        "text_tokens": len(ids),
        "text_windows": total,
        "notes": _origin_notes(documents, f"{protocol.dataset}/{split}") + notes,
    }
    return Windows(tokens, provenance)


def evaluation_windows(
    protocol: EvaluationProtocol, tokenizer: PreTrainedTokenizerBase, *, context: int, data_dir: Path | None
) -> Windows:
    """Disjoint windows [windows, length] of the evaluation text; the tail that fills no window is dropped.

    Raises DataUnavailable for text that is missing or shorter than a window, UserError for windows longer
    than the context.
    """
    length = _window_length(protocol.length, context, f"evaluation {protocol.id}")
    where = f"{protocol.dataset}/{protocol.split}"
    documents = load(protocol.dataset, protocol.split, data_dir)
    available, notes = len(documents.texts), _origin_notes(documents, where)
    if protocol.documents is not None:
        if available < protocol.documents:
            notes.append(
                f"{where} has {available} documents; the protocol reads the first {protocol.documents}"
            )
        documents = Documents(documents.texts[: protocol.documents], documents.origin)
    ids = _joined_ids(documents, protocol.join, tokenizer)
    tokens, total, short = _cut(ids, length, protocol.windows, protocol.selection, where)
    provenance = {
        **_describe(protocol.id, protocol.dataset, protocol.split, documents, tokenizer, tokens),
        "join": protocol.join,
        "stride": length,
        "selection": "all" if len(tokens) == total else protocol.selection,
        "text_tokens": len(ids),
        "text_windows": total,
        "notes": notes + short,
    }
    return Windows(tokens, provenance)


@dataclass(frozen=True)
class _Drawn:
    tokens: NDArray[np.int64]
    documents: int | None
    distinct: int


def _window_length(asked: int, context: int, what: str) -> int:
    length = asked or context
    if length < 2:
        raise UserError(f"{what}: a window of {length} tokens predicts nothing; use --length 2 or more")
    if length > context:
        raise UserError(
            f"{what}: windows of {length} tokens are longer than the model's context of {context};"
            f" use a length of {context} or less, or --protocol nano"
        )
    return length


def _calibration_documents(
    protocol: CalibrationProtocol, data_dir: Path | None, held_out: bool = False
) -> tuple[Documents, tuple[Documents, str]]:
    """Documents to draw from; and, where asked for, those held out, with their split's name.

    Raises DataUnavailable where C4's calibration file has too few documents to hold any back.
    """
    dataset, split = protocol.dataset, protocol.split
    if dataset != "c4":
        other = "validation" if split != "validation" else "train"
        pool = Documents(()) if held_out else load(dataset, split, data_dir)
        return pool, (load(dataset, other, data_dir) if held_out else Documents(()), other)
    folder = data_folder(data_dir)
    extra = f"{split}_extra"
    if folder is not None and local_file(folder, dataset, extra).is_file():
        pool = Documents(()) if held_out else load(dataset, split, data_dir)
        return pool, (load(dataset, extra, data_dir) if held_out else Documents(()), extra)
    whole = load(dataset, split, data_dir)
    back = min(HELD_BACK, len(whole.texts) // 10)
    if back == 0:
        raise DataUnavailable(
            f"c4/{split} has {len(whole.texts)} documents, too few to hold a tenth back;"
            f" give more, or held-out ones in c4/{extra}.jsonl"
        )
    first = len(whole.texts) - back
    held = Documents(
        whole.texts[first:] if held_out else (), {**whole.origin, "documents": [first, len(whole.texts)]}
    )
    pool = Documents(_Head(whole.texts, first), {**whole.origin, "documents": [0, first]})
    return pool, (held, split)


class _Head(Sequence[str]):
    """The first ``count`` documents of a sequence, without reading them."""

    def __init__(self, texts: Sequence[str], count: int) -> None:
        self._texts, self._count = texts, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._texts[slice(*index.indices(self._count))]
        return self._texts[range(self._count)[index]]


def _draw_documents(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    draw: random.Random,
    samples: int,
    length: int,
    where: str,
) -> _Drawn:
    """Windows of documents drawn with replacement. Raises DataUnavailable where all are found too short."""
    sizes: dict[int, int] = {}
    kept: dict[int, NDArray[np.int64]] = {}
    starts: dict[int, list[int]] = {}
    rows: list[NDArray[np.int64]] = []
    while len(rows) < samples:
        index = draw.randint(0, len(texts) - 1)
        if index not in sizes:
            ids = encode(texts[index], tokenizer)
            sizes[index] = len(ids)
            if len(ids) > length:
                kept[index] = ids
            elif not kept and len(sizes) == len(texts):
                raise DataUnavailable(
                    f"none of the {len(texts)} documents of {where} has more than {length} tokens"
                    f" (the longest has {max(sizes.values())}); use a shorter --length, or longer documents"
                )
        if index in kept:
            start = draw.randint(0, sizes[index] - length - 1)
            rows.append(kept[index][start : start + length])
            starts.setdefault(index, []).append(start)
    distinct = sum(_covered(begins, length) for begins in starts.values())
    return _Drawn(np.stack(rows), len(starts), distinct)


def _draw_anywhere(
    ids: NDArray[np.int64], draw: random.Random, samples: int, length: int, where: str
) -> _Drawn:
    """Uniform windows of one long text. Raises DataUnavailable where it has no more than ``length``."""
    if len(ids) <= length:
        raise DataUnavailable(
            f"{where} has {len(ids)} tokens; drawing windows of {length} needs more, or a shorter --length"
        )
    starts = [draw.randint(0, len(ids) - length - 1) for _ in range(samples)]
    return _Drawn(np.stack([ids[start : start + length] for start in starts]), None, _covered(starts, length))


def _covered(starts: list[int], length: int) -> int:
    """Positions that windows of ``length`` at ``starts`` cover, each counted once."""
    total = end = 0
    for start in sorted(starts):
        total += start + length - max(start, end)
        end = start + length
    return total


def _cut(
    ids: NDArray[np.int64], length: int, windows: int | None, selection: str, where: str
) -> tuple[NDArray[np.int64], int, list[str]]:
    """Disjoint windows [windows, length] of a text, the number of whole windows there are, and notes.

    Raises DataUnavailable where there is not one.
    """
    total = len(ids) // length
    if total == 0:
        raise DataUnavailable(
            f"{where} has {len(ids)} tokens, fewer than one window of {length}; use a shorter --length"
        )
    whole = ids[: total * length].reshape(total, length)
    if windows is None or windows == total:
        return whole, total, []
    if windows > total:
        return whole, total, [f"{where} has {total} windows of {length} tokens; {windows} were asked for"]
    chosen = range(windows) if selection == "first" else [i * total // windows for i in range(windows)]
    return whole[np.asarray(chosen)], total, []


def _joined_ids(documents: Documents, join: str, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Token ids of the documents joined to one text."""
    return encode_long(join.join(documents.texts), tokenizer)


def _origin_notes(documents: Documents, where: str) -> list[str]:
    if documents.origin.get("official", True):
        return []
    return [f"{where} is a local file not known to be the published text: compare with no published figure"]


def _describe(
    protocol: str,
    dataset: str,
    split: str,
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    tokens: NDArray[np.int64],
) -> dict[str, Any]:
    """What every provenance holds."""
    begins = encode("", tokenizer).tolist()
    return {
        "protocol": protocol,
        "dataset": dataset,
        "split": split,
        "origin": documents.origin,
        "documents": len(documents.texts),
        "tokenizer": {
            "class": type(tokenizer).__name__,
            "sha256": tokenizer_sha256(tokenizer),
            "vocabulary": len(tokenizer),
            "add_special_tokens": True,
            "added_around_a_text": begins,
        },
        "windows": int(tokens.shape[0]),
        "length": int(tokens.shape[1]),
        "tokens": int(tokens.size),
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest(),
    }
