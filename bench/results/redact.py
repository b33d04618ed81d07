"""Secrets taken out of whatever is kept, shown or sent: records, run state, error lines, tracebacks, logs.

Replaced by ``***`` are the values of environment variables that are named like secrets, tokens by their shape, user and
password of an address, its secret parameters, and what follows ``Authorization``, ``HF_TOKEN=`` and their like. Hashes and
commits, which records are full of, are left alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["HIDDEN", "redact", "redact_command", "redact_facts", "secret_name"]

HIDDEN: Final = "***"
_SHORTEST: Final = 8
"""A variable's value of fewer characters is no secret worth the harm of replacing it everywhere."""

_NAME: Final = re.compile(
    r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|AUTHORIZATION", re.IGNORECASE
)
_PLACES: Final = ("_FILE", "_PATH", "_DIR")
"""Endings of variables that name where a secret lies, and hold none."""
_HARMLESS: Final = {"TOKENIZERS_PARALLELISM"}
_OPTION: Final = re.compile(r"--?(?:[\w-]+-)?(?:token|secret|password|api-?key|access-?key)", re.IGNORECASE)
_SHAPES: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|pypi-[\w-]{16,}|sk-[\w-]{20,}"
    r"|xox[abeprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|local-[0-9a-f]{40}|wandb_v1_\w{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_BEHIND: Final = (
    re.compile(r"(://)[^/\s@'\"]{1,400}(?=@)"),
    re.compile(
        r"([?&;](?:[\w-]{0,40}(?:token|secret|signature|credential|password)|sig|key|api[_-]?key|auth)=)[^&\s'\"#]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"(\bauthorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token)\s+)?)[^\s'\",]+",
        re.IGNORECASE,
    ),
    re.compile(r"(\bBearer\s+)[\w.~+/=-]{8,}"),
    re.compile(
        r"(\b[A-Z][A-Z0-9_]{0,40}(?:TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)['\"]?\s{0,2}[=:]\s{0,2}['\"]?)[^\s'\",;]+"
    ),
    re.compile(
        r"((?<![\w-])-{0,2}(?:(?:hf|access|auth)[_-])?(?:token|secret|password|api[_-]?key)=['\"]?)[^\s'\",;&]+",
        re.IGNORECASE,
    ),
)


def secret_name(name: str) -> bool:
    """Whether an environment variable of that name holds a secret, or where one lies."""
    return bool(_NAME.search(name)) and name not in _HARMLESS


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text without secrets; ``environ``: the variables whose secrets are looked for, those of this process."""
    return _hide(text, _values(os.environ if environ is None else environ))


def _values(environ: Mapping[str, str]) -> list[str]:
    """Values of the variables that are named like secrets, longest first."""
    found = {
        value
        for name, value in environ.items()
        if len(value) >= _SHORTEST and secret_name(name) and not name.endswith(_PLACES)
    }
    return sorted((value for value in found if not value.isdigit()), key=len, reverse=True)


def _hide(text: str, values: Sequence[str]) -> str:
    for value in values:
        text = text.replace(value, HIDDEN)
    for pattern in _BEHIND:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)


def redact_command(words: Sequence[str]) -> list[str]:
    """A command's words without secrets, that behind an option such as ``--token`` included."""
    return _words(words, _values(os.environ))


def _words(words: Sequence[str], values: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        hidden = bool(found) and _OPTION.fullmatch(found[-1]) is not None
        found.append(HIDDEN if hidden else _hide(word, values))
    return found


def redact_facts(value: Any) -> Any:
    """JSON data without secrets, in names and in texts, however deep."""
    return _facts(value, _values(os.environ))


def _facts(value: Any, values: Sequence[str]) -> Any:
    if isinstance(value, str):
        return _hide(value, values)
    if isinstance(value, list | tuple):
        plain = all(isinstance(word, str) for word in value)
        return _words(value, values) if plain else [_facts(entry, values) for entry in value]
    if isinstance(value, dict):
        return {_hide(name, values): _facts(entry, values) for name, entry in value.items()}
    return value
