"""A W&B server on this machine: what wandb-core 0.31 asks of the HTTP API when it syncs, answered and kept."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StubRun:
    """One run as the server would hold it."""

    fields: dict[str, Any] = field(default_factory=dict)
    upserts: int = 0
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None


@dataclass
class StubArtifact:
    """One artifact: what was asked for, and the files that came."""

    input: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbStub:
    """The server. `failing` is the HTTP status that everything gets, `failing_uploads` that of files.

    `hanging` seconds pass before any answer, `hanging_uploads` before one to all but the first question.
    """

    def __init__(self) -> None:
        self.runs: dict[str, StubRun] = {}
        self.artifacts: list[StubArtifact] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.failing = 0
        self.failing_uploads = 0
        self.hanging = self.hanging_uploads = 0.0
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def clear(self) -> None:
        """Forget every request and behave again; runs stay."""
        self.requests.clear()
        self.failing = self.failing_uploads = 0
        self.hanging = self.hanging_uploads = 0.0

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_words: object) -> None:
                pass

            def handle(self) -> None:
                # A client that is killed, or has given up, leaves its connection open or reset.
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                waits = stub.hanging or (0 if b"viewer" in body else stub.hanging_uploads)
                stub.released.wait(waits)
                given = self.headers.get("Authorization", "")
                expected = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
                if given != expected and not self.path.startswith("/upload/"):
                    status, answer = 401, {"errors": [{"message": "user is not logged in"}]}
                else:
                    with stub._lock:
                        status, answer = stub.answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that http.server looks for

        return Handler

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON for one request."""
        path = unquote(path)
        if path == "/graphql":
            query = json.loads(body)
            name, answer = self._graphql(query["query"], query.get("variables") or {})
            self.requests.append(name)
            return (self.failing, {}) if self.failing else (200, {"data": answer})
        self.requests.append(path)
        if self.failing or (self.failing_uploads and path.startswith("/upload/")):
            return self.failing or self.failing_uploads, {}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        elif path.startswith("/upload/run/"):
            run, _, name = path.removeprefix("/upload/run/").partition("/")
            self.runs[run].files[name] = body
        elif path.startswith("/upload/artifact/"):
            number, _, name = path.removeprefix("/upload/artifact/").partition("/")
            self.artifacts[int(number)].files[name] = body
        else:
            self.unknown.append(path)
        return 200, {}

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            for index, line in enumerate(chunk["content"], start=chunk["offset"]):
                if file == "wandb-history.jsonl":
                    run.history[index] = json.loads(line)
                elif file == "wandb-summary.json":
                    run.summary = json.loads(line)
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")

    def _graphql(self, text: str, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        input_ = given.get("input") or {}
        if "upsertBucket" in text:
            run = self.runs.setdefault(given["name"], StubRun())
            run.upserts += 1
            run.fields.update({name: value for name, value in given.items() if value is not None})
            entity = {"id": "E", "name": given.get("entity") or "somebody"}
            project = {"id": "P", "name": given.get("project"), "entity": entity}
            bucket = {"id": given["name"], "name": given["name"], "displayName": "", "description": None}
            bucket |= {"config": None, "sweepName": None, "historyLineCount": 0, "project": project}
            return "upsertBucket", {"upsertBucket": {"bucket": bucket, "inserted": run.upserts == 1}}
        if "createRunFiles" in text:
            run_name = given.get("run") or given.get("runName")
            files = [
                {"name": name, "uploadUrl": f"{self.url}/upload/run/{run_name}/{name}"}
                for name in given["files"]
            ]
            return "createRunFiles", {
                "createRunFiles": {"runID": run_name, "uploadHeaders": [], "files": files}
            }
        if "createArtifactFiles" in text:
            edges = [{"node": self._file(entry)} for entry in input_["artifactFiles"]]
            return "createArtifactFiles", {"createArtifactFiles": {"files": {"edges": edges}}}
        if "createArtifactManifest" in text or "updateArtifactManifest" in text:
            kind = "createArtifactManifest" if "createArtifactManifest" in text else "updateArtifactManifest"
            number = str(given.get("artifactID") or given.get("artifactManifestID"))
            file = {"id": number, "uploadUrl": f"{self.url}/upload/artifact/{number}/wandb_manifest.json"}
            return kind, {kind: {"artifactManifest": {"id": number, "file": {**file, "uploadHeaders": []}}}}
        if "createArtifact" in text:
            self.artifacts.append(StubArtifact(input_))
            sequence = {"id": "S", "latestArtifact": None}
            artifact = {"id": str(len(self.artifacts) - 1), "state": "PENDING", "artifactSequence": sequence}
            return "createArtifact", {"createArtifact": {"artifact": artifact}}
        if "commitArtifact" in text:
            self.artifacts[int(given["artifactID"])].committed = True
            return "commitArtifact", {
                "commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}
            }
        if "viewer" in text:
            viewer = {"id": "V", "entity": "somebody", "username": "somebody", "flags": "{}"}
            return "viewer", {"viewer": viewer}
        if "serverInfo" in text or "ServerFeatures" in text:
            return "serverInfo", {"serverInfo": {"features": []}}
        self.unknown.append(text)
        return "unknown", {}

    def _file(self, entry: dict[str, Any]) -> dict[str, Any]:
        number, name = entry["artifactID"], entry["name"]
        return {
            "storagePath": name,
            "uploadUrl": f"{self.url}/upload/artifact/{number}/{name}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": number},
        }
