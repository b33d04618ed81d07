"""Events of training; the magnitude modifier masks weights after an optimiser's step."""

from __future__ import annotations

from llmcompressor import prune
from llmcompressor.core import active_session


class LifecycleCallbacks:
    @classmethod
    def batch_start(cls) -> None:
        assert active_session().recipe is not None

    @classmethod
    def optim_pre_step(cls) -> None:
        assert active_session().recipe is not None

    @classmethod
    def optim_post_step(cls) -> None:
        prune(active_session().model, active_session().recipe)
