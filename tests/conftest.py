"""What every test stands on: no network, a private cache, few threads, markers that skip with a reason."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Read when the libraries are first imported, so set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the matrices are small, and several processes may run
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nothing listens there: a forgotten stub fails at once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"

LOOPBACK = ("127.", "::1", "localhost")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="run tests marked network too")
    parser.addoption("--chaos", action="store_true", help="run tests marked chaos too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, saying why."""
    for item in items:
        if item.get_closest_marker("network") and not config.getoption("--network"):
            item.add_marker(pytest.mark.skip(reason="needs the network: pass --network"))
        if item.get_closest_marker("chaos") and not config.getoption("--chaos"):
            item.add_marker(pytest.mark.skip(reason="takes long: pass --chaos, or run nox -s scale"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: none here"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine only in tests marked network."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"a test tried to reach {address[0]}: only loopback addresses are allowed")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`BENCH_CACHE` points at an empty folder, so that no test sees or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of evaluation texts that `BENCH_DATA_DIR` names; the test is skipped where there is none."""
    named = os.environ.get("BENCH_DATA_DIR", "")
    if not named or not Path(named).is_dir():
        pytest.skip("needs evaluation texts: set BENCH_DATA_DIR")
    return Path(named)


@pytest.fixture
def fake_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The catalogue with an allocation, a refinement and shorthands of the tests' own."""
    from fake_methods import add_to_catalogue

    from methods import registry

    add_to_catalogue(monkeypatch)
    yield
    registry._table.cache_clear()
