"""The session: what it was initialised with."""

from __future__ import annotations

from typing import Any


class _Session:
    model: Any = None
    recipe: Any = None

    def reset(self) -> None:
        self.model = self.recipe = None

    def initialize(self, model: Any, recipe: Any, start: float) -> None:
        self.model, self.recipe = model, recipe

    def finalize(self) -> None:
        assert self.model is not None


_session = _Session()


def active_session() -> _Session:
    return _session
