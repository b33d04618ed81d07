"""How a method is spelled: ``rule[@allocation][+refinement...]``, the one parser of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from methods.errors import UserError, shown

__all__ = ["DENSE_METHOD", "Spelling", "parse"]

DENSE_METHOD = "dense"
"""The unpruned model, where a method is named."""

_NAME = r"[a-z][a-z0-9_-]*"
_SPELLING = re.compile(rf"(?P<rule>{_NAME})(?:@(?P<allocation>{_NAME}))?(?P<refinements>(?:\+{_NAME})*)")


@dataclass(frozen=True, slots=True)
class Spelling:
    """A method's parts: what chooses and updates weights, what spreads the budget, what refines the mask.

    ``allocation`` is empty where none is named, which means ``uniform``.
    """

    rule: str
    allocation: str = ""
    refinements: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = f"@{self.allocation}" if self.allocation else ""
        return self.rule + at + "".join(f"+{name}" for name in self.refinements)


def parse(text: str) -> Spelling:
    """Read ``rule[@allocation][+refinement...]``, names unchecked. Raises UserError for another form."""
    found = _SPELLING.fullmatch(text.strip().lower())
    if not found:
        raise UserError(
            f"method '{shown(text)}' is not spelled rule[@allocation][+refinement], "
            "as in sparsegpt, magnitude@global or wanda+dsnot"
        )
    refinements = tuple(found["refinements"].split("+")[1:])
    spelled = Spelling(found["rule"], found["allocation"] or "", refinements)
    if spelled.rule == DENSE_METHOD and (spelled.allocation or refinements):
        raise UserError(f"method '{shown(text)}': dense takes neither allocation nor refinement; write dense")
    twice = [name for name in refinements if refinements.count(name) > 1]
    if twice:
        raise UserError(f"method '{shown(text)}' names '{shown(twice[0])}' twice; once is enough")
    return spelled
