"""The desk and the way to a cluster, without one."""

from __future__ import annotations

import asyncio
import sys

import pytest

from bench.executors.ray.cluster import connected
from bench.executors.ray.desk import Delivery, Desk
from bench.plan.settings import gather
from methods.errors import UserError


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


def test_a_missing_ray_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'prune-bench\[ray\]'"), connected(None):
        pass


def test_an_address_asks_for_the_executor() -> None:
    with pytest.raises(UserError, match="add --executor ray"):
        gather({"ray_address": "auto"})
