"""A small Hugging Face hub on 127.0.0.1: what a model download uses of its API, and its ways to fail.

with StubHub() as hub:
    hub.add("facebook/opt-125m", {"config.json": b"..."})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
LARGE = (".safetensors", ".bin")


@dataclass
class Repo:
    """Commits by hash, in the order they were made; the last one is main."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    @property
    def main(self) -> str:
        return list(self.commits)[-1]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str
    authorised: bool


class StubHub:
    """``delay``: seconds before every answer; ``cut``: bytes of a file that are sent before the line dies,
    by name, once; ``hold``: the same, but the line stays open; ``stated``: sha256 that is claimed for a file.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.delay = 0.0
        self.status = 0
        self.cut: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.stated: dict[str, str] = {}
        self.held = threading.Event()
        self.closing = threading.Event()

    def add(self, name: str, files: dict[str, bytes], *, gated: bool = False) -> str:
        """A new commit on main with exactly these files; returns its hash."""
        repo = self.repos.setdefault(name, Repo())
        repo.gated = gated
        text = f"{name} {len(repo.commits)} {sorted(files)}"
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        repo.commits[commit] = dict(files)
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [request.path.rpartition("/")[2] for request in self.requests if request.method == "GET"]

    def __enter__(self) -> StubHub:
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    stub: StubHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        given = self.headers.get("Authorization", "")
        self.stub.requests.append(Request(self.command, path, self.headers.get("Range", ""), bool(given)))
        if self.stub.delay and self.stub.closing.wait(self.stub.delay):
            return
        if self.stub.status:
            self._send(self.stub.status, b"")
            return
        info, file = INFO.fullmatch(path), FILE.fullmatch(path)
        found = (info or file) and self.stub.repos.get((info or file)[1])  # type: ignore[index]
        if not found:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        revision = (info or file)[2]  # type: ignore[index]
        commit = found.main if revision == "main" else revision
        if commit not in found.commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif info:
            self._info(info[1], commit, found.commits[commit])
        elif found.gated:
            self._send(403 if given else 401, b"", {"X-Error-Code": "GatedRepo"})
        elif file and file[3] in found.commits[commit]:
            self._file(file[3], commit, found.commits[commit][file[3]], head=head)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _info(self, repo: str, commit: str, files: dict[str, bytes]) -> None:
        siblings: list[dict[str, Any]] = []
        for name, content in files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _git_hash(content)}
            if name.endswith(LARGE):
                digest = self.stub.stated.get(name) or hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": repo, "modelId": repo, "sha": commit, "tags": [], "siblings": siblings}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, commit: str, content: bytes, *, head: bool) -> None:
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(content))}
        if name.endswith(LARGE):
            headers["X-Linked-Etag"] = f'"{etag}"'
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        limit = None
        if not head:
            limit = self.stub.cut.pop(name, None)
            if limit is None and name in self.stub.hold:
                limit = self.stub.hold[name]
                self._send(206 if asked else 200, content[start:], headers, limit=limit)
                self.wfile.flush()
                self.stub.held.set()
                self.stub.closing.wait(30)
                return
        self._send(206 if asked else 200, content[start:], headers, head=head, limit=limit)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        head: bool = False,
        limit: int | None = None,
    ) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if head or self.command == "HEAD":
                return
            self.wfile.write(body if limit is None else body[:limit])
            if limit is not None:
                self.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
