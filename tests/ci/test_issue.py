"""The script that opens issues, against a stand-in for GitHub's API on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "ghs_secret0secret1"


@dataclass
class Hub:
    """One repository's issues, as the API tells them; every request is kept."""

    url: str = ""
    status: int = 0
    issues: list[dict[str, Any]] = field(default_factory=list)
    comments: list[tuple[int, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: Any) -> Any:
        parts = urlsplit(path)
        place = parts.path.removeprefix("/repos/us/bench/issues").strip("/").split("/")
        if method == "GET":
            asked = parse_qs(parts.query)
            page, size = int(asked["page"][0]), int(asked["per_page"][0])
            assert asked["state"] == ["open"] and asked["labels"] == ["nightly-regression"]
            found = [issue for issue in self.issues if issue["state"] == "open"]
            return found[(page - 1) * size : page * size]
        if method == "POST" and place == [""]:
            self.issues.append({"number": len(self.issues) + 1, "state": "open", **body})
            return self.issues[-1]
        if method == "POST":
            self.comments.append((int(place[0]), body["body"]))
            return {}
        self.issues[int(place[0]) - 1].update(body)
        return {}


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            state.tokens.add(self.headers["Authorization"])
            self.send_response(state.status or 200)
            self.end_headers()
            if not state.status:
                self.wfile.write(json.dumps(state.answer(self.command, self.path, body)).encode())

        do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - http.server's names

        def log_message(self, *_words: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def comparison(
    method: str, metric: str, kind: str = "quality", new: float = 2.0, **more: Any
) -> dict[str, Any]:
    return {
        "model": "nano-opt",
        "method": method,
        "target": "50%",
        "seed": 0,
        "metric": metric,
        "kind": kind,
        "base": 1.0,
        "new": new,
        "relative": new - 1.0,
        "verdict": "regressed",
        "reason": "",
        **more,
    }


def run(
    hub: Hub, folder: Path, found: Any, result: str = "failure", grid: str = "nano", **environment: str
) -> subprocess.CompletedProcess[str]:
    file = folder / f"nightly-{grid}" / "compare.json"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if found is not None:
        file.write_text(found if isinstance(found, str) else json.dumps(found))
    given = {
        "GITHUB_TOKEN": TOKEN,
        "GITHUB_REPOSITORY": "us/bench",
        "GITHUB_API_URL": hub.url,
        "GITHUB_RUN_ID": "7",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/issue.py"), str(folder), f"{grid}={result}"],
        env={**given, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_one_issue_a_kind_of_regression_opened_once_and_brought_up_to_date(hub: Hub, tmp_path: Path) -> None:
    hub.issues = [{"number": n + 1, "state": "open", "title": "other", "body": None} for n in range(120)]
    lost = {
        "model": "nano-opt",
        "method": "wanda",
        "target": "2:4",
        "seed": 0,
        "phase": "prune",
        "reason": "failed",
    }
    found = {
        "base": "studies/nightly",
        "figures": [
            comparison("sparsegpt", "perplexity"),
            comparison("sparsegpt", "kl_to_dense"),
            comparison("bitmap", "median_s", "time"),
            comparison("magnitude", "perplexity", verdict="unchanged"),
        ],
        "missing": [lost],
        "damage": ["segment: 3 bytes at offset 0 are no record"],
    }
    done = run(hub, tmp_path, found)
    assert done.returncode == 0 and done.stdout.count("opened issue") == 4, done.stderr
    opened = hub.issues[120:]
    assert [issue["title"] for issue in opened] == [
        "Nightly nano: bitmap regressed (time)",
        "Nightly nano: sparsegpt regressed (quality)",
        "Nightly nano: the store regressed (damaged)",
        "Nightly nano: wanda regressed (missing)",
    ]
    assert all(issue["labels"] == ["nightly-regression"] for issue in opened)
    assert "actions/runs/7" in opened[1]["body"] and "kl\\_to\\_dense" in opened[1]["body"]
    assert "against studies/nightly" in opened[1]["body"]
    assert hub.tokens == {f"Bearer {TOKEN}"} and TOKEN not in json.dumps(hub.issues)
    again = run(hub, tmp_path, found)
    assert again.stdout.count("says it already") == 4 and len(hub.issues) == 124 and not hub.comments
    worse = {"figures": [comparison("sparsegpt", "perplexity", new=3.0)]}
    later = run(hub, tmp_path, worse, GITHUB_RUN_ID="8")
    assert later.stdout == "updated issue 122: Nightly nano: sparsegpt regressed (quality)\n"
    assert "actions/runs/8" in hub.issues[121]["body"] and [number for number, _ in hub.comments] == [122]
    hub.issues[121]["state"] = "closed"
    assert "opened issue 125" in run(hub, tmp_path, worse).stdout


def test_grids_have_issues_of_their_own_which_a_green_night_closes(hub: Hub, tmp_path: Path) -> None:
    found = {"figures": [comparison("sparsegpt", "perplexity")]}
    for grid in ("nano", "smollm2"):
        assert "opened issue" in run(hub, tmp_path, found, grid=grid).stdout
    assert [issue["title"].split(":")[0] for issue in hub.issues] == ["Nightly nano", "Nightly smollm2"]
    assert run(hub, tmp_path, None, "skipped", "gpu").stdout == ""
    green = {"figures": [comparison("sparsegpt", "perplexity", verdict="unchanged")], "missing": []}
    assert run(hub, tmp_path, green, "success").stdout == "closed issue 1: nano is green\n"
    assert [issue["state"] for issue in hub.issues] == ["closed", "open"]
    assert hub.comments == [(1, "Gone in https://github.com/us/bench/actions/runs/7.")]
    assert run(hub, tmp_path, green, "success").stdout == "nano: no regression, no issue\n"


@pytest.mark.parametrize("left", [None, "", "no json", {"figures": [], "missing": []}])
def test_a_job_that_ends_badly_without_a_regression_has_an_issue(left: Any, hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, left)
    assert (done.returncode, len(hub.issues)) == (0, 1), done.stderr
    assert hub.issues[0]["title"] == "Nightly nano: the job ended badly without a regression"
    assert "ended as failure" in hub.issues[0]["body"] and "actions/runs/7" in hub.issues[0]["body"]
    assert "updated issue 1" in run(hub, tmp_path, left, "cancelled", GITHUB_RUN_ID="8").stdout
    assert "closed issue 1" in run(hub, tmp_path, {"figures": []}, "success").stdout


def test_hostile_names_are_text_in_the_issue(hub: Hub, tmp_path: Path) -> None:
    name = "a|b <img src=x onerror=alert(1)> @team [l](http://z)\n# `x` \u202e"
    assert run(hub, tmp_path, {"figures": [comparison(name, name, reason=name)]}).returncode == 0
    body, title = hub.issues[0]["body"], hub.issues[0]["title"]
    rows = [line for line in body.splitlines() if line.startswith("| nano-opt")]
    assert len(rows) == 1 and "<img" not in body and "@team" not in body and "http://z" not in body
    assert "\n" not in title and "\u202e" not in title + body


def test_what_goes_wrong_is_one_line_without_the_token(hub: Hub, tmp_path: Path) -> None:
    found = {"figures": [comparison("sparsegpt", "perplexity")]}
    hub.status = 403
    refused = run(hub, tmp_path, found)
    assert refused.returncode == 1 and "GitHub answered 403" in refused.stderr
    assert run(hub, tmp_path, found, GITHUB_API_URL="http://127.0.0.1:9").returncode == 1
    for done in (
        run(hub, tmp_path, found, GITHUB_API_URL="http://example.org"),
        run(hub, tmp_path, found, GITHUB_TOKEN=""),
        run(hub, tmp_path, found, GITHUB_REPOSITORY="us/bench/../x"),
        run(hub, tmp_path, found, "broken"),
        run(hub, tmp_path, found, grid="Nano!"),
    ):
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
