"""A real S3 server of this machine, a bucket on it, and machines with spools of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.results import remote


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    monkeypatch.setattr(remote, "_mirrors", {})
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing-secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}/runs/first"
    for mirror in remote._mirrors.values():
        os.close(mirror._held)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], remote.Mirror]:
    """A mirror with an empty spool of its own, as another machine has."""

    def fresh(url: str) -> remote.Mirror:
        number = sum(1 for _ in tmp_path.glob("machine*"))
        monkeypatch.setenv("BENCH_CACHE", str(tmp_path / f"machine{number}"))
        monkeypatch.setattr(remote, "_mirrors", {})
        found = remote.mirror_of(remote.place(url))
        assert found is not None
        return found

    return fresh
