"""The desk and the way to a cluster, without one."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from bench.cli.console import QuietObserver
from bench.executors.ray.cluster import connected
from bench.executors.ray.desk import Delivery, Desk
from bench.plan.cells import expand
from bench.plan.settings import gather
from methods.errors import MachineError, UserError


def test_only_the_latest_attempt_delivers_and_knows_what_came_before() -> None:
    async def story() -> None:
        desk = Desk()
        assert await desk.begin(7, "one") == (1, [])
        assert await desk.deliver(7, 1, Delivery(b"prune"))
        assert await desk.deliver(7, 1, Delivery(b"prune"))  # repeated by Ray
        assert await desk.begin(7, "two") == (2, [b"prune"])
        assert not await desk.deliver(7, 1, Delivery(b"perplexity"))  # the lost attempt is still alive
        await desk.tell(7, 1, "warning", "of the lost attempt")
        assert await desk.deliver(7, 2, Delivery(b"perplexity"))
        messages = await desk.fetch(0)
        assert [message.kind for message in messages] == ["begin", "record", "begin", "record"]
        assert await desk.fetch(0) == messages  # kept until acknowledged
        assert await desk.fetch(messages[-1].number, wait=False) == []

    asyncio.run(story())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://somewhere:10001", "is no address; give HOST:PORT"),
        ("127.0.0.1:99999", "is no address; give HOST:PORT"),
        ("127.0.0.1:9", "no cluster answers (connection refused)"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(address: str, said: str) -> None:
    with pytest.raises(UserError) as caught, connected(address):
        pass
    assert said in str(caught.value)


def test_a_lost_desk_ends_the_run_with_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from bench.executors.ray import run

    def lost(_: run._Run) -> None:
        raise ray.exceptions.ActorUnavailableError("socket closed", b"0" * 16)

    monkeypatch.setattr(run, "connected", lambda _: nullcontext(ray))
    monkeypatch.setattr(run._Run, "__init__", lambda *_: None)
    monkeypatch.setattr(run._Run, "run", lost)
    settings = gather({"models": "nano-opt", "methods": "magnitude", "sparsity": "0.5", "executor": "ray"})
    with pytest.raises(MachineError, match="start the same command again"):
        run.execute(expand(settings), tmp_path / "out", QuietObserver())
    assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] != "running"
    assert not list((tmp_path / "out" / "work").glob("*"))


def test_a_missing_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'prune-bench\[ray\]'"), connected(None):
        pass


def test_an_address_asks_for_the_executor() -> None:
    with pytest.raises(UserError, match="add --executor ray"):
        gather({"ray_address": "auto"})
