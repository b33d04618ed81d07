"""Signals that come while something must not be cut short."""

from __future__ import annotations

import signal

import pytest

from bench.run.live import deferred, termination


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_effect_once_the_block_is_done(number: signal.Signals) -> None:
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    done = []

    def block() -> None:
        with termination(), deferred():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["all of it"]
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == before
