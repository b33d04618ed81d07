"""What `--wandb` and its companions may be: checked for form, so that no run begins with a name that W&B refuses."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

from bench.plan.grammar import nearest, parse_list, shown, unique
from methods.errors import UserError

__all__ = ["MODES", "Entity", "Mode", "Project", "Tags", "check_entity", "check_project", "check_tags"]

MODES = ("off", "offline", "online")
_LONGEST_NAME = 128
_LONGEST_TAG = 64


def _mode(value: object) -> str:
    # YAML reads a bare off as a word here, and false as a Boolean.
    word = "off" if value is False else str(value).strip().lower()
    if word not in MODES:
        raise UserError(f"--wandb '{shown(value)}' is unknown; use {', '.join(MODES)}{nearest(word, MODES)}")
    return word


def _name(value: object, option: str, refused: str) -> str | None:
    if value is None:
        return None
    word = value.strip() if isinstance(value, str) else ""
    if not word or len(word) > _LONGEST_NAME or not word.isprintable() or re.search(refused, word):
        raise UserError(
            f"--{option} is '{shown(value)}'; give one name of {_LONGEST_NAME} characters at most, without / \\ # ? % :"
        )
    return word


def check_project(value: object) -> str | None:
    """A W&B project's name. Raises UserError."""
    return _name(value, "wandb-project", r"[/\\#?%:]")


def check_entity(value: object) -> str | None:
    """The name of a W&B user or team. Raises UserError."""
    return _name(value, "wandb-entity", r"[/\\#?%:\s]")


def check_tags(value: object) -> tuple[str, ...] | None:
    """Tags, each of 64 characters at most. Raises UserError."""
    if value is None:
        return None
    words = unique(parse_list(value, "--wandb-tags"))
    for word in words:
        if len(word) > _LONGEST_TAG or not word.isprintable():
            raise UserError(
                f"--wandb-tags has '{shown(word)}'; a tag has {_LONGEST_TAG} printable characters at most"
            )
    return words


Mode = Annotated[str, BeforeValidator(_mode)]
Project = Annotated[str | None, BeforeValidator(check_project)]
Entity = Annotated[str | None, BeforeValidator(check_entity)]
Tags = Annotated[tuple[str, ...] | None, BeforeValidator(check_tags)]
