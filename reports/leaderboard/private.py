"""Records as a leaderboard publishes them: without secrets, and without the folders of the machine they were measured on."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final

from bench.results.records import Record
from bench.results.redact import redact, redact_facts

__all__ = ["private"]

_NAMED: Final = re.compile(r"[^=/\\~]*=|(?:path|file):")
"""What may stand before a path in a word: an option or parameter with `=`, the kind of a model."""
_IN_TEXT: Final = re.compile(
    r"(?<![^\s'\"`(\[=:,])(?:~[\w.-]*(?=[/\\])|[A-Za-z]:(?=\\)|(?=/[^/\s])|(?=\\\\)|(?<=file:)(?=///))"
    r"[^\n:;,'\"`()\[\]]*[/\\]([^\s:;,'\"`()\[\]]*)"
)
"""A path among words. As far as the last separator before a stop, since names of folders may hold spaces."""


def private(record: Record) -> Record:
    """The record with every absolute path in its command, reason, warnings and provenance cut to its last part.

    Relative paths stay. Values of phases that are not done are not published, and so not named.
    """
    return record.model_copy(
        update={
            "provenance": {
                name: _command(value) if name == "command" else _facts(value)
                for name, value in record.provenance.items()
            },
            "parameters": redact_facts(record.parameters),
            "reason": _text(record.reason),
            "warnings": tuple(map(_text, record.warnings)),
            "values": record.values if record.status == "done" else "",
        }
    )


def _command(words: Any) -> Any:
    if not isinstance(words, list):
        return _facts(words)
    return [_word(word) if isinstance(word, str) else word for word in redact_facts(words)]


def _word(word: str) -> str:
    """A word of a command: an option's value, or a list of them with commas between."""
    parts, inside = [], False
    for part in word.split(","):
        start = 0
        while found := _NAMED.match(part, start):
            start = found.end()
        value = part[start:]
        # A folder's name may hold a comma: what follows an absolute path may be the rest of it.
        inside = _absolute(value) or (inside and not start)
        parts.append(
            part[:start] + (_last(value) if inside and re.search(r"[/\\~]", value) else _text(value))
        )
    return ",".join(parts)


def _absolute(value: str) -> bool:
    return value.startswith(("/", "~", "\\")) or bool(PureWindowsPath(value).drive)


def _last(value: str) -> str:
    """The last part of a path; of somebody's home `~` alone."""
    name = PurePosixPath(value).name
    name = PureWindowsPath(name).name if "\\" in name else name
    return "~" if name.startswith("~") else name or "/"


def _text(text: str) -> str:
    return _IN_TEXT.sub(lambda found: found[1] or "/", redact(text))


def _facts(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return [_facts(entry) for entry in value]
    if isinstance(value, dict):
        return {_text(name): _facts(entry) for name, entry in value.items()}
    return value
