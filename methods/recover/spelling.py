"""How a recovery is spelled: ``lora``, ``full``, ``4xfull`` (in four stages); empty is one shot. Free of torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from methods.errors import UserError, shown

__all__ = ["MOST_STAGES", "ONE_SHOT", "RecoverySpelling", "parse"]

MOST_STAGES = 100
"""Stages that a gradual schedule may have."""

_SPELLING = re.compile(r"(?:(?P<stages>[1-9]\d{0,2})x)?(?P<kind>[a-z][a-z0-9_-]*)")


@dataclass(frozen=True, slots=True)
class RecoverySpelling:
    """What trains a pruned model, and in how many stages of pruning and training."""

    kind: str = ""
    stages: int = 1

    def __str__(self) -> str:
        return f"{self.stages}x{self.kind}" if self.stages > 1 else self.kind

    def __bool__(self) -> bool:
        """Whether anything is trained at all."""
        return bool(self.kind)


ONE_SHOT = RecoverySpelling()
"""No recovery."""


def parse(text: str) -> RecoverySpelling:
    """Read ``[Nx]name``, the name unchecked. Raises UserError for another form or too many stages."""
    if not text:
        return ONE_SHOT
    found = _SPELLING.fullmatch(text.strip().lower())
    if not found:
        raise UserError(f"recovery '{shown(text)}' is not spelled name or NxName, as in lora, full or 4xfull")
    stages = int(found["stages"] or 1)
    if stages > MOST_STAGES:
        raise UserError(f"recovery '{shown(text)}' has {stages} stages; use {MOST_STAGES} at most")
    return RecoverySpelling(found["kind"], stages)
