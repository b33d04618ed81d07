"""Reading ``--config FILE.yaml``: plain data only, small, and as it was meant.

YAML 1.1 reads ``2:4`` as the number 124 and ``yes:`` as true; here a scalar is a number, true, false, null or
text. Tags, aliases and repeated keys are refused: they could execute, explode, or hide a value.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from bench.plan.grammar import shown
from methods.errors import UserError

__all__ = ["read_config"]

_LIMIT = 65536


class _Refused(Exception):
    pass


class _PlainLoader(yaml.SafeLoader):
    """A safe loader with the few scalar types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _Refused("has an alias (*name); write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused("has a key that is not a word")
            if key.value in seen:
                raise _Refused(f"has the key '{shown(key.value)}' twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        "-+.0123456789",
    ),
):
    _PlainLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if not re.fullmatch(r"[-+]?[0-9]{1,30}", text):
        raise _Refused(f"has '{shown(text)}' where a whole number should be")
    return int(text)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    try:
        return float(text)
    except ValueError:
        raise _Refused(f"has '{shown(text)}' where a number should be") from None


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _number)


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for anything but a small mapping of plain data."""
    where = f"config '{shown(path)}'"
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {(error.strerror or 'unreadable').lower()}") from None
    if len(raw) > _LIMIT:
        raise UserError(f"{where} is larger than {_LIMIT // 1024} KiB; a run's settings are a few lines")
    try:
        data = _load(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8 text") from None
    except _Refused as error:
        raise UserError(f"{where} {error}") from None
    except yaml.constructor.ConstructorError as error:
        problem = shown(error.problem or "an unknown tag")
        line = _line(error)
        raise UserError(f"{where} is not plain data: {problem}{line}; use words, numbers, lists") from None
    except yaml.YAMLError as error:
        problem = shown(getattr(error, "problem", None) or "unreadable")
        raise UserError(f"{where} is not YAML: {problem}{_line(error)}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; a run's settings are a flat mapping") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{where} holds a value that does not read as its tag says") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{where} is not a mapping; write lines such as 'methods: sparsegpt,magnitude'")
    for key in data:
        if not isinstance(key, str):
            raise UserError(f"{where} has the key '{shown(key)}'; keys are the names of options of bench run")
    return data


def _load(text: str) -> Any:
    loader = _PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f" (line {mark.line + 1})" if mark is not None else ""
