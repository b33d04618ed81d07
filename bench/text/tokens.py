"""Text to token ids by a tokenizer's own rule, remembered in memory and, for long texts, on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.models.cache import cache_root
from bench.models.tokenizing import tokenizing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "encode_long", "tokenizer_sha256"]

STORED_FROM = 1 << 20
"""Texts from this many characters on are kept on disk: a tokenizer takes seconds for them."""

_REMEMBERED: OrderedDict[str, NDArray[np.int64]] = OrderedDict()
_REMEMBER = 6


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Token ids [tokens] of one text by the tokenizer's default rule, however long the text.

    Raises CheckpointError where the tokenizer can be read but not used.
    """
    with tokenizing("the model's tokenizer cannot encode the text"):
        # verbose=False: texts longer than the model's context are meant, and cut into windows.
        ids = tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"]
    return np.asarray(ids, dtype=np.int64)


def encode_long(text: str, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """As ``encode``, read-only and remembered by the hashes of text and tokenizer."""
    from tokenizers import __version__ as version

    parts = (hashlib.sha256(text.encode()).hexdigest(), tokenizer_sha256(tokenizer), version)
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    ids = _REMEMBERED.get(key)
    if ids is None:
        path = cache_root() / "tokens" / f"{key[:32]}.safetensors" if len(text) >= STORED_FROM else None
        ids = _stored(path) if path is not None else None
        if ids is None:
            ids = encode(text, tokenizer)
            if path is not None:
                _store(path, ids)
        ids.setflags(write=False)
        _REMEMBERED[key] = ids
        if len(_REMEMBERED) > _REMEMBER:
            _REMEMBERED.popitem(last=False)
    _REMEMBERED.move_to_end(key)
    return ids


def _stored(path: Path) -> NDArray[np.int64] | None:
    """Ids kept on disk, where the file is whole: its own digest is checked."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            ids: NDArray[np.int32] = file.get_tensor("ids")
            whole = (file.metadata() or {}).get("sha256") == hashlib.sha256(ids.tobytes()).hexdigest()
    except (OSError, SafetensorError):
        return None
    return ids.astype(np.int64) if whole and ids.dtype == np.int32 and ids.ndim == 1 else None


def _store(path: Path, ids: NDArray[np.int64]) -> None:
    """Keep ids on disk in one atomic replace; a full disk only makes the next run take longer."""
    from safetensors.numpy import save_file

    small = ids.astype(np.int32)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"ids": small}, partial, metadata={"sha256": hashlib.sha256(small.tobytes()).hexdigest()})
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that decides how a tokenizer splits text, as far as its class lets it be seen."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        seen = repr(sorted(tokenizer.get_vocab().items()))
    else:
        content = json.loads(backend.to_str())
        # Encoding sets these two on the backend: they are the caller's, not the tokenizer's.
        content["truncation"] = content["padding"] = None
        seen = json.dumps(content, sort_keys=True)
    return hashlib.sha256(f"{type(tokenizer).__name__} {seen}".encode()).hexdigest()
